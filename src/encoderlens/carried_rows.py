"""Whole vectors of the residual stream's components, carried forward to one point of it, a block of rows at a time."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from encoderlens.components.norm import ScaledNorm
from encoderlens.components.residual import Norm, Passage, Step, Write, WriteOfParts
from encoderlens.errors import InputError
from encoderlens.hook_points import HookPoint
from encoderlens.linearised import Carry, carries
from encoderlens.slices import Slice

Kind = Literal["write", "parts", "bias"]
BLOCK_BYTES = 64 * 2**20  # of the vectors that are made at a time


@dataclass(frozen=True)
class RowBlock:
    """Rows that one step of the residual path writes.

    Attributes:
        step: the step.
        kind: all that is written there, the parts of its writer, or a bias.
        labels: of the rows.
        vectors: makes them, [row *rows d_model], or with the directions that they are projected onto as the last axis.
    """

    step: Step
    kind: Kind
    labels: list[str]
    vectors: Callable[[], Float[Tensor, "row *rows out"]]

    def of(self, kind: Kind, part: str) -> bool:
        """Whether these rows are of this kind, and of the writer with these parts."""
        return self.kind == kind and self.group == part

    @property
    def group(self) -> str:
        """The parts of the writer whose rows these are, "embeddings", "bias" for any bias, or "whole" for what has no parts."""
        if self.kind == "bias":
            return "bias"
        if isinstance(self.step, WriteOfParts):
            return self.step.writer.part
        return "embeddings" if self.of_embeddings else "whole"

    @property
    def of_embeddings(self) -> bool:
        """Whether the step stands before the blocks."""
        return self.step.in_embeddings


@dataclass(frozen=True)
class CarriedRows:
    """The components of the stream at the end of a residual path.

    Attributes:
        path: the path.
        reads: carry them on through this norm, whose bias is one more row; None: no further.
        stream: the stream there [*rows d_model].
        activation: what the run had at a hook point, at the positions that are wanted.
        split: the parts ("H", "N") that have a row each, with one for their writer's bias. Other writes have one row.
        onto: project every row onto one direction [d_model], or several [d_model out]; None for whole vectors.
        neurons: which neurons have a row.
    """

    path: list[Step]
    reads: ScaledNorm | None
    stream: Float[Tensor, "*rows d_model"]
    activation: Callable[[HookPoint], Tensor]
    split: Collection[str]
    onto: Float[Tensor, "d_model *out"] | None
    neurons: Slice

    @property
    def _steps(self) -> list[Step]:
        return self.path if self.reads is None else [*self.path, Norm(self.reads)]

    def blocks(self) -> Iterator[RowBlock]:
        """Every row, in the order of the path; none is made yet."""
        for step, carry in zip(self._steps, carries(self._steps, self.activation), strict=True):
            if isinstance(step, Passage):
                if step.bias is not None:
                    yield self._bias(step, carry, step.label, step.bias)
            elif isinstance(step, WriteOfParts) and step.writer.part in self.split:
                yield from self._parts(step, carry)
                if step.writer.out_bias is not None:
                    yield self._bias(step, carry, step.bias_label, step.writer.out_bias)
            else:
                yield self._write(step, carry)

    def _total(self) -> Float[Tensor, "*rows out"]:
        """What every row together sums to: the stream, or what is read of it."""
        if self.reads is None:
            return self._onto(self.stream)
        carry = Carry().before(Norm(self.reads), self.activation(self.reads.hook_scale))
        read = carry(self.stream)
        return self._onto(read if self.reads.bias is None else read + self.reads.bias.detach().to(self.stream.device))

    def _write(self, step: Write, carry: Carry) -> RowBlock:
        return RowBlock(step, "write", [step.label], lambda: self._carried(carry, self.activation(step.point))[None])

    def _parts(self, step: WriteOfParts, carry: Carry) -> Iterator[RowBlock]:
        """Rows of parts, so many at a time that their vectors stay within a bound."""
        writer, out_weight = step.writer, step.writer.out_weight.detach()
        chosen = (self.neurons if writer.part == "N" else Slice()).indices(len(out_weight))

        def vectors(index: Int[Tensor, " part"]) -> Tensor:
            activation = _picked(self.activation(writer.parts_point), index, writer.parts_axis)
            weight = self._onto(carry.weights(_picked(out_weight, index, 0))).to(activation.device)
            return carry.scaled(writer.spread(activation.to(weight.dtype), weight).movedim(-2, 0))

        for index in chosen.split(max(1, BLOCK_BYTES // (math.prod(self._row_shape) * 4))):
            yield RowBlock(step, "parts", step.part_labels(index.tolist()), lambda index=index: vectors(index))

    @property
    def _row_shape(self) -> tuple[int, ...]:
        """The shape of a row, a single direction as one of several."""
        out = self.stream.shape[-1] if self.onto is None else self.onto.numel() // len(self.onto)
        return (*self.stream.shape[:-1], out)

    def _bias(self, step: Step, carry: Carry, label: str, bias: Tensor) -> RowBlock:
        def vectors() -> Tensor:
            row = self._carried(carry, bias.detach().to(self.stream.device))
            return row.expand(1, *self.stream.shape[:-1], row.shape[-1])

        return RowBlock(step, "bias", [label], vectors)

    def _carried(self, carry: Carry, vectors: Float[Tensor, "*some d_in"]) -> Float[Tensor, "*rows out"]:
        return carry.scaled(self._onto(carry.weights(vectors)))

    def _onto(self, vectors: Float[Tensor, "*some d_model"]) -> Float[Tensor, "*some out"]:
        """Projected; a single direction as one of several, so that there always is a last axis."""
        return vectors if self.onto is None else vectors @ self.onto.to(vectors).reshape(len(self.onto), -1)

    def stack(
        self, blocks: Iterable[RowBlock], max_bytes: int, remainder: bool = False
    ) -> tuple[Float[Tensor, "row ..."], list[str]]:
        """Rows as one tensor in the dtype of the stream, and their labels. Beyond the result, one block is in memory at a time.

        Args:
            blocks: the rows.
            max_bytes: a larger result is refused.
            remainder: add a last row, for what these lack of the total.

        Raises:
            InputError: if the result would be larger than ``max_bytes``.
        """
        blocks = list(blocks)
        labels = [label for block in blocks for label in block.labels] + ["remainder"] * remainder
        shape = (len(labels), *self._row_shape)
        check_size(shape, self.stream.dtype, max_bytes)
        stack = torch.empty(shape, dtype=self.stream.dtype, device=self.stream.device)
        done = 0
        for block in blocks:
            stack[done : done + len(block.labels)] = block.vectors()
            done += len(block.labels)
        if remainder:
            stack[-1] = self._total() - stack[:-1].sum(0)
        return stack.squeeze(-1) if self.onto is not None and self.onto.ndim == 1 else stack, labels


def _picked(tensor: Tensor, index: Int[Tensor, " part"], axis: int) -> Tensor:
    """Entries along an axis, without a copy where they are all of them in order."""
    every = torch.equal(index, torch.arange(tensor.shape[axis]))
    return tensor if every else tensor.index_select(axis, index.to(tensor.device))


def check_size(shape: tuple[int, ...], dtype: torch.dtype, max_bytes: int) -> None:
    """Refuse a stack that is too large, before it is made.

    Raises:
        InputError: with the remedies.
    """
    size = torch.Size(shape).numel() * dtype.itemsize
    if size > max_bytes:
        raise InputError(
            f"a stack of shape {list(shape)} takes {size / 2**30:.1f} GiB, and the cache's max_stack_bytes is "
            f"{max_bytes / 2**30:.1f} GiB: choose positions (pos_slice), neurons (neuron_slice) or an earlier layer, "
            "project onto directions (project_output_onto), or raise cache.max_stack_bytes"
        )
