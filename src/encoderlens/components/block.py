"""One block of the encoder."""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from encoderlens.components.attention import Attention, split_heads
from encoderlens.components.mlp import MLP
from encoderlens.hook_points import HookPoint
from encoderlens.sequence import Sequence


class PostLNBlock(nn.Module):
    """``y = LN1(x + attn(x))``, ``x' = LN2(y + mlp(y))``: LayerNorm after each sum (Vaswani et al. 2017)."""

    def __init__(self, dropout: float, attn: Attention, mlp: MLP, norm: Callable[[], nn.Module]) -> None:
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

    def forward(self, resid: Float[Tensor, "batch pos d_model"], sequence: Sequence) -> Float[Tensor, "batch pos d_model"]:
        resid_pre = self.hook_resid_pre(resid)
        attn_out = self.hook_attn_out(self._dropout(self._attention(resid_pre, sequence)))
        resid_mid = self.hook_mlp_in(self.hook_resid_mid(resid_pre + attn_out))
        normalized_mid = self.hook_normalized_resid_mid(self.ln1(resid_mid))
        mlp_out = self.hook_mlp_out(self._dropout(self.mlp(normalized_mid)))
        resid_post = self.hook_resid_post(normalized_mid + mlp_out)
        return self.hook_normalized_resid_post(self.ln2(resid_post))

    def _attention(self, x: Tensor, sequence: Sequence) -> Tensor:
        q, k, v = (self._split(x, hook) for hook in (self.hook_q_input, self.hook_k_input, self.hook_v_input))
        return self.attn(q, k, v, sequence)

    def _split(self, x: Tensor, hook: HookPoint) -> Tensor:
        return hook(split_heads(x, self.attn.n_heads)) if hook.active else x

    def _dropout(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)
