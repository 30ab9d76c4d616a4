"""Heads that choose among named classes: next sentence, sequence and token classification."""

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from encoderlens.batch import Batch
from encoderlens.components.heads.head import NamedOutputs, check_class_ids, check_label_shape, cross_entropy
from encoderlens.components.heads.modules import Classifier, NSPHead, Pooler
from encoderlens.precision import at_least_float32
from encoderlens.sequence import Sequence


class NextSentenceHead(NamedOutputs[Batch]):
    """Logits [batch 2]: index 0 says that the second sentence follows the first, index 1 that it does not."""

    task = "next_sentence"
    per_position = False
    labels = ("The sentences are sequential", "The sentences are NOT sequential")

    def __init__(self, d_model: int, pooler: Pooler) -> None:
        self.pooler, self.nsp_head = pooler, NSPHead(d_model)
        super().__init__(pooler=pooler, nsp_head=self.nsp_head)

    def forward(self, resid: Tensor, sequence: Sequence) -> Tensor:
        return self.nsp_head(self.pooler(resid, sequence))

    def check_labels(self, labels: Tensor, sequence: Sequence) -> None:
        check_class_ids(labels, (sequence.batch,), 2)

    def loss(self, logits: Tensor, labels: Tensor, sequence: Sequence) -> Tensor:
        return cross_entropy(logits, labels)

    def decode(self, logits: Tensor, batch: Batch) -> list[str]:
        return [self.labels[best] for best in logits.argmax(-1).tolist()]

    def biases(self) -> dict[str, tuple[nn.Module, Tensor]]:
        return self.pooler.biases() | {"head_b": (self.nsp_head.dense, self.nsp_head.dense.bias)}


class SequenceClassificationHead(NamedOutputs[Batch]):
    """Logits over labels for each sequence [batch label]; one label means regression."""

    task = "sequence_classification"
    per_position = False

    def __init__(self, labels: tuple[str, ...], problem_type: str | None, dropout: float, d_model: int, pooler: Pooler) -> None:
        self.labels, self.problem_type = labels, problem_type
        self.pooler, self.classifier = pooler, Classifier(d_model, len(labels), dropout, rows="batch")
        super().__init__(pooler=pooler, classifier=self.classifier)

    def forward(self, resid: Tensor, sequence: Sequence) -> Tensor:
        return self.classifier(self.pooler(resid, sequence))

    def check_labels(self, labels: Tensor, sequence: Sequence) -> None:
        problem, n_labels = self._problem(labels), len(self.labels)
        if problem == "single_label_classification":
            check_class_ids(labels, (sequence.batch,), n_labels)
        elif n_labels > 1 or labels.ndim > 1:
            check_label_shape(labels, (sequence.batch, n_labels), f"{problem} targets")
        else:
            check_label_shape(labels, (sequence.batch,), f"{problem} targets")

    def loss(self, logits: Tensor, labels: Tensor, sequence: Sequence) -> Tensor:
        problem = self._problem(labels)
        if problem == "single_label_classification":
            return cross_entropy(logits, labels)
        scored = F.mse_loss if problem == "regression" else F.binary_cross_entropy_with_logits
        return scored(logits, labels.to(logits.dtype).reshape(logits.shape))

    def decode(self, logits: Tensor, batch: Batch) -> list[Any]:
        if self._regresses():
            return logits.squeeze(-1).tolist()
        if self.problem_type == "multi_label_classification":
            return [[label for label, score in zip(self.labels, row, strict=True) if score > 0] for row in logits.tolist()]
        return [self.labels[best] for best in logits.argmax(-1).tolist()]

    def biases(self) -> dict[str, tuple[nn.Module, Tensor]]:
        return self.pooler.biases() | {"head_b": (self.classifier.dense, self.classifier.dense.bias)}

    def probabilities(self, resid: Tensor, sequence: Sequence, at: Tensor | None = None) -> Tensor:
        """Of each label on its own for a multi-label head; a regression's values as they are."""
        logits = at_least_float32(self.forward(resid, sequence))
        if self._regresses():
            return logits
        return logits.sigmoid() if self.problem_type == "multi_label_classification" else logits.softmax(-1)

    @property
    def measure(self) -> Literal["probability", "value"]:
        return "value" if self._regresses() else "probability"

    def _regresses(self) -> bool:
        return self.problem_type == "regression" or (self.problem_type is None and len(self.labels) == 1)

    def _problem(self, labels: Tensor) -> str:
        if self.problem_type is not None:
            return self.problem_type
        if len(self.labels) == 1:
            return "regression"
        return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"


class TokenClassificationHead(NamedOutputs[Batch]):
    """Logits over labels for each position [batch pos label]; predictions are one label a real position."""

    task = "token_classification"
    per_position = True

    def __init__(self, labels: tuple[str, ...], dropout: float, d_model: int) -> None:
        self.labels = labels
        self.classifier = Classifier(d_model, len(labels), dropout, rows="batch pos")
        super().__init__(classifier=self.classifier)

    def forward(self, resid: Tensor, sequence: Sequence) -> Tensor:
        return self.classifier(resid)

    def check_labels(self, labels: Tensor, sequence: Sequence) -> None:
        check_class_ids(labels, (sequence.batch, sequence.pos), len(self.labels))

    def loss(self, logits: Tensor, labels: Tensor, sequence: Sequence) -> Tensor:
        return cross_entropy(logits, labels)

    def decode(self, logits: Tensor, batch: Batch) -> list[list[str]]:
        mask = batch.sequence.mask
        best = logits.argmax(-1)
        rows = [best[row] if mask is None else best[row][mask[row]] for row in range(len(best))]
        return [[self.labels[index] for index in row.tolist()] for row in rows]

    def biases(self) -> dict[str, tuple[nn.Module, Tensor]]:
        return {"head_b": (self.classifier.dense, self.classifier.dense.bias)}
