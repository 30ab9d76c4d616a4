"""State dicts: what is one parameter stays one, TransformerLens' names, and names that wrappers have added to."""

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from encoderlens import HookedAudioEncoder, HookedEncoder
from encoderlens.errors import WeightsError
from encoderlens.families import transformer_lens
from encoderlens.weights import invert
from tests.checkpoints import assert_same_parameters, assert_same_tensors
from tests.parity import assert_close
from tests.speech import snippets, tiny_speech
from tests.text_families import ENCODERS, new_text_model, text_batch

Model = HookedEncoder | HookedAudioEncoder
# A class of each way to share parameters, with two names of one of them.
SHARING = {
    "tied embeddings": ("BertForPreTraining", "embed.embed.weight", "unembed.weight"),
    "layers": ("AlbertModel", "blocks.0.attn.q.weight", "blocks.2.attn.q.weight"),
    "distances": ("DebertaV2Model", "relative.weight", "blocks.1.attn.relative.weight"),
    "a relative bias": ("MPNetModel", "relative.weight", "blocks.1.attn.relative.weight"),
    "frequencies": ("EsmModel", "relative.frequencies", "blocks.2.attn.relative.frequencies"),
}
every_sharing = pytest.mark.parametrize("sharing", SHARING)


@functools.cache
def source_of(name: str) -> Model:
    """A model that no test changes: one that shares, or one of TransformerLens' two kinds."""
    if name == "speech":
        return tiny_speech("HubertModel")
    return new_text_model("BertForPreTraining" if name == "text" else SHARING[name][0])


def made(name: str) -> Model:
    """The same, of a test's own."""
    return copy.deepcopy(source_of(name))


