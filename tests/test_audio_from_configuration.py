"""Audio models made from a configuration, and from the state dict of a TransformerLens HookedAudioEncoder."""

from typing import Any

import pytest
import torch
from torch import Tensor

from encoderlens import HookedAudioEncoder
from encoderlens.config import FrontendPart
from encoderlens.errors import ConfigError, InputError, WeightsError
from encoderlens.families import transformer_lens
from encoderlens.weights import invert
from tests.checkpoints import assert_same_parameters
from tests.parity import assert_changed, assert_parity
from tests.speech import HUBERT_LAYOUTS, LAYOUTS, snippets, tiny_speech
from tests.tiny import tiny_hf

# TransformerLens' own fields for the tiny HuBERT, and the front end, which its configuration does not have.
TL_CONFIG: dict[str, Any] = {
    "d_model": 24,
    "d_head": 8,
    "n_heads": 3,
    "d_mlp": 31,
    "n_layers": 3,
    "n_ctx": 8192,
    "d_vocab": -1,
    "eps": 1e-5,
    "act_fn": "gelu",
    "attention_dir": "bidirectional",
    "device": "cpu",
}
FRONT_END: dict[str, Any] = {
    "conv_dim": (9, 7, 11),
    "conv_kernel": (8, 3, 2),
    "conv_stride": (5, 2, 2),
    "num_conv_pos_embeddings": 6,
    "num_conv_pos_embedding_groups": 4,
}
SMALL = TL_CONFIG | FRONT_END


def lens_state(model: HookedAudioEncoder) -> dict[str, Tensor]:
    """The weights as TransformerLens' class would save them: with the whole Hugging Face model, of which it ran no layer."""
    cfg = model.cfg
    rows = transformer_lens.rows("audio", cfg.n_layers, len(cfg.encoder.frontend.channels))
    tensors = {
        name: tensor.clone() for name, tensor in invert(rows, model, {"head": cfg.n_heads, "d_head": cfg.d_head}).items()
    }
    whole = model.hubert_model.state_dict()
    layers = {f"hubert_model.{name}": torch.full_like(value, 7) for name, value in whole.items() if ".layers." in name}
    masks = {f"blocks.{layer}.attn.mask": torch.empty(0, 0) for layer in range(cfg.n_layers)}
    ignored = {f"blocks.{layer}.attn.IGNORE": torch.tensor(-torch.inf) for layer in range(cfg.n_layers)}
    return tensors | layers | masks | ignored


@pytest.fixture
def base() -> HookedAudioEncoder:
    return HookedAudioEncoder.from_pretrained(hf_model=tiny_hf("HubertModel"), device="cpu")


# State dicts of TransformerLens


def test_lens_state_dict_has_the_names_and_shapes_of_transformer_lens(base: HookedAudioEncoder) -> None:
    state = lens_state(base)
    assert state["blocks.1.attn.W_Q"].shape == (3, 24, 8)
    assert state["blocks.1.attn.W_O"].shape == (3, 8, 24)
    assert state["blocks.1.attn.b_V"].shape == (3, 8)
    assert state["blocks.2.mlp.W_in"].shape == (24, 31)
    assert {name.removeprefix("hubert_model.") for name in state if name.startswith("hubert_model.")} == set(
        tiny_hf("HubertModel").state_dict()
    )
    assert len([name for name in state if name.startswith("blocks.")]) == 3 * (16 + 2)


@pytest.mark.parametrize("silent", [(), ("eps", "n_heads", "n_ctx", "d_vocab", "act_fn", "attention_dir")], ids=["all", "few"])
def test_lens_state_dict_under_its_own_configuration(silent: tuple[str, ...], base: HookedAudioEncoder) -> None:
    cfg = {name: value for name, value in SMALL.items() if name not in silent}
    model = HookedAudioEncoder.from_transformer_lens_state_dict(lens_state(base), cfg)
    assert_same_parameters(model, base)
    assert not model.training
    assert torch.equal(model(snippets()), base(snippets()))
    assert len(model.load_report.ignored) == 3 * 16 + 6
    assert model.task is None
    assert_parity(model.to_hf().encoder.layer_norm.weight, base.embed.ln.w)


