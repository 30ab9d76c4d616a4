"""Attention whose queries and keys are turned by their positions (Su et al. 2021), over all positions or a window."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from encoderlens.components.attention import Attention
from encoderlens.components.effective import effective
from encoderlens.errors import AnalysisError
from encoderlens.factored_matrix import FactoredMatrix
from encoderlens.hook_points import HookPoint
from encoderlens.sequence import Sequence
from encoderlens.shapes import HeadVectors, KVHeadVectors

Turn = tuple[Float[Tensor, "pos 1 pair"], Float[Tensor, "pos 1 pair"]]


class RotaryAttention(Attention):
    """``softmax(R(i) q_i . R(j) k_j / sqrt(d_head)) v_j``: the product depends on positions i and j through j - i only.

    Pairs of coordinates c and c + d_head / 2 are turned by ``position * theta ** (-2 c / d_head)``.

    Args:
        theta: the base of the frequencies.
        window: a query sees keys that are at most so far away; None for all.
    """

    def __init__(
        self,
        n_heads: int,
        n_kv_heads: int,
        d_head: int,
        bias: bool,
        dropout: float,
        theta: float,
        window: int | None,
        d_model: int,
    ) -> None:
        super().__init__(n_heads, n_kv_heads, d_head, bias, dropout, d_model)
        self.theta, self.window = theta, window
        self.hook_rot_q = HookPoint("batch pos head d_head")
        self.hook_rot_k = HookPoint(" ".join(self.hook_k.axes))

    def placed(self, q: HeadVectors, k: KVHeadVectors, sequence: Sequence) -> tuple[HeadVectors, KVHeadVectors]:
        turn = self.turn(sequence, q.device)
        return self.hook_rot_q(_turned(q, turn)), self.hook_rot_k(_turned(k, turn))

    def turn(self, sequence: Sequence, device: torch.device) -> Turn:
        """Cosine and sine of the angles of a batch's positions."""
        return sequence.once(("turns", self.theta, self.d_head, device), lambda: self.turns(sequence.pos, device))

    def frequencies(self, device: torch.device) -> Float[Tensor, " pair"]:
        """How far each pair of coordinates is turned from one position to the next."""
        return frequencies(self.theta, self.d_head, device)

    def turns(self, n_positions: int, device: torch.device) -> Turn:
        """Cosine and sine of each position's angles."""
        angles = torch.arange(n_positions, device=device).float()[:, None, None] * self.frequencies(device)
        return angles.cos(), angles.sin()

    def allowed(self, sequence: Sequence) -> Bool[Tensor, "..."] | None:
        if self.window is None:
            return sequence.key_mask
        return sequence.window_mask(self.window, effective(self.q).device)

    def check_bilinear(self) -> None:
        raise AnalysisError(
            "rotary attention turns queries and keys, so W_Q W_K^T is not what it multiplies by: take "
            "blocks[l].attn.QK_at(distance), the product for a key so many positions after the query"
        )

    def QK_at(self, distance: int) -> FactoredMatrix:
        """``W_Q R(distance) W_K^T`` of every head [head d_model d_model], unscaled and without biases: the score of a query for
        a key that lies so many positions after it is ``x_query QK x_key``, if it is not beyond the window.
        """
        angles = distance * self.frequencies(effective(self.q).device)
        return FactoredMatrix(_turned(self.W_Q, (angles.cos(), (-angles).sin())), self.per_head(self.W_K, 0).mT)


class RotaryFrequencies(nn.Module):
    """The frequencies of rotary attention as a tensor of the checkpoint, which may differ from the formula's by a rounding.

    They are no parameter: nothing trains them, and they stay float32 in a model of any dtype.
    """

    frequencies: Float[Tensor, " pair"]

    def __init__(self, theta: float, d_head: int) -> None:
        super().__init__()
        self.theta = theta
        self.register_buffer("frequencies", frequencies(theta, d_head))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RotaryFrequencies":
        exact = self.frequencies
        super()._apply(fn, recurse)
        self.frequencies = exact.to(self.frequencies.device)  # moved, but not rounded
        return self


class SharedRotaryAttention(RotaryAttention):
    """Rotary attention whose frequencies all layers share."""

    def __init__(
        self,
        n_heads: int,
        n_kv_heads: int,
        d_head: int,
        bias: bool,
        dropout: float,
        d_model: int,
        relative: RotaryFrequencies,
    ) -> None:
        super().__init__(n_heads, n_kv_heads, d_head, bias, dropout, relative.theta, None, d_model)
        self.relative = relative

    def turn(self, sequence: Sequence, device: torch.device) -> Turn:
        return self.turns(sequence.pos, device)  # each time, since the frequencies may be edited

    def frequencies(self, device: torch.device) -> Float[Tensor, " pair"]:
        return self.relative.frequencies


def frequencies(theta: float, d_head: int, device: torch.device | None = None) -> Float[Tensor, " pair"]:
    """``theta ** (-2 c / d_head)`` for each pair c of coordinates, in float32."""
    return 1.0 / theta ** (torch.arange(0, d_head, 2, device=device).float() / d_head)


def _turned(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = turn
    first, second = x.to(torch.promote_types(x.dtype, cos.dtype)).chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)
