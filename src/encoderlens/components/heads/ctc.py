"""The CTC head."""

from itertools import groupby, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from encoderlens.components.heads.head import IGNORED, AudioContext, TokenOutputs
from encoderlens.components.heads.modules import Biases, Classifier
from encoderlens.errors import InputError
from encoderlens.given import dtype_name
from encoderlens.names import did_you_mean
from encoderlens.precision import at_least_float32
from encoderlens.sequence import Sequence


class CTCHead(TokenOutputs[AudioContext]):
    """Logits over symbols at every frame [batch pos d_vocab] (Graves et al. 2006); predictions are the greedy transcript.

    Args:
        d_vocab: symbols, the blank included.
        blank: the id of the blank.
        reduction: of the loss over a batch: "sum", or "mean" of each clip's loss by its number of labels.
        zero_infinity: count an infinite loss as none.
    """

    task = "ctc"
    per_position = True

    def __init__(self, d_vocab: int, blank: int, reduction: str, zero_infinity: bool, dropout: float, d_model: int) -> None:
        self._blank = blank
        self.reduction, self.zero_infinity = reduction, zero_infinity
        self.ctc_head = Classifier(d_model, d_vocab, dropout, rows="batch pos", outputs="d_vocab")
        super().__init__(ctc_head=self.ctc_head)

    def forward(self, resid: Tensor, sequence: Sequence) -> Tensor:
        return self.ctc_head(resid)

    def check_labels(self, labels: Tensor, sequence: Sequence) -> None:
        if labels.is_floating_point() or labels.dtype == torch.bool or labels.ndim != 2 or len(labels) != sequence.batch:
            raise InputError(
                f"labels are symbol ids [{sequence.batch} target], -100 after the end of each, not "
                f"{dtype_name(labels)} {list(labels.shape)}"
            )
        labels = labels.long()
        wrong = labels[(labels != IGNORED) & ((labels < 0) | (labels >= self.n_outputs))].tolist()
        if wrong:
            raise InputError(f"there is no symbol {wrong[0]}: ids run from 0 to {self.n_outputs - 1}, and -100 is left out")
        for row, (target, frames) in enumerate(zip(labels.tolist(), sequence.lengths, strict=True)):
            needed = frames_needed([symbol for symbol in target if symbol not in (IGNORED, self.blank)])
            if needed > frames and not self.zero_infinity:
                raise InputError(
                    f"the labels of clip {row} need {needed} frames (a symbol that follows itself has a blank in between), and "
                    f"it has {frames}"
                )

    def loss(self, logits: Tensor, labels: Tensor, sequence: Sequence) -> Tensor:
        labels = labels.long()
        wanted = (labels != IGNORED) & (labels != self.blank)
        log_probs = sequence.real_first(at_least_float32(logits).log_softmax(-1)).transpose(0, 1)
        lengths = labels.new_tensor(sequence.lengths)
        return F.ctc_loss(log_probs, labels[wanted], lengths, wanted.sum(-1), self.blank, self.reduction, self.zero_infinity)

    def check_input(self, batch: AudioContext) -> None:
        batch.transcript([], self.blank)

    def decode(self, logits: Tensor, batch: AudioContext) -> list[str]:
        return [
            batch.transcript([symbol for symbol, _ in groupby(row[mask].tolist()) if symbol != self.blank], self.blank)
            for row, mask in zip(logits.argmax(-1), batch.sequence.real, strict=True)
        ]

    def output_index(self, target: Any, tokenizer: Any) -> int:
        from transformers import Wav2Vec2PhonemeCTCTokenizer

        if (
            isinstance(tokenizer, Wav2Vec2PhonemeCTCTokenizer)
            and isinstance(target, str)
            and target not in tokenizer.get_vocab()
        ):
            raise InputError(f"the tokenizer has no phoneme {target!r}{did_you_mean(target, tokenizer.get_vocab())}")
        return super().output_index(target, tokenizer)

    def all_biases(self) -> Biases:
        return {"head_b": (self.ctc_head.dense, "bias")}

    @property
    def blank(self) -> int:
        return self._blank

    @property
    def n_outputs(self) -> int:
        return len(self.ctc_head.dense.weight)


def frames_needed(symbols: list[int]) -> int:
    """How many frames a sequence of symbols takes: one each, and a blank between a symbol and itself."""
    return len(symbols) + sum(one == other for one, other in pairwise(symbols))