@pytest.mark.parametrize("layout", LAYOUTS | HUBERT_LAYOUTS)
def test_lens_state_dict_under_an_encoder_configuration(layout: str) -> None:
    source = tiny_speech("HubertModel", layout)
    model = HookedAudioEncoder.from_transformer_lens_state_dict(
        lens_state(source), source.cfg.encoder, device="cpu", processor=source.processor, dtype=torch.float64
    )
    assert model.cfg.encoder == source.cfg.encoder
    assert model.cfg.dtype == torch.float64
    assert model.processor is source.processor
    assert_same_parameters(model, source.to(torch.float64, print_details=False))


def test_lens_state_dict_with_old_names_of_weight_norm(base: HookedAudioEncoder) -> None:
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = lens_state(base)
    for new, spelled in old.items():
        name = f"hubert_model.encoder.pos_conv_embed.conv.{new}"
        state[name.replace(new, spelled)] = state.pop(name)
    assert_same_parameters(HookedAudioEncoder.from_transformer_lens_state_dict(state, SMALL), base)


def test_lens_state_dict_without_a_mask_vector(base: HookedAudioEncoder) -> None:
    state = lens_state(base)
    del state["hubert_model.masked_spec_embed"]
    model = HookedAudioEncoder.from_transformer_lens_state_dict(state, SMALL)
    assert model.embed.mask_embed is None
    assert torch.equal(model(snippets()), base(snippets()))


LEFT_OUT = "hubert_model.feature_projection.projection.bias"
CONV = "hubert_model.feature_extractor.conv_layers.0.conv.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks.1.attn.W_Q": None}, r"the TransformerLens state dict lacks 1 tensors .*: blocks\.1\.attn\.W_Q"),
        ({LEFT_OUT: None}, r"lacks 1 tensors .*: hubert_model\.feature_projection\.projection\.bias"),
        ({"blocks.3.ln1.w": torch.ones(24)}, r"holds 1 tensors that no part of the model takes: blocks\.3\.ln1\.w"),
        ({"hubert_model.lm_head.bias": torch.ones(3)}, r"no part of the model takes: hubert_model\.lm_head\.bias"),
        ({"blocks.0.attn.W_O": torch.ones(8, 3, 24)}, r"W_O has shape \[8, 3, 24\], the configuration calls for \[3, 8, 24\]"),
        ({CONV: torch.ones(9, 1, 10)}, r"conv\.weight has shape \[9, 1, 10\], the configuration calls for \[9, 1, 8\]"),
    ],
)
def test_lens_state_dict_that_does_not_fit(changes: dict[str, Tensor | None], message: str, base: HookedAudioEncoder) -> None:
    changed = {name: tensor for name, tensor in (lens_state(base) | changes).items() if tensor is not None}
    with pytest.raises(WeightsError, match=message):
        HookedAudioEncoder.from_transformer_lens_state_dict(changed, SMALL)


def test_lens_state_dict_under_a_configuration_of_another_model(base: HookedAudioEncoder) -> None:
    state = lens_state(base)
    base_front = TL_CONFIG | {"num_conv_pos_embedding_groups": 4}  # seven convolutions
    with pytest.raises(WeightsError, match=r"lacks 4 tensors .*: hubert_model\.feature_extractor\.conv_layers\.3\.conv"):
        HookedAudioEncoder.from_transformer_lens_state_dict(state, base_front)
    with pytest.raises(WeightsError, match=r"blocks\.2\."):
        HookedAudioEncoder.from_transformer_lens_state_dict(state, SMALL | {"n_layers": 2})
    with pytest.raises(ConfigError, match="attention_dir='causal': encoders attend both ways"):
        HookedAudioEncoder.from_transformer_lens_state_dict(state, SMALL | {"attention_dir": "causal"})
    with_head = tiny_speech("HubertForCTC").cfg.encoder
    with pytest.raises(WeightsError, match=r"the family's table fills no parameter ctc_head\.dense\.weight"):
        HookedAudioEncoder.from_transformer_lens_state_dict(state, with_head, device="cpu")


# Made from a configuration


