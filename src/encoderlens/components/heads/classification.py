"""Heads that choose one of several named classes: next sentence, sentence order, token classification, replaced tokens."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from encoderlens.batch import Batch
from encoderlens.components.heads.head import IGNORED, NamedOutputs, check_class_ids, cross_entropy
from encoderlens.components.heads.modules import Biases, Classifier, NSPHead, Pooler, PreClassifier
from encoderlens.precision import at_least_float32
from encoderlens.sequence import Sequence, at_positions


class ClassHead(NamedOutputs[Batch]):
    """A head whose logits are scores of classes that exclude each other, for each sequence or each position."""

    def check_labels(self, labels: Tensor, sequence: Sequence) -> None:
        expected = (sequence.batch, sequence.pos) if self.per_position else (sequence.batch,)
        check_class_ids(labels, expected, len(self.labels))

    def loss(self, logits: Tensor, labels: Tensor, sequence: Sequence) -> Tensor:
        return cross_entropy(logits, labels)

    def decode(self, logits: Tensor, batch: Batch) -> list[Any]:
        best = logits.argmax(-1)
        if self.per_position:
            return [[self.labels[index] for index in row] for row in real_rows(best, batch.sequence)]
        return [self.labels[index] for index in best.tolist()]


class NextSentenceHead(ClassHead):
    """Logits [batch 2]: index 0 says that the second sentence follows the first, index 1 that it does not."""

    task = "next_sentence"
    per_position = False
    labels = ("The sentences are sequential", "The sentences are NOT sequential")

    def __init__(self, d_model: int, pooler: Pooler) -> None:
        self.pooler, self.nsp_head = pooler, NSPHead(d_model)
        super().__init__(pooler=pooler, nsp_head=self.nsp_head)

    def forward(self, resid: Tensor, sequence: Sequence) -> Tensor:
        return self.nsp_head(self.pooler(resid, sequence))

    def all_biases(self) -> Biases:
        return self.pooler.biases() | {"head_b": (self.nsp_head.dense, "bias")}


class SentenceOrderHead(ClassHead):
    """Logits [batch 2]: index 0 says that two sentences stand in order, index 1 that they are swapped (Lan et al. 2020)."""

    task = "sentence_order"
    per_position = False
    labels = ("The sentences are in order", "The sentences are swapped")

    def __init__(self, dropout: float, d_model: int, pooler: Pooler) -> None:
        self.pooler, self.sop_head = pooler, Classifier(d_model, 2, dropout, rows="batch")
        super().__init__(pooler=pooler, sop_head=self.sop_head)

    def forward(self, resid: Tensor, sequence: Sequence) -> Tensor:
        return self.sop_head(self.pooler(resid, sequence))

    def all_biases(self) -> Biases:
        return self.pooler.biases() | {"head_b": (self.sop_head.dense, "bias")}


class TokenClassificationHead(ClassHead):
    """Logits over labels for each position [batch pos label]; predictions are one label a real position.

    Args:
        pre_classifier: the transform in front of the classifier, if there is one.
    """

    task = "token_classification"
    per_position = True

    def __init__(self, labels: tuple[str, ...], dropout: float, pre_classifier: PreClassifier | None, d_model: int) -> None:
        self.labels, self.pre_classifier = labels, pre_classifier
        self.classifier = Classifier(d_model, len(labels), dropout, rows="batch pos")
        transform = {} if pre_classifier is None else {"pre_classifier": pre_classifier}
        super().__init__(**transform, classifier=self.classifier)

    def forward(self, resid: Tensor, sequence: Sequence) -> Tensor:
        return self.classifier(resid if self.pre_classifier is None else self.pre_classifier(resid, sequence))

    def all_biases(self) -> Biases:
        transform = {} if self.pre_classifier is None else self.pre_classifier.biases()
        return transform | {"head_b": (self.classifier.dense, "bias")}


class ReplacedTokenHead(NamedOutputs[Batch]):
    """One logit for each position [batch pos]: above zero, a generator put the token there (Clark et al. 2020).

    Labels are [batch pos], 1 for a replaced token; the loss leaves padding and -100 out.
    """

    task = "replaced_token_detection"
    per_position = True
    labels = ("replaced",)
    verdicts = ("original", "replaced")

    def __init__(self, pre_classifier: PreClassifier, d_model: int) -> None:
        self.pre_classifier, self.rtd_head = pre_classifier, Classifier(d_model, 1, 0.0, rows="batch pos")
        super().__init__(pre_classifier=pre_classifier, rtd_head=self.rtd_head)

    def forward(self, resid: Tensor, sequence: Sequence) -> Tensor:
        return self.rtd_head(self.pre_classifier(resid, sequence)).squeeze(-1)

    def by_output(self, logits: Tensor) -> Tensor:
        return logits.unsqueeze(-1)

    def check_labels(self, labels: Tensor, sequence: Sequence) -> None:
        check_class_ids(labels, (sequence.batch, sequence.pos), 2, "labels of original (0) and replaced (1) tokens")

    def loss(self, logits: Tensor, labels: Tensor, sequence: Sequence) -> Tensor:
        scored = (labels != IGNORED) & sequence.real.to(labels.device)
        return F.binary_cross_entropy_with_logits(logits[scored], labels[scored].to(logits.dtype))

    def decode(self, logits: Tensor, batch: Batch) -> list[list[str]]:
        replaced = (logits > 0).long()
        return [[self.verdicts[verdict] for verdict in row] for row in real_rows(replaced, batch.sequence)]

    def all_biases(self) -> Biases:
        return self.pre_classifier.biases() | {"head_b": (self.rtd_head.dense, "bias")}

    def probabilities(self, resid: Tensor, sequence: Sequence, at: Tensor | None = None) -> Tensor:
        """Of each token having been replaced."""
        logits = self.by_output(self.forward(resid, sequence))
        from_logits = at_least_float32(logits).sigmoid()
        return from_logits if at is None else at_positions(from_logits, at)


def real_rows(values: Tensor, sequence: Sequence) -> list[list[Any]]:
    """Of each sequence, the values [batch pos] at real positions."""
    mask = sequence.mask
    return [(row if mask is None else row[mask[index]]).tolist() for index, row in enumerate(torch.unbind(values))]