def cloned(model: nn.Module) -> dict[str, Tensor]:
    """A state dict whose tensors are its own, as one that was saved and loaded."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def randomised(model: Model) -> Model:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3)
    return model


# What is one parameter


@every_sharing
def test_what_is_one_parameter_stays_one(sharing: str) -> None:
    source = source_of(sharing)
    for assign in (False, True):
        model = randomised(made(sharing))
        loaded = model.load_state_dict(cloned(source), assign=assign)
        assert (loaded.missing_keys, loaded.unexpected_keys) == ([], [])
        assert_same_parameters(model, source)
    assert_same_tensors(model.to_hf().state_dict(), source.to_hf().state_dict())


@every_sharing
def test_different_tensors_for_one_parameter_are_refused_before_anything_is_loaded(sharing: str) -> None:
    _, one, other = SHARING[sharing]
    model, state = made(sharing), cloned(randomised(made(sharing)))
    state[other] = state[other] + 1
    message = rf"{one} and {other} are one parameter of this model, and the state dict holds different tensors for them"
    for options in ({}, {"strict": False}, {"assign": True}, {"strict": False, "assign": True}):
        with pytest.raises(WeightsError, match=message.replace(".", r"\.")):
            model.load_state_dict(state, **options)
    assert_same_parameters(model, source_of(sharing))


@every_sharing
def test_one_of_its_names_is_enough(sharing: str) -> None:
    """Files leave out what is there under another name."""
    _, one, other = SHARING[sharing]
    source, model = source_of(sharing), randomised(made(sharing))
    for left_out in (one, other):
        state = cloned(source)
        del state[left_out]
        model.load_state_dict(state, assign=left_out == one)
        assert_same_parameters(model, source)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda model: 5, "a dictionary of names and tensors, as .*, not an int"),
        (lambda model: list(cloned(model).items()), "not a list"),
        (lambda model: {5: torch.ones(1)}, "not a dict with other keys than names"),
        (lambda model: {"embed.embed.weight": [1.0]}, r"embed\.embed\.weight is a list, not a tensor"),
        (lambda model: {name: tensor.to("meta") for name, tensor in cloned(model).items()}, "is on the meta device"),
        (lambda model: {"embed.embed.weight": model.W_E.detach().to_sparse()}, "is a sparse tensor; .*to_dense"),
        (lambda model: model.to_hf().state_dict(), r"are names of Hugging Face: .* HookedEncoder\.from_pretrained\(hf_model=…"),
        (lambda model: model.to_hf().bert.state_dict(), "are names of Hugging Face"),
        (lambda model: {f"model.{name}": tensor for name, tensor in cloned(model).items()}, "behind 'model': take it off"),
        (lambda model: {"model.blocks.0.attn.W_Q": model.W_Q[0]}, r"behind 'model': .*from_transformer_lens_state_dict"),
        (lambda model: {"something.weight": torch.ones(1)}, r"no name of this model: it has something\.weight"),
    ],
)
def test_what_is_no_state_dict_of_the_model(given: Any, message: str) -> None:
    model = source_of("text")
    for strict in (True, False):
        with pytest.raises(WeightsError, match=message):
            model.load_state_dict(given(model), strict=strict)


def test_a_state_dict_with_nan_goes_back_in() -> None:
    model = made("tied embeddings")
    with torch.no_grad():
        model.W_E[3, 5] = torch.nan
    model.load_state_dict(cloned(model))
    assert model.W_U[5, 3].isnan()


def test_weights_that_were_taken_apart_stay_apart() -> None:
    """On purpose: an unembedding with weights of its own, to be trained."""
    model = made("tied embeddings")
    model.unembed.weight = nn.Parameter(model.unembed.weight + 1)
    state = cloned(model)
    for assign in (False, True):
        randomised(model).load_state_dict(state, assign=assign)
        assert_same_tensors(model.state_dict(), state)
    assert model.unembed.weight is not model.embed.embed.weight


TIED = {name: "every bias, tied, gelu" if name == ENCODERS["eurobert"] else "plain" for name in ENCODERS.values()}


@torch.no_grad()
@pytest.mark.parametrize("hf_class", TIED)
def test_an_unembedding_that_has_become_another_is_given_back_untied(hf_class: str, caplog: pytest.LogCaptureFixture) -> None:
    model = new_text_model(hf_class, TIED[hf_class])
    assert model.unembed.weight is model.embed.embed.weight
    model.unembed.weight = nn.Parameter(model.unembed.weight.flip(0))
    back = model.to_hf()
    assert "embed.embed.weight and unembed.weight differ, and are given back untied" in caplog.text
    assert back.config.tie_word_embeddings is False
    again = HookedEncoder.from_pretrained(hf_model=back, device="cpu")
    assert not again.cfg.tie_word_embeddings
    assert_same_tensors(again.state_dict(), model.state_dict())
    batch = text_batch(model)
    given = {"input_ids": batch["tokens"], "attention_mask": batch["mask"]}
    ours = model(batch["tokens"], "logits", one_zero_attention_mask=batch["mask"])
    assert_close(back(**given)[0][batch["mask"].bool()], ours[batch["mask"].bool()])


def test_equal_copies_go_to_hugging_face_as_one(caplog: pytest.LogCaptureFixture) -> None:
    model = made("tied embeddings")
    model.unembed.weight = nn.Parameter(model.unembed.weight.detach().clone())
    back = model.to_hf()
    assert back.cls.predictions.decoder.weight is back.bert.embeddings.word_embeddings.weight
    assert not caplog.messages


def replaced(model: Model, name: str) -> None:
    """Another parameter, or buffer, in its place."""
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    fresh = copy.deepcopy(module)
    with torch.no_grad():
        getattr(fresh, own).add_(1)
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, fresh)


@pytest.mark.parametrize("sharing", ["layers", "distances", "a relative bias", "frequencies"])
def test_what_hugging_face_holds_once_is_refused_where_copies_differ(sharing: str) -> None:
    _, one, other = SHARING[sharing]
    model = made(sharing)
    replaced(model, other)
    message = rf"{one} and {other} are one parameter in \w+Model, and differ here: make them one again".replace(".", r"\.")
    with pytest.raises(WeightsError, match=message):
        model.to_hf()


def test_a_head_that_has_no_unembedding_of_its_own_is_not_untied() -> None:
    model = new_text_model("DebertaV2ForMaskedLM", "decoder of the embeddings")
    model.unembed.weight = nn.Parameter(model.unembed.weight + 1)
    with pytest.raises(WeightsError, match="differ, and this DebertaV2ForMaskedLM has one tensor for both"):
        model.to_hf()


class Double(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_parametrising_one_of_two_tied_weights_takes_them_apart() -> None:
    tied, layers = made("tied embeddings"), made("layers")
    parametrize.register_parametrization(tied.unembed, "weight", Double())
    back = tied.to_hf()
    assert torch.equal(back.cls.predictions.decoder.weight, 2 * back.bert.embeddings.word_embeddings.weight)
    tied.load_state_dict(cloned(tied), assign=True)
    assert tied.unembed.parametrizations["weight"].original is tied.embed.embed.weight, "they are made of one parameter"
    parametrize.register_parametrization(layers.blocks[0].attn.q, "weight", Double())
    with pytest.raises(WeightsError, match=r"blocks\.0\.attn\.q\.weight and blocks\.1\.attn\.q\.weight are one parameter"):
        layers.to_hf()


@pytest.mark.parametrize("name", ["pooler", "unembed", "mlm_head", "nsp_head"])
def test_a_module_that_heads_run_is_not_replaced_behind_their_back(name: str) -> None:
    model = made("tied embeddings")
    with pytest.raises(WeightsError, match=rf"model\.{name} cannot be replaced: the \w+ head runs the module that is there"):
        setattr(model, name, copy.deepcopy(getattr(model, name)))
    setattr(model, name, getattr(model, name))


# TransformerLens' names


def lens_state(model: Model) -> dict[str, Tensor]:
    """The weights as TransformerLens' class would save them, its buffers included."""
    cfg = model.cfg
    n_convs = 0 if cfg.frontend is None else len(cfg.encoder.frontend.channels)
    rows = transformer_lens.rows(cfg.modality, cfg.n_layers, n_convs)
    state = {name: tensor.clone() for name, tensor in invert(rows, model, {"head": cfg.n_heads, "d_head": cfg.d_head}).items()}
    return state | {"blocks.0.attn.mask": torch.empty(0, 0), "blocks.0.attn.IGNORE": torch.tensor(-torch.inf)}


