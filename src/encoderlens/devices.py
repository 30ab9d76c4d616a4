"""Devices: those that are there, and the one that a model goes to when none is named."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from encoderlens.errors import DeviceError

# What torch raises where a device is not there, or its library is missing or broken.
FAILURES = (RuntimeError, AssertionError, ImportError)


def device_named(device: Any, *, empty: bool = False) -> torch.device:
    """A device that is there and holds numbers; the default one for None.

    Args:
        device: a device of torch, or its name.
        empty: torch's "meta" device, whose tensors have shapes and no numbers, will do too.

    Raises:
        DeviceError: for what torch does not know as a device, or does not find on this machine, or for "meta".
    """
    if device is None:
        return default_device()
    try:
        found = torch.device(device)
    except FAILURES as error:
        raise DeviceError(f"device={device!r} is no device that torch knows here; {_there()}") from error
    except TypeError as error:
        raise DeviceError(f"device={device!r} is no device that torch knows: give a name, such as 'cpu' or 'cuda:0'") from error
    if found.type == "cpu":
        return torch.device("cpu")  # there is just one, whatever its index
    if found.type == "meta":
        if empty:
            return found
        raise DeviceError(f"device={device!r} has tensors with shapes and no numbers; {_there()}")
    _try(found, device)
    return found


def check_move(move: Callable[[Tensor], Tensor], source: torch.device) -> Tensor:
    """A number, moved as parameters shall be: before the first of them goes where no tensor can be.

    Args:
        source: where the parameters are.

    Raises:
        DeviceError: if torch cannot do it, also for what cannot be read from the meta device.
    """
    try:
        return move(torch.zeros(1, device=source if source.type == "meta" else None))
    except (*FAILURES, TypeError, ValueError) as error:  # the last two for a type that torch does not know
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise DeviceError(f"the model cannot be moved there ({reason}), and stays where it is; {_there()}") from error


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _try(found: torch.device, asked: Any) -> None:
    """Put a number on a device, and read it back."""
    try:
        torch.zeros(1, device=found).cpu()
    except torch.OutOfMemoryError:
        return  # it is there, and full
    except FAILURES as error:
        raise DeviceError(f"device={asked!r} is not there, or cannot be used; {_there()}") from error


def _there() -> str:
    """The devices that torch finds, for messages."""
    names = ["cpu"]
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None:
        names += [f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count())]
    return f"torch {torch.__version__} finds {', '.join(names)} on this machine"
