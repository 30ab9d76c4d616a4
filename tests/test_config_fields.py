"""Fields of configurations: each holds what it is for, whoever fills it in, and numbers of numpy count as numbers."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch

from encoderlens import EncoderConfig, HookedAudioEncoder, HookedEncoder
from encoderlens.config import (
    AbsolutePositionsPart,
    AttentionPart,
    AudioClassificationPart,
    AudioEmbedPart,
    EmbeddingPart,
    FrontendPart,
    LayerNormPart,
    LayerSharing,
    MaskedLMPart,
    MLPPart,
    PostLNPart,
    PreClassifierPart,
    RotaryAttentionPart,
    SentencePoolingPart,
    SequenceClassificationPart,
    SpecAugment,
)
from encoderlens.errors import ConfigError
from tests.checkpoints import assert_same_parameters
from tests.test_audio_from_configuration import FRONT_END
from tests.test_config import SMALL as TEXT
from tests.test_config import parts

AUDIO: dict[str, Any] = {"d_model": 24, "d_head": 8, "n_layers": 1, "device": "cpu", **FRONT_END}
WHOLE, SIZE = "it must be a whole number", "it must be a positive whole number"

# Dictionaries

OF_BOTH: list[tuple[str, Any, str]] = [
    ("d_mlp", 0, f"d_mlp is 0; {SIZE}"),
    ("d_mlp", False, f"d_mlp is False; {SIZE}"),
    ("d_mlp", "", f"d_mlp is ''; {SIZE}"),
    ("d_mlp", [], rf"d_mlp is \(\); {SIZE}"),
    ("d_model", 24.0, rf"d_model is 24\.0; {SIZE}"),
    ("n_layers", np.float64(2.0), rf"n_layers is 2\.0; {SIZE}"),
    ("n_heads", "3", f"n_heads is '3'; {WHOLE}"),
    ("d_head", True, f"d_head is True; {WHOLE}"),
    ("act_fn", ["gelu"], r"unknown activation \('gelu',\); known: gelu, "),
    ("act_fn", 5, "unknown activation 5; known: gelu, "),
    ("eps", float("nan"), "eps is nan; it must be a number, not below zero"),
    ("initializer_range", "0.02", r"initializer_range is '0\.02'; it must be a number"),
    ("attn_scale", "2.83", r"attn_scale is '2\.83'; it must be a number"),
    ("attn_scale", None, "attn_scale is None; it must be a number"),
    ("seed", True, f"seed is True; {WHOLE} of 64 bits"),
    ("seed", 2.0, rf"seed is 2\.0; {WHOLE}"),
    ("seed", 2**70, rf"seed is \d+; {WHOLE} of 64 bits"),
    ("tie_word_embeddings", 1, "tie_word_embeddings is 1; it must be True or False"),
    ("model_name", 5, "model_name is 5; it must be a text"),
    ("n_devices", np.array([1, 2]), r"n_devices=\(1, 2\) is not implemented for an encoder; leave it out, or set 1"),
    ("dtype", np.array([1, 2]), r"dtype=\(1, 2\); a model's dtype is"),
    (5, 3, "5 is not a field of an encoder's configuration$"),
]
OF_TEXT: list[tuple[Any, Any, str]] = [
    ("n_token_types", False, f"n_token_types is False; {SIZE}, or 0"),
    ("d_vocab_out", "31", f"d_vocab_out is '31'; {WHOLE}"),
    ("tokenizer_name", 5, "tokenizer_name is 5; it must be a text or a path"),
    ("heads", "masked_lm", "heads is 'masked_lm'; it must be a tuple whose entries are each a text"),
    ("heads", [5], "an entry of heads is 5; it must be a text"),
    ("pooler", 1, "pooler is 1; it must be True or False"),
]
OF_AUDIO: list[tuple[Any, Any, str]] = [
    ("conv_dim", 512, "conv_dim is 512; it must be a tuple whose entries are each a positive whole number"),
    ("conv_dim", [], "channels, kernels and strides have one entry a convolution"),
    ("conv_kernel", (8, 3, 2.0), rf"an entry of conv_kernel is 2\.0; {SIZE}"),
    ("conv_stride", None, "conv_stride is None; it must be a tuple"),
    ("num_conv_pos_embeddings", "128", f"num_conv_pos_embeddings is '128'; {SIZE}"),
    ("mask_embed", "yes", "mask_embed is 'yes'; it must be True or False"),
    ("tokenizer_name", "some-lab/words", "tokenizer_name: of models that read text; leave out what an audio encoder"),
    ("heads", ("masked_lm",), "heads: of models that read text"),
]
REFUSED = [
    *((HookedEncoder, TEXT, *case) for case in (*OF_BOTH, *OF_TEXT)),
    *((HookedAudioEncoder, AUDIO, *case) for case in (*OF_BOTH, *OF_AUDIO)),
]


@pytest.mark.parametrize(("make", "fields", "name", "value", "message"), REFUSED)
@pytest.mark.usefixtures("unchecked")
def test_fields_that_are_not_what_they_are_for(
    make: Callable[..., Any], fields: dict[Any, Any], name: Any, value: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make(fields | {name: value})


@pytest.mark.parametrize("make", [HookedEncoder, HookedAudioEncoder])
def test_none_says_nothing_where_a_field_has_a_default(make: Callable[..., Any]) -> None:
    fields = (TEXT if make is HookedEncoder else AUDIO) | {"seed": 3}
    silent = dict.fromkeys(("d_mlp", "eps", "tokenizer_name", "model_name", "dtype"))
    assert_same_parameters(make(fields | silent), make(fields))
    assert make(fields | silent).cfg.encoder == make(fields).cfg.encoder


def of_numpy(value: Any) -> Any:
    return np.asarray(value)[()] if isinstance(value, int | float) else np.asarray(value)


@pytest.mark.parametrize("number", [of_numpy, np.asarray, torch.tensor], ids=["scalars", "arrays", "tensors"])
@pytest.mark.parametrize("make", [HookedEncoder, HookedAudioEncoder])
def test_numbers_of_numpy_and_torch_count_as_numbers(make: Callable[..., Any], number: Callable[[Any], Any]) -> None:
    fields = (TEXT if make is HookedEncoder else AUDIO) | {"seed": 3, "d_mlp": 7, "eps": 0.25, "initializer_range": 0.5}
    model = make({name: value if isinstance(value, str) else number(value) for name, value in fields.items()})
    assert_same_parameters(model, make(fields))
    assert model.cfg.encoder == make(fields).cfg.encoder
    assert {type(value) for value in flat(asdict(model.cfg.encoder))} <= {int, float, bool, str, type(None)}
    assert type(model.to_hf().config.intermediate_size) is int


def flat(value: Any) -> list[Any]:
    """What dictionaries and tuples hold in the end."""
    if isinstance(value, dict):
        return [inner for entry in value.values() for inner in flat(entry)]
    return [inner for entry in value for inner in flat(entry)] if isinstance(value, tuple) else [value]


def test_a_seed_of_numpy_is_a_seed() -> None:
    first, second = HookedEncoder(TEXT | {"seed": 7}), HookedEncoder(TEXT)
    second.initialise(np.int64(7))
    assert_same_parameters(first, second)
    with pytest.raises(ConfigError, match=f"seed is 'x'; {WHOLE} of 64 bits"):
        second.initialise("x")


# Parts


@pytest.mark.usefixtures("unchecked")
def test_numbers_of_numpy_in_parts() -> None:
    plain = EncoderConfig(**parts())
    same = EncoderConfig(
        **parts(
            d_model=np.int32(24),
            n_layers=np.int64(2),
            embed=EmbeddingPart(np.int64(31)),
            attention=AttentionPart(np.int8(3), np.uint8(8), np.float32(0.0)),
        )
    )
    assert same == plain
    assert hash(same) == hash(plain)
    assert type(same.attention.n_heads) is int
    assert type(same.attention.dropout) is float


@pytest.mark.usefixtures("unchecked")
def test_lists_become_tuples() -> None:
    frontend = FrontendPart([9, 7], np.array([8, 3]), (5, 2))
    assert (frontend.channels, frontend.kernels, frontend.strides) == ((9, 7), (8, 3), (5, 2))
    assert SequenceClassificationPart(["a", "b"]).labels == ("a", "b")


SHARE = "it must be a number from 0 to 1"
WRONG_PARTS: list[tuple[Callable[[], dict[str, Any]], str]] = [
    (lambda: {"mlp": MLPPart(96, dropout=1.5)}, rf"dropout is 1\.5; {SHARE}"),
    (lambda: {"mlp": MLPPart(96, bias="yes")}, "bias is 'yes'; it must be True or False"),
    (lambda: {"mlp": PostLNPart()}, r"mlp is PostLNPart\(.*\); it must be of MLPPart"),
    (lambda: {"block": PostLNPart(None)}, f"dropout is None; {SHARE}"),
    (lambda: {"block": PostLNPart(mlp_dropout=-0.1)}, rf"mlp_dropout is -0\.1; {SHARE} or None"),
    (lambda: {"norm": LayerNormPart("1e-12")}, "eps is '1e-12'; it must be a number, not below zero"),
    (lambda: {"embed": EmbeddingPart(31, 2.0)}, rf"n_token_types is 2\.0; {SIZE}, or 0"),
    (lambda: {"embed": EmbeddingPart(31, d_embed=0)}, f"d_embed is 0; {SIZE} .*or None"),
    (lambda: {"embed": EmbeddingPart(31, dropout=float("nan"))}, f"dropout is nan; {SHARE}"),
    (
        lambda: {"attention": RotaryAttentionPart(3, 8, theta=(0.0,))},
        r"an entry of theta is 0\.0; it must be a number above",
    ),
    (lambda: {"attention": AttentionPart(3, 8, n_kv_heads=True)}, f"n_kv_heads is True; {SIZE} .*or None"),
    (lambda: {"heads": (MaskedLMPart(tied="yes"),)}, "tied is 'yes'; it must be True or False"),
    (lambda: {"heads": (SequenceClassificationPart(("a", 5)),)}, "an entry of labels is 5; it must be a text"),
    (
        lambda: {"heads": (SequenceClassificationPart("ab"),)},
        "labels is 'ab'; it must be a tuple whose entries are each a",
    ),
    (lambda: {"heads": (AudioClassificationPart(("a",), -1),)}, f"d_pooled is -1; {SIZE}"),
    (
        lambda: {"heads": (SequenceClassificationPart(("a",), pre_classifier=PreClassifierPart(reads="last")),)},
        "reads is 'last'; it must be 'first' or 'mean' or 'every'",
    ),
    (lambda: {"positions": AbsolutePositionsPart("9")}, f"n_ctx is '9'; {SIZE}"),
    (lambda: {"sharing": LayerSharing(2, 1, 1.0)}, rf"inner is 1\.0; {SIZE}"),
    (lambda: {"layerdrop": 2}, f"layerdrop is 2; {SHARE}"),
    (lambda: {"initializer_range": True}, "initializer_range is True; it must be a number"),
    (lambda: {"model_name": None}, "model_name is None; it must be a text"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_PARTS)
@pytest.mark.usefixtures("unchecked")
def test_parts_that_are_not_what_they_are_for(changes: Callable[[], dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EncoderConfig(**parts(**changes()))


@pytest.mark.usefixtures("unchecked")
def test_parts_inside_parts_are_looked_at() -> None:
    augment = SpecAugment(0.1, 0, 2, 0.0, 10, 0)
    with pytest.raises(ConfigError, match=f"time_length is 0; {SIZE}"):
        AudioEmbedPart(augment=augment).check()
    with pytest.raises(ConfigError, match="modes is 'mean'; it must be a tuple"):
        SentencePoolingPart("mean").check()
