"""Parts of a block: MLPs, and how sublayers and norms stand to each other."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from encoderlens.config.fields import ActivationName, Share, Size
from encoderlens.config.part import Part
from encoderlens.errors import ConfigError


@dataclass(frozen=True)
class MLPPart(Part):
    component = "MLP"
    d_mlp: Size
    act_fn: ActivationName = "gelu"
    dropout: Share = 0.0
    bias: bool = True


@dataclass(frozen=True)
class GatedMLPPart(MLPPart):
    """A gate on a second, linear branch (Shazeer 2020)."""

    component = "GatedMLP"


@dataclass(frozen=True)
class BlockPart(Part):
    """A block; ``final_norm`` says whether one more norm follows the last of them.

    Attributes:
        dropout: on what its sublayers write.
        mlp_dropout: on what the MLP writes, where that is another.
    """

    takes = ("attn", "mlp", "norm")
    final_norm: ClassVar[bool]
    dropout: Share = 0.0
    mlp_dropout: Share | None = None

    def arguments(self) -> dict[str, Any]:
        arguments = super().arguments()
        return arguments | {"mlp_dropout": self.dropout if self.mlp_dropout is None else self.mlp_dropout}


@dataclass(frozen=True)
class PostLNPart(BlockPart):
    """LayerNorm after attention and after the MLP (Vaswani et al. 2017)."""

    component = "PostLNBlock"
    final_norm = False


@dataclass(frozen=True)
class ConvolutionPart(Part):
    """A convolution over neighbouring positions; ``kernel`` of them, an odd number."""

    component = "Convolution"
    kernel: Size = 3
    groups: Size = 1
    act_fn: ActivationName = "tanh"
    dropout: Share = 0.0

    def check(self) -> None:
        super().check()
        if self.kernel % 2 == 0:
            raise ConfigError(f"kernel={self.kernel}: the convolution has as many neighbours to each side, so it must be odd")


@dataclass(frozen=True)
class ConvFirstPostLNPart(PostLNPart):
    """The same, and in the first block a convolution of what enters it, and one more norm (He et al. 2021)."""

    component = "ConvPostLNBlock"
    conv: ConvolutionPart = field(kw_only=True)

    def at(self, layer: int) -> PostLNPart:
        return self if layer == 0 else PostLNPart(self.dropout, self.mlp_dropout)


@dataclass(frozen=True)
class PreLNPart(BlockPart):
    """LayerNorm before attention and before the MLP, and after the last block (Xiong et al. 2020)."""

    component = "PreLNBlock"
    final_norm = True
    norm_in_front: bool = True


@dataclass(frozen=True)
class BareFirstPreLNPart(PreLNPart):
    """The same, but for the first layer's attention, which reads the stream as it is (Warner et al. 2024)."""

    def at(self, layer: int) -> "BareFirstPreLNPart":
        return replace(self, norm_in_front=layer > 0)
