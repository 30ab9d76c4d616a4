"""Activation functions by the names that checkpoints use, plain and gated."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from encoderlens.components.freezing import Freezable
from encoderlens.errors import AnalysisError, ConfigError
from encoderlens.names import did_you_mean


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _squared_relu(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _identity(x: Tensor) -> Tensor:
    return x


_TANH_GELU = partial(F.gelu, approximate="tanh")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_python": F.gelu,
    "gelu_new": _TANH_GELU,
    "gelu_fast": _TANH_GELU,
    "gelu_pytorch_tanh": _TANH_GELU,
    "gelu_python_tanh": _TANH_GELU,
    "gelu_accurate": _TANH_GELU,
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "relu2": _squared_relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky_relu": F.leaky_relu,
    "linear": _identity,
}


class Activation(Freezable):
    """An elementwise activation function.

    Frozen, it multiplies by its gain ``act(x) / x`` of this run (at 0: its slope there), which takes no gradient.

    Raises:
        ConfigError: for an unknown name, with the known ones.
    """

    quantity = "gain"

    def __init__(self, name: Any) -> None:
        super().__init__()
        self.name, self.fn = name, _known(name)

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        y = self.fn(x)
        return y.detach() + (x - x.detach()) * self._gain(x.detach(), y.detach()) if self.frozen else y

    def check_freezable(self) -> None:
        if self.fn(torch.zeros(())) != 0:
            raise AnalysisError(
                f"the activation {self.name!r} is not 0 at 0, so no gain act(x) / x stands for it; linearise with gain=False"
            )

    def _gain(self, x: Float[Tensor, "*shape"], y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return torch.where(x == 0, self._slope_at_zero(), y / x)

    def _slope_at_zero(self) -> float:
        with torch.inference_mode(False), torch.enable_grad():
            zero = torch.zeros((), requires_grad=True)
            (slope,) = torch.autograd.grad(self.fn(zero), zero)
        return float(slope)


class GatedActivation(Freezable):
    """``act(gate) * x`` (Dauphin et al. 2017, Shazeer 2020). Frozen, ``act(gate)`` is the gain of x and takes no gradient.

    Raises:
        ConfigError: for an unknown name, with the known ones.
    """

    quantity = "gain"

    def __init__(self, name: Any) -> None:
        super().__init__()
        self.fn = _known(name)

    def forward(self, gate: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return self.hold(self.fn(gate)) * x


def _known(name: Any) -> Callable[[Tensor], Tensor]:
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ConfigError(f"unknown activation {name!r}{did_you_mean(name, ACTIVATIONS)}; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
