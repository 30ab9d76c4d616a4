"""CachedRun: the activations of one run as a mapping, which can be moved, sliced, saved and loaded."""

import copy
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from encoderlens.components.stand_ins import check_layers, hooked_names
from encoderlens.devices import device_named
from encoderlens.errors import AnalysisError, HookNameError, InputError
from encoderlens.fingerprint import WeightsOfRun, fingerprint
from encoderlens.given import described, dtype_name, holds_integers, is_whole
from encoderlens.module_tree import modules_with_weights
from encoderlens.names import act_name, block_of, did_you_mean
from encoderlens.slices import Slice, SliceInput

log = logging.getLogger("encoderlens")

Window = Slice | SliceInput
AnyCache = TypeVar("AnyCache", bound="CachedRun")
_BESIDE = ("tokens", "mask", "positions", "frame_times")  # what a file holds beside activations
_ABOUT = "encoderlens_cache"  # the metadata of a file that holds a cache
_SIZES = ("n_layers", "n_heads", "d_model", "d_head", "d_mlp")  # what a file and its model must agree on


class CachedRun(Mapping[str, Tensor]):
    """A mapping from hook names to the tensors of one run.

    Keys are full names, short names with a layer (``cache["q", 0]``, ``cache["scale", 0, "ln1"]``, ``cache["q0"]``), and
    negative layers count from the last.

    Attributes:
        cache_dict: the tensors by full hook name; gradients under ``<name>_grad``.
        model: the model that ran.
        has_batch_dim: whether tensors still have their batch axis.
        tokens: the token ids of the run [batch pos], None for a run from a residual stream.
        mask: True at real positions [batch pos]; None when every position is real.
        hooked: the names of the modules that had forward hooks of torch.
        positions: which positions of the run are kept [pos]; None when all are.
        frame_times: the time of each position in seconds [pos], for audio.
    """

    def __init__(
        self,
        cache_dict: dict[str, Tensor],
        model: Any,
        has_batch_dim: bool = True,
        tokens: Int[Tensor, "*batch_pos"] | None = None,
        mask: Bool[Tensor, "*batch_pos"] | None = None,
        positions: Int[Tensor, " pos"] | None = None,
        frame_times: Float[Tensor, " pos"] | None = None,
    ) -> None:
        self.cache_dict = cache_dict
        self.model = model
        self.has_batch_dim = has_batch_dim
        self.tokens = tokens
        self.mask = mask
        self.positions = positions
        self.frame_times = frame_times
        self.weights = WeightsOfRun(model)
        self.hooked = hooked_names(model)

    def check_weights(self, modules: Iterable[nn.Module]) -> None:
        """Refuse to read weights that have changed since the run, or that are not all that their module computed with.

        Args:
            modules: the parts of the model whose weights are read.

        Raises:
            AnalysisError: with the first that has changed, or that has a forward hook of torch.
            WeightsError: for what stands in for a layer, and computes in a way of its own.
        """
        modules = list(modules)
        check_layers(self.model, modules, self.hooked)
        read = {part for module in modules for part in module.modules()}
        now = dict(modules_with_weights(self.model))
        names = [name for name, module in now.items() if module in read]
        changed = next(self.weights.changed_in(names, now), None)
        if changed is not None:
            raise AnalysisError(
                f"the weights of {changed} have changed since the run that this cache is of, and what they give now would not "
                "add up to its stream: run the model again"
            )

    # A mapping

    def full_name(self, key: Any) -> str:
        """The hook name that a key stands for."""
        if isinstance(key, str):
            return key if key in self.cache_dict else act_name(key)
        if not isinstance(key, tuple) or not 1 <= len(key) <= 3 or not isinstance(key[0], str):
            raise HookNameError(f"a cache's key is a hook name, or a tuple (short name, layer, norm), not {key!r}")
        name, *rest = key
        if rest and is_whole(rest[0]) and rest[0] < 0:
            rest[0] = int(rest[0]) + self.model.cfg.n_layers
        return act_name(name, *rest)

    def __getitem__(self, key: Any) -> Tensor:
        """The tensor of a key.

        Raises:
            HookNameError: for a name outside the grammar, or one that this cache does not hold.
        """
        name = self.full_name(key)
        if name not in self.cache_dict:
            raise HookNameError(f"the cache holds no {name!r}{did_you_mean(name, self.cache_dict)}")
        return self.cache_dict[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.cache_dict)

    def __len__(self) -> int:
        return len(self.cache_dict)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__} with {len(self)} activations: {', '.join(list(self)[:5])}{', …' if len(self) > 5 else ''}"
        )

    def _repr_html_(self) -> str:
        layers: dict[tuple[str, str], list[int]] = {}
        for name, value in self.items():
            layer = block_of(name)
            shape = f"{list(value.shape)} {dtype_name(value)}"
            layers.setdefault((name.replace(f"blocks.{layer}.", "blocks.{l}.", 1), shape), []).extend(
                [] if layer is None else [layer]
            )
        from encoderlens.tables import plain_table  # which loads what draws tables

        title = f"{type(self).__name__} of {len(self)} activations, {self.nbytes / 2**20:.1f} MiB"
        rows = [(name, shape, ", ".join(map(str, found))) for (name, shape), found in layers.items()]
        return plain_table(title, ("activation", "shape", "layers"), rows)

    @property
    def nbytes(self) -> int:
        """The memory that the tensors hold, storage that several share counted once."""
        storages = {StorageWeakRef(tensor.untyped_storage()): tensor.untyped_storage().nbytes() for tensor in self.values()}
        return sum(storages.values())

    def toggle_autodiff(self, mode: bool = False) -> None:
        """Switch gradients off (or on) for all of torch, with a warning in the log; ``torch.no_grad()`` does it for a block."""
        log.warning("gradients are now %s for all of torch, not only for this cache", "on" if mode else "off")
        torch.set_grad_enabled(mode)

    # Moving, slicing, saving

    def to(self: AnyCache, device: torch.device | str) -> AnyCache:
        """Move every tensor of this cache to a device.

        Raises:
            InputError: for a device that is not there, or a dtype, which is chosen when the model runs
                (``run_with_cache(dtype=…)``).
        """
        if not isinstance(device, str | int | torch.device):
            raise InputError(f"to({device!r}): a cache moves to a device, such as 'cpu'; run_with_cache takes a dtype")
        device = device_named(device, empty=True)
        self._map(lambda tensor: tensor.to(device))
        self.positions = None if self.positions is None else self.positions.to(device)
        self.frame_times = None if self.frame_times is None else self.frame_times.to(device)
        return self

    def remove_batch_dim(self: AnyCache) -> AnyCache:
        """Drop the batch axis, of one row, of this cache.

        Raises:
            InputError: for a cache of several rows.
        """
        if self.has_batch_dim:
            several = next((name for name, tensor in self.items() if len(tensor) != 1), None)
            if several is not None:
                raise InputError(
                    f"remove_batch_dim takes a cache of one sequence, and {several} has {len(self[several])}: choose one with "
                    "apply_slice_to_batch_dim(index)"
                )
            self._map(lambda tensor: tensor[0])
            self.has_batch_dim = False
        return self

    def apply_slice_to_batch_dim(self: AnyCache, batch_slice: Window) -> AnyCache:
        """A cache of some of the sequences, with tensors of its own; an int drops the batch axis.

        Raises:
            InputError: for a cache without a batch axis, or a sequence that is not there.
        """
        window = as_slice(batch_slice)
        if not self.has_batch_dim:
            raise InputError("this cache has no batch axis to slice")
        chosen = copy.copy(self)
        chosen._map(lambda tensor: window.apply(tensor).clone())
        chosen.has_batch_dim = not window.drops_axis
        return chosen

    def _map(self, change: Callable[[Tensor], Tensor]) -> None:
        """Change every tensor that has a batch axis."""
        self.cache_dict = {name: change(tensor) for name, tensor in self.items()}
        self.tokens = None if self.tokens is None else change(self.tokens)
        self.mask = None if self.mask is None else change(self.mask)

    def save(self, path: Path | str) -> None:
        """Write everything but the model to a safetensors file, which appears only when it is complete.

        Raises:
            InputError: if the file cannot be written, or the model's weights have changed since the run.
            WeightsError: for a model on the meta device.
        """
        _check_path(path)
        changed = next(self.weights.changed_in(name for name, _ in self.model.named_modules()), None)
        if changed is not None:
            raise InputError(
                f"the weights of {changed} have changed since the run, and a file names the weights that it is of: save caches "
                "before you change the model, or keep the activations alone with safetensors' save_file(dict(cache), path)"
            )
        beside = {name: getattr(self, name) for name in _BESIDE if getattr(self, name) is not None}
        tensors = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in self.items()}
        about = {
            "model": self.model.cfg.model_name,
            "sizes": _sizes(self.model),
            "weights": fingerprint(self.model),
            "has_batch_dim": self.has_batch_dim,
            "names": list(self),
        }
        partial = Path(f"{path}.partial")
        try:
            tensors |= {name: tensor.contiguous() for name, tensor in beside.items()}
            save_file(tensors, partial, {_ABOUT: json.dumps(about)})
            os.replace(partial, path)
        except (SafetensorError, OSError, RuntimeError) as error:  # RuntimeError: tensors on the meta device
            partial.unlink(missing_ok=True)
            raise InputError(f"the cache cannot be written to {path}: {error}") from error

    @classmethod
    def load(cls: type[AnyCache], path: Path | str, model: Any) -> AnyCache:
        """A cache that ``save`` wrote.

        Args:
            path: the file.
            model: the model that ran; its sizes, hook points and weights must be those of the file.

        Raises:
            InputError: for a file that is not there, is no cache, is damaged, or belongs to another model.
            WeightsError: for a model on the meta device.
        """
        _check_path(path)
        try:
            with safe_open(path, framework="pt") as file:
                about = _checked(file, path, model)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} cannot be read as a cache: {error}") from error
        fault = _fault(about, tensors, model)
        if fault:
            raise InputError(f"{path} is damaged: {fault}; save the cache again")
        beside = {name: tensors[name] for name in _BESIDE if name in tensors}
        return cls({name: tensors[name] for name in about["names"]}, model, about["has_batch_dim"], **beside)


