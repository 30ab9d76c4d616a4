"""State dicts: names that a wrapper has left in them, and names that stand for one tensor."""

import logging
from collections.abc import Container, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from encoderlens.errors import WeightsError
from encoderlens.precision import same_numbers

log = logging.getLogger("encoderlens")

WRAPPERS = {  # what stands in front of a module's own name in a state dict, and what puts it there
    "_orig_mod": "torch.compile",
    "module": "DataParallel and DistributedDataParallel",
    "_fsdp_wrapped_module": "FullyShardedDataParallel",
    "_checkpoint_wrapped_module": "activation checkpointing",
}

# Wrappers


def is_wrapper(module: nn.Module) -> bool:
    """Whether a module holds another one as wrappers do."""
    return any(name in WRAPPERS for name, _ in module.named_children())


def unwrapped(name: str) -> str:
    """A tensor's name without those of wrappers around its modules."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def without_wrappers(names: Iterable[str], where: str, known: Container[str] = ()) -> dict[str, str]:
    """Names without those of wrappers, each with the one that it has; where there are any, the log says so.

    Args:
        where: the file, or what else holds them, for messages.
        known: names that stay as they are.

    Raises:
        WeightsError: for two names that would become one.
    """
    found: dict[str, str] = {}
    for stored in names:
        name = stored if stored in known else unwrapped(stored)
        if name in found:
            raise WeightsError(f"{where} holds both {found[name]} and {stored}, which are one tensor; leave one of them out")
        found[name] = stored
    wrapped = [stored for name, stored in found.items() if stored != name]
    if wrapped:
        origins = ", ".join(f"{part}. of {origin}" for part, origin in WRAPPERS.items() if part in wrapped[0].split("."))
        log.warning("%s: %d names such as %s hold %s, and are read without it", where, len(wrapped), wrapped[0], origins)
    return found


# Sharing

Groups = tuple[tuple[str, ...], ...]


def shared_names(model: nn.Module) -> Groups:
    """The names of each parameter and buffer of a model: several where modules share it."""
    names: dict[int, list[str]] = {}
    for named in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        for name, tensor in named:
            names.setdefault(id(tensor), []).append(name)
    return tuple(tuple(group) for group in names.values())


def first_unequal(group: Iterable[str], tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """Two names of a group whose tensors differ; None where all are equal."""
    first, *others = group
    for other in others:
        if not same_numbers(tensors[first], tensors[other]):
            return first, other
    return None


def completed(state: Mapping[str, Any], groups: Groups) -> dict[str, Any]:
    """A state dict with every name of what it holds under one of them.

    Raises:
        WeightsError: for names of one tensor under which it holds different ones.
    """
    whole = dict(state)
    for group in groups:
        held = [name for name in group if name in state]
        if not held:
            continue
        unequal = first_unequal(held, state)
        if unequal is not None:
            raise WeightsError(
                f"{unequal[0]} and {unequal[1]} are one parameter of this model, and the state dict holds different tensors "
                "for them. Load it into a model in which they are apart (for an unembedding: with tie_word_embeddings=False)"
            )
        whole |= {name: state[held[0]] for name in group if name not in state}
    return whole


def join(model: nn.Module, groups: Groups) -> None:
    """Make the parameters of each group one again."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for first, *others in groups:
        for name in others if first in parameters else ():
            owner, _, leaf = name.rpartition(".")
            model.get_submodule(owner).register_parameter(leaf, parameters[first])
