"""What stands in the place of a layer, or acts on one: whether the layer computes with the weights that it holds."""

from collections.abc import Callable, Collection, Iterable
from typing import Any

from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from encoderlens.errors import AnalysisError, WeightsError
from encoderlens.module_tree import all_modules

MAKES_WEIGHT = (BasePruningMethod, WeightNorm, SpectralNorm)  # the kinds of hook that set a weight before each run
_KNOWN = ("encoderlens.", "torch.nn.modules.")  # where forward functions compute what weights say, and nothing else


def check_forward(module: nn.Module, where: str = "") -> None:
    """Refuse a module that computes with more than the weights that a layer has, such as one for LoRA.

    Args:
        where: its name, for the message.

    Raises:
        WeightsError: for a forward function that is neither ours nor of torch's plain layers.
    """
    if not _is_plain(module):
        origin = _origin(module)
        raise WeightsError(
            f"{where or 'a layer'} is a {type(module).__name__} with a forward function of its own ({origin}), and its weights "
            "need not be all that it computes with: merge what it adds into the weight of a layer of the kind that the model "
            "was made with, or make it a parametrization (torch.nn.utils.parametrize.register_parametrization)"
        )


def _is_plain(module: nn.Module) -> bool:
    """Whether its forward function is ours, or of a plain layer of torch."""
    return _origin(module).startswith(_KNOWN)


def _origin(module: nn.Module) -> str:
    """Where its forward function comes from."""
    forward = module.__dict__.get("forward", type(module).forward)
    return str(getattr(forward, "__module__", None))


def torch_hooks(module: nn.Module) -> list[Callable[..., Any]]:
    """The forward hooks of torch on a module: those that make a weight, and our own, left out."""
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return [hook for hook in hooks if not isinstance(hook, MAKES_WEIGHT) and not _is_ours(hook)]


def _is_ours(hook: Callable[..., Any]) -> bool:
    return str(getattr(hook, "__module__", None)).startswith("encoderlens.")


def check_unhooked(module: nn.Module, where: str) -> None:
    """Refuse a module whose input or output a forward hook of torch can change.

    Args:
        where: its name, for the message.

    Raises:
        AnalysisError: for such a hook.
    """
    if torch_hooks(module):
        raise _hooked(where)


def _hooked(where: str) -> AnalysisError:
    return AnalysisError(
        f"a forward hook of torch is on {where}, so that its weights need not be all that acts there: take it off and run the "
        "model again, or hook the model's own hook points instead (model.hooks, model.add_hook)"
    )


def hooked_names(model: nn.Module) -> frozenset[str]:
    """The names of the modules of a model that have forward hooks of torch."""
    if not any(module._forward_hooks or module._forward_pre_hooks for module in all_modules(model)):
        return frozenset()
    return frozenset(name for name, module in model.named_modules() if torch_hooks(module))


def check_layers(model: nn.Module, modules: Iterable[nn.Module], hooked: Collection[str]) -> None:
    """Refuse to take apart what some modules of a model compute, where that is not what their weights say.

    Args:
        hooked: the names of modules that had forward hooks of torch in the run.

    Raises:
        WeightsError: for a module with a forward function of its own.
        AnalysisError: for one with a hook.
    """
    read = set(modules)
    if not hooked and all(map(_is_plain, read)):
        return
    for name, module in model.named_modules():
        if module not in read:
            continue
        check_forward(module, name)
        if name in hooked:
            raise _hooked(name)
