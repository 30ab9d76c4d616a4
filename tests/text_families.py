"""Text families of the registry: which of their classes has which head, and a tiny model of each that is made once."""

import functools
from typing import Any

import torch
import transformers
from torch import Tensor

from encoderlens import HookedEncoder
from encoderlens.families import REGISTRY
from encoderlens.families.family import Family
from tests.tiny import VARIANTS, tiny_batch, tiny_hf

TEXT = {model_type: family for model_type, family in REGISTRY.items() if family.modality == "text"}


def heads_of(family: Family) -> dict[str, str]:
    """A class for each task that the family has a head for."""
    return {task: name for name, tasks in reversed([*family.classes.items()]) for task in tasks}


# Of every family a class with a masked-LM head; and with all else that the family can be asked for.
ENCODERS = {model_type: heads_of(family)["masked_lm"] for model_type, family in TEXT.items()}
MASKED_LM = [(name, variant) for model_type, name in ENCODERS.items() for variant in ("plain", *VARIANTS.get(model_type, {}))]
# Every kind of head of every family.
HEADS = [(name, task) for family in TEXT.values() for task, name in heads_of(family).items()]


@functools.cache
def text_model(
    hf_class: str, task: str | None = None, variant: str = "plain", dtype: torch.dtype = torch.float64
) -> HookedEncoder:
    """A model that no test changes, set to a task; None: that of its class."""
    model = new_text_model(hf_class, variant, dtype)
    model.task = task or model.task
    return model


def new_text_model(hf_class: str, variant: str = "plain", dtype: torch.dtype = torch.float32) -> HookedEncoder:
    """A model of a test's own."""
    return HookedEncoder.from_pretrained(hf_model=hf_twin(hf_class, variant), device="cpu", dtype=dtype)


@functools.cache
def hf_twin(hf_class: str, variant: str = "plain") -> Any:
    """The Hugging Face model behind these, which no test changes."""
    model_type = getattr(transformers, hf_class).config_class.model_type
    return tiny_hf(hf_class, seed=2, **({} if variant == "plain" else VARIANTS[model_type][variant]))


def text_batch(model: HookedEncoder) -> dict[str, Tensor]:
    """Tokens, types and mask [3 11]; two of the three sequences are padded."""
    return tiny_batch(vocab=model.cfg.d_vocab, n_types=model.cfg.n_token_types)
