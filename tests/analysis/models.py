"""Tiny models for every kind of head: post-LN ones with a Hugging Face twin, and pre-LN ones with a gated MLP."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from transformers import AutoTokenizer

from encoderlens import EncoderConfig, HookedEncoder
from encoderlens.config import (
    AbsolutePositionsPart,
    AttentionPart,
    EmbeddingPart,
    GatedMLPPart,
    LayerNormPart,
    MaskedLMPart,
    NextSentencePart,
    PoolerPart,
    PreLNPart,
    QuestionAnsweringPart,
    SequenceClassificationPart,
    TokenClassificationPart,
)
from tests.tiny import N_VOCAB, TOKENIZER, tiny_hf

LABELS = ("bad", "so-so", "good")
TEXTS = ["the doctor [MASK] to the hospital", "[MASK] was new", "he said that the nurse could not have [MASK] it before."]
PAIRS = [
    ("the doctor [MASK] home.", "she was well"),
    ("no [MASK]", "yes"),
    ("where is the capital?", "in [MASK] and it is new."),
]


@dataclass(frozen=True)
class Case:
    """A head, and what to ask of it: two of its outputs by name and by index, and positions in each of TEXTS and PAIRS."""

    name: str
    hf_class: str
    options: dict[str, Any]
    part: Any
    names: tuple[Any, Any]
    indices: tuple[int, int]
    position: int | None = None

    @property
    def task(self) -> str:
        return self.part.task

    @property
    def per_position(self) -> bool:
        return self.task in ("masked_lm", "token_classification", "question_answering")

    def __str__(self) -> str:
        return self.name


_LABELS = {"id2label": dict(enumerate(LABELS)), "label2id": {name: index for index, name in enumerate(LABELS)}}
_CLASSIFIER, _PART = "BertForSequenceClassification", SequenceClassificationPart
CASES = (
    Case("masked_lm", "BertForMaskedLM", {}, MaskedLMPart(), ("nurse", "##ing"), (182, 185)),
    Case("next_sentence", "BertForNextSentencePrediction", {}, NextSentencePart(), ("The sentences are sequential", 1), (0, 1)),
    Case("classification", _CLASSIFIER, _LABELS, _PART(LABELS), ("good", "bad"), (2, 0)),
    Case(
        "multi_label",
        _CLASSIFIER,
        _LABELS | {"problem_type": "multi_label_classification"},
        _PART(LABELS, "multi_label_classification"),
        ("so-so", "good"),
        (1, 2),
    ),
    Case("regression", _CLASSIFIER, {"num_labels": 1}, _PART(("LABEL_0",)), ("LABEL_0", 0), (0, 0)),
    Case("token_labels", "BertForTokenClassification", _LABELS, TokenClassificationPart(LABELS), ("good", "bad"), (2, 0), 2),
    Case("answers", "BertForQuestionAnswering", {}, QuestionAnsweringPart(), ("start", "end"), (0, 1), 3),
)
BY_NAME = {case.name: case for case in CASES}


@lru_cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TOKENIZER)


@lru_cache
def made(kind: str, name: str, dtype: torch.dtype = torch.float32) -> HookedEncoder:
    """A model, shared by the tests: a "post" or "pre" LN encoder with the head of a case, in eval mode."""
    case = BY_NAME[name]
    if kind == "post":
        twin = tiny_hf(case.hf_class, seed=1, **case.options)
        return HookedEncoder.from_pretrained(hf_model=twin, tokenizer=tokenizer(), device="cpu", dtype=dtype)
    return pre_ln(case.part, tokenizer=tokenizer(), dtype=dtype)


def pre_ln(*heads: Any, tokenizer: Any = None, dtype: torch.dtype = torch.float32, n_vocab: int = N_VOCAB) -> HookedEncoder:
    """A pre-LN encoder with gated MLPs, trained-like random weights, in eval mode."""
    cfg = EncoderConfig(
        family="bert",
        original_architecture="none",
        d_model=40,
        n_layers=2,
        embed=EmbeddingPart(n_vocab),
        positions=AbsolutePositionsPart(37),
        attention=AttentionPart(n_heads=4, d_head=10),
        norm=LayerNormPart(1e-5),
        mlp=GatedMLPPart(d_mlp=52),
        block=PreLNPart(),
        pooler=PoolerPart(),
        heads=heads,
    )
    model = HookedEncoder(cfg, tokenizer, device="cpu", dtype=dtype, init_weights=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale, centre = (0.25, 0) if parameter.ndim > 1 else (0.3, 1 if name.endswith(".w") else 0)
            parameter.copy_(centre + scale * noise)
    return model.eval()
