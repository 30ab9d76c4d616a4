"""The head that classifies clips."""

from torch import Tensor

from encoderlens.components.heads.classification import ClassHead
from encoderlens.components.heads.modules import Biases, Classifier, Projector
from encoderlens.components.layer_sum import LayerSum
from encoderlens.sequence import Sequence


class AudioClassificationHead(ClassHead):
    """Logits over labels for each clip [batch label], from the mean of its projected real frames.

    Args:
        labels: the names of the classes.
        d_pooled: the width of projected frames.
        n_summed: how many streams are summed before the projection; None: the final stream is read.
    """

    task = "sequence_classification"
    per_position = False

    def __init__(self, labels: tuple[str, ...], d_pooled: int, n_summed: int | None, d_model: int) -> None:
        self.labels = labels
        self.projector = Projector(d_model, d_pooled)
        self.classifier = Classifier(d_pooled, len(labels), 0.0, rows="batch", width="d_pooled")
        self.layer_sum = None if n_summed is None else LayerSum(n_summed)
        summed = {} if self.layer_sum is None else {"layer_sum": self.layer_sum}
        super().__init__(**summed, projector=self.projector, classifier=self.classifier)

    def forward(self, resid: Tensor, sequence: Sequence) -> Tensor:
        return self.classifier(sequence.mean(self.projector(resid)))

    def all_biases(self) -> Biases:
        return {"projector_b": (self.projector.dense, "bias"), "head_b": (self.classifier.dense, "bias")}