def test_a_model_from_a_dictionary_runs() -> None:
    model = HookedAudioEncoder(SMALL | {"seed": 4}).eval()
    hidden, cache = model.run_with_cache(snippets())
    assert hidden.shape == (3, 34, 24)
    assert all(value.isfinite().all() for value in cache.values())
    assert_changed(hidden[0], hidden[1], 0.01)
    assert model.cfg.original_architecture == "HubertModel"
    assert (model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head, model.cfg.d_mlp) == (3, 3, 8, 31)
    theirs = model.to_hf()
    with torch.no_grad():
        batch = model.prepare(snippets())
        assert_parity(model(batch), theirs(batch.waves).last_hidden_state)


def test_the_front_end_is_that_of_hubert_base_where_the_dictionary_is_silent() -> None:
    model = HookedAudioEncoder({"d_model": 32, "d_head": 16, "n_layers": 1, "device": "cpu", "init_weights": True})
    assert (model.timing.rate, model.timing.stride, model.timing.receptive_field) == (16_000, 320, 400)
    assert [tuple(conv.weight.shape) for conv in model.frontend] == [
        (512, 1, 10), *[(512, 512, 3)] * 4, *[(512, 512, 2)] * 2
    ]  # fmt: skip
    assert model.embed.pos_embed.v.shape == (32, 2, 128)
    assert model.blocks[0].mlp.W_in.shape == (32, 128)
    assert model.frame_lengths(16_000).tolist() == [49]
    assert (model.cfg.eps, model.cfg.act_fn) == (1e-5, "gelu")


def test_seeds_and_devices() -> None:
    one, same, other = (HookedAudioEncoder(SMALL | {"seed": seed}) for seed in (4, 4, 5))
    assert_same_parameters(one, same)
    assert not torch.equal(one.frontend[0].weight, other.frontend[0].weight)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    HookedAudioEncoder(SMALL | {"seed": 4})
    assert torch.equal(torch.get_rng_state(), before), "a seed of its own leaves torch's generator alone"
    half = HookedAudioEncoder(SMALL | {"dtype": torch.bfloat16, "use_attn_result": True, "model_name": "mine"})
    assert half.cfg.dtype == torch.bfloat16
    assert half.cfg.use_attn_result
    assert half.cfg.model_name == "mine"
    assert HookedAudioEncoder(SMALL, model_name="yours").cfg.model_name == "yours"


def test_what_the_weights_start_as() -> None:
    model = HookedAudioEncoder(SMALL | {"conv_dim": (64, 64, 64), "d_mlp": 512, "seed": 1, "initializer_range": 0.05})
    assert model.blocks[0].mlp.W_in.std().item() == pytest.approx(0.05, rel=0.1)
    assert model.frontend[1].weight.std().item() == pytest.approx((2 / (64 * 3)) ** 0.5, rel=0.1)
    assert torch.equal(model.embed.pos_embed.g, torch.ones(1, 1, 6))
    assert not model.embed.pos_embed.bias.any()
    assert not model.embed.mask_embed.any()
    for gains, biases in [(model.frontend[0].w, model.frontend[0].b), (model.projection.ln.w, model.projection.ln.b)]:
        assert torch.equal(gains, torch.ones_like(gains))
        assert not biases.any()
    normed = HookedAudioEncoder(tiny_speech("HubertModel", *HUBERT_LAYOUTS).cfg.encoder, device="cpu").embed.pos_embed
    assert torch.equal(torch.stack([normed.w, normed.b, normed.mean, normed.var])[:, 0], torch.tensor([1.0, 0.0, 0.0, 1.0]))


# Of each value another than the default, and no two alike.
UNUSUAL: dict[str, Any] = {
    "hidden_dropout": 0.11,
    "attention_dropout": 0.12,
    "activation_dropout": 0.13,
    "feat_proj_dropout": 0.14,
    "final_dropout": 0.15,
    "layerdrop": 0.16,
    "mask_time_prob": 0.17,
    "mask_time_length": 5,
    "mask_time_min_masks": 4,
    "mask_feature_prob": 0.18,
    "mask_feature_length": 7,
    "mask_feature_min_masks": 3,
    "initializer_range": 0.03,
    "ctc_loss_reduction": "mean",
    "ctc_zero_infinity": True,
    "pad_token_id": 6,
    "layer_norm_eps": 2e-5,
    "id2label": dict(enumerate("abcde")),
    "label2id": {label: index for index, label in enumerate("abcde")},
}


