"""Linear maps whose parameters are made empty, to be filled once, and their views in TransformerLens' shapes."""

from typing import Any, ClassVar, overload

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from encoderlens.errors import WeightsError


class Gains(nn.Module):
    """A module with parameters that multiply what passes, and so start at one.

    Attributes:
        gains: their names.
    """

    gains: ClassVar[tuple[str, ...]]


class Linear(nn.Module):
    """``x @ weight.T + bias``; the weight lies as ``F.linear`` wants it [out in]. The bias may be missing."""

    def __init__(self, d_in: int, d_out: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        self.bias = nn.Parameter(torch.empty(d_out)) if bias else None

    def forward(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        return F.linear(x, self.weight, self.bias)


class WeightView:
    """A parameter under its TransformerLens name and in its shape, as a live view.

    Reading gives a view, so an edit in place under ``torch.no_grad()`` edits the model. Assigning copies the whole tensor
    into the parameter. A bias that the layer does not have reads as zeros, which cannot be written to.

    Args:
        path: the parameter, from the module that has the view.
        pattern: einops pattern from the parameter's axes to the view's; one that only splits and reorders axes. Empty: as
            it is. Axes of unknown size are attributes of the module: ``head`` is ``module.n_heads``.
        skip: the attribute of the module that says how many of the parameter's first rows the view leaves out.
    """

    SIZES: ClassVar[dict[str, str]] = {"head": "n_heads", "kv_head": "n_kv_heads"}

    def __init__(self, path: str, pattern: str = "", skip: str = "") -> None:
        self.path = path
        self.pattern = pattern
        self.skip = skip

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, module: None, owner: type) -> "WeightView": ...

    @overload
    def __get__(self, module: nn.Module, owner: type) -> Tensor: ...

    def __get__(self, module: nn.Module | None, owner: type) -> "WeightView | Tensor":
        if module is None:
            return self
        stored = self._stored(module)
        return rearrange(stored, self.pattern, **self._sizes(module)) if self.pattern else stored

    def __set__(self, module: nn.Module, value: Tensor) -> None:
        if self._is_missing(module):
            raise WeightsError(f"{self.name} cannot be assigned: this model's layers have no such bias")
        expected = self.__get__(module, type(module)).shape
        if not isinstance(value, Tensor) or value.shape != expected:
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise WeightsError(f"{self.name} has shape {list(expected)}; {shape} cannot be assigned to it")
        left, right = self.pattern.split("->") if self.pattern else ("", "")
        source = rearrange(value, f"{right} -> {left}", **self._sizes(module)) if self.pattern else value
        with torch.no_grad():
            self._stored(module).copy_(source)

    def _stored(self, module: nn.Module) -> Tensor:
        """The parameter, or what stands for it: without rows that are no part of the view, zeros for a missing bias."""
        if self._is_missing(module):
            weight = self._owner(module).get_parameter("weight")
            return weight.new_zeros(()).expand(len(weight))
        parameter = module.get_parameter(self.path)
        return parameter[getattr(module, self.skip) :] if self.skip else parameter

    def _is_missing(self, module: nn.Module) -> bool:
        return getattr(self._owner(module), self.path.rpartition(".")[2]) is None

    def _owner(self, module: nn.Module) -> nn.Module:
        return module.get_submodule(self.path.rpartition(".")[0])

    def _sizes(self, module: nn.Module) -> dict[str, int]:
        left = self.pattern.split("->")[0].replace("(", " ").replace(")", " ").split()
        return {axis: getattr(module, name) for axis, name in self.SIZES.items() if axis in left}


class Component(nn.Module):
    """Base of modules with WeightViews: assigning an ``nn.Parameter`` to a view also copies into the parameter behind it."""

    def __setattr__(self, name: str, value: Any) -> None:
        view = getattr(type(self), name, None)
        if isinstance(view, WeightView):
            view.__set__(self, value)
        else:
            super().__setattr__(name, value)
