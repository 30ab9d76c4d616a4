"""Parametrised and pruned layers: everything reads the weights that they compute with.

The oracle is a model without any of it, whose plain parameters hold what torch says that these weights are.
"""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from encoderlens import HookedAudioEncoder, HookedEncoder
from encoderlens.analysis import direct_logit_attribution
from encoderlens.components.linear import WeightView
from encoderlens.errors import AnalysisError, WeightsError
from tests.additive import arguments
from tests.checkpoints import assert_same_tensors
from tests.parity import assert_changed, assert_close, assert_gradient_parity, assert_parity
from tests.speech import snippets, tiny_speech
from tests.text_families import new_text_model, text_batch

Model = HookedEncoder | HookedAudioEncoder


class Scaled(nn.Module):
    """A parametrization of any weight."""

    def forward(self, weight: Tensor) -> Tensor:
        return 0.9 * weight + 0.01


class LowRank(nn.Module):
    """What LoRA adds to a matrix (Hu et al. 2022)."""

    def __init__(self, d_out: int, d_in: int, rank: int = 2) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(d_out + d_in)
        self.a = nn.Parameter(torch.randn(rank, d_in, generator=generator))
        self.b = nn.Parameter(torch.randn(d_out, rank, generator=generator) / 8)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.b @ self.a


MODELS: dict[str, Callable[[], Model]] = {
    "post-LN": lambda: new_text_model("BertForPreTraining"),
    "gated, rotary": lambda: new_text_model("ModernBertForMaskedLM", "every bias, untied, silu"),
    "grouped keys": lambda: new_text_model("EuroBertForMaskedLM"),
    "disentangled": lambda: new_text_model("DebertaV2ForMaskedLM", "convolution"),
    "shared layers, factorised": lambda: new_text_model("AlbertForMaskedLM"),
    "contacts": lambda: new_text_model("EsmForMaskedLM"),
    "speech": lambda: tiny_speech("HubertForSequenceClassification"),
    "speech, batch norm": lambda: tiny_speech("HubertForCTC", "no projection norm, batch norm, summed layers"),
}


