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

    Frozen, it multiplies by its gain ``act(x) / x`` of this run, which takes no gradient. Near 0, where that has no digits, the
    gain is its slope there.

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
        tiny = torch.finfo(x.dtype).smallest_normal
        if x.dtype == torch.float16:  # whose range is so small that act(x) loses digits long before it is like its slope
            wide = x.float()
            return torch.where(y.abs() < tiny, self._gain(wide, self.fn(wide)).half(), y / x)
        left, right = x.new_tensor(self._slopes_at_zero())
        near_zero = x.abs() < tiny**0.5  # where squares underflow, and act(x) is its slope times x as far as numbers go
        return torch.where(near_zero, torch.where(x > 0, right, left), y / x)

    def _slopes_at_zero(self) -> list[float]:
        """To the left and to the right, which differ at a kink; at 0 itself torch, too, takes the left one."""
        least = torch.finfo(torch.float64).smallest_normal ** 0.5
        sides = torch.tensor([-least, least], dtype=torch.float64, device="cpu")
        return (self.fn(sides) / sides).tolist()


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