def _sizes(model: Any) -> dict[str, int]:
    return {name: getattr(model.cfg, name) for name in _SIZES}


def _checked(file: Any, path: Path | str, model: Any) -> dict[str, Any]:
    """What a file says of the cache in it, if it is one, and of a run of this model."""
    stored = (file.metadata() or {}).get(_ABOUT)
    if stored is None:
        raise InputError(f"{path} holds no cache: it was not written by a cache's save")
    about = _parsed(stored, path)
    if missing := sorted(set(about["names"]) - set(file.keys())):
        raise InputError(f"{path} is damaged: it names {missing[0]!r} and does not hold it; save the cache again")
    ours, theirs = _sizes(model), about["sizes"]
    different = [f"{name} {theirs[name]}, not {ours[name]}" for name in _SIZES if theirs[name] != ours[name]]
    different += [f"a hook point {name!r}" for name in about["names"] if name.removesuffix("_grad") not in model.hook_dict][:1]
    if not different and about["weights"] != fingerprint(model):
        different = ["other weights"]
    if different:
        raise InputError(f"{path} is of another model, {about['model']!r}: it has {', '.join(different)}")
    return about


def _parsed(stored: str, path: Path | str) -> dict[str, Any]:
    """The description of a cache, if every field is there and of its kind."""
    kinds = {"model": str, "sizes": dict, "weights": str, "has_batch_dim": bool, "names": list}
    try:
        about = json.loads(stored)
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is damaged: what it says of its cache is not JSON; save the cache again") from error
    whole = isinstance(about, dict) and all(isinstance(about.get(name), kind) for name, kind in kinds.items())
    if not whole or not about["sizes"].keys() >= set(_SIZES) or not all(isinstance(name, str) for name in about["names"]):
        raise InputError(
            f"{path} is damaged, or of another version: it does not say {', '.join(kinds)} of its cache; save it again"
        )
    return about