def parameters(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Every parameter, by its module and its name there; once for each module that has it."""
    return [(part, name) for part in model.modules() for name, value in part._parameters.items() if value is not None]


def parametrise(model: nn.Module) -> None:
    for module, name in parameters(model):
        parametrize.register_parametrization(module, name, Scaled())


def prune_and_train(model: nn.Module) -> None:
    """Pruned, and then trained: a step changes what pruned weights are made of, and nothing runs after it."""
    for module, name in parameters(model):
        prune.custom_from_mask(module, name, mask_of(getattr(module, name)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)


def mask_of(weight: Tensor) -> Tensor:
    return torch.rand(weight.shape, generator=torch.Generator().manual_seed(weight.numel())) > 0.2


# How weights are made of others, and what they then are.
MADE_OF_OTHERS: dict[str, tuple[Callable[[nn.Module], None], Callable[[Tensor], Tensor]]] = {
    "parametrised": (parametrise, Scaled()),
    "pruned": (prune_and_train, lambda weight: mask_of(weight) * (1.1 * weight)),
}
PAIRS = [(name, "pruned" if name in ("post-LN", "speech") else "parametrised") for name in MODELS if name != "grouped keys"]


@pytest.fixture(scope="module", params=PAIRS, ids=" ".join)
def pair(request: pytest.FixtureRequest) -> tuple[Model, Model]:
    """A model all of whose weights are made of others, and one with the same weights as parameters; no test changes them."""
    name, kind = request.param
    model, plain = MODELS[name](), MODELS[name]()
    make, value = MADE_OF_OTHERS[kind]
    make(model)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.copy_(value(parameter))
    return model, plain


def inputs(model: Model) -> dict[str, Any]:
    if isinstance(model, HookedAudioEncoder):
        return {"inputs": snippets(), "padding": "independent"}
    return arguments(text_batch(model))


def views(model: Model) -> dict[str, Tensor]:
    """Everything that has TransformerLens' names: of modules, and of the model."""
    found = {
        f"{path}.{name}": getattr(module, name)
        for path, module in model.named_modules()
        for kind in type(module).__mro__
        for name, view in vars(kind).items()
        if isinstance(view, WeightView)
    }
    found |= {
        name: getattr(model, name) for name in ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out", "b_Q", "b_O", "b_in", "b_out")
    }
    found["OV"] = model.OV.AB
    if not any(hasattr(block.attn, "QK_at") for block in model.blocks):
        found["QK"] = model.QK.AB
    if isinstance(model, HookedEncoder):
        found |= {name: getattr(model, name) for name in ("W_E", "W_U") if "masked_lm" in model.heads or name != "W_U"}
    return found


def test_every_view_and_stack_reads_what_layers_compute_with(pair: tuple[Model, Model]) -> None:
    model, plain = pair
    ours, theirs = views(model), views(plain)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@torch.no_grad()
def test_runs_and_what_they_are_made_of(pair: tuple[Model, Model]) -> None:
    model, plain = pair
    given = inputs(plain)
    ours, cache = model.run_with_cache(**given)
    theirs, expected = plain.run_with_cache(**given)
    assert_close(ours, theirs)
    rows, wanted = (one.get_full_resid_decomposition(expand_neurons=False, apply_ln=True) for one in (cache, expected))
    assert_close(rows, wanted)
    assert_close(cache.get_neuron_results(1, pos_slice=0), expected.get_neuron_results(1, pos_slice=0))
    head = model.task_head()
    if head.layer_sum is None:
        assert_close(cache.logit_attrs(rows, 1), expected.logit_attrs(wanted, 1))
        assert_close(cache.logit_constant(1), expected.logit_constant(1))


@torch.no_grad()
def test_runs_that_read_weights_on_their_own(pair: tuple[Model, Model]) -> None:
    """Attention computes with its weights itself where inputs or results are split by head."""
    model, plain = pair
    hooked = [(f"blocks.0.{name}", lambda tensor, hook: tensor * 1.01) for name in ("hook_q_input", "attn.hook_result")]
    ours, theirs = (one.run_with_hooks(**inputs(one), fwd_hooks=hooked) for one in (model, plain))
    assert_close(ours, theirs)
    if model.cfg.contacts is not None:
        given = inputs(plain)
        assert_close(model.contacts(**given), plain.contacts(**given))


def test_attributions(pair: tuple[Model, Model]) -> None:
    model, plain = pair
    given = model.prepare(**inputs(plain))
    position = 0 if model.task_head().per_position else None
    ours, theirs = (direct_logit_attribution(one, given, [1] * 3, position) for one in (model, plain))
    assert_close(ours.values, theirs.values)


def test_the_way_back_to_hugging_face(pair: tuple[Model, Model]) -> None:
    model, plain = pair
    assert_same_tensors(model.to_hf().state_dict(), plain.to_hf().state_dict())


@pytest.mark.parametrize("name", ["post-LN", "speech"])
def test_gradients_flow_through_views_to_what_weights_are_made_of(name: str) -> None:
    model = MODELS[name]()
    twin = copy.deepcopy(model)
    parametrise(model)
    model.blocks[0].attn.W_Q.square().sum().backward()
    twin.blocks[0].attn.W_Q.data.mul_(0.9).add_(0.01)
    twin.blocks[0].attn.W_Q.square().sum().backward()
    original = model.blocks[0].attn.q.parametrizations["weight"].original
    assert_close(original.grad, 0.9 * twin.blocks[0].attn.q.weight.grad)


@pytest.mark.parametrize("name", ["post-LN", "speech"])
def test_pruned_weights_are_those_of_now_after_a_cast(name: str) -> None:
    model = MODELS[name]()
    prune_and_train(model)
    model.double()
    assert {view.dtype for view in views(model).values()} == {torch.float64}
    assert next(model.to_hf().parameters()).dtype == torch.float64


def old_weight_norm(layer: nn.Module) -> None:
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(layer)


WAYS: dict[str, Callable[[nn.Module], Any]] = {
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
    "pruned twice": lambda layer: [prune.random_unstructured(layer, "weight", 0.2) for _ in range(2)],
    "parametrised": lambda layer: parametrize.register_parametrization(layer, "weight", Scaled()),
    "LoRA": lambda layer: parametrize.register_parametrization(layer, "weight", LowRank(*layer.weight.shape)),
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old weight norm": old_weight_norm,
    "old spectral norm": torch.nn.utils.spectral_norm,
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_torch_to_make_a_weight_of_others(way: str) -> None:
    """One layer; the weight that it computes with is seen in its output for the identity."""
    model = MODELS["post-LN"]()
    layer, before = model.blocks[1].attn.q, model.blocks[1].attn.q.weight.detach().clone()
    torch.manual_seed(0)
    WAYS[way](layer)
    model.eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(1.3)
        weight = (layer(torch.eye(40)) - layer.bias).T
    assert_changed(weight, before)
    assert_close(model.blocks[1].attn.W_Q.transpose(1, 2).flatten(0, 1).detach(), weight)
    assert_close(model.to_hf().bert.encoder.layer[1].attention.self.query.weight.detach(), weight)
    assert "blocks.1.attn.q.weight" not in dict(model.named_parameters())


# Writing


EDITS: dict[str, Callable[[Any], Any]] = {
    "an item": lambda attn: attn.W_Q.__setitem__(0, 0.0),
    "an item of an item": lambda attn: attn.W_Q[1].__setitem__(0, 0.0),
    "in place": lambda attn: attn.W_Q.mul_(2),
    "in place, transposed": lambda attn: attn.W_Q.mT.add_(1),
    "detached": lambda attn: attn.W_Q.detach().zero_(),
    "as data": lambda attn: attn.W_Q.data.__setitem__(0, 0.0),
    "by initialising": lambda attn: nn.init.normal_(attn.W_Q),
    "a head at a time": lambda attn: [head.zero_() for head in attn.W_Q],
    "a piece": lambda attn: attn.W_Q.split(2)[1].zero_(),
    "a chunk's row": lambda attn: torch.chunk(attn.W_Q, 2)[0][0].zero_(),
    "as out": lambda attn: torch.mul(attn.W_K, 2, out=attn.W_Q),
    "in a list": lambda attn: torch._foreach_mul_([attn.W_K, attn.W_Q], 2),
    "activation": lambda attn: nn.functional.relu(attn.W_Q, inplace=True),
    "dropout": lambda attn: nn.functional.dropout(attn.W_Q, 0.5, True, True),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("way", ["pruned", "parametrised"])
def test_an_edit_that_would_be_lost_is_refused(way: str, edit: str) -> None:
    model = MODELS["post-LN"]()
    WAYS[way](model.blocks[0].attn.q)
    message = r"W_Q \(q\.weight\) is parametrised or pruned, .* would be lost\. Edit these, or make"
    for context in (torch.no_grad, torch.inference_mode):
        with context(), pytest.raises(WeightsError, match=message):
            EDITS[edit](model.blocks[0].attn)
    with pytest.raises(WeightsError, match=r"W_Q cannot be assigned: q\.weight is parametrised or pruned, .*prune\.remove"):
        model.blocks[0].attn.W_Q = torch.zeros(5, 40, 8)
    with torch.no_grad():
        model.blocks[0].attn.W_K[0] = 0.0
        model.blocks[0].attn.q.bias.zero_()
        model.blocks[0].attn.b_Q = torch.ones(5, 8)
    assert model.blocks[0].attn.q.bias.sum() == 40


def test_what_is_computed_from_such_a_weight_is_an_ordinary_tensor() -> None:
    model = MODELS["post-LN"]()
    WAYS["parametrised"](model.blocks[0].attn.q)
    attn = model.blocks[0].attn
    made = (attn.W_Q + 1, attn.W_Q[0] @ attn.W_K[0].mT, attn.W_Q.clone(), torch.stack([attn.W_Q]), model.W_Q, model.QK.AB)
    assert {type(tensor) for tensor in made} == {Tensor}
    with torch.no_grad():
        attn.W_Q.clone().zero_()
        torch.zeros(5, 40, 8).copy_(attn.W_Q)


def test_copies_of_such_a_weight_and_its_text() -> None:
    model = MODELS["post-LN"]()
    WAYS["parametrised"](model.blocks[0].attn.q)
    weight = model.blocks[0].attn.W_Q
    for twin in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight.detach()))):
        assert type(twin) is Tensor
        assert torch.equal(twin, weight)
    assert f"{weight[0, 0, 0]:.3f}" == f"{weight[0, 0, 0].item():.3f}"


