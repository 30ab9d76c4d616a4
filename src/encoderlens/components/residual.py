"""The residual path: what joins the stream, and which norms the stream passes through, in the order of a run.

A component that stands on the path says so once, in ``residual_path`` or its parts; every additive analysis reads it there.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from encoderlens.components.linear import Component
from encoderlens.components.norm import LayerNorm
from encoderlens.hook_points import HookPoint
from encoderlens.names import in_block, norm_label, part_label, write_label


class Writer(Component, ABC):
    """A component whose output is a sum over its parts (heads, neurons) and a bias.

    Attributes:
        part: the letter of its parts in row labels: "H" or "N".
        parts_axis: the axis of ``parts_point``'s activation that counts them.
        bias_name: the name of its bias in row labels.
    """

    part: ClassVar[str]
    parts_axis: ClassVar[int]
    bias_name: ClassVar[str]

    @property
    @abstractmethod
    def parts_point(self) -> HookPoint:
        """Where the activations of the parts pass."""

    @property
    def after_parts(self) -> list[HookPoint]:
        """Hook points between the activations of the parts and the output."""
        return []

    @property
    @abstractmethod
    def out_weight(self) -> Float[Tensor, "part *d_part d_model"]:
        """What the parts write with."""

    @property
    @abstractmethod
    def out_bias(self) -> Float[Tensor, " d_model"]:
        """What is written beside the parts."""

    @abstractmethod
    def spread(
        self, activation: Float[Tensor, "..."], weight: Float[Tensor, "part *d_part out"]
    ) -> Float[Tensor, "*rows part out"]:
        """What each part writes, with ``weight`` for ``out_weight``."""

    @abstractmethod
    def dot(self, activation: Float[Tensor, "..."], gradient: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows part"]:
        """What each part writes, times a vector: without the vectors that it writes in memory."""


@dataclass(frozen=True)
class Write:
    """A place where the stream becomes the sum of itself and of what passes through ``point``."""

    point: HookPoint

    @property
    def name(self) -> str:
        """The name of the hook point."""
        return str(self.point.name)

    @property
    def in_embeddings(self) -> bool:
        """Whether it stands before the blocks."""
        return self.name.startswith("embed.")

    @property
    def label(self) -> str:
        """The row label of what is written: ``"0_attn_out"``."""
        return write_label(self.name)


@dataclass(frozen=True)
class WriteOfParts(Write):
    """A place where a writer of a block writes."""

    writer: Writer

    def part_labels(self, indices: Iterable[int]) -> list[str]:
        """The row labels of some of the writer's parts: ``"L0H1"``."""
        return [part_label(self.writer.part, self.point.layer(), index) for index in indices]

    @property
    def bias_label(self) -> str:
        """The row label of the writer's bias: ``"0_b_O"``."""
        return in_block(self.point.layer(), self.writer.bias_name)


@dataclass(frozen=True)
class Norm:
    """A norm that the whole stream passes through."""

    norm: LayerNorm

    @property
    def in_embeddings(self) -> bool:
        """Whether it stands before the blocks."""
        return str(self.norm.hook_scale.name).startswith("embed.")

    @property
    def label(self) -> str:
        """The row label of its bias: ``"0_ln1_b"``."""
        return norm_label(str(self.norm.hook_scale.name))


Step = Write | Norm
