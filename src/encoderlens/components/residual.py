"""The residual path: what joins the stream, and which norms the stream passes through, in the order of a run.

A component that stands on the path says so once, in ``residual_path`` or its parts; every additive analysis reads it there.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from encoderlens.components.effective import effective, effective_bias
from encoderlens.components.linear import Component, Linear
from encoderlens.components.norm import ScaledNorm
from encoderlens.hook_points import HookPoint
from encoderlens.names import in_block, norm_label, part_label, write_label
from encoderlens.precision import at_least_float32


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
    def out_layer(self) -> nn.Module:
        """The layer that writes."""

    @property
    @abstractmethod
    def out_weight(self) -> Float[Tensor, "part *d_part d_model"]:
        """What the parts write with."""

    @property
    @abstractmethod
    def out_bias(self) -> Float[Tensor, " d_model"] | None:
        """What is written beside the parts, if anything is."""

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


class Passage(ABC):
    """A map that the whole stream passes through: linear but for a scale of each row, and a bias."""

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """What computes it."""

    @property
    @abstractmethod
    def bias(self) -> Float[Tensor, " d_model"] | None:
        """What it adds, if anything."""

    @property
    @abstractmethod
    def scale_point(self) -> HookPoint | None:
        """Where its scale passes, if it has one."""

    @property
    @abstractmethod
    def label(self) -> str:
        """The row label of its bias: ``"0_ln1_b"``."""

    @property
    @abstractmethod
    def in_embeddings(self) -> bool:
        """Whether it stands before the blocks."""

    @abstractmethod
    def in_front_of(self, matrix: Float[Tensor, "d_out out"] | None) -> Float[Tensor, "d_in out"]:
        """The matrix of its linear part at a scale of one, times ``matrix`` (None: the identity), in float32 or wider."""


@dataclass(frozen=True)
class Norm(Passage):
    """A norm that the whole stream passes through."""

    norm: ScaledNorm

    @property
    def module(self) -> nn.Module:
        return self.norm

    @property
    def bias(self) -> Float[Tensor, " d_model"] | None:
        return self.norm.bias

    @property
    def scale_point(self) -> HookPoint:
        return self.norm.hook_scale

    @property
    def label(self) -> str:
        return norm_label(str(self.norm.hook_scale.name))

    @property
    def in_embeddings(self) -> bool:
        return str(self.norm.hook_scale.name).startswith("embed.")

    def in_front_of(self, matrix: Float[Tensor, "d_model out"] | None) -> Float[Tensor, "d_model out"]:
        return self.norm.in_front_of(matrix)


@dataclass(frozen=True)
class Projection(Passage):
    """A linear layer that the embeddings pass through, from their own width to the stream's."""

    linear: Linear

    @property
    def label(self) -> str:
        return "embed_b"

    @property
    def in_embeddings(self) -> bool:
        return True

    @property
    def scale_point(self) -> None:
        return None

    @property
    def module(self) -> nn.Module:
        return self.linear

    @property
    def bias(self) -> Float[Tensor, " d_model"] | None:
        return effective_bias(self.linear)

    def in_front_of(self, matrix: Float[Tensor, "d_model out"] | None) -> Float[Tensor, "d_embed out"]:
        weight = at_least_float32(effective(self.linear).detach().mT)
        return weight if matrix is None else weight.to(matrix) @ matrix


Step = Write | Passage