@pytest.mark.parametrize("layout", LAYOUTS | HUBERT_LAYOUTS)
@pytest.mark.parametrize("hf_class", ["HubertForCTC", "HubertForSequenceClassification"])
def test_a_model_from_an_encoder_configuration_runs_and_goes_to_hugging_face(hf_class: str, layout: str) -> None:
    hf_model = tiny_hf(hf_class, **((LAYOUTS | HUBERT_LAYOUTS)[layout] | UNUSUAL))
    cfg = HookedAudioEncoder.from_pretrained(hf_model=hf_model, device="cpu").cfg.encoder
    torch.manual_seed(0)
    model = HookedAudioEncoder(cfg, device="cpu").eval()
    assert model.processing.masks is (cfg.frontend.norm == "layer")
    assert model.cfg.encoder == cfg
    back = model.to_hf()
    assert type(back).__name__ == hf_class
    of_heads = {"HubertForCTC": ("ctc_", "pad_", "final_"), "HubertForSequenceClassification": ("id2label", "label2id")}[
        hf_class
    ]
    others = {prefix for prefix in ("ctc_", "pad_", "final_", "id2label", "label2id") if prefix not in of_heads}
    for key, value in UNUSUAL.items():
        if not key.startswith(tuple(others)):
            assert getattr(back.config, key) == value, key
    batch = model.prepare(snippets()[:1])
    with torch.no_grad():
        assert_parity(model(batch, return_type="logits"), back(batch.waves).logits)
    again = HookedAudioEncoder.from_pretrained(hf_model=back, device="cpu")
    assert_same_parameters(again, model)
    assert again.cfg.encoder == cfg


def test_a_model_without_a_mask_vector() -> None:
    model = HookedAudioEncoder(SMALL | {"mask_embed": False})
    assert "embed.mask_embed" not in dict(model.named_parameters())
    with pytest.raises(InputError, match="no vector that stands for masked frames"):
        model(snippets(), mask_time_indices=torch.zeros(3, 34))


def test_unfilled_weights_are_filled_later() -> None:
    one = HookedAudioEncoder(SMALL | {"seed": 4})
    other = HookedAudioEncoder(SMALL, init_weights=False)
    other.load_state_dict(one.state_dict())
    assert_same_parameters(other, one)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({key: value for key, value in SMALL.items() if key != "d_model"}, "the configuration lacks d_model"),
        ({key: value for key, value in SMALL.items() if key not in ("d_head", "n_heads")}, r"lacks d_head \(or n_heads\)"),
        (SMALL | {"d_modl": 3}, "'d_modl' is not a field of an encoder's configuration; did you mean 'd_model'"),
        (SMALL | {"gated_mlp": True}, "gated_mlp=True is not implemented for an encoder"),
        (SMALL | {"attention_dir": "causal"}, "attention_dir='causal': encoders attend both ways"),
        (SMALL | {"n_layers": 2.5}, r"n_layers is 2\.5; it must be a positive whole number"),
        (SMALL | {"act_fn": "snake"}, "snake"),
        (SMALL | {"conv_kernel": (8, 3)}, "channels, kernels and strides have one entry a convolution"),
        (SMALL | {"conv_stride": (5, 0, 2)}, "positive whole number"),
        (SMALL | {"num_conv_pos_embedding_groups": 5}, "d_model=24 is not a multiple of the positional convolution's groups=5"),
        (SMALL | {"attn_scale": 3.0}, r"attn_scale=3\.0: scores are scaled by the square root of d_head"),
        ("facebook/hubert-base-ls960", "not str; from_pretrained loads a checkpoint"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_configuration_that_says_too_little_or_too_much_is_refused(cfg: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HookedAudioEncoder(cfg)


@pytest.mark.usefixtures("unchecked")
def test_a_front_end_has_a_norm_that_there_is() -> None:
    with pytest.raises(ConfigError, match="the norm of the front end is 'batch'; it is 'group' or 'layer'"):
        FrontendPart((3,), (2,), (1,), norm="batch").check()