every_modality = pytest.mark.parametrize("modality", ["text", "speech"])


@every_modality
def test_a_state_dict_of_transformer_lens_is_loaded_whatever_strict_says(modality: str) -> None:
    source = source_of(modality)
    for strict in (True, False):
        model = randomised(made(modality))
        loaded = model.load_state_dict(lens_state(source), strict=strict)
        assert (loaded.missing_keys, loaded.unexpected_keys) == ([], [])
        assert_same_parameters(model, source)


def test_a_part_of_it_is_loaded_as_far_as_it_goes() -> None:
    source, model = source_of("text"), randomised(made("text"))
    part = {name: tensor for name, tensor in lens_state(source).items() if name.startswith("blocks.")}
    loaded = model.load_state_dict(part, strict=False)
    assert torch.equal(model.W_Q, source.W_Q)
    assert "embed.embed.weight" in loaded.missing_keys
    assert not [name for name in loaded.missing_keys if name.startswith("blocks.")]
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"embed\.embed\.weight\""):
        model.load_state_dict(part)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks.0.attn.W_O": torch.ones(8, 5, 40)}, r"W_O has shape \[8, 5, 40\], the configuration calls for \[5, 8, 40\]"),
        ({"unembed.W_U": torch.ones(40, 188)}, r"embed\.embed\.weight and unembed\.weight are one parameter of this model"),
        (
            {"blocks.0.attn.q.weight": torch.ones(40, 40)},
            r"both blocks\.0\.attn\.q\.weight and blocks\.0\.attn\.W_Q, which are one",
        ),
    ],
)
def test_tensors_of_transformer_lens_that_do_not_fit(changes: dict[str, Tensor], message: str) -> None:
    model = made("text")
    for strict in (True, False):
        with pytest.raises(WeightsError, match=message):
            model.load_state_dict(lens_state(model) | changes, strict=strict)
    assert_same_parameters(model, source_of("text"))


def test_tensors_of_transformer_lens_for_a_weight_that_is_made_of_others() -> None:
    model = made("text")
    parametrize.register_parametrization(model.blocks[1].attn.q, "weight", Double())
    with pytest.raises(WeightsError, match=r"blocks\.1\.attn\.W_Q cannot be loaded: .* is parametrised or pruned"):
        model.load_state_dict(lens_state(source_of("text")), strict=False)


LENS_CONFIG = {
    "d_model": 40,
    "d_head": 8,
    "n_layers": 3,
    "n_ctx": 37,
    "d_vocab": 188,
    "d_mlp": 52,
    "eps": 1e-12,
    "device": "cpu",
}
PARTS: dict[str, tuple[tuple[str, ...], str, tuple[str, ...], bool]] = {
    "no head": (("mlm_head", "unembed", "nsp_head", "pooler"), "BertModel", (), False),
    "a pooler and no head": (("mlm_head", "unembed", "nsp_head"), "BertModel", (), True),
    "a masked-LM head": (("nsp_head", "pooler"), "BertForMaskedLM", ("masked_lm",), False),
    "a next-sentence head": (("mlm_head", "unembed"), "BertForNextSentencePrediction", ("next_sentence",), True),
}


