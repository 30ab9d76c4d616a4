"""The modules that a configuration's parts become."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from encoderlens.components.attention import Attention
from encoderlens.components.audio_embed import AudioEmbed, BatchNormConvPositions, WeightNormConvPositions
from encoderlens.components.block import PostLNBlock, PreLNBlock
from encoderlens.components.embed import AbsolutePositions, Embed
from encoderlens.components.frontend import FeatureProjection, Frontend
from encoderlens.components.heads import (
    AudioClassificationHead,
    CTCHead,
    Head,
    MaskedLMHead,
    NextSentenceHead,
    Pooler,
    QuestionAnsweringHead,
    SequenceClassificationHead,
    TokenClassificationHead,
)
from encoderlens.components.mlp import MLP, GatedMLP
from encoderlens.components.norm import LayerNorm
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
        Embed,
        FeatureProjection,
        Frontend,
        GatedMLP,
        LayerNorm,
        MLP,
        MaskedLMHead,
        NextSentenceHead,
        Pooler,
        PostLNBlock,
        PreLNBlock,
        QuestionAnsweringHead,
        SequenceClassificationHead,
        TokenClassificationHead,
        WeightNormConvPositions,
    )
}


def build(part: Part, context: dict[str, Any]) -> Any:
    """The component that a part names, from the part's fields and what it takes of the model around it."""
    return _COMPONENTS[part.component](**part.arguments(), **{name: context[name] for name in part.takes})


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


__all__ = ["Head", "build", "empty_parameters"]
