"""Head: what turns the final stream into logits, logits into a loss, and logits into predictions.

A Head holds modules that the model registers under the names of the hook grammar (``mlm_head``, ``unembed``, ``pooler``, …);
two heads may share one. Nothing outside this folder asks which task a head is for.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from encoderlens.batch import Batch
from encoderlens.components.effective import effective_bias
from encoderlens.components.freezing import freeze
from encoderlens.components.heads.modules import Biases
from encoderlens.components.layer_sum import LayerSum
from encoderlens.errors import InputError, TokenizerMissingError
from encoderlens.given import as_integers, as_tensor, check_text, described, dtype_name, holds_integers, is_whole
from encoderlens.names import did_you_mean
from encoderlens.precision import at_least_float32
from encoderlens.sequence import Sequence, at_positions
from encoderlens.tokenizing import pieces_of

IGNORED = -100


class TextContext(Batch):
    """What decoding needs to know of the text behind a batch."""

    @property
    @abstractmethod
    def tokens(self) -> Int[Tensor, "batch pos"]:
        """The token ids."""

    @property
    @abstractmethod
    def masks(self) -> Bool[Tensor, "batch pos"]:
        """True at mask tokens that are no padding."""

    @abstractmethod
    def mask_advice(self, row: int) -> str:
        """How to write a mask in one of the texts: the tokenizer's mask token, and what stands there in its place."""

    @abstractmethod
    def decode_ids(self, ids: list[int]) -> str:
        """The text of some token ids."""

    @abstractmethod
    def answerable(self, row: int) -> Bool[Tensor, " pos"]:
        """True at the positions that an answer may span."""

    @abstractmethod
    def span_text(self, row: int, start: int, end: int) -> str:
        """The text of positions start to end, both included."""


class AudioContext(Batch):
    """What decoding needs to know of the clips behind a batch."""

    @abstractmethod
    def transcript(self, symbols: list[int], blank: int) -> str:
        """The text of symbols, repetitions merged and blanks taken out.

        Raises:
            TokenizerMissingError: without a tokenizer.
            InputError: for one with another blank.
        """


BatchKind = TypeVar("BatchKind", bound=Batch)


@dataclass(frozen=True)
class LinearHead:
    """A head with its scales and gains frozen, as an affine map of the stream: ``score = stream . direction + constant``.

    Attributes:
        direction: the gradient of each sequence's (or position's) score.
        constant: what its biases add, [batch] or [batch pos] as the scores.
    """

    direction: Float[Tensor, "batch pos d_model"]
    constant: Float[Tensor, "batch *pos"]


class Readout(ABC):
    """What a model makes of its final stream.

    Attributes:
        task: what it is for.
        modules: its modules, by their names in the model.
        per_position: whether it has an output for every position, or one a sequence.
        over_positions: whether the probabilities of each of its outputs sum to one over positions.
        layer_sum: the sum of the streams of all layers that it reads; None if it reads the final stream.
    """

    task: ClassVar[str]
    per_position: ClassVar[bool]
    over_positions: ClassVar[bool] = False
    layer_sum: LayerSum | None = None

    def __init__(self, **modules: nn.Module) -> None:
        self.modules = modules

    @abstractmethod
    def forward(self, resid: Float[Tensor, "batch pos d_model"], sequence: Sequence) -> Float[Tensor, "batch *outputs"]:
        """Its output, from the final stream."""

    def biases(self) -> dict[str, tuple[nn.Module, Tensor]]:
        """The biases that it has by row label, each with the module to whose output it is added."""
        found = {label: (module, effective_bias(module, name)) for label, (module, name) in self.all_biases().items()}
        return {label: (module, bias) for label, (module, bias) in found.items() if bias is not None}

    @abstractmethod
    def all_biases(self) -> Biases:
        """Where the biases are, those included that this checkpoint's layers do not have."""