def test_a_refused_edit_has_not_reached_what_a_weight_is_made_of() -> None:
    model = MODELS["post-LN"]()
    before = model.W_Q.clone()
    parametrize.register_parametrization(model.blocks[0].attn.q, "weight", nn.Identity())
    with torch.no_grad(), pytest.raises(WeightsError, match="would be lost"):
        model.blocks[0].attn.W_Q.zero_()
    assert torch.equal(model.W_Q, before)


def test_random_weights_and_checkpoints_need_parameters() -> None:
    model = MODELS["post-LN"]()
    WAYS["pruned"](model.blocks[0].attn.q)
    with pytest.raises(WeightsError, match=r"blocks\.0\.attn\.q\.weight is parametrised or pruned"):
        model.initialise(0)


def test_the_base_model_of_a_speech_encoder_cannot_share_what_is_no_parameter() -> None:
    model = MODELS["speech"]()
    parametrizations.weight_norm(model.classifier.dense)
    assert model.hubert_model is not None, "heads are no part of it"
    WAYS["pruned"](model.blocks[1].attn.q)
    with pytest.raises(WeightsError, match=r"blocks\.1\.attn\.q\.weight: parametrised or pruned, .* Take to_hf\(\)"):
        _ = model.hubert_model
    assert model.to_hf() is not None


