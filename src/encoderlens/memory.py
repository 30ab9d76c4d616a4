"""How much memory is free on a device."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

CGROUPS = Path("/sys/fs/cgroup")  # where Linux says what a container or a job of a cluster may use


def free_bytes(device: torch.device) -> int | None:
    """The memory that new tensors can take on a device; None where torch does not say."""
    if device.type == "cpu":
        return min([psutil.virtual_memory().available, *_left_in_groups(_group_folders())])
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return None


def _group_folders() -> list[Path]:
    """The folder of this process's control group (version 2), and those of the groups around it."""
    own = Path("/proc/self/cgroup")
    lines = own.read_text().splitlines() if own.is_file() else []
    path = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    folder = CGROUPS / path
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(CGROUPS))]


def _left_in_groups(folders: list[Path]) -> Iterator[int]:
    """What each group that has a limit has left: pages that only cache files can be given up. A group that does not say how
    many these are is left out.
    """
    for folder in folders:
        limit = folder / "memory.max"
        if not limit.is_file() or limit.read_text().strip() == "max":
            continue
        caching = _inactive_file(folder)
        if caching is not None:
            yield int(limit.read_text()) - int((folder / "memory.current").read_text()) + caching


def _inactive_file(folder: Path) -> int | None:
    """How much of a group's memory only caches files; None where the system does not say."""
    statistics = folder / "memory.stat"
    if not statistics.is_file():
        return None
    kinds = dict(line.split() for line in statistics.read_text().splitlines())
    return int(kinds["inactive_file"]) if "inactive_file" in kinds else None
