"""One block of the encoder, with LayerNorm after each sublayer or before it."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from encoderlens.components.attention import Attention, split_heads
from encoderlens.components.mlp import NeuronWriter
from encoderlens.components.norm import ScaledNorm
from encoderlens.components.residual import Norm, Step, WriteOfParts
from encoderlens.hook_points import HookPoint
from encoderlens.sequence import Sequence
from encoderlens.shapes import Resid, Stream


class Block(nn.Module, ABC):
    """What blocks share: attention with split inputs on demand, dropout, and their place on the residual path.

    ``hook_block_out`` is where the block's output passes, in every family.
    """

    dropout: float
    mlp_dropout: float
    attn: Attention
    mlp: NeuronWriter
    ln2: ScaledNorm
    hook_q_input: HookPoint
    hook_k_input: HookPoint
    hook_v_input: HookPoint
    hook_resid_pre: HookPoint
    hook_resid_mid: HookPoint
    hook_block_out: HookPoint

    def forward(self, resid_pre: Resid, sequence: Sequence | None = None) -> Resid:
        """The stream after the block, from what has passed ``hook_resid_pre``. Without a sequence, every position is real."""
        sequence = Sequence.of(resid_pre) if sequence is None else sequence
        return self.hook_block_out(self.through(resid_pre, sequence))

    @abstractmethod
    def through(self, resid_pre: Resid, sequence: Sequence) -> Resid:
        """The block's output."""

    @property
    @abstractmethod
    def path_to_mid(self) -> list[Step]:
        """The residual path from ``hook_resid_pre`` to ``hook_resid_mid``."""

    @property
    @abstractmethod
    def path_from_mid(self) -> list[Step]:
        """The residual path from ``hook_resid_mid`` to the block's output."""

    @abstractmethod
    def settled(self, resid_mid: Stream) -> Stream:
        """The stream at ``hook_resid_mid``, with the norms that a stream between blocks has passed."""

    @abstractmethod
    def norm_in_front(self, mlp_input: bool) -> ScaledNorm | None:
        """The norm between the stream and attention, or between the stream at ``hook_resid_mid`` and the MLP."""

    def _attention(self, x: Resid, sequence: Sequence, ln: ScaledNorm | None = None) -> Float[Tensor, "batch pos d_model"]:
        """What attention writes, from the stream, through a norm in front of it if there is one."""
        if self.hook_q_input.active or self.hook_k_input.active or self.hook_v_input.active:
            q, k, v = self._split_inputs(x, ln)
        else:
            q = k = v = x if ln is None else ln(x)
        return F.dropout(self.attn(q, k, v, sequence), self.dropout, self.training)

    def _split_inputs(self, x: Resid, ln: ScaledNorm | None) -> tuple[Tensor, Tensor, Tensor]:
        """What queries, keys and values read, one stream for each head: through the norm all at once, so that its hook points
        count the heads of queries, of keys and of values, one after the other.
        """
        n_heads, n_kv_heads = self.attn.n_heads, self.attn.n_kv_heads
        q = self.hook_q_input(split_heads(x, n_heads))
        k = self.hook_k_input(split_heads(x, n_kv_heads))
        v = self.hook_v_input(split_heads(x, n_kv_heads))
        if ln is None:
            return q, k, v
        normalized = ln(torch.cat([q, k, v], dim=-2))
        q, k, v = normalized.split([n_heads, n_kv_heads, n_kv_heads], dim=-2)
        return q, k, v

    def _mlp(self, x: Resid) -> Float[Tensor, "batch pos d_model"]:
        return F.dropout(self.mlp(x), self.mlp_dropout, self.training)


def _axes_of_keys(attn: Attention) -> str:
    return "batch pos head d_model" if attn.n_kv_heads == attn.n_heads else "batch pos kv_head d_model"