@pytest.mark.parametrize("left_out", PARTS)
def test_a_model_of_a_state_dict_of_transformer_lens_has_the_heads_that_are_there(left_out: str) -> None:
    source = source_of("text")
    modules, hf_class, heads, pooler = PARTS[left_out]
    state = {name: tensor for name, tensor in lens_state(source).items() if name.split(".")[0] not in modules}
    model = HookedEncoder.from_transformer_lens_state_dict(state, LENS_CONFIG, device="cpu")
    assert (tuple(model.heads), hasattr(model, "pooler")) == (heads, pooler)
    assert model.task == (heads[0] if heads else None)
    tokens = torch.arange(9)[None]
    assert torch.equal(model(tokens, "hidden"), source(tokens, "hidden"))
    assert type(model.to_hf()).__name__ == hf_class
    for task in heads:
        with source.use_task(task), model.use_task(task):
            assert torch.equal(model(tokens), source(tokens))


def test_a_head_that_is_not_whole_is_still_missed() -> None:
    state = lens_state(source_of("text"))
    for name, message in [("unembed.b_U", r"unembed\.b_U"), ("mlm_head.W", r"mlm_head\.W"), ("pooler.W", r"pooler\.W")]:
        part = {key: tensor for key, tensor in state.items() if key != name}
        with pytest.raises(WeightsError, match=rf"lacks 1 tensors that its configuration calls for: {message}$"):
            HookedEncoder.from_transformer_lens_state_dict(part, LENS_CONFIG, device="cpu")


# Wrappers


@pytest.mark.parametrize(("modality", "prefix"), [("text", "_orig_mod."), ("speech", "module._orig_mod.")])
def test_what_wrappers_add_to_names_is_taken_off(modality: str, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    source, model = source_of(modality), randomised(made(modality))
    model.load_state_dict({f"{prefix}{name}": tensor for name, tensor in cloned(source).items()})
    assert_same_parameters(model, source)
    (message,) = caplog.messages
    assert message.startswith(f"the state dict: {len(source.state_dict())} names such as {prefix}")
    randomised(model).load_state_dict({f"{prefix}{name}": tensor for name, tensor in lens_state(source).items()})
    assert_same_parameters(model, source)
    config = source.cfg.encoder
    wrapped = {f"{prefix}{name}": tensor for name, tensor in lens_state(source).items()}
    assert_same_parameters(type(source).from_transformer_lens_state_dict(wrapped, config, device="cpu"), source)


def test_wrappers_of_parts_are_taken_off_and_those_of_the_model_stay() -> None:
    source, model = made("text"), randomised(made("text"))
    source.blocks[1].mlp = nn.DataParallel(source.blocks[1].mlp)
    state = cloned(source)
    assert "blocks.1.mlp.module.input.weight" in state
    model.load_state_dict(state)
    source.load_state_dict(state)
    assert torch.equal(model.blocks[1].mlp.W_in, source.blocks[1].mlp.module.W_in)


def test_two_names_that_become_one_are_refused() -> None:
    model = made("text")
    state = cloned(model)
    state["module.mlm_head.ln.w"] = state["mlm_head.ln.w"]
    with pytest.raises(WeightsError, match=r"holds both mlm_head\.ln\.w and module\.mlm_head\.ln\.w, which are one tensor"):
        model.load_state_dict(state)


def test_no_name_of_ours_is_one_of_a_wrapper() -> None:
    names: set[str] = set()
    for model in (source_of("text"), source_of("speech")):
        names |= {part for name in (*model.state_dict(), *model.to_hf().state_dict()) for part in name.split(".")}
    assert not names & {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def test_runs_are_those_of_the_weights_that_were_loaded() -> None:
    source, model = source_of("speech"), randomised(made("speech"))
    model.load_state_dict(cloned(source), assign=True)
    assert torch.equal(model(snippets()), source(snippets()))


def test_a_dtype_that_comes_with_the_tensors_is_seen() -> None:
    model: Any = made("text")
    model.load_state_dict({name: tensor.double() for name, tensor in cloned(model).items()}, assign=True)
    assert model.cfg.dtype == torch.float64
    assert model.unembed.weight is model.embed.embed.weight
