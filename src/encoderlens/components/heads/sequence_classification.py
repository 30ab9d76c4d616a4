"""The head that classifies, or scores, whole sequences."""

from typing import Any, Literal, cast

import torch.nn.functional as F
from torch import Tensor

from encoderlens.batch import Batch
from encoderlens.components.activations import Activation
from encoderlens.components.heads.head import NamedOutputs, check_class_ids, check_label_shape, cross_entropy
from encoderlens.components.heads.modules import Biases, Classifier, Pooler, PreClassifier
from encoderlens.precision import at_least_float32
from encoderlens.sequence import Sequence


class SequenceClassificationHead(NamedOutputs[Batch]):
    """Logits over labels for each sequence [batch label]; one label means regression.

    Args:
        score_fn: the activation function that makes a score of a regression's logit; None for none.
        pre_classifier: what the classifier reads. If it reads every position, logits are the mean over real ones.
        pooler: what the classifier reads otherwise.
    """

    task = "sequence_classification"
    per_position = False

    def __init__(
        self,
        labels: tuple[str, ...],
        problem_type: str | None,
        dropout: float,
        pre_classifier: PreClassifier | None,
        score_fn: str | None,
        d_model: int,
        pooler: Pooler | None,
    ) -> None:
        self.labels, self.problem_type = labels, problem_type
        self.score_fn = Activation("linear" if score_fn is None else score_fn)
        self.averages = pre_classifier is not None and pre_classifier.reads == "every"
        rows = "batch pos" if self.averages else "batch"
        self.reader = cast(Pooler | PreClassifier, pre_classifier or pooler)  # a configuration without either is refused
        self.classifier = Classifier(d_model, len(labels), dropout, rows)
        super().__init__(**{"pooler" if pre_classifier is None else "pre_classifier": self.reader}, classifier=self.classifier)

    def forward(self, resid: Tensor, sequence: Sequence) -> Tensor:
        logits = self.classifier(self.reader(resid, sequence))
        return sequence.mean(logits) if self.averages else logits

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
            return self.score_fn(logits.squeeze(-1)).tolist()
        if self.problem_type == "multi_label_classification":
            return [[label for label, score in zip(self.labels, row, strict=True) if score > 0] for row in logits.tolist()]
        return [self.labels[best] for best in logits.argmax(-1).tolist()]

    def all_biases(self) -> Biases:
        return self.reader.biases() | {"head_b": (self.classifier.dense, "bias")}

    def probabilities(self, resid: Tensor, sequence: Sequence, at: Tensor | None = None) -> Tensor:
        """Of each label on its own for a multi-label head; a regression's values as they are."""
        logits = at_least_float32(self.forward(resid, sequence))
        if self._regresses():
            return self.score_fn(logits)
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
