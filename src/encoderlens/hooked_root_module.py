"""HookedRootModule: run a module that holds HookPoints with hooks, or with a cache of what passed through them."""

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from encoderlens.devices import device_named
from encoderlens.errors import GradientError, HookNameError, HookUnreachableError, InputError
from encoderlens.hook_points import CachingHook, HookFunction, HookPoint, LensHandle, check_hook
from encoderlens.names import NamesFilter, check_word, did_you_mean, select
from encoderlens.precision import DTYPES
from encoderlens.run_state import Direction, RunState, Scope
from encoderlens.slices import Slice, SliceInput

Hooks = Collection[tuple[NamesFilter, HookFunction]]
BothDirections = Literal["fwd", "bwd", "both"]


class HookedRootModule(nn.Module):
    """Base of every hooked model, and of your own: give a module HookPoints, call ``setup()`` at the end of ``__init__``.

    Everything that takes hooks or a names filter takes a name, a collection of names or a predicate on names, and raises
    before anything runs for a name that does not exist or a filter that selects nothing.

    A context (``hooks``, ``run_with_hooks``, ``run_with_cache``, an analysis) acts in the runs of the thread that opened it;
    ``add_hook`` acts in those of every thread. A hook may run the model again: that run is one of its own, in which the hook
    itself does not act, and which no cache of the outer run sees.
    """

    def __init__(self) -> None:
        super().__init__()
        self.run_state = RunState()
        self.mod_dict: dict[str, nn.Module] = {}
        self.hook_dict: dict[str, HookPoint] = {}

    @property
    def context_level(self) -> int:
        """How many ``hooks()`` contexts this thread has open."""
        return self.run_state.level

    def setup(self) -> None:
        """Name every module and collect the hook points. Call it after all submodules exist."""
        self.mod_dict = {name: module for name, module in self.named_modules() if name}
        self.hook_dict = {name: module for name, module in self.mod_dict.items() if isinstance(module, HookPoint)}
        for name, point in self.hook_dict.items():
            point.name = name
            point.run_state = self.run_state

    def hook_points(self) -> Collection[HookPoint]:
        return self.hook_dict.values()

    def default_hook_names(self) -> list[str]:
        """What a names filter of None stands for."""
        return [name for name, point in self.hook_dict.items() if point.on_demand is None]

    # Attaching and removing

    def add_hook(
        self,
        name: NamesFilter,
        hook: HookFunction,
        dir: Direction = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Attach a hook until it is reset, to the point(s) that a name, collection or predicate selects. It acts in the runs of
        every thread.

        Raises:
            HookNameError: if nothing is selected, or the hook is no function.
        """
        check_hook(hook)
        for point in self._points(name):
            point.add_hook(hook, dir, is_permanent, level, prepend)

    def add_perma_hook(self, name: NamesFilter, hook: HookFunction, dir: Direction = "fwd") -> None:
        """Attach a hook that ``reset_hooks`` leaves on unless permanent ones are included."""
        self.add_hook(name, hook, dir, is_permanent=True)

    def remove_all_hook_fns(
        self, direction: BothDirections = "both", including_permanent: bool = False, level: int | None = None
    ) -> None:
        for point in self.hook_points():
            point.remove_hooks(direction, including_permanent, level)

    def clear_contexts(self) -> None:
        """Empty the ``ctx`` of every hook point."""
        for point in self.hook_points():
            point.clear_context()

    def reset_hooks(
        self,
        clear_contexts: bool = True,
        direction: BothDirections = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Remove hooks (all but permanent ones, unless asked), and by default empty every ``ctx``. Those of contexts that other
        threads have open stay on.
        """
        if clear_contexts:
            self.clear_contexts()
        self.remove_all_hook_fns(direction, including_permanent, level)

    def list_hooks(
        self, name_filter: NamesFilter = None, dir: BothDirections = "both", including_permanent: bool = True
    ) -> dict[str, list[LensHandle]]:
        """The attached hooks by hook point; points without any are left out."""
        listed: dict[str, list[LensHandle]] = {}
        check_word("dir", dir, ("fwd", "bwd", "both"), HookNameError)
        for name in select(name_filter, self.hook_dict):
            point = self.hook_dict[name]
            handles = [*(point.fwd_hooks if dir != "bwd" else ()), *(point.bwd_hooks if dir != "fwd" else ())]
            handles = [handle for handle in handles if including_permanent or not handle.is_permanent]
            if handles:
                listed[name] = handles
        return listed

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        nested: bool = True,
    ) -> "Iterator[HookedRootModule]":
        """Context in which hooks are attached, for the runs of this thread; contexts nest, and each takes off just what it put
        on.

        Args:
            fwd_hooks, bwd_hooks: pairs of (name, collection or predicate; hook function).
            reset_hooks_end: False leaves the hooks on after the context, until ``reset_hooks``; they then act in the runs of
                every thread, as if ``add_hook`` had attached them.
            clear_contexts: empty every ``ctx`` when the hooks come off.
            nested: False keeps the hooks out of runs that other hooks start, as caching hooks always are.

        Raises:
            HookNameError: before any hook is attached, for what selects no hook point.
        """
        wanted: list[tuple[HookPoint, HookFunction, Direction, bool]] = []
        directed: list[tuple[Direction, Hooks]] = [("fwd", fwd_hooks), ("bwd", bwd_hooks)]
        for direction, pairs in directed:
            for names, hook in _pairs(pairs):
                named = not callable(names) and names is not None
                for point in self._points(names):
                    wanted.append((point, hook, direction, named))
        state = self.run_state
        this_run = state.next_scope
        this_thread = Scope(state.thread)
        state.level += 1
        attached: list[tuple[HookPoint, LensHandle]] = []
        for point, hook, direction, named in wanted:
            scope = this_thread if nested and not isinstance(hook, CachingHook) else this_run
            handle = LensHandle(hook, context_level=state.level, must_run=named, scope=scope)
            attached.append((point, point.attach(handle, direction)))
        try:
            yield self
        finally:
            state.level -= 1
            for point, handle in attached:
                if reset_hooks_end:
                    point.detach(handle)
                else:
                    handle.must_run = False
                    handle.scope = point.scope_of(handle.user_hook)
            if reset_hooks_end and clear_contexts:
                self.clear_contexts()

    def without_hooks(self) -> AbstractContextManager[None]:
        """Context in which no hook acts in the runs of this thread, permanent ones included: for a part of the model that runs
        once more.
        """
        return self.run_state.silenced("fwd", "bwd")

    # Running

    def run_with_hooks(
        self,
        *model_args: Any,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """``model(*args, **kwargs)`` with hooks on. Backward hooks fire whenever ``backward`` runs on the result."""
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return self(*model_args, **model_kwargs)

    def run_with_cache(
        self,
        *model_args: Any,
        names_filter: NamesFilter = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        loss_fn: Callable[[Any], Tensor] | None = None,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: Slice | SliceInput = None,
        return_cache_object: bool = True,
        **model_kwargs: Any,
    ) -> tuple[Any, Any]:
        """Run the model and keep the activations.

        Args:
            names_filter: what to keep: None for all (on-demand points only where their ``cfg.use_*`` flag is on), else a
                name, a collection of names or a predicate.
            device, dtype: where and as what to keep it.
            remove_batch_dim: drop the batch axis, of one row.
            incl_bwd: also call ``backward`` on the output and keep gradients under ``<name>_grad``. Parameters' ``.grad``
                fill up, as with any ``backward``.
            loss_fn: with ``incl_bwd``: maps the output to the scalar whose gradients are wanted; without it the output
                itself must be one (``return_type="loss"``).
            pos_slice: positions to keep; tensors without a position axis are kept whole. An int keeps the axis, of length
                one; ``Slice(int)`` drops it.
            return_cache_object: False gives a plain dictionary, whatever the model makes of its cache.

        Returns:
            The output, and the activations by name.

        Raises:
            HookNameError: for a name that does not exist or a filter that selects nothing.
            GradientError: ``incl_bwd`` without a scalar that carries gradients.
        """
        if loss_fn is not None and not incl_bwd:
            raise GradientError("loss_fn is what incl_bwd=True differentiates: give both, or neither")
        if incl_bwd and not torch.is_grad_enabled():
            raise GradientError("incl_bwd=True needs gradients, and they are disabled here (no_grad or inference_mode)")
        cache, fwd, bwd = self.get_caching_hooks(
            names_filter, incl_bwd, device, remove_batch_dim, pos_slice=pos_slice, dtype=dtype
        )
        with self.hooks(fwd, bwd, reset_hooks_end, clear_contexts):
            output = self(*model_args, **model_kwargs)
        window = Slice.unwrap(pos_slice)
        kept = self.cache_object(cache, not remove_batch_dim, window) if return_cache_object else cache
        if incl_bwd:  # the backward hooks belong to the run, and loss_fn may run the model again
            _scalar_loss(output, loss_fn).backward()
        if not cache:
            raise HookUnreachableError(
                f"the names filter {names_filter!r} selects only hook points that this run does not compute"
            )
        return output, kept

    def cache_object(self, cache: dict[str, Tensor], has_batch_dim: bool, pos_slice: Slice) -> Any:
        """What ``run_with_cache`` returns as the cache; a model may wrap the dictionary."""
        return cache

    def get_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
        pos_slice: Slice | SliceInput = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[dict[str, Tensor], list[tuple[NamesFilter, HookFunction]], list[tuple[NamesFilter, HookFunction]]]:
        """The cache and the hooks that fill it, not yet attached: ``(cache, fwd_hooks, bwd_hooks)``."""
        cache = {} if cache is None else cache
        names = self._names(names_filter)
        if dtype is not None and dtype not in DTYPES:
            raise InputError(f"dtype={dtype!r}; give a floating-point torch.dtype of 16 bits or more, such as torch.float16")
        device = None if device is None else device_named(device, empty=True)
        window = Slice.unwrap(pos_slice)
        if not window.selects_all and not any(self.hook_dict[name].axes for name in names):
            raise InputError("pos_slice needs hook points that name their axes: HookPoint('batch pos d_model')")
        forward = CachingHook(cache, device, dtype, remove_batch_dim, window)
        backward = CachingHook(cache, device, dtype, remove_batch_dim, window, suffix="_grad")
        # A name or collection must be reached by the run; what a predicate or None selects may be cut by it.
        chosen = names if isinstance(names_filter, str | Collection) else set(names).__contains__
        return cache, [(chosen, forward)], [(chosen, backward)] if incl_bwd else []

    def add_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Attach caching hooks until they are reset, and return the dictionary that the next runs fill."""
        cache, fwd, bwd = self.get_caching_hooks(names_filter, incl_bwd, device, remove_batch_dim, cache)
        for names, hook in fwd:
            self.add_hook(names, hook, "fwd")
        for names, hook in bwd:
            self.add_hook(names, hook, "bwd")
        return cache

    def check_reachable(self, reached: Callable[[str], bool], why: str) -> None:
        """Refuse a run that cannot reach a point which a context's hooks name.

        Raises:
            HookUnreachableError: with the name and what this run computes.
        """
        for name, point in self.hook_dict.items():
            handles = [*point.awaiting("fwd"), *point.awaiting("bwd")]
            if any(handle.must_run for handle in handles) and not reached(name):
                raise HookUnreachableError(f"{name} is hooked, but {why}")

    def _names(self, names_filter: NamesFilter) -> list[str]:
        if not self.hook_dict:
            raise HookNameError(f"{type(self).__name__} has no hook points; call setup() at the end of its __init__")
        if isinstance(names_filter, str) and names_filter not in self.hook_dict and names_filter in self.mod_dict:
            inside = [name for name in self.hook_dict if name.startswith(f"{names_filter}.")]
            raise HookNameError(f"{names_filter!r} is a module, not a hook point{did_you_mean(names_filter, inside)}")
        return self.default_hook_names() if names_filter is None else select(names_filter, self.hook_dict)

    def _points(self, names: NamesFilter) -> list[HookPoint]:
        return [self.hook_dict[name] for name in self._names(names)]


def _pairs(hooks: Hooks) -> Iterator[tuple[NamesFilter, HookFunction]]:
    for pair in hooks:
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not callable(pair[1]):
            raise HookNameError(f"hooks are a list of pairs (name, function), not of {pair!r}")
        yield pair[0], pair[1]


def _scalar_loss(output: Any, loss_fn: Callable[[Any], Tensor] | None) -> Tensor:
    loss = output if loss_fn is None else loss_fn(output)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise GradientError(f"incl_bwd needs a scalar, not {found}: use return_type='loss' with labels, or give loss_fn")
    if not loss.requires_grad:
        raise GradientError("incl_bwd needs a loss that carries gradients: the run was under no_grad, or nothing requires one")
    return loss
