"""The head that classifies clips."""

from torch import Tensor, nn

from encoderlens.batch import Batch
from encoderlens.components.heads.head import NamedOutputs, check_class_ids, cross_entropy
from encoderlens.components.heads.modules import Classifier, Projector
from encoderlens.components.layer_sum import LayerSum
from encoderlens.sequence import Sequence


class AudioClassificationHead(NamedOutputs[Batch]):
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

    def check_labels(self, labels: Tensor, sequence: Sequence) -> None:
        check_class_ids(labels, (sequence.batch,), len(self.labels))

    def loss(self, logits: Tensor, labels: Tensor, sequence: Sequence) -> Tensor:
        return cross_entropy(logits, labels)

    def decode(self, logits: Tensor, batch: Batch) -> list[str]:
        return [self.labels[best] for best in logits.argmax(-1).tolist()]

    def biases(self) -> dict[str, tuple[nn.Module, Tensor]]:
        projector, classifier = self.projector.dense, self.classifier.dense
        return {"projector_b": (projector, projector.bias), "head_b": (classifier, classifier.bias)}