class Head(Readout, Generic[BatchKind]):
    """A readout with logits, for batches of one kind: ``forward`` gives logits for every position (``logits_at`` can choose
    some), or one row a sequence.
    """

    @property
    def blank(self) -> int | None:
        """The index of the logit that stands for nothing, at most positions; None if all stand for something."""
        return None

    def by_output(self, logits: Float[Tensor, "*logits"]) -> Float[Tensor, "*rows output"]:
        """Logits with a last axis over outputs, which a head with a single output may leave out."""
        return logits

    @abstractmethod
    def check_labels(self, labels: Tensor, sequence: Sequence) -> None:
        """Refuse labels that do not fit a batch, before anything runs.

        Raises:
            InputError: for a wrong shape, dtype or range, or nothing to score.
        """

    def check_input(self, batch: BatchKind) -> None:
        """Refuse input that predictions cannot be made for, before anything runs.

        Raises:
            InputError: if the text lacks what the head predicts.
            TokenizerMissingError: if there is no tokenizer to put predictions in words.
        """

    @abstractmethod
    def loss(
        self, logits: Float[Tensor, "batch *logits"], labels: Num[Tensor, "batch *labels"], sequence: Sequence
    ) -> Float[Tensor, ""]:
        """The training loss, averaged over labels that are not -100 (CTC: reduced as the checkpoint says)."""

    @abstractmethod
    def decode(self, logits: Float[Tensor, "batch *logits"], batch: BatchKind) -> list[Any]:
        """A prediction for each sequence."""

    def decode_one(self, prediction: Any) -> Any:
        """What a bare string gets, out of its batch's one prediction."""
        return prediction

    # What analyses ask

    @abstractmethod
    def output_name(self, index: int, tokenizer: Any) -> str:
        """What one of its logits stands for."""

    @abstractmethod
    def output_index(self, target: Any, tokenizer: Any) -> int:
        """The index of the logit that a target names: an index, or a name as ``output_name`` gives it.

        Raises:
            InputError: for a target that is not there, and for a name that several have.
        """

    def default_positions(self, batch: BatchKind) -> Int[Tensor, " batch"]:
        """The one position of each sequence that an analysis looks at when none is asked for.

        Raises:
            InputError: if there is no such position, or more than one.
        """
        raise InputError(f"the {self.task} head has logits for every position: say which with position=")

    def best_positions(self, logits: Float[Tensor, "pos output"], allowed: Bool[Tensor, " pos"]) -> list[int]:
        """Of each output, the position of one sequence, out of those allowed, at which its logit is largest."""
        return logits.float().masked_fill(~allowed[:, None], -torch.inf).argmax(0).tolist()

    def probabilities(
        self, resid: Float[Tensor, "batch pos d_model"], sequence: Sequence, at: Int[Tensor, "batch k"] | None = None
    ) -> Float[Tensor, "batch *k output"]:
        """What its logits say as probabilities, at some positions (None: all) if it has logits for every position."""
        return at_least_float32(self.forward(resid if at is None else at_positions(resid, at), sequence)).softmax(-1)

    @property
    def measure(self) -> Literal["probability", "value"]:
        """What ``probabilities`` gives."""
        return "probability"

    def score(
        self, resid: Float[Tensor, "batch pos d_model"], sequence: Sequence, targets: Int[Tensor, "batch *pos"]
    ) -> Float[Tensor, "batch *pos"]:
        """One logit a sequence (or position), without the others where that is cheaper."""
        logits = self.by_output(self.forward(resid, sequence))
        return logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)

    def linearise(
        self, resid: Float[Tensor, "batch pos d_model"], sequence: Sequence, targets: Int[Tensor, "batch *pos"]
    ) -> LinearHead:
        """The head around a stream, its LayerNorm scale and its activation's gain frozen at their values there.

        Args:
            resid: the stream that the head reads.
            targets: the index of one logit for each sequence, or for each position.
        """
        with torch.inference_mode(False), torch.enable_grad(), freeze(self.modules.values(), ("ln", "gain")):
            stream = resid.detach().clone().requires_grad_()
            scores = self.score(stream, sequence, targets.clone())
            (direction,) = torch.autograd.grad(scores.sum(), stream)
        with torch.no_grad():
            products = (resid * direction).sum(-1)
            return LinearHead(direction, scores - (products if self.per_position else products.sum(-1)))