def _fault(about: dict[str, Any], tensors: dict[str, Tensor], model: Any) -> str:
    """What is wrong with the tensors of a file; empty if they can be those of a cache."""
    batched = about["has_batch_dim"]
    for name in about["names"]:
        if not tensors[name].is_floating_point():
            return f"{name!r} is {described(tensors[name])}, and activations are floating-point numbers"
        axes = model.hook_dict[name.removesuffix("_grad")].axes
        if not _fits(tensors[name], axes if batched else [axis for axis in axes if axis != "batch"], model):
            return f"{name!r} is {described(tensors[name])}, and its axes are {' '.join(axes)}"
    tokens, mask = tensors.get("tokens"), tensors.get("mask")
    if tokens is not None and not holds_integers(tokens):
        return f"the tokens are {described(tokens)}, and are whole numbers"
    if mask is not None and (mask.dtype != torch.bool or (tokens is not None and mask.shape != tokens.shape)):
        return f"the mask is {described(mask)}; it is True or False for each position"
    return ""


def _fits(tensor: Tensor, axes: Sequence[str], model: Any) -> bool:
    """Whether a tensor has these axes, of which a position axis may have been dropped."""
    cfg = model.cfg
    sizes = {"head": cfg.n_heads, "d_head": cfg.d_head, "d_model": cfg.d_model, "d_mlp": cfg.d_mlp}
    for kept in (axes, [axis for axis in axes if axis not in ("pos", "query")]):
        if tensor.ndim == len(kept):
            return all(size == sizes.get(axis, size) for axis, size in zip(kept, tensor.shape, strict=True))
    return False


def _check_path(path: Any) -> None:
    """Refuse what names no file.

    Raises:
        InputError: with what it is.
    """
    if not isinstance(path, str | Path):
        raise InputError(f"path is {described(path)}; give the name of a file")


def as_slice(value: Window) -> Slice:
    """A Slice as it is, anything else made into one; an int drops the axis."""
    return value if isinstance(value, Slice) else Slice(value)
