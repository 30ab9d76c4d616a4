"""A weighted sum of the streams of all layers, which some heads read in place of the final one."""

from collections.abc import Sequence as Items

import torch
from jaxtyping import Float
from torch import Tensor, nn

from encoderlens.hook_points import HookPoint


class LayerSum(nn.Module):
    """``sum_l softmax(weights)_l stream_l`` over the streams that enter each layer and leave the last (Yang et al. 2021)."""

    def __init__(self, n_summed: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.empty(n_summed))
        self.hook_out = HookPoint("batch pos d_model")

    def forward(self, streams: Items[Float[Tensor, "batch pos d_model"]]) -> Float[Tensor, "batch pos d_model"]:
        shares = self.weights.softmax(-1)
        return self.hook_out(torch.stack([share * stream for share, stream in zip(shares, streams, strict=True)]).sum(0))
