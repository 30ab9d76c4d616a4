"""The modules that a configuration's parts become."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from encoderlens.components.attention import Attention
from encoderlens.components.audio_embed import AudioEmbed, BatchNormConvPositions, WeightNormConvPositions
from encoderlens.components.block import PostLNBlock, PreLNBlock
from encoderlens.components.contacts import ContactHead
from encoderlens.components.embed import AbsolutePositions, Embed, PaddedPositions, TokenDropoutEmbed
from encoderlens.components.frontend import FeatureProjection, Frontend
from encoderlens.components.heads import (
    AudioClassificationHead,
    CTCHead,
    Head,
    MaskedLMHead,
    NextSentenceHead,
    Pooler,
    PreClassifier,
    QuestionAnsweringHead,
    Readout,
    ReplacedTokenHead,
    SentenceOrderHead,
    SequenceClassificationHead,
    TokenClassificationHead,
)
from encoderlens.components.heads.sentence_embedding import (
    SentenceDense,
    SentenceEmbedding,
    SentenceLayerNorm,
    SentenceNormalize,
    SentencePooling,
)
from encoderlens.components.mlp import MLP, GatedMLP
from encoderlens.components.norm import LayerNorm, RMSNorm
from encoderlens.components.relative_bias import RelativeBias, RelativeBiasAttention
from encoderlens.components.rotary import RotaryAttention, RotaryFrequencies, SharedRotaryAttention
from encoderlens.config import Part

_COMPONENTS: dict[str, type] = {
    component.__name__: component
    for component in (
        AbsolutePositions,
        Attention,
        AudioClassificationHead,
        AudioEmbed,
        BatchNormConvPositions,
        CTCHead,
        ContactHead,
        Embed,
        FeatureProjection,
        Frontend,
        GatedMLP,
        LayerNorm,
        MLP,
        MaskedLMHead,
        NextSentenceHead,
        PaddedPositions,
        Pooler,
        PostLNBlock,
        PreClassifier,
        PreLNBlock,
        QuestionAnsweringHead,
        RMSNorm,
        RelativeBias,
        RelativeBiasAttention,
        ReplacedTokenHead,
        RotaryAttention,
        RotaryFrequencies,
        SentenceDense,
        SentenceEmbedding,
        SentenceLayerNorm,
        SentenceNormalize,
        SentenceOrderHead,
        SentencePooling,
        SequenceClassificationHead,
        SharedRotaryAttention,
        TokenClassificationHead,
        TokenDropoutEmbed,
        WeightNormConvPositions,
    )
}


def build(part: Part, context: dict[str, Any]) -> Any:
    """The component that a part names, from the part's fields and what it takes of the model around it."""
    arguments = {name: _built(value, context) for name, value in part.arguments().items()}
    return _COMPONENTS[part.component](**arguments, **{name: context[name] for name in part.takes})


def _built(value: Any, context: dict[str, Any]) -> Any:
    """A field's value, where it is a part, or a tuple of parts, as components."""
    if isinstance(value, tuple) and any(isinstance(entry, Part) for entry in value):
        return tuple(build(entry, context) for entry in value)
    return build(value, context) if isinstance(value, Part) else value


def share_parameters(module: nn.Module, owner: nn.Module) -> None:
    """Make every parameter of a module that of another one of the same kind."""
    for name, part in module.named_modules():
        for key, parameter in owner.get_submodule(name).named_parameters(recurse=False):
            part.register_parameter(key, parameter)


@contextmanager
def empty_parameters(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Context in which components make their parameters, of this device and dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


__all__ = ["Head", "Readout", "SentenceEmbedding", "build", "empty_parameters", "share_parameters"]
