"""Linear maps whose parameters are made empty, to be filled once, and their views in TransformerLens' shapes."""

from typing import Any, ClassVar, overload

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from encoderlens.components.effective import REMEDY, ComputedWeight, effective, effective_bias, is_alias_of, is_computed
from encoderlens.components.stand_ins import check_forward
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
    into the parameter. A bias that the layer does not have reads as zeros, which cannot be written to. A weight that is made of
    others (parametrised, pruned) reads as what the layer computes with now, with gradients to these; it cannot be assigned.

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
        weight = self._weight(module)
        view = rearrange(weight, self.pattern, **self._sizes(module)) if self.pattern else weight
        layer, leaf = self._place(module)
        if not is_computed(layer, leaf):
            return view
        alone = all(not is_alias_of(view, part) for part in layer.parameters())
        return ComputedWeight.named(view if alone else view.clone(), f"{self.name} ({self.path})")

    def __set__(self, module: nn.Module, value: Tensor) -> None:
        owner, leaf = self._place(module)
        if effective_bias(owner, leaf) is None:
            raise WeightsError(f"{self.name} cannot be assigned: this model's layers have no such bias")
        if is_computed(owner, leaf):
            raise WeightsError(
                f"{self.name} cannot be assigned: {self.path} is parametrised or pruned, and so made of other parameters. Edit "
                f"these, or {REMEDY}"
            )
        expected = self.__get__(module, type(module)).shape
        if not isinstance(value, Tensor) or value.shape != expected:
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise WeightsError(f"{self.name} has shape {list(expected)}; {shape} cannot be assigned to it")
        left, right = self.pattern.split("->") if self.pattern else ("", "")
        source = rearrange(value, f"{right} -> {left}", **self._sizes(module)) if self.pattern else value
        with torch.no_grad():
            self._weight(module).copy_(source)

    def _weight(self, module: nn.Module) -> Tensor:
        """The parameter, or what stands for it: without rows that are no part of the view, zeros for a missing bias."""
        owner, leaf = self._place(module)
        weight = effective_bias(owner, leaf)
        if weight is None:
            rows = effective(owner)
            return rows.new_zeros(()).expand(len(rows))
        return weight[getattr(module, self.skip) :] if self.skip else weight

    def _place(self, module: nn.Module) -> tuple[nn.Module, str]:
        """The module that has the weight, and its name there."""
        path, _, leaf = self.path.rpartition(".")
        owner = module.get_submodule(path)
        check_forward(owner, f"{path} of {type(module).__name__}" if path else "")
        return owner, leaf

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
