"""Effective weights: what a module computes with, also where torch makes a weight of other parameters.

``torch.nn.utils.parametrize`` (and with it LoRA, ``parametrizations.weight_norm`` and the like), ``prune``, ``weight_norm`` and
``spectral_norm`` take a parameter out of its module and put in its place what they make of others. Whoever reads a weight reads
that.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves, tree_map_only

from encoderlens.components.stand_ins import check_forward
from encoderlens.errors import WeightsError

REMEDY = (
    "make what it is now a parameter again, with torch.nn.utils.parametrize.remove_parametrizations or "
    "torch.nn.utils.prune.remove"
)

STAND_IN = "what stands in for a layer needs the weights that it computes with, under the names that the layer has for them"


def effective(module: nn.Module, name: str = "weight") -> Tensor:
    """A weight as the module computes with it now.

    Pruning, and the older norms, set an attribute before each run of the module. It is made anew here: since that run, the
    parameters may have been trained, moved or cast.

    Raises:
        WeightsError: for a module that stands in for a layer, and has no such weight.
    """
    weight = effective_bias(module, name)
    if weight is None:
        raise WeightsError(f"the {name} of this {type(module).__name__} is None; {STAND_IN}")
    return weight


def effective_bias(module: nn.Module, name: str = "bias") -> Tensor | None:
    """As ``effective``; None for a bias that the module does not have.

    Raises:
        WeightsError: for a module that stands in for a layer, and computes with more than its weights,
            or has no such attribute.
    """
    check_forward(module)
    return _made(module, name)


def _made(module: nn.Module, name: str) -> Tensor | None:
    recipe = _recipes(module).get(name) if module._forward_pre_hooks else None
    if recipe is not None:
        return recipe(module)
    try:
        return getattr(module, name)
    except AttributeError as error:
        raise WeightsError(f"this {type(module).__name__} has no {name}; {STAND_IN}") from error


class ComputedWeight(Tensor):
    """A weight that is made of others, as it is read: it can be computed with, but an edit in place
    would be lost.

    What is computed from it is an ordinary tensor, and so is a copy; a view of it is a ComputedWeight
    too. An edit of an array that shares its memory (``numpy()``) is not seen.
    """

    weight_name = ""

    @classmethod
    def named(cls, weight: Tensor, name: str) -> "ComputedWeight":
        """A weight that nothing else holds, under the name that errors call it."""
        if weight.is_inference():  # torch counts no writes into such a tensor
            with torch.inference_mode(False), torch.no_grad():
                weight = weight.clone()
        computed = weight.as_subclass(cls)
        computed.weight_name = name
        return computed

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Runs a function of torch on it.

        Raises:
            WeightsError: for one that has written into it, by torch's own count of writes.
        """
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, cls)]
        with torch._C.DisableTorchFunctionSubclass():
            if func is Tensor.__deepcopy__:
                return given[0].detach().clone().as_subclass(Tensor)
            if func in _AS_ORDINARY:
                return func(given[0].as_subclass(Tensor), *args[1:], **kwargs)
            before = [weight._version for weight in given]
            result = func(*args, **kwargs)
            for weight, version in zip(given, before, strict=True):
                if weight._version != version:
                    raise _lost(weight.weight_name)
            return tree_map_only(Tensor, partial(_as_view, weights=given), result)


_AS_ORDINARY = (Tensor.__format__, Tensor.__reduce_ex__)  # they ask for the type


def _as_view(tensor: Tensor, weights: Iterable[ComputedWeight]) -> Tensor:
    """A tensor as a ComputedWeight, if it lies in the memory of one of these."""
    for weight in weights:
        if is_alias_of(tensor, weight):
            return ComputedWeight.named(tensor, weight.weight_name)
    return tensor


def _lost(name: str) -> WeightsError:
    return WeightsError(
        f"{name} is parametrised or pruned, and so made of other parameters: an edit in place would be "
        f"lost. Edit these, or {REMEDY}"
    )


def is_alias_of(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors lie in the same memory; also of tensors that torch.func wraps, which have no storage of their own."""
    return torch._C._is_alias_of(one, other)  # pyright: ignore[reportAttributeAccessIssue]  not in torch's stubs


def is_computed(module: nn.Module, name: str) -> bool:
    """Whether a weight of a module is made of others."""
    return name in _computed(module)


def _computed(module: nn.Module) -> list[str]:
    """The weights of a module that are made of others."""
    parametrized = cast(nn.ModuleDict, module.parametrizations) if is_parametrized(module) else ()
    return [*parametrized, *_recipes(module)]


def effective_weights(model: nn.Module) -> dict[str, Tensor]:
    """Every weight inside a model that is made of others, by its name in the model."""
    made = ((name, _made(module, leaf)) for name, module, leaf in _places(model))
    return {name: weight for name, weight in made if weight is not None}


def made_of_others(model: nn.Module) -> list[str]:
    """The names of these weights, none of which is computed."""
    return [name for name, _, _ in _places(model)]


def _places(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Every weight inside a model that is made of others: its name in the model, its module, and its name there."""
    for path, module in model.named_modules(remove_duplicate=False):
        for leaf in _computed(module):
            yield f"{path}.{leaf}".removeprefix("."), module, leaf


def weight_made_of(name: str) -> str:
    """The name of the weight that a state dict's tensor is a part of, if it is a part of one: ``q.weight`` of ``q.weight_mask``
    and of ``q.parametrizations.weight.original``.
    """
    path, _, rest = name.partition(".parametrizations.")
    return f"{path}.{rest.split('.')[0]}" if rest else name.rpartition("_")[0]


def _recipes(module: nn.Module) -> dict[str, Callable[[nn.Module], Tensor]]:
    """How the weights are made that a hook sets before each run, by name."""
    recipes: dict[str, Callable[[nn.Module], Tensor]] = {}
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod):
            recipes[hook._tensor_name] = hook.apply_mask
        elif isinstance(hook, WeightNorm):
            recipes[hook.name] = hook.compute_weight
        elif isinstance(hook, SpectralNorm):
            recipes[hook.name] = partial(hook.compute_weight, do_power_iteration=False)
    return recipes
