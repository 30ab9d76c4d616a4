"""LayerNorm with hook points on its scale and on what it has normalised."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from encoderlens.components.freezing import Freezable
from encoderlens.components.linear import Gains
from encoderlens.hook_points import HookPoint
from encoderlens.precision import at_least_float32


class LayerNorm(Freezable, Gains):
    """``(x - mean(x)) / scale * w + b`` with ``scale = sqrt(var(x) + eps)`` (Ba et al. 2016).

    Half-precision input is normalised in float32, which is also what the hook points see. Frozen, the scale takes no gradient.
    """

    quantity = "ln"
    gains = ("w",)

    def __init__(self, d_model: int, eps: float, width: str = "d_model") -> None:
        super().__init__()
        self.eps = eps
        self.w = nn.Parameter(torch.empty(d_model))
        self.b = nn.Parameter(torch.empty(d_model))
        self.hook_scale = HookPoint("batch pos 1")
        self.hook_normalized = HookPoint(f"batch pos {width}")

    def forward(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        if not (self.hook_scale.active or self.hook_normalized.active or self.frozen):
            return F.layer_norm(x, self.w.shape, self.w, self.b, self.eps)
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        return torch.addcmul(self.b, self._normalized(wide), self.w).to(x.dtype)

    def in_front_of(self, matrix: Float[Tensor, "d_model out"] | None) -> Float[Tensor, "d_model out"]:
        """The matrix of this norm's linear part at a scale of one, times ``matrix`` (None: the identity), in float32 or wider,
        on the matrix's device: ``x @ result`` is ``((x - mean(x)) * w) @ matrix``.
        """
        w = at_least_float32(self.w.detach())
        weighted = w.diag() if matrix is None else w.to(matrix.device)[:, None] * matrix
        return weighted - weighted.mean(0)

    def _normalized(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        if self.hook_scale.only_caches and self.hook_normalized.only_caches and not self.frozen:  # the same in half the time
            normalized, _, inverse_scale = torch.native_layer_norm(x, self.w.shape, None, None, self.eps)
            self.hook_scale(inverse_scale.reciprocal())
            return self.hook_normalized(normalized)
        centred = x - x.mean(-1, keepdim=True)
        scale = self.hook_scale((self.hold(centred).square().mean(-1, keepdim=True) + self.eps).sqrt())
        return self.hook_normalized(centred / scale)
