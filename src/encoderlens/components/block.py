"""One block of the encoder, with LayerNorm after each sublayer or before it."""

from abc import ABC, abstractmethod
from collections.abc import Callable

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
    """What blocks share: attention with split inputs on demand, dropout, and their place on the residual path."""

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

    @abstractmethod
    def forward(self, resid_pre: Resid, sequence: Sequence) -> Resid:
        """The stream after the block, from what has passed ``hook_resid_pre``."""

    @property
    @abstractmethod
    def path_to_mid(self) -> list[Step]:
        """The residual path from ``hook_resid_pre`` to ``hook_resid_mid``."""

    @property
    @abstractmethod
    def path_from_mid(self) -> list[Step]:
        """The residual path from ``hook_resid_mid`` to the block's output."""

    @property
    @abstractmethod
    def out_point(self) -> HookPoint:
        """Where the block's output passes."""

    @abstractmethod
    def settled(self, resid_mid: Stream) -> Stream:
        """The stream at ``hook_resid_mid``, with the norms that a stream between blocks has passed."""

    @abstractmethod
    def norm_in_front(self, mlp_input: bool) -> ScaledNorm | None:
        """The norm between the stream and attention, or between the stream at ``hook_resid_mid`` and the MLP."""

    def _attention(self, x: Resid, sequence: Sequence) -> Float[Tensor, "batch pos d_model"]:
        n_heads, n_kv_heads = self.attn.n_heads, self.attn.n_kv_heads
        q = _split(x, self.hook_q_input, n_heads)
        k, v = (_split(x, hook, n_kv_heads) for hook in (self.hook_k_input, self.hook_v_input))
        return F.dropout(self.attn(q, k, v, sequence), self.dropout, self.training)

    def _mlp(self, x: Resid) -> Float[Tensor, "batch pos d_model"]:
        return F.dropout(self.mlp(x), self.mlp_dropout, self.training)


def _split(x: Tensor, hook: HookPoint, n_heads: int) -> Tensor:
    return hook(split_heads(x, n_heads)) if hook.active else x


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

    def forward(self, resid_pre: Resid, sequence: Sequence) -> Resid:
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

    @property
    def out_point(self) -> HookPoint:
        return self.hook_normalized_resid_post

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
        self.ln1 = norm() if norm_in_front else None
        self.hook_q_input = HookPoint("batch pos head d_model", on_demand="use_split_qkv_input")
        self.hook_k_input = HookPoint(_axes_of_keys(attn), on_demand="use_split_qkv_input")
        self.hook_v_input = HookPoint(_axes_of_keys(attn), on_demand="use_split_qkv_input")
        self.attn = attn
        self.hook_attn_out = HookPoint("batch pos d_model")
        self.hook_resid_mid = HookPoint("batch pos d_model")
        self.hook_mlp_in = HookPoint("batch pos d_model", on_demand="use_hook_mlp_in")
        self.ln2 = norm()
        self.mlp = mlp
        self.hook_mlp_out = HookPoint("batch pos d_model")
        self.hook_resid_post = HookPoint("batch pos d_model")

    def forward(self, resid_pre: Resid, sequence: Sequence) -> Resid:
        attn_in = resid_pre if self.ln1 is None else self.ln1(resid_pre)
        attn_out = self.hook_attn_out(self._attention(attn_in, sequence))
        resid_mid = self.hook_resid_mid(resid_pre + attn_out)
        mlp_out = self.hook_mlp_out(self._mlp(self.ln2(self.hook_mlp_in(resid_mid))))
        return self.hook_resid_post(resid_mid + mlp_out)

    @property
    def path_to_mid(self) -> list[Step]:
        return [WriteOfParts(self.hook_attn_out, self.attn)]

    @property
    def path_from_mid(self) -> list[Step]:
        return [WriteOfParts(self.hook_mlp_out, self.mlp)]

    @property
    def out_point(self) -> HookPoint:
        return self.hook_resid_post

    def settled(self, resid_mid: Stream) -> Stream:
        return resid_mid

    def norm_in_front(self, mlp_input: bool) -> ScaledNorm | None:
        return self.ln2 if mlp_input else self.ln1
