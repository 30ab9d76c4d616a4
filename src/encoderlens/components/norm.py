"""Norms with hook points on their scale and on what they have normalised."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from encoderlens.components.effective import effective, effective_bias
from encoderlens.components.freezing import Freezable
from encoderlens.components.linear import Gains
from encoderlens.hook_points import HookPoint
from encoderlens.precision import at_least_float32


class ScaledNorm(Freezable, Gains, ABC):
    """A norm that divides by a scale of each row: ``centred(x) / scale * w + b``.

    Half-precision input is normalised in float32, which is also what the hook points see. Frozen, the scale takes no gradient.

    Args:
        width, rows: the names of the axis that is normalised and of those in front of it.

    Attributes:
        w, b: its parameters; ``b`` is None for a norm without a bias.
    """

    quantity = "ln"
    gains = ("w",)
    b: nn.Parameter | None

    def __init__(self, d_model: int, eps: float, bias: bool, width: str, rows: str) -> None:
        super().__init__()
        self.eps = eps
        self.w = nn.Parameter(torch.empty(d_model))
        self.b = nn.Parameter(torch.empty(d_model)) if bias else None
        self.hook_scale = HookPoint(f"{rows} 1")
        self.hook_normalized = HookPoint(f"{rows} {width}")

    def forward(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        if not (self.hook_scale.active or self.hook_normalized.active or self.frozen):
            return self._fused(x)
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        normalized = self._normalized(wide)
        return (normalized * self.w if self.b is None else torch.addcmul(self.b, normalized, self.w)).to(x.dtype)

    @property
    def bias(self) -> Float[Tensor, " d_model"] | None:
        """What it adds, if anything: ``b`` as it is now."""
        return effective_bias(self, "b")

    def in_front_of(self, matrix: Float[Tensor, "d_model out"] | None) -> Float[Tensor, "d_model out"]:
        """The matrix of this norm's linear part at a scale of one, times ``matrix`` (None: the identity), in float32 or wider,
        on the matrix's device: ``x @ result`` is ``(centred(x) * w) @ matrix``.
        """
        w = at_least_float32(effective(self, "w").detach())
        return self._centre_in_front_of(w.diag() if matrix is None else w.to(matrix.device)[:, None] * matrix)

    def _normalized(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        centred = self._centred(x)
        scale = self.hook_scale((self.hold(centred).square().mean(-1, keepdim=True) + self.eps).sqrt())
        return self.hook_normalized(centred / scale)

    @abstractmethod
    def _fused(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """All of it at once."""

    @abstractmethod
    def _centred(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """What is divided by the scale."""

    @abstractmethod
    def _centre_in_front_of(self, matrix: Float[Tensor, "d_model out"]) -> Float[Tensor, "d_model out"]:
        """``centred(x) @ matrix`` as ``x @ result``."""


class LayerNorm(ScaledNorm):
    """``(x - mean(x)) / scale * w + b`` with ``scale = sqrt(var(x) + eps)`` (Ba et al. 2016)."""

    def __init__(self, d_model: int, eps: float, bias: bool = True, width: str = "d_model", rows: str = "batch pos") -> None:
        super().__init__(d_model, eps, bias, width, rows)

    def _fused(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        return F.layer_norm(x, self.w.shape, self.w, self.b, self.eps)

    def _normalized(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        if self.hook_scale.only_caches and self.hook_normalized.only_caches and not self.frozen:  # the same in half the time
            normalized, _, inverse_scale = torch.native_layer_norm(x, self.w.shape, None, None, self.eps)
            self.hook_scale(inverse_scale.reciprocal())
            return self.hook_normalized(normalized)
        return super()._normalized(x)

    def _centred(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        return x - x.mean(-1, keepdim=True)

    def _centre_in_front_of(self, matrix: Float[Tensor, "d_model out"]) -> Float[Tensor, "d_model out"]:
        return matrix - matrix.mean(0)


class RMSNorm(ScaledNorm):
    """``x / scale * w`` with ``scale = sqrt(mean(x²) + eps)`` (Zhang & Sennrich 2019)."""

    def __init__(self, d_model: int, eps: float, width: str = "d_model", rows: str = "batch pos") -> None:
        super().__init__(d_model, eps, False, width, rows)

    def _fused(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        return F.rms_norm(x, self.w.shape, self.w, self.eps)

    def _centred(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        return x

    def _centre_in_front_of(self, matrix: Float[Tensor, "d_model out"]) -> Float[Tensor, "d_model out"]:
        return matrix