class NamedOutputs(Head[BatchKind]):
    """A head whose logits have names.

    Attributes:
        labels: the name of each logit.
    """

    labels: tuple[str, ...]

    def output_name(self, index: int, tokenizer: Any) -> str:
        return self.labels[index]

    def output_index(self, target: Any, tokenizer: Any) -> int:
        if not isinstance(target, str):
            return checked_index(target, len(self.labels), "class")
        if target not in self.labels:
            known = ", ".join(map(repr, self.labels[:20]))
            raise InputError(f"the {self.task} head has no {target!r}{did_you_mean(target, self.labels)}; it has {known}")
        places = [index for index, label in enumerate(self.labels) if label == target]
        if len(places) > 1:
            raise InputError(
                f"{len(places)} classes of the {self.task} head are called {target!r}; give the index of one: "
                f"{', '.join(map(str, places))}"
            )
        return places[0]


class TokenOutputs(Head[BatchKind]):
    """A head whose logits are a tokenizer's tokens."""

    @property
    @abstractmethod
    def n_outputs(self) -> int:
        """How many logits it has."""

    def output_name(self, index: int, tokenizer: Any) -> str:
        name = None if tokenizer is None else tokenizer.convert_ids_to_tokens(index)
        return str(index) if name is None else name  # a vocabulary may be padded beyond its tokenizer's

    def output_index(self, target: Any, tokenizer: Any) -> int:
        if not isinstance(target, str):
            return checked_index(target, self.n_outputs, "token id")
        if tokenizer is None:
            raise TokenizerMissingError(f"the target {target!r} is a word, and this model has no tokenizer: give a token id")
        check_text(target, "the target")
        ids = [tokenizer.convert_tokens_to_ids(target)]  # as it is: also "##ing", which is not how a text begins
        if ids[0] in (None, tokenizer.unk_token_id) and target != tokenizer.unk_token:
            ids = tokenizer.convert_tokens_to_ids(pieces_of(tokenizer, target))
            if not ids or None in ids or tokenizer.unk_token_id in ids:
                raise InputError(f"the tokenizer has no token for the target {target!r}; give another, or a token id")
        if len(ids) != 1:
            pieces = ", ".join(tokenizer.convert_ids_to_tokens(ids))
            raise InputError(f"the target {target!r} is no single token: the tokenizer makes {pieces} of it; give one of these")
        return checked_index(ids[0], self.n_outputs, "token id")  # a tokenizer may have more


def owned_labels(labels: Any) -> Tensor:
    """Labels as a tensor that shares nothing with what was given: whole numbers of any dtype as int64.

    Raises:
        InputError: for anything but a tensor or an array that can be read.
    """
    if not isinstance(labels, Tensor | np.ndarray):
        raise InputError(f"labels are a tensor, not {described(labels)}")
    given = as_tensor(labels, "labels")
    return as_integers(given, "labels") if holds_integers(given) else given.clone()


def check_label_shape(labels: Tensor, expected: tuple[int, ...], what: str) -> None:
    if tuple(labels.shape) != expected:
        raise InputError(f"labels have shape {list(labels.shape)}; {what} for this input have shape {list(expected)}")


def check_class_ids(labels: Tensor, expected: tuple[int, ...], n_classes: int, what: str = "class labels") -> None:
    check_label_shape(labels, expected, what)
    if not holds_integers(labels):
        raise InputError(f"labels are class ids (whole numbers), not {dtype_name(labels)}")
    scored = labels[labels != IGNORED]
    if scored.numel() == 0:
        raise InputError("every label is -100, so there is nothing to score")
    low, high = int(scored.min()), int(scored.max())
    if low < 0 or high >= n_classes:
        raise InputError(f"labels run from {low} to {high}; they lie in 0 .. {n_classes - 1}, or are -100 to be ignored")


def checked_index(target: Any, n_outputs: int, what: str) -> int:
    if not is_whole(target) or not 0 <= target < n_outputs:
        raise InputError(f"the target {target!r} is no {what} of this head: a number from 0 to {n_outputs - 1}, or a name")
    return int(target)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten().long(), ignore_index=IGNORED)
