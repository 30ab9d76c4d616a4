"""Heads: what turns the final stream into logits, logits into a loss, and logits into predictions.

A Head holds modules that the model registers under the names of the hook grammar (``mlm_head``, ``unembed``, ``pooler``, …);
two heads may share one. Nothing outside this file asks which task a head is for.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from encoderlens.components.activations import Activation
from encoderlens.components.linear import Component, Linear, WeightView
from encoderlens.components.norm import LayerNorm
from encoderlens.errors import InputError
from encoderlens.hook_points import HookPoint
from encoderlens.sequence import Sequence

IGNORED = -100


class TextContext(ABC):
    """What decoding needs to know of the text behind a batch."""

    sequence: Sequence

    @property
    @abstractmethod
    def tokens(self) -> Int[Tensor, "batch pos"]:
        """The token ids."""

    @property
    @abstractmethod
    def mask_token_id(self) -> int:
        """The id of the mask token."""

    @abstractmethod
    def decode_ids(self, ids: list[int]) -> str:
        """The text of some token ids."""

    @abstractmethod
    def answerable(self, row: int) -> Bool[Tensor, " pos"]:
        """True at the positions that an answer may span."""

    @abstractmethod
    def span_text(self, row: int, start: int, end: int) -> str:
        """The text of positions start to end, both included."""


class MLMTransform(Component):
    """``LN(act(x W + b))``, in front of the unembedding (Devlin et al. 2019)."""

    W = WeightView("dense.weight", "out d_model -> d_model out")
    b = WeightView("dense.bias")

    def __init__(self, d_model: int, act_fn: str, norm: Callable[[], LayerNorm]) -> None:
        super().__init__()
        self.act_fn = Activation(act_fn)
        self.dense = Linear(d_model, d_model)
        self.hook_pre = HookPoint("batch pos d_model")
        self.hook_post = HookPoint("batch pos d_model")
        self.ln = norm()

    def forward(self, resid: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        return self.ln(self.hook_post(self.act_fn(self.hook_pre(self.dense(resid)))))


class Unembed(Component):
    """``x W_U + b_U``; the weight is the embedding's own where the checkpoint ties them."""

    W_U = WeightView("weight", "d_vocab d_model -> d_model d_vocab")
    b_U = WeightView("bias")

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight
        self.bias = nn.Parameter(torch.empty(weight.shape[0]))
        self.hook_in = HookPoint("batch pos d_model")
        self.hook_out = HookPoint("batch pos d_vocab")

    def forward(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_vocab"]:
        return self.hook_out(F.linear(self.hook_in(x), self.weight, self.bias))


class Pooler(Component):
    """``tanh(x_CLS W + b)`` (Devlin et al. 2019)."""

    W = WeightView("dense.weight", "out d_model -> d_model out")
    b = WeightView("dense.bias")

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.dense = Linear(d_model, d_model)
        self.act_fn = Activation("tanh")
        self.hook_pooler_out = HookPoint("batch d_model")

    def forward(
        self, resid: Float[Tensor, "batch pos d_model"], sequence: Sequence | None = None
    ) -> Float[Tensor, "batch d_model"]:
        first = resid[:, 0] if sequence is None else sequence.first(resid)
        return self.hook_pooler_out(self.act_fn(self.dense(first)))


class NSPHead(Component):
    """Two logits for the pooled vector: the second sentence follows the first; it does not."""

    W = WeightView("dense.weight", "label d_model -> d_model label")
    b = WeightView("dense.bias")

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.dense = Linear(d_model, 2)
        self.hook_nsp_out = HookPoint("batch label")

    def forward(self, pooled: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch 2"]:
        return self.hook_nsp_out(self.dense(pooled))


class Classifier(Component):
    """A linear layer with dropout in front, for a vector a sequence (``batch``) or a position (``batch pos``)."""

    W = WeightView("dense.weight", "label d_model -> d_model label")
    b = WeightView("dense.bias")

    def __init__(self, d_model: int, n_labels: int, dropout: float, rows: str) -> None:
        super().__init__()
        self.dropout = dropout
        self.dense = Linear(d_model, n_labels)
        self.hook_in = HookPoint(f"{rows} d_model")
        self.hook_out = HookPoint(f"{rows} label")

    def forward(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows label"]:
        return self.hook_out(self.dense(F.dropout(self.hook_in(x), self.dropout, self.training)))


class Head(ABC):
    """One head.

    Attributes:
        task: the name under which a model carries it.
        modules: its modules, by their names in the model.
        per_position: whether it has logits for every position (``logits_at`` can choose some), or one row a sequence.
    """

    task: ClassVar[str]
    per_position: ClassVar[bool]

    def __init__(self, **modules: nn.Module) -> None:
        self.modules = modules

    @abstractmethod
    def forward(self, resid: Float[Tensor, "batch pos d_model"], sequence: Sequence) -> Float[Tensor, "batch *logits"]:
        """Logits from the final stream."""

    @abstractmethod
    def check_labels(self, labels: Tensor, sequence: Sequence) -> None:
        """Refuse labels that do not fit a batch, before anything runs.

        Raises:
            InputError: for a wrong shape, dtype or range, or nothing to score.
        """

    def check_text(self, text: TextContext) -> None:  # noqa: B027  most heads can decode anything
        """Refuse text that predictions cannot be made for, before anything runs.

        Raises:
            InputError: if the text lacks what the head predicts.
            TokenizerMissingError: if there is no tokenizer to put predictions in words.
        """

    @abstractmethod
    def loss(self, logits: Float[Tensor, "batch *logits"], labels: Num[Tensor, "batch *labels"]) -> Float[Tensor, ""]:
        """The training loss, averaged over labels that are not -100."""

    @abstractmethod
    def decode(self, logits: Float[Tensor, "batch *logits"], text: TextContext) -> list[Any]:
        """A prediction for each sequence."""

    def decode_one(self, prediction: Any) -> Any:
        """What a bare string gets, out of its batch's one prediction."""
        return prediction


class MaskedLMHead(Head):
    """Logits over word pieces at every position [batch pos d_vocab]; predictions are the best piece for each mask."""

    task = "masked_lm"
    per_position = True

    def __init__(self, act_fn: str, tied: bool, d_model: int, norm: Callable[[], LayerNorm], embedding: nn.Parameter) -> None:
        weight = embedding if tied else nn.Parameter(torch.empty_like(embedding))
        self.transform, self.unembed = MLMTransform(d_model, act_fn, norm), Unembed(weight)
        super().__init__(mlm_head=self.transform, unembed=self.unembed)

    def forward(self, resid: Tensor, sequence: Sequence) -> Tensor:
        return self.unembed(self.transform(resid))

    def check_labels(self, labels: Tensor, sequence: Sequence) -> None:
        _check_class_ids(labels, (sequence.batch, sequence.pos), len(self.unembed.bias))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return _cross_entropy(logits, labels)

    def check_text(self, text: TextContext) -> None:
        without = (text.tokens != text.mask_token_id).all(dim=1).nonzero().flatten().tolist()
        if without:
            raise InputError(
                f"there is no mask token to predict in sequence {', '.join(map(str, without))}: put the tokenizer's mask "
                "token where a word is wanted"
            )

    def decode(self, logits: Tensor, text: TextContext) -> list[list[str]]:
        is_mask = text.tokens == text.mask_token_id
        best = logits.argmax(-1)
        return [[text.decode_ids([piece]) for piece in best[row][is_mask[row]].tolist()] for row in range(len(best))]

    def decode_one(self, prediction: list[str]) -> str | list[str]:
        return prediction[0] if len(prediction) == 1 else prediction


class NextSentenceHead(Head):
    """Logits [batch 2]: index 0 says that the second sentence follows the first, index 1 that it does not."""

    task = "next_sentence"
    per_position = False
    VERDICTS = ("The sentences are sequential", "The sentences are NOT sequential")

    def __init__(self, d_model: int, pooler: Pooler) -> None:
        self.pooler, self.nsp_head = pooler, NSPHead(d_model)
        super().__init__(pooler=pooler, nsp_head=self.nsp_head)

    def forward(self, resid: Tensor, sequence: Sequence) -> Tensor:
        return self.nsp_head(self.pooler(resid, sequence))

    def check_labels(self, labels: Tensor, sequence: Sequence) -> None:
        _check_class_ids(labels, (sequence.batch,), 2)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return _cross_entropy(logits, labels)

    def decode(self, logits: Tensor, text: TextContext) -> list[str]:
        return [self.VERDICTS[best] for best in logits.argmax(-1).tolist()]


class SequenceClassificationHead(Head):
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
            _check_class_ids(labels, (sequence.batch,), n_labels)
        elif n_labels > 1 or labels.ndim > 1:
            _check_label_shape(labels, (sequence.batch, n_labels), f"{problem} targets")
        else:
            _check_label_shape(labels, (sequence.batch,), f"{problem} targets")

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        problem = self._problem(labels)
        if problem == "single_label_classification":
            return _cross_entropy(logits, labels)
        scored = F.mse_loss if problem == "regression" else F.binary_cross_entropy_with_logits
        return scored(logits, labels.to(logits.dtype).reshape(logits.shape))

    def decode(self, logits: Tensor, text: TextContext) -> list[Any]:
        if self.problem_type == "regression" or (self.problem_type is None and len(self.labels) == 1):
            return logits.squeeze(-1).tolist()
        if self.problem_type == "multi_label_classification":
            return [[label for label, score in zip(self.labels, row, strict=True) if score > 0] for row in logits.tolist()]
        return [self.labels[best] for best in logits.argmax(-1).tolist()]

    def _problem(self, labels: Tensor) -> str:
        if self.problem_type is not None:
            return self.problem_type
        if len(self.labels) == 1:
            return "regression"
        return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"


class TokenClassificationHead(Head):
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
        _check_class_ids(labels, (sequence.batch, sequence.pos), len(self.labels))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return _cross_entropy(logits, labels)

    def decode(self, logits: Tensor, text: TextContext) -> list[list[str]]:
        mask = text.sequence.mask
        best = logits.argmax(-1)
        rows = [best[row] if mask is None else best[row][mask[row]] for row in range(len(best))]
        return [[self.labels[index] for index in row.tolist()] for row in rows]


class QuestionAnsweringHead(Head):
    """Start and end logits [batch pos 2]; predictions are the text of the best span."""

    task = "question_answering"
    per_position = True

    def __init__(self, d_model: int) -> None:
        self.qa_head = Classifier(d_model, 2, dropout=0.0, rows="batch pos")
        super().__init__(qa_head=self.qa_head)

    def forward(self, resid: Tensor, sequence: Sequence) -> Tensor:
        return self.qa_head(resid)

    def check_labels(self, labels: Tensor, sequence: Sequence) -> None:
        _check_class_ids(labels, (sequence.batch, 2), sequence.pos, "answer spans (first and last position)")

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """``labels`` [batch 2]: the first and last position of each answer; the mean of both cross-entropies."""
        return (_cross_entropy(logits[..., 0], labels[:, 0]) + _cross_entropy(logits[..., 1], labels[:, 1])) / 2

    def check_text(self, text: TextContext) -> None:
        for row in range(len(text.tokens)):
            text.answerable(row)

    def decode(self, logits: Tensor, text: TextContext) -> list[str]:
        return [text.span_text(row, *_best_span(logits[row], text.answerable(row))) for row in range(len(logits))]


def _best_span(logits: Float[Tensor, "pos 2"], allowed: Bool[Tensor, " pos"]) -> tuple[int, int]:
    start, end = logits.float().masked_fill(~allowed[:, None], -torch.inf).unbind(-1)
    backwards = torch.ones(len(start), len(end), dtype=torch.bool, device=logits.device).tril(-1)
    best = int((start[:, None] + end).masked_fill(backwards, -torch.inf).argmax())
    return best // len(end), best % len(end)


def _check_label_shape(labels: Tensor, expected: tuple[int, ...], what: str) -> None:
    if tuple(labels.shape) != expected:
        raise InputError(f"labels have shape {list(labels.shape)}; {what} for this input have shape {list(expected)}")


def _check_class_ids(labels: Tensor, expected: tuple[int, ...], n_classes: int, what: str = "class labels") -> None:
    _check_label_shape(labels, expected, what)
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise InputError(f"labels are class ids (whole numbers), not {str(labels.dtype).removeprefix('torch.')}")
    scored = labels[labels != IGNORED]
    if scored.numel() == 0:
        raise InputError("every label is -100, so there is nothing to score")
    low, high = int(scored.min()), int(scored.max())
    if low < 0 or high >= n_classes:
        raise InputError(f"labels run from {low} to {high}; they lie in 0 .. {n_classes - 1}, or are -100 to be ignored")


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten().long(), ignore_index=IGNORED)
