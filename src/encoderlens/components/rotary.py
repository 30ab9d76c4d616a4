"""Attention whose queries and keys are turned by their positions (Su et al. 2021), over all positions or a window."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from encoderlens.components.attention import Attention
from encoderlens.errors import AnalysisError
from encoderlens.factored_matrix import FactoredMatrix
from encoderlens.hook_points import HookPoint
from encoderlens.sequence import Sequence
from encoderlens.shapes import HeadVectors, KVHeadVectors


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
        turn = sequence.once(("turns", self.theta, self.d_head, q.device), lambda: self.turns(sequence.pos, q.device))
        return self.hook_rot_q(_turned(q, turn)), self.hook_rot_k(_turned(k, turn))

    def frequencies(self, device: torch.device) -> Float[Tensor, " pair"]:
        """How far each pair of coordinates is turned from one position to the next."""
        return 1.0 / self.theta ** (torch.arange(0, self.d_head, 2, device=device).float() / self.d_head)

    def turns(self, n_positions: int, device: torch.device) -> tuple[Float[Tensor, "pos 1 pair"], Float[Tensor, "pos 1 pair"]]:
        """Cosine and sine of each position's angles."""
        angles = torch.arange(n_positions, device=device).float()[:, None, None] * self.frequencies(device)
        return angles.cos(), angles.sin()

    def allowed(self, sequence: Sequence) -> Bool[Tensor, "..."] | None:
        if self.window is None:
            return sequence.key_mask
        return sequence.window_mask(self.window, self.q.weight.device)

    def check_bilinear(self) -> None:
        raise AnalysisError(
            "rotary attention turns queries and keys, so W_Q W_K^T is not what it multiplies by: take "
            "blocks[l].attn.QK_at(distance), the product for a key so many positions after the query"
        )

    def QK_at(self, distance: int) -> FactoredMatrix:
        """``W_Q R(distance) W_K^T`` of every head [head d_model d_model], unscaled and without biases: the score of a query for
        a key that lies so many positions after it is ``x_query QK x_key``, if it is not beyond the window.
        """
        angles = distance * self.frequencies(self.q.weight.device)
        W_K = self.W_K.repeat_interleave(self.n_heads // self.n_kv_heads, 0)
        return FactoredMatrix(_turned(self.W_Q, (angles.cos(), (-angles).sin())), W_K.mT)


def _turned(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = turn
    first, second = x.to(torch.promote_types(x.dtype, cos.dtype)).chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)
