"""Weights under TransformerLens' names: live views in its shapes, whole assignments, stacks, and tying."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from encoderlens import HookedEncoder
from encoderlens.errors import WeightsError
from tests.parity import assert_changed, assert_close
from tests.tiny import tiny_hf

TOKENS = torch.tensor([[5, 9, 17, 30, 2]])
Getter = Callable[[HookedEncoder], nn.Module]

VIEWS: list[tuple[str, Getter, str, list[int]]] = [
    ("embed", lambda m: m.embed.embed, "W_E", [188, 40]),
    ("pos_embed", lambda m: m.embed.pos_embed, "W_pos", [37, 40]),
    ("token_type_embed", lambda m: m.embed.token_type_embed, "W_token_type", [2, 40]),
    *[("attn", lambda m: m.blocks[1].attn, name, [5, 40, 8]) for name in ("W_Q", "W_K", "W_V")],
    ("attn", lambda m: m.blocks[1].attn, "W_O", [5, 8, 40]),
    *[("attn", lambda m: m.blocks[1].attn, name, [5, 8]) for name in ("b_Q", "b_V")],
    ("attn", lambda m: m.blocks[1].attn, "b_O", [40]),
    ("mlp", lambda m: m.blocks[1].mlp, "W_in", [40, 52]),
    ("mlp", lambda m: m.blocks[1].mlp, "b_in", [52]),
    ("mlp", lambda m: m.blocks[1].mlp, "W_out", [52, 40]),
    ("mlp", lambda m: m.blocks[1].mlp, "b_out", [40]),
    ("mlm_head", lambda m: m.mlm_head, "W", [40, 40]),
    ("mlm_head", lambda m: m.mlm_head, "b", [40]),
    ("unembed", lambda m: m.unembed, "W_U", [40, 188]),
    ("unembed", lambda m: m.unembed, "b_U", [188]),
    ("pooler", lambda m: m.pooler, "W", [40, 40]),
    ("pooler", lambda m: m.pooler, "b", [40]),
    ("nsp_head", lambda m: m.nsp_head, "W", [40, 2]),
    ("nsp_head", lambda m: m.nsp_head, "b", [2]),
]
every_view = pytest.mark.parametrize(
    ("get", "name", "shape"), [view[1:] for view in VIEWS], ids=[f"{where}.{name}" for where, _, name, _ in VIEWS]
)


@pytest.fixture
def model(bert: HookedEncoder) -> HookedEncoder:
    """One of its own, to be edited."""
    return copy.deepcopy(bert)


def outputs(model: HookedEncoder) -> Tensor:
    with torch.no_grad():
        types = torch.tensor([[0, 0, 0, 1, 1]])
        return torch.cat([model(TOKENS, token_type_ids=types).flatten(), model.next_sentence(TOKENS, token_type_ids=types)[0]])


@every_view
def test_views_are_live_and_have_the_shapes_of_transformer_lens(get: Getter, name: str, shape: list[int], model: HookedEncoder):
    module, before = get(model), outputs(model)
    view = getattr(module, name)
    assert list(view.shape) == shape
    with torch.no_grad():
        view += torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert_changed(outputs(model), before)
    assert torch.equal(getattr(module, name), view)


def test_key_biases_are_live_though_the_softmax_cancels_them(model: HookedEncoder):
    with torch.no_grad():
        model.blocks[1].attn.b_K[2] = 7
    assert torch.equal(model.blocks[1].attn.k.bias[16:24], torch.full((8,), 7.0))


def test_one_head_is_edited_alone(model: HookedEncoder):
    before = model.blocks[0].attn.q.weight.clone()
    with torch.no_grad():
        model.blocks[0].attn.W_Q[3] = 0
    after = model.blocks[0].attn.q.weight
    assert not after[24:32].any()
    assert torch.equal(after[:24], before[:24])
    assert torch.equal(after[32:], before[32:])


@every_view
@pytest.mark.parametrize("wrap", [torch.Tensor, nn.Parameter], ids=["tensor", "parameter"])
def test_assigning_copies_into_the_parameter(wrap: Any, get: Getter, name: str, shape: list[int], model: HookedEncoder):
    module = get(model)
    parameters = {key: id(value) for key, value in model.named_parameters()}
    before, value = outputs(model), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    setattr(module, name, wrap(value.clone()))
    assert torch.equal(getattr(module, name), value)
    assert_changed(outputs(model), before)
    assert {key: id(parameter) for key, parameter in model.named_parameters()} == parameters, "no parameter may be replaced"
    assert name not in module._parameters


@every_view
def test_assigning_the_wrong_shape(get: Getter, name: str, shape: list[int], model: HookedEncoder):
    wrong = torch.zeros(*shape[::-1], 1)
    for value in (wrong, nn.Parameter(wrong)):
        with pytest.raises(WeightsError) as caught:
            setattr(get(model), name, value)
        assert str(caught.value) == f"{name} has shape {shape}; {list(wrong.shape)} cannot be assigned to it"


def test_assigning_what_is_no_tensor(model: HookedEncoder, unchecked: None):
    with pytest.raises(WeightsError, match=r"W_Q has shape \[5, 40, 8\]; float cannot be assigned to it"):
        model.blocks[0].attn.W_Q = 0.0


def test_assigning_converts_to_the_models_dtype(model: HookedEncoder):
    model.half()
    model.blocks[0].mlp.W_in = torch.ones(40, 52, dtype=torch.float64)
    assert model.blocks[0].mlp.input.weight.dtype == torch.float16
    assert (model.blocks[0].mlp.input.weight == 1).all()


def test_editing_a_leaf_in_place_needs_no_grad(model: HookedEncoder):
    with pytest.raises(RuntimeError, match=r"leaf Variable|view of a leaf"):
        model.blocks[0].attn.W_Q[0] = 0


def test_views_carry_gradients(model: HookedEncoder):
    model.blocks[0].attn.W_Q.square().sum().backward()
    weight = model.blocks[0].attn.q.weight
    assert_close(weight.grad, 2 * weight)


@pytest.mark.parametrize("name", ["W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O", "W_in", "W_out", "b_in", "b_out"])
def test_stacks_are_differentiable_copies(name: str, model: HookedEncoder):
    stack = getattr(model, name)
    part = [getattr(block.attn if hasattr(block.attn, name) else block.mlp, name) for block in model.blocks]
    assert torch.equal(stack, torch.stack(part))
    with torch.no_grad():
        stack.zero_()
    assert all(value.abs().sum() > 0 for value in part), "a stack is a copy"
    getattr(model, name)[1].sum().backward()
    (touched,) = {key.split(".")[1] for key, value in model.named_parameters() if value.grad is not None and value.grad.any()}
    assert touched == "1"


def test_stacks_cannot_be_assigned(model: HookedEncoder):
    with pytest.raises(AttributeError, match="W_Q"):
        model.W_Q = torch.zeros(3, 5, 40, 8)


def test_circuits_are_products_of_the_views(model: HookedEncoder):
    attn = model.blocks[2].attn
    assert_close(model.QK[2, 3].AB, attn.W_Q[3] @ attn.W_K[3].T)
    assert_close(model.OV[2, 3].AB, attn.W_V[3] @ attn.W_O[3])


MOVES: dict[str, Callable[[HookedEncoder], HookedEncoder]] = {
    "as loaded": lambda model: model,
    "to(dtype)": lambda model: model.to(torch.float64, print_details=False),
    "half": lambda model: model.half(),
    "cpu": lambda model: model.cpu(),
    "deepcopy": copy.deepcopy,
    "deepcopy of half": lambda model: copy.deepcopy(model.half()),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_tied_weights_are_one_parameter_and_stay_so(move: Callable, model: HookedEncoder):
    moved = move(model)
    assert moved.unembed.weight is moved.embed.embed.weight
    with torch.no_grad():
        moved.W_U[:, 3] = 5
    assert (moved.W_E[3] == 5).all()
    names = [name for name, _ in moved.named_parameters()]
    assert "embed.embed.weight" in names
    assert "unembed.weight" not in names


def test_a_copy_has_weights_of_its_own(model: HookedEncoder):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.W_E.zero_()
    assert model.W_E.abs().sum() > 0
    assert other.cfg.device == model.cfg.device
    other.half()
    assert model.cfg.dtype == torch.float32, "the copy's cfg reads the copy"
    assert other.cfg.dtype == torch.float16


def test_untied_weights_stay_apart():
    model = HookedEncoder.from_pretrained(hf_model=tiny_hf("BertForMaskedLM", tie_word_embeddings=False), device="cpu")
    with torch.no_grad():
        model.W_U.zero_()
    assert model.W_E.abs().sum() > 0


def test_state_dict_goes_back_in(model: HookedEncoder, bert: HookedEncoder):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.load_state_dict(bert.state_dict())
    assert torch.equal(outputs(model), outputs(bert))
