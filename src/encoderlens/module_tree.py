"""Walks over the modules of a model, in a fraction of the time that ``named_modules()`` takes: cached runs walk each time."""

from collections.abc import Iterator

from torch import nn


def all_modules(model: nn.Module) -> Iterator[nn.Module]:
    """A model and all modules inside it, in any order; those that are shared may come more than once."""
    left: list[nn.Module | None] = [model]
    while left:
        module = left.pop()
        if module is not None:
            yield module
            left += module._modules.values()


def modules_with_weights(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Those of ``model.named_modules()`` that have parameters or buffers of their own, in its order."""
    seen: set[nn.Module] = set()
    left: list[tuple[str, nn.Module]] = [("", model)]
    while left:
        name, module = left.pop()
        if module in seen:
            continue
        seen.add(module)
        if module._parameters or module._buffers:
            yield name, module
        if module._modules:
            prefix = f"{name}." if name else ""
            children = module._modules.items()
            left += reversed([(prefix + own, child) for own, child in children if child is not None and _may_hold(child)])


def _may_hold(module: nn.Module) -> bool:
    """Whether a module or one inside it may have weights; most modules of an encoder are hook points, which have none."""
    return bool(module._modules or module._parameters or module._buffers)