class PostLNBlock(Block):
    """``y = LN1(x + attn(x))``, ``x' = LN2(y + mlp(y))``: LayerNorm after each sum (Vaswani et al. 2017)."""

    def __init__(
        self,
        dropout: float,
        mlp_dropout: float,
        attn: Attention,
        mlp: NeuronWriter,
        norm: Callable[..., ScaledNorm],
    ) -> None:
        super().__init__()
        self.dropout, self.mlp_dropout = dropout, mlp_dropout
        self.hook_resid_pre = HookPoint("batch pos d_model")
        self.hook_q_input = HookPoint("batch pos head d_model", on_demand="use_split_qkv_input")
        self.hook_k_input = HookPoint(_axes_of_keys(attn), on_demand="use_split_qkv_input")
        self.hook_v_input = HookPoint(_axes_of_keys(attn), on_demand="use_split_qkv_input")
        self.attn = attn
        self.hook_attn_out = HookPoint("batch pos d_model")
        self.hook_resid_mid = HookPoint("batch pos d_model")
        self.hook_mlp_in = HookPoint("batch pos d_model", on_demand="use_hook_mlp_in")
        self.ln1 = norm()
        self.hook_normalized_resid_mid = HookPoint("batch pos d_model")
        self.mlp = mlp
        self.hook_mlp_out = HookPoint("batch pos d_model")
        self.hook_resid_post = HookPoint("batch pos d_model")
        self.ln2 = norm()
        self.hook_normalized_resid_post = HookPoint("batch pos d_model")
        self.hook_block_out = HookPoint("batch pos d_model")

    def through(self, resid_pre: Resid, sequence: Sequence) -> Resid:
        attn_out = self.hook_attn_out(self._attention(resid_pre, sequence))
        resid_mid = self.hook_mlp_in(self.hook_resid_mid(resid_pre + attn_out))
        normalized_mid = self.hook_normalized_resid_mid(self.ln1(resid_mid))
        mlp_out = self.hook_mlp_out(self._mlp(normalized_mid))
        resid_post = self.hook_resid_post(normalized_mid + mlp_out)
        return self.hook_normalized_resid_post(self.ln2(resid_post))

    @property
    def path_to_mid(self) -> list[Step]:
        return [WriteOfParts(self.hook_attn_out, self.attn)]

    @property
    def path_from_mid(self) -> list[Step]:
        return [Norm(self.ln1), WriteOfParts(self.hook_mlp_out, self.mlp), Norm(self.ln2)]

    def settled(self, resid_mid: Stream) -> Stream:
        return self.ln1(resid_mid)

    def norm_in_front(self, mlp_input: bool) -> ScaledNorm | None:
        return self.ln1 if mlp_input else None


class PreLNBlock(Block):
    """``y = x + attn(LN1(x))``, ``x' = y + mlp(LN2(y))``: LayerNorm before each sublayer (Xiong et al. 2020).

    Args:
        norm_in_front: whether there is LN1.
    """

    def __init__(
        self,
        dropout: float,
        mlp_dropout: float,
        norm_in_front: bool,
        attn: Attention,
        mlp: NeuronWriter,
        norm: Callable[..., ScaledNorm],
    ) -> None:
        super().__init__()
        self.dropout, self.mlp_dropout = dropout, mlp_dropout
        self.hook_resid_pre = HookPoint("batch pos d_model")
        self.hook_q_input = HookPoint("batch pos head d_model", on_demand="use_split_qkv_input")
        self.hook_k_input = HookPoint(_axes_of_keys(attn), on_demand="use_split_qkv_input")
        self.hook_v_input = HookPoint(_axes_of_keys(attn), on_demand="use_split_qkv_input")
        self.ln1 = norm() if norm_in_front else None
        self.attn = attn
        self.hook_attn_out = HookPoint("batch pos d_model")
        self.hook_resid_mid = HookPoint("batch pos d_model")
        self.hook_mlp_in = HookPoint("batch pos d_model", on_demand="use_hook_mlp_in")
        self.ln2 = norm()
        self.mlp = mlp
        self.hook_mlp_out = HookPoint("batch pos d_model")
        self.hook_resid_post = HookPoint("batch pos d_model")
        self.hook_block_out = HookPoint("batch pos d_model")

    def through(self, resid_pre: Resid, sequence: Sequence) -> Resid:
        attn_out = self.hook_attn_out(self._attention(resid_pre, sequence, self.ln1))
        resid_mid = self.hook_resid_mid(resid_pre + attn_out)
        mlp_out = self.hook_mlp_out(self._mlp(self.ln2(self.hook_mlp_in(resid_mid))))
        return self.hook_resid_post(resid_mid + mlp_out)

    @property
    def path_to_mid(self) -> list[Step]:
        return [WriteOfParts(self.hook_attn_out, self.attn)]

    @property
    def path_from_mid(self) -> list[Step]:
        return [WriteOfParts(self.hook_mlp_out, self.mlp)]

    def settled(self, resid_mid: Stream) -> Stream:
        return resid_mid

    def norm_in_front(self, mlp_input: bool) -> ScaledNorm | None:
        return self.ln2 if mlp_input else self.ln1
