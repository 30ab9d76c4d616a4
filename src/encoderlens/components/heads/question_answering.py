"""The question-answering head."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from encoderlens.components.heads.head import NamedOutputs, TextContext, check_class_ids, cross_entropy
from encoderlens.components.heads.modules import Biases, Classifier, PreClassifier
from encoderlens.precision import at_least_float32
from encoderlens.sequence import Sequence, at_positions


class QuestionAnsweringHead(NamedOutputs[TextContext]):
    """Start and end logits [batch pos 2]; predictions are the text of the best span.

    Args:
        pre_classifier: the transform in front of the linear layer, if there is one.
    """

    task = "question_answering"
    per_position = True
    over_positions = True
    labels = ("start", "end")

    def __init__(self, dropout: float, pre_classifier: PreClassifier | None, d_model: int) -> None:
        self.pre_classifier, self.qa_head = pre_classifier, Classifier(d_model, 2, dropout, rows="batch pos")
        transform = {} if pre_classifier is None else {"pre_classifier": pre_classifier}
        super().__init__(**transform, qa_head=self.qa_head)

    def forward(self, resid: Tensor, sequence: Sequence) -> Tensor:
        return self.qa_head(resid if self.pre_classifier is None else self.pre_classifier(resid, sequence))

    def check_labels(self, labels: Tensor, sequence: Sequence) -> None:
        check_class_ids(labels, (sequence.batch, 2), sequence.pos, "answer spans (first and last position)")

    def loss(self, logits: Tensor, labels: Tensor, sequence: Sequence) -> Tensor:
        """``labels`` [batch 2]: the first and last position of each answer; the mean of both cross-entropies."""
        return (cross_entropy(logits[..., 0], labels[:, 0]) + cross_entropy(logits[..., 1], labels[:, 1])) / 2

    def check_input(self, batch: TextContext) -> None:
        for row in range(len(batch.tokens)):
            batch.answerable(row)

    def decode(self, logits: Tensor, batch: TextContext) -> list[str]:
        return [batch.span_text(row, *_best_span(logits[row], batch.answerable(row))) for row in range(len(logits))]

    def best_positions(self, logits: Float[Tensor, "pos output"], allowed: Bool[Tensor, " pos"]) -> list[int]:
        """The start and the end of the best answer."""
        return list(_best_span(logits, allowed))

    def all_biases(self) -> Biases:
        transform = {} if self.pre_classifier is None else self.pre_classifier.biases()
        return transform | {"head_b": (self.qa_head.dense, "bias")}

    def probabilities(self, resid: Tensor, sequence: Sequence, at: Tensor | None = None) -> Tensor:
        """Of the answer's start and end: over real positions."""
        logits = at_least_float32(self.forward(resid, sequence))
        if sequence.mask is not None:
            logits = logits.masked_fill(~sequence.mask.unsqueeze(-1), -torch.inf)
        over_positions = logits.softmax(1)
        return over_positions if at is None else at_positions(over_positions, at)


def _best_span(logits: Float[Tensor, "pos 2"], allowed: Bool[Tensor, " pos"]) -> tuple[int, int]:
    start, end = logits.float().masked_fill(~allowed[:, None], -torch.inf).unbind(-1)
    backwards = torch.ones(len(start), len(end), dtype=torch.bool, device=logits.device).tril(-1)
    best = int((start[:, None] + end).masked_fill(backwards, -torch.inf).argmax())
    return best // len(end), best % len(end)
