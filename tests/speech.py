"""Recorded speech, and tiny speech models that can read and write it."""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import transformers
from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

from encoderlens import HookedAudioEncoder
from encoderlens.families import REGISTRY
from tests.tiny import tiny_hf

DATA = Path(__file__).parent / "data"
SPEECH = DATA / "speech"
RATE = 16_000
DISPOSED, AMIABLE, CLUBS = SPEECH / "disposed.wav", SPEECH / "amiable.flac", SPEECH / "clubs.flac"
TRANSCRIPTS = {
    DISPOSED: "HE WAS NOT AN ILL DISPOSED YOUNG MAN",
    AMIABLE: "HE MIGHT EVEN HAVE BEEN MADE AMIABLE HIMSELF",
    CLUBS: "TEN OF CLUBS",
}

# The layouts that checkpoints come in, by name: group norm and post-LN (base), layer norm and pre-LN (large), and the options.
LAYOUTS: dict[str, dict[str, Any]] = {
    "group norm, post-LN": {},
    "layer norm, pre-LN": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
    "two convolutions, layer norm, post-LN, relu": {
        "feat_extract_norm": "layer",
        "conv_dim": (6, 10),
        "conv_kernel": (7, 4),
        "conv_stride": (4, 3),
        "hidden_size": 30,
        "num_attention_heads": 5,
        "num_conv_pos_embeddings": 5,
        "num_conv_pos_embedding_groups": 3,
        "hidden_act": "relu",
        "num_hidden_layers": 2,
        "layer_norm_eps": 1e-3,
    },
    "group norm, pre-LN, biases, summed layers": {
        "do_stable_layer_norm": True,
        "conv_bias": True,
        "use_weighted_layer_sum": True,
        "num_attention_heads": 2,
        "num_conv_pos_embeddings": 1,
        "feat_extract_activation": "gelu_new",
    },
}
# Of HuBERT alone.
HUBERT_LAYOUTS: dict[str, dict[str, Any]] = {
    "no projection norm, batch norm, summed layers": {
        "feat_proj_layer_norm": False,
        "conv_pos_batch_norm": True,
        "use_weighted_layer_sum": True,
    },
}
ALL_LAYOUTS = LAYOUTS | HUBERT_LAYOUTS

CLASSES = [name for family in REGISTRY.values() if family.modality == "audio" for name in family.classes]


def layouts_of(hf_class: str) -> dict[str, dict[str, Any]]:
    """The layouts that a class can have."""
    known = getattr(transformers, hf_class).config_class().to_dict()
    return {name: values for name, values in ALL_LAYOUTS.items() if values.keys() <= known.keys()}


LAID_OUT = [(hf_class, layout) for hf_class in CLASSES for layout in layouts_of(hf_class)]


def speech(path: Path) -> np.ndarray:
    """A clip's samples, float32."""
    return soundfile.read(path, dtype="float32")[0]


@cache
def snippets() -> list[torch.Tensor]:
    """Three pieces out of the clips, 2 to 44 ms: 34, 19 and 1 frames of the tiny models with three convolutions."""
    return [
        torch.from_numpy(speech(path)[start : start + length])
        for path, start, length in ((DISPOSED, 8000, 700), (AMIABLE, 9000, 401), (CLUBS, 6000, 40))
    ]


@cache
def ctc_tokenizer() -> Any:
    """A character tokenizer of 32 symbols, upper-case, blank 0, delimiter 4."""
    return Wav2Vec2CTCTokenizer.from_pretrained(DATA / "ctc_tokenizer")


def tokenizer_of(symbols: Iterable[str], folder: Path, kind: Any = Wav2Vec2CTCTokenizer, **options: Any) -> Any:
    """A tokenizer of these symbols, whose ids count them."""
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({symbol: index for index, symbol in enumerate(symbols)}))
    return kind(str(vocabulary), **options)


def processor(masks: bool) -> Any:
    """With the tokenizer; ``masks`` is whether padding is masked."""
    return Wav2Vec2Processor(Wav2Vec2FeatureExtractor(return_attention_mask=masks), ctc_tokenizer())


def tiny_speech(
    hf_class: str = "HubertForCTC",
    layout: str = "group norm, post-LN",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> HookedAudioEncoder:
    """A tiny model in one of the layouts, with the processor that such checkpoints have, and a tokenizer."""
    values = ALL_LAYOUTS[layout]
    hf_model = tiny_hf(hf_class, seed, **(values | overrides))
    with_tokenizer = processor(masks=values.get("feat_extract_norm") == "layer")
    return HookedAudioEncoder.from_pretrained(hf_model=hf_model, processor=with_tokenizer, device="cpu", dtype=dtype)