# Modules in the place of layers


class Wrapped(nn.Module):
    """A layer and something beside it, as some LoRA packages have it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.layer(x)


def test_a_module_that_hides_its_weights_is_named() -> None:
    model = MODELS["post-LN"]()
    model.blocks[1].attn.q = Wrapped(model.blocks[1].attn.q)
    with pytest.raises(WeightsError, match=r"q of Attention is a Wrapped with a forward function of its own"):
        _ = model.W_Q
    with pytest.raises(WeightsError, match=r"the model has no blocks\.1\.attn\.q\.weight, blocks\.1\.attn\.q\.bias any more"):
        model.to_hf()


class LowRankLinear(nn.Linear):
    """LoRA as a layer of its own, whose weight is that of the layer in whose place it stands."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(*reversed(layer.weight.shape))
        self.weight, self.bias = layer.weight, layer.bias
        self.low_rank = LowRank(*layer.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ (self.low_rank.b @ self.low_rank.a).mT


READS: dict[str, Callable[[Model], Any]] = {
    "a view": lambda model: model.blocks[1].attn.W_O,
    "a stack": lambda model: model.OV,
    "head results": lambda model: hooked(model, "blocks.1.attn.hook_result"),
    "a stream a head": lambda model: hooked(model, "blocks.1.hook_q_input"),
    "a decomposition": lambda model: model.run_with_cache(**inputs(model))[1].stack_head_results(),
    "an attribution": lambda model: attributed(model),
    "the way back": lambda model: model.to_hf(),
}


def hooked(model: Model, name: str) -> None:
    with model.hooks([(name, lambda tensor, hook: tensor)]):
        model(**inputs(model))


def attributed(model: Model) -> Any:
    return direct_logit_attribution(model, model.prepare(**inputs(model)), [1] * 3, 0)


@pytest.mark.parametrize("read", READS)
def test_a_layer_that_adds_to_its_weight_is_refused_wherever_that_is_read(read: str) -> None:
    model = MODELS["post-LN"]()
    attn = model.blocks[1].attn
    attn.q, attn.o = LowRankLinear(attn.q), LowRankLinear(attn.o)
    model.eval()
    message = r"is a LowRankLinear with a forward function of its own .*: merge .* or make it a parametrization"
    with pytest.raises(WeightsError, match=message):
        READS[read](model)


def test_a_forward_function_of_one_layer_alone() -> None:
    model = MODELS["post-LN"]()
    layer = model.blocks[1].attn.o
    layer.forward = lambda x: 2 * nn.functional.linear(x, layer.weight, layer.bias)
    with pytest.raises(WeightsError, match=r"o of Attention is a Linear with a forward function of its own"):
        _ = model.W_O
    with pytest.raises(WeightsError, match=r"blocks\.1\.attn\.o is a Linear with a forward"):
        model.to_hf()


def test_a_plain_layer_of_torch_is_as_good() -> None:
    model, plain = MODELS["post-LN"](), MODELS["post-LN"]()
    layer = nn.Linear(40, 40).eval()
    layer.weight, layer.bias = model.blocks[1].attn.o.weight, model.blocks[1].attn.o.bias
    model.blocks[1].attn.o = layer
    assert_same_tensors(model.to_hf().state_dict(), plain.to_hf().state_dict())
    assert_close(attributed(model).values, attributed(plain).values)


def test_a_parameter_of_a_layer_that_no_checkpoint_has_is_named() -> None:
    model = MODELS["post-LN"]()
    model.probe = nn.Linear(40, 2)
    assert model.to_hf() is not None, "it stands beside the model"
    model.blocks[1].attn.q.low_rank = LowRank(40, 40)
    with pytest.raises(WeightsError, match=r"blocks\.1\.attn\.q\.low_rank\.a is no weight of this family"):
        model.to_hf()


@pytest.mark.parametrize("read", ["head results", "a decomposition", "an attribution"])
@pytest.mark.parametrize("where", ["blocks.1.attn.o", "blocks.1.attn"])
def test_a_forward_hook_of_torch_is_refused_where_weights_stand_for_the_layer(where: str, read: str) -> None:
    model = MODELS["post-LN"]()
    handle = model.get_submodule(where).register_forward_hook(lambda module, given, output: 2 * output)
    if (where, read) != ("blocks.1.attn", "head results"):  # there it acts as it does in every run
        with pytest.raises(AnalysisError, match=r"a forward hook of torch is on .*blocks\.1\.attn.*: take it off"):
            READS[read](model)
    model.get_submodule("blocks.1.attn.q").register_forward_hook(lambda module, given, output: 2 * output)
    handle.remove()
    attributed(model)


def test_a_cache_of_a_run_with_a_hook_of_torch_is_not_taken_apart() -> None:
    model = MODELS["post-LN"]()
    handle = model.blocks[1].register_forward_hook(lambda module, given, output: 2 * output)
    cache = model.run_with_cache(**inputs(model))[1]
    handle.remove()
    with pytest.raises(AnalysisError, match=r"a forward hook of torch is on blocks\.1, .* run the model again"):
        cache.decompose_resid()
    cache.decompose_resid(1)


def test_wrapped_parts_give_their_weights() -> None:
    model, plain = MODELS["post-LN"](), MODELS["post-LN"]()
    model.blocks[0].mlp = nn.DataParallel(model.blocks[0].mlp)
    assert_same_tensors(model.to_hf().state_dict(), plain.to_hf().state_dict())


# Other people's parameters


@pytest.mark.parametrize("name", ["post-LN", "grouped keys", "speech"])
def test_functional_call_takes_its_parameters_everywhere(name: str) -> None:
    model, other = MODELS[name](), MODELS[name]()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    given = {key: parameter.detach().clone().requires_grad_() for key, parameter in other.named_parameters()}
    names = ("blocks.0.hook_k_input", "blocks.1.attn.hook_result")
    with model.hooks([(names, lambda tensor, hook: tensor)]):
        output = torch.func.functional_call(model, given, (), inputs(model))
    expected = other(**inputs(other))
    assert_parity(output.detach(), expected.detach())
    output.square().mean().backward()
    expected.square().mean().backward()
    theirs = {key: parameter.grad for key, parameter in other.named_parameters() if parameter.grad is not None}
    assert_gradient_parity({key: given[key].grad for key in theirs}, theirs)
