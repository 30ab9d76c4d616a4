"""A post-LN block with a convolution beside it (He et al. 2021)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from encoderlens.components.activations import Activation
from encoderlens.components.attention import Attention
from encoderlens.components.block import PostLNBlock
from encoderlens.components.mlp import NeuronWriter
from encoderlens.components.norm import ScaledNorm
from encoderlens.components.residual import Norm, Step, Write
from encoderlens.errors import ConfigError
from encoderlens.hook_points import HookPoint
from encoderlens.sequence import Sequence
from encoderlens.shapes import Resid


class Convolution(nn.Module):
    """``act(conv(x))``, with zeros beyond the ends.

    Raises:
        ConfigError: for groups that do not divide the stream.
    """

    def __init__(self, kernel: int, groups: int, act_fn: str, dropout: float, d_model: int) -> None:
        super().__init__()
        if d_model % groups:
            raise ConfigError(f"d_model={d_model} is not a multiple of the convolution's groups={groups}")
        self.groups, self.dropout = groups, dropout
        self.weight = nn.Parameter(torch.empty(d_model, d_model // groups, kernel))
        self.bias = nn.Parameter(torch.empty(d_model))
        self.act_fn = Activation(act_fn)

    def forward(self, x: Resid) -> Float[Tensor, "batch pos d_model"]:
        conv = F.conv1d(x.mT, self.weight, self.bias, padding=self.weight.shape[-1] // 2, groups=self.groups)
        return self.act_fn(F.dropout(conv.mT.contiguous(), self.dropout, self.training))


class ConvPostLNBlock(PostLNBlock):
    """``x'' = LN_conv(x' + act(conv(x)))`` with ``x'`` the output of a post-LN block, and x what enters it; zero at padding.

    What the convolution writes at a position comes from its neighbours' streams as they enter the block. It is one write, with
    a row of its own (``"0_conv_out"``), and no row says what of it came from which neighbour or from which of their embeddings:
    these have rows for what reaches their own position by the stream.
    """

    def __init__(
        self,
        dropout: float,
        mlp_dropout: float,
        conv: Convolution,
        attn: Attention,
        mlp: NeuronWriter,
        norm: Callable[..., ScaledNorm],
    ) -> None:
        super().__init__(dropout, mlp_dropout, attn, mlp, norm)
        self.conv = conv
        self.hook_conv_out = HookPoint("batch pos d_model")
        self.hook_resid_conv = HookPoint("batch pos d_model")
        self.ln_conv = norm()
        self.hook_normalized_resid_conv = HookPoint("batch pos d_model")

    def through(self, resid_pre: Resid, sequence: Sequence) -> Resid:
        normalized_post = super().through(resid_pre, sequence)
        conv_out = self.hook_conv_out(self.conv(resid_pre))
        resid_conv = self.hook_resid_conv(normalized_post + conv_out)
        return self.hook_normalized_resid_conv(sequence.zeroed(self.ln_conv(resid_conv)))

    @property
    def path_from_mid(self) -> list[Step]:
        return [*super().path_from_mid, Write(self.hook_conv_out), Norm(self.ln_conv)]
