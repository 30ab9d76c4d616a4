"""Configurations that ask for what is not implemented, by every text family: refused by name."""

import re
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from encoderlens import HookedEncoder
from encoderlens.components.activations import ACTIVATIONS
from encoderlens.errors import ConfigError
from tests.text_families import ENCODERS
from tests.tiny import tiny_hf

every_family = pytest.mark.parametrize("hf_class", ENCODERS.values())


def load(hf_class: str, **values: Any) -> HookedEncoder:
    """A tiny model whose configuration has been changed since it was made."""
    hf_model = tiny_hf(hf_class)
    for key, value in values.items():
        setattr(hf_model.config, key, value)
    return HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu")


@every_family
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("is_decoder", True),
        ("add_cross_attention", True),
        ("position_embedding_type", "relative_key"),
        ("position_embedding_type", "relative_key_query"),
        ("pruned_heads", {0: [1]}),
        ("sparkle", 3),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(hf_class: str, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{key}={value!r} is not ")):
        load(hf_class, **{key: value})


@pytest.mark.parametrize("model_type", [name for name in ENCODERS if "head_dim" not in CONFIG_MAPPING[name]().to_dict()])
def test_a_width_that_is_no_multiple_of_the_number_of_heads(model_type: str) -> None:
    """Of families whose heads have no width of their own."""
    with pytest.raises(ConfigError, match=r"=41 is not a multiple of \w+=5"):
        load(ENCODERS[model_type], hidden_size=41, num_attention_heads=5)


@every_family
def test_an_unknown_activation_is_refused_by_name(hf_class: str) -> None:
    values = tiny_hf(hf_class).config.to_dict()
    names = [key for key, value in values.items() if key.endswith(("_act", "activation")) and value in ACTIVATIONS]
    with pytest.raises(ConfigError, match="unknown activation 'gelo'"):
        load(hf_class, **dict.fromkeys(names, "gelo"))
