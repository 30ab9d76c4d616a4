"""TransformerLens' switches for loading, which encoders take only as switched off: each with the reason."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from encoderlens.errors import ConfigError
from encoderlens.names import did_you_mean

KEEPS_WEIGHTS = "weights stay those of the checkpoint, so that edits and gradients mean the same as in Hugging Face"
SPECIAL_TOKENS = "the tokenizer puts its own special tokens around every text, as in Hugging Face"

# The values that change nothing, and the reason why there is no other.
SWITCHES: dict[str, tuple[tuple[Any, ...], str]] = {
    "fold_ln": (
        (None, False),
        f"{KEEPS_WEIGHTS}. In post-LN encoders the norms stand behind the sublayers, on the residual stream itself, so that "
        "their gains cannot be folded into the next layer; linearised() and the decompositions apply them exactly",
    ),
    "center_writing_weights": (
        (None, False),
        f"{KEEPS_WEIGHTS}. decompose_resid and the attributions take means out where a LayerNorm does",
    ),
    "center_unembed": (
        (None, False),
        f"{KEEPS_WEIGHTS}. Subtract the mean over the vocabulary from the logits, or attribute differences of logits",
    ),
    "fold_value_biases": (
        (None, False),
        f"{KEEPS_WEIGHTS}. Decompositions add b_V to the rows of the heads themselves",
    ),
    "refactor_factored_attn_matrices": (
        (None, False),
        f"{KEEPS_WEIGHTS}. model.QK and model.OV hold the products, and .svd() factorises them",
    ),
    "n_devices": ((None, 1), "a model lies on one device: choose it with device="),
    "first_n_layers": ((None,), "all layers are loaded: run some of them with stop_at_layer="),
    "default_prepend_bos": ((None, False), SPECIAL_TOKENS),
    "default_padding_side": ((None,), "texts are padded on the tokenizer's side: set tokenizer.padding_side"),
    "trust_remote_code": (
        (None, False),
        "code of a checkpoint's own is never run; task='encoder' with hf_model= loads an encoder that transformers has",
    ),
}


def check_switches(function: Callable[..., Any], switches: Mapping[str, Any]) -> None:
    """Refuse switches that are on, and words that are no option of a function.

    Args:
        function: whose further keyword arguments these are.

    Raises:
        ConfigError: for a switch that is on, with the reason.
        TypeError: for an unknown word, with those that could be meant.
    """
    for name, value in switches.items():
        if name not in SWITCHES:
            known = [*inspect.signature(function).parameters, *SWITCHES]
            raise TypeError(f"{function.__qualname__}() got an unexpected keyword argument {name!r}{did_you_mean(name, known)}")
        off, reason = SWITCHES[name]
        if not any(value is known or (isinstance(value, int) and value == known) for known in off):
            raise ConfigError(f"{name}={value!r} is not for encoders: {reason}")
