"""One block of the encoder, with LayerNorm after each sublayer or before it."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from encoderlens.components.attention import Attention, split_heads
from encoderlens.components.mlp import NeuronWriter
from encoderlens.components.norm import LayerNorm
from encoderlens.components.residual import Norm, Step, WriteOfParts
from encoderlens.hook_points import HookPoint
from encoderlens.sequence import Sequence
from encoderlens.shapes import Resid, Stream


class Block(nn.Module, ABC):
    """What blocks share: attention with split inputs on demand, dropout, and their place on the residual path."""

    dropout: float
    attn: Attention
    mlp: NeuronWriter
    ln1: LayerNorm
    ln2: LayerNorm
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
    def norm_in_front(self, mlp_input: bool) -> LayerNorm | None:
        """The norm between the stream and attention, or between the stream at ``hook_resid_mid`` and the MLP."""

    def _attention(self, x: Resid, sequence: Sequence) -> Float[Tensor, "batch pos d_model"]:
        q, k, v = (self._split(x, hook) for hook in (self.hook_q_input, self.hook_k_input, self.hook_v_input))
        return self._dropout(self.attn(q, k, v, sequence))

    def _split(self, x: Tensor, hook: HookPoint) -> Tensor:
        return hook(split_heads(x, self.attn.n_heads)) if hook.active else x

    def _dropout(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class PostLNBlock(Block):
    """``y = LN1(x + attn(x))``, ``x' = LN2(y + mlp(y))``: LayerNorm after each sum (Vaswani et al. 2017)."""

    def __init__(self, dropout: float, attn: Attention, mlp: NeuronWriter, norm: Callable[[], LayerNorm]) -> None:
        super().__init__()
        self.dropout = dropout
        self.hook_resid_pre = HookPoint("batch pos d_model")
        self.hook_q_input = HookPoint("batch pos head d_model", on_demand="use_split_qkv_input")
        self.hook_k_input = HookPoint("batch pos head d_model", on_demand="use_split_qkv_input")
        self.hook_v_input = HookPoint("batch pos head d_model", on_demand="use_split_qkv_input")
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
        mlp_out = self.hook_mlp_out(self._dropout(self.mlp(normalized_mid)))
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

    def norm_in_front(self, mlp_input: bool) -> LayerNorm | None:
        return self.ln1 if mlp_input else None


class PreLNBlock(Block):
    """``y = x + attn(LN1(x))``, ``x' = y + mlp(LN2(y))``: LayerNorm before each sublayer (Xiong et al. 2020)."""

    def __init__(self, dropout: float, attn: Attention, mlp: NeuronWriter, norm: Callable[[], LayerNorm]) -> None:
        super().__init__()
        self.dropout = dropout
        self.hook_resid_pre = HookPoint("batch pos d_model")
        self.ln1 = norm()
        self.hook_q_input = HookPoint("batch pos head d_model", on_demand="use_split_qkv_input")
        self.hook_k_input = HookPoint("batch pos head d_model", on_demand="use_split_qkv_input")
        self.hook_v_input = HookPoint("batch pos head d_model", on_demand="use_split_qkv_input")
        self.attn = attn
        self.hook_attn_out = HookPoint("batch pos d_model")
        self.hook_resid_mid = HookPoint("batch pos d_model")
        self.hook_mlp_in = HookPoint("batch pos d_model", on_demand="use_hook_mlp_in")
        self.ln2 = norm()
        self.mlp = mlp
        self.hook_mlp_out = HookPoint("batch pos d_model")
        self.hook_resid_post = HookPoint("batch pos d_model")

    def forward(self, resid_pre: Resid, sequence: Sequence) -> Resid:
        attn_out = self.hook_attn_out(self._attention(self.ln1(resid_pre), sequence))
        resid_mid = self.hook_resid_mid(resid_pre + attn_out)
        mlp_out = self.hook_mlp_out(self._dropout(self.mlp(self.ln2(self.hook_mlp_in(resid_mid)))))
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

    def norm_in_front(self, mlp_input: bool) -> LayerNorm | None:
        return self.ln2 if mlp_input else self.ln1
