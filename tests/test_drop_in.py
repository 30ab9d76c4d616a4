"""Scripts written for TransformerLens run after ``transformer_lens`` is replaced by ``encoderlens``."""

import importlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import encoderlens
from encoderlens import HookedAudioEncoder, HookedEncoder, HookedTransformerConfig, utils
from encoderlens.config import EncoderConfig
from encoderlens.drop_in import MODULES
from encoderlens.errors import ConfigError, InputError
from encoderlens.not_on_encoders import NOT_IN_UTILS, NOT_ON_ENCODERS
from tests.parity import assert_close, assert_parity
from tests.tiny import TOKENIZER, tiny_hf

SCRIPTS = sorted((Path(__file__).parent / "drop_in").glob("*.py"))
SPEECH = Path(__file__).parent / "data" / "speech" / "disposed.wav"
PAGE = Path(__file__).parents[1] / "docs" / "transformer-lens-names.md"
SIZES = {"n_layers": 2, "d_model": 16, "n_ctx": 12, "n_heads": 4, "d_vocab": 30}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_runs(
    script: Path, folder_of: Callable[[str], Path], tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = folder_of("BertForPreTraining")
    tokenizer.save_pretrained(pairs)
    models = {
        "bert-base-cased": "encoderlens/tiny-bert",
        "bert-base-cased-with-nsp": str(pairs),
        "facebook/hubert-base-ls960": str(folder_of("HubertModel")),
    }
    source = script.read_text(encoding="utf-8").replace("transformer_lens", "encoderlens")
    for name, folder in models.items():
        source = source.replace(f'"{name}"', repr(folder))
    shutil.copy(SPEECH, tmp_path / "speech.wav")
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        grad = torch.is_grad_enabled()
        try:
            exec(compile(source, str(script), "exec"), {"__name__": "__main__"})
        finally:
            torch.set_grad_enabled(grad)


def test_a_class_is_in_the_module_of_its_name_and_is_the_one_of_the_package() -> None:
    for path in MODULES:
        module = importlib.import_module(f"encoderlens.{path}")
        if path != "utilities":
            assert getattr(module, path) is getattr(encoderlens, path)
    assert importlib.import_module("encoderlens.utilities") is utils is encoderlens.utilities


class ForeignConfig:
    """A configuration of another library, as TransformerLens' own."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields

    def to_dict(self) -> dict[str, Any]:
        return self.fields


def as_it_is(fields: dict[str, Any]) -> dict[str, Any]:
    return fields


def as_own(fields: dict[str, Any]) -> HookedTransformerConfig:
    return HookedTransformerConfig(**fields)


def as_foreign(fields: dict[str, Any]) -> ForeignConfig:
    return ForeignConfig(**fields)


@pytest.mark.parametrize("as_config", [as_it_is, as_own, as_foreign])
def test_every_kind_of_configuration_makes_the_same_model(as_config: Callable[[Any], Any]) -> None:
    fields = SIZES | {"seed": 5, "use_attn_result": True}
    expected, model = HookedEncoder(fields), HookedEncoder(as_config(fields))
    assert model.cfg.encoder == expected.cfg.encoder
    assert model.cfg.use_attn_result
    assert torch.equal(model.W_E, expected.W_E)
    lens = {"attn_only": False, "n_params": 5, "attn_scale": 2.0, "positional_embedding_type": "standard"}
    assert HookedEncoder(as_config(fields | lens)).cfg.encoder == expected.cfg.encoder
    with pytest.raises(ConfigError, match="attn_only=True is not implemented for an encoder"):
        HookedEncoder(as_config(fields | {"attn_only": True}))


def test_the_configuration_of_a_model_is_one() -> None:
    model = HookedEncoder(HookedTransformerConfig(**SIZES), dtype=torch.float64)
    again = HookedEncoder(model.cfg)
    assert again.cfg.encoder == model.cfg.encoder
    assert again.cfg.dtype == torch.float64
    assert isinstance(again.cfg.encoder, EncoderConfig)


def test_an_audio_encoder_takes_a_configuration_object_too() -> None:
    cfg = HookedTransformerConfig(n_layers=1, d_model=32, n_heads=4, eps=None)
    encoder = HookedAudioEncoder(cfg).cfg.encoder
    assert encoder == HookedAudioEncoder({"n_layers": 1, "d_model": 32, "n_heads": 4}).cfg.encoder


def test_fields_are_computed_from_each_other_and_can_be_set() -> None:
    cfg = HookedTransformerConfig(n_layers=1, d_model=24, d_head=6, d_vocab=9)
    assert (cfg.n_heads, cfg.d_mlp, cfg.d_vocab_out) == (4, 96, 9)
    cfg.n_ctx = 7
    assert HookedTransformerConfig.from_dict(cfg.to_dict()) == cfg
    assert HookedEncoder(cfg).cfg.n_ctx == 7
    with pytest.raises(ConfigError, match="'n_layer' is not a field of HookedTransformerConfig; did you mean 'n_layers'"):
        HookedTransformerConfig.from_dict({"n_layer": 2})
    with pytest.raises(ConfigError, match=r"lacks d_head \(or n_heads\)"):
        HookedTransformerConfig(n_layers=1, d_model=24)


def test_the_vocabulary_can_come_from_the_tokenizer(tokenizer: Any) -> None:
    fields = {name: value for name, value in SIZES.items() if name != "d_vocab"}
    size = max(tokenizer.get_vocab().values()) + 1
    assert HookedEncoder(fields, tokenizer).cfg.d_vocab == size
    named = HookedEncoder(HookedTransformerConfig(**fields, tokenizer_name=str(TOKENIZER)))
    assert named.cfg.d_vocab == size
    assert named.tokenizer is not None
    with pytest.raises(ConfigError, match="lacks d_vocab; d_vocab can come from a tokenizer"):
        HookedEncoder(fields)


# Tokens


def test_tokens_are_looked_up(bert: HookedEncoder) -> None:
    text = "the doctor saw the doctor"
    tokens = bert.to_tokens(text)[0]
    strings = bert.to_str_tokens(text)
    assert bert.to_string(tokens[0, 1:-1]) == text
    assert bert.to_string(tokens) == [bert.to_string(tokens[0])]
    word = bert.to_single_token("the")
    assert bert.to_single_str_token(word) == "the"
    assert strings[bert.get_token_position("the", text)] == "the"
    assert bert.get_token_position(word, tokens, mode="last") == len(strings) - 1 - strings[::-1].index("the")
    directions = bert.tokens_to_residual_directions(["the", "[MASK]"])
    assert torch.equal(directions, bert.W_U[:, [word, bert.to_single_token("[MASK]")]].T)
    assert torch.equal(bert.tokens_to_residual_directions(tokens), bert.W_U.T[tokens])


@pytest.mark.parametrize(
    ("look_up", "message"),
    [
        (lambda model: model.to_single_token("the doctor"), r"'the doctor' is \d+ tokens \('the', .*\), not one"),
        (lambda model: model.to_single_str_token(10**6), r"token ids run from 1000000 to 1000000; this model's lie in"),
        (lambda model: model.get_token_position("[MASK]", "the doctor"), r"the token '\[MASK\]' does not stand in the input"),
        (lambda model: model.get_token_position("the", ["the", "the"]), "takes one text, not 2"),
        (lambda model: model.to_string("the"), "token ids are a whole number, or an integer tensor"),
    ],
)
def test_what_is_no_token_is_refused(
    bert: HookedEncoder, unchecked: None, look_up: Callable[[HookedEncoder], Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        look_up(bert)


# Helpers


def test_composition_scores_are_those_of_the_products(bert: HookedEncoder) -> None:
    left, right = bert.OV[0], bert.QK[1]
    expected = torch.stack([torch.stack([(a @ b).norm() / (a.norm() * b.norm()) for b in right.AB]) for a in left.AB])
    assert_close(utils.composition_scores(left, right), expected)
    assert_close(utils.composition_scores(left, right, broadcast_dims=False), expected.diagonal())
    with pytest.raises(InputError, match="the last axis of left must be as long as the second last of right"):
        utils.composition_scores(left, encoderlens.FactoredMatrix(torch.ones(3, 2), torch.ones(2, 3)))


def test_the_loss_of_the_next_token() -> None:
    logits, tokens = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    each = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(2, 4)
    assert_close(utils.lm_cross_entropy_loss(logits, tokens, per_token=True), each)
    assert_close(utils.lm_cross_entropy_loss(logits, tokens), each.mean())
    mask = torch.tensor([[1, 1, 1, 0, 0], [1] * 5])
    assert_close(utils.lm_cross_entropy_loss(logits, tokens, mask), torch.cat([each[0, :2], each[1]]).mean())
    assert_close(utils.lm_accuracy(logits, tokens), utils.lm_accuracy(logits, tokens, per_token=True).double().mean().float())


@pytest.mark.parametrize(("prompt", "count"), [("the doctor", 0), ("[MASK] [MASK]", 2)])
def test_a_prompt_needs_one_mask(bert: HookedEncoder, prompt: str, count: int) -> None:
    with pytest.raises(InputError, match=f"a prompt with one mask token, not {count}"):
        utils.test_prompt(prompt, "the", bert)


def test_small_helpers() -> None:
    matrix = torch.arange(20.0).view(4, 5)
    assert torch.equal(utils.transpose(matrix), matrix.T)
    assert torch.equal(utils.get_corner(matrix, 2), matrix[:2, :2])
    assert utils.remove_batch_dim(matrix[None]).shape == (4, 5)
    assert utils.is_lower_triangular(torch.ones(3, 3).tril())
    assert not utils.is_lower_triangular(torch.ones(3, 3))
    assert utils.filter_dict_by_prefix({"a.b": 1, "ab": 2}, "a") == {"b": 1}
    repeated = utils.repeat_along_head_dimension(matrix[None], 3)
    assert torch.equal(repeated[:, :, 2], matrix[None])


def test_names_that_mean_nothing_for_an_encoder_say_what_to_use(bert: HookedEncoder) -> None:
    for name, remedy in NOT_ON_ENCODERS.items():
        with pytest.raises(AttributeError, match=re.escape(remedy)):
            getattr(bert, name)
    for name, remedy in NOT_IN_UTILS.items():
        with pytest.raises(AttributeError, match=re.escape(remedy)):
            getattr(utils, name)
    with pytest.raises(AttributeError, match="get_act_patch_resid_pre yet"):
        encoderlens.patching.get_act_patch_resid_pre  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'generates'"):
        bert.generates  # noqa: B018


def test_the_page_of_names_is_true(bert: HookedEncoder) -> None:
    """Every name of its tables is there, or is refused with the advice of the page."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.M)[1:]
    named = {section.splitlines()[0]: re.findall(r"^\| `(\w+)` \| (.+) \|$", section, re.M) for section in sections}
    text, audio = named["HookedEncoder"], named["HookedAudioEncoder"]
    speech = HookedAudioEncoder({"n_layers": 1, "d_model": 32, "n_heads": 4})
    for name, _ in named["HookedEncoder and HookedAudioEncoder"]:
        assert hasattr(bert, name) and hasattr(speech, name), name  # noqa: PT018
    for name, _ in text + named["HookedTransformer, where it makes sense for text encoders"]:
        assert hasattr(bert, name), name
    for name, _ in audio:
        assert hasattr(speech, name), name
    assert {name for name, _ in named["utils"]} == set(utils.__all__)
    assert dict(named["Not on a model"]) == NOT_ON_ENCODERS
    assert dict(named["Not in utils"]) == NOT_IN_UTILS


# Hidden states


@pytest.mark.parametrize("hf_class", ["BertModel", "MegatronBertModel", "AlbertModel", "ModernBertModel"])
def test_hidden_states_are_those_of_hugging_face(hf_class: str) -> None:
    hf_model = tiny_hf(hf_class)
    model = HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu")
    tokens = torch.arange(5, 16)[None]
    with torch.no_grad():
        expected = hf_model(tokens, output_hidden_states=True).hidden_states
        _, cache = model.run_with_cache(tokens, return_type="hidden")
    assert len(cache.hidden_states) == len(expected) == model.cfg.n_layers + 1
    for ours, theirs in zip(cache.hidden_states, expected, strict=True):
        assert_parity(ours, theirs)
    assert cache["block_out", -1] is cache[f"blocks.{model.cfg.n_layers - 1}.hook_block_out"]


# Pre-LN inputs


def test_each_head_of_a_pre_ln_block_normalises_what_it_was_given() -> None:
    model = HookedEncoder.from_pretrained(hf_model=tiny_hf("MegatronBertForPreTraining"), device="cpu", dtype=torch.float64)
    tokens = torch.arange(5, 16)[None]
    block = model.blocks[1]

    def halve_what_the_first_head_reads(q_input: torch.Tensor, hook: Any) -> None:
        q_input[:, :, 0] = q_input[:, :, 0].roll(1, -1)

    with torch.no_grad():
        _, plain = model.run_with_cache(tokens, return_type="hidden")
        with model.hooks([("blocks.1.hook_q_input", halve_what_the_first_head_reads)]):
            _, edited = model.run_with_cache(tokens, return_type="hidden")
        by_hand = block.ln1(plain["resid_pre", 1].roll(1, -1)) @ block.attn.W_Q[0] + block.attn.b_Q[0]
    assert_close(edited["q", 1][:, :, 0], by_hand)
    assert_close(edited["q", 1][:, :, 1:], plain["q", 1][:, :, 1:])
    n_heads = model.cfg.n_heads
    assert edited["scale", 1, "ln1"].shape == (1, 11, 3 * n_heads, 1)
    assert plain["scale", 1, "ln1"].shape == (1, 11, 1)
    with pytest.raises(encoderlens.errors.AnalysisError, match=r"ln1.hook_scale differs between heads"):
        edited.apply_ln_to_stack(edited["resid_pre", 1][None], layer=1)


def test_split_inputs_that_nothing_changed_give_the_decomposition_that_they_give_unsplit() -> None:
    model = HookedEncoder.from_pretrained(hf_model=tiny_hf("MegatronBertForPreTraining"), device="cpu", dtype=torch.float64)
    tokens = torch.arange(5, 16)[None]
    with torch.no_grad():
        _, plain = model.run_with_cache(tokens, return_type="hidden")
        model.set_use_split_qkv_input(True)
        _, split = model.run_with_cache(tokens, return_type="hidden")
    assert_close(split.decompose_resid(1, apply_ln=True), plain.decompose_resid(1, apply_ln=True))
