"""HookPoint: the identity module that every activation of interest passes through."""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from encoderlens.errors import GradientError, HookNameError, HookResultError
from encoderlens.given import dtype_name
from encoderlens.names import block_of, check_word
from encoderlens.run_state import EVERYWHERE, Direction, RunState, Scope
from encoderlens.slices import Slice

HookFunction = Callable[..., Any]


@dataclass(eq=False)
class LensHandle:
    """One attached hook.

    Attributes:
        user_hook: the function as it was given.
        is_permanent: survives ``reset_hooks`` unless ``including_permanent`` is asked for.
        context_level: depth of the ``hooks()`` context that attached it, None outside one.
        must_run: attached by name in a context, so that a run which cannot reach its point is an error.
        scope: the runs in which it acts.
    """

    user_hook: HookFunction
    is_permanent: bool = False
    context_level: int | None = None
    must_run: bool = False
    scope: Scope = EVERYWHERE


@dataclass
class CachingHook:
    """A hook that stores what it sees under the hook point's name and changes nothing.

    Args:
        cache: where tensors go, by hook name plus ``suffix``.
        device, dtype: where and as what they are kept; dtype applies to floating-point tensors.
        remove_batch_dim: drop a batch axis of size one.
        pos_slice: entries kept along the position axis (the query axis of attention scores and patterns).
    """

    cache: dict[str, Tensor]
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None
    remove_batch_dim: bool = False
    pos_slice: Slice = field(default_factory=Slice)
    suffix: str = ""

    def __call__(self, tensor: Tensor, *, hook: "HookPoint") -> None:
        kept, axes = tensor.detach(), hook.axes
        pos_axis = None if self.pos_slice.selects_all else hook.pos_axis
        if pos_axis is not None:
            kept = self.pos_slice.apply(kept, pos_axis)
        if self.remove_batch_dim and (not axes or axes[0] == "batch"):
            if kept.shape[0] != 1:
                raise HookResultError(
                    f"remove_batch_dim=True needs a batch of one, but {hook.name} has {kept.shape[0]} rows; run one "
                    "sequence, or keep the batch axis"
                )
            kept = kept[0]
        kept = kept.to(self.device, self.dtype if kept.is_floating_point() else None)
        must_own = pos_axis is not None or self._may_change(tensor)  # a slice would keep the whole tensor alive
        if must_own and kept.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr():
            kept = kept.clone()
        self.cache[f"{hook.name}{self.suffix}"] = kept

    def kept_bytes(self, hook: "HookPoint", sizes: Mapping[str, int], dtype: torch.dtype) -> int:
        """The memory that it will keep of a hook point, of whose axes the sizes are known; unknown ones count as 1.

        Args:
            dtype: of what passes there.
        """
        shape = [sizes.get(axis, 1) for axis in hook.axes]
        if hook.pos_axis is not None:
            shape[hook.pos_axis] = len(self.pos_slice.indices(shape[hook.pos_axis]))
        return math.prod(shape) * (self.dtype or dtype).itemsize

    def _may_change(self, tensor: Tensor) -> bool:
        """A view of a parameter changes as the model is trained, and a gradient may become a leaf's ``.grad``, to which the
        next ``backward`` adds in place.
        """
        owner = tensor if tensor._base is None else tensor._base
        return bool(self.suffix) or isinstance(owner, nn.Parameter)


class HookPoint(nn.Module):
    """Identity, until hooks are attached; then ``fn(tensor, hook=hook_point)`` sees or replaces what passes through.

    A forward hook returns None or a replacement of the same shape and dtype; it gets a copy of its own, so that an edit in
    place changes what flows on and nothing that was seen before. A backward hook gets the gradient with respect to what
    leaves this point, after its forward hooks, and returns None or a replacement gradient. Backward hooks belong to the
    forward passes during which they are attached.

    Args:
        axes: names of the tensor's axes, as in ``"batch pos d_model"``. May be left out in your own modules.
        on_demand: the ``cfg.use_*`` flag that has this point computed when everything is asked for; a point with one is
            otherwise computed only when a hook is attached to it.
    """

    def __init__(self, axes: str = "", on_demand: str | None = None) -> None:
        super().__init__()
        self.axes = tuple(axes.split())
        self.on_demand = on_demand
        self.name: str | None = None
        self.ctx: dict[Any, Any] = {}
        self.fwd_hooks: list[LensHandle] = []
        self.bwd_hooks: list[LensHandle] = []
        self.run_state = RunState()

    @property
    def active(self) -> bool:
        """Whether any hook acts in the run under way."""
        if not (self.fwd_hooks or self.bwd_hooks):
            return False
        return bool(self.acting("fwd") or self.acting("bwd"))

    @property
    def only_caches(self) -> bool:
        """Whether nothing that acts can change what passes through, or asks for its gradient."""
        if not (self.fwd_hooks or self.bwd_hooks):
            return True
        observers = (isinstance(handle.user_hook, CachingHook) for handle in self.acting("fwd"))
        return not self.acting("bwd") and all(observers)

    def acting(self, dir: Direction) -> list[LensHandle]:
        """The hooks of a direction that act in the run under way."""
        state = self.run_state
        return [handle for handle in self._in_reach(dir) if state.is_in(handle.scope)]

    def awaiting(self, dir: Direction) -> list[LensHandle]:
        """The hooks of a direction that will act in the next run that this thread starts."""
        thread, depth = self.run_state.next_scope.thread, self.run_state.next_scope.depth
        return [
            handle
            for handle in self._in_reach(dir)
            if handle.scope.thread in (None, thread) and handle.scope.depth in (None, depth)
        ]

    def _in_reach(self, dir: Direction) -> list[LensHandle]:
        """The hooks of a direction that are neither silent nor being called. Other threads may attach hooks meanwhile."""
        handles = self._handles(dir)
        state = self.run_state
        if not handles or dir in state.silent:
            return []
        return [handle for handle in tuple(handles) if handle.user_hook not in state.called]

    @property
    def pos_axis(self) -> int | None:
        """Index of the position axis (for scores and patterns: of the query axis), or None."""
        return next((index for index, axis in enumerate(self.axes) if axis in ("pos", "query")), None)

    def forward(self, tensor: Tensor) -> Tensor:
        if not (self.fwd_hooks or self.bwd_hooks):
            return tensor
        leaving = self._through_forward_hooks(tensor)
        backward = self.acting("bwd")
        if not backward:
            return leaving
        if tensor.requires_grad and not leaving.requires_grad and torch.is_grad_enabled():
            leaving = leaving.detach().requires_grad_()  # a hook put a constant here, such as zeros: it has a gradient too
        return self._attach_backward_hooks(leaving, backward)

    def _through_forward_hooks(self, tensor: Tensor) -> Tensor:
        leaving = tensor
        replaced = False
        for handle in self.acting("fwd"):
            if isinstance(handle.user_hook, CachingHook):
                handle.user_hook(leaving, hook=self)
                continue
            private = leaving.clone()
            with self.run_state.calling(handle.user_hook):
                replacement = handle.user_hook(private, hook=self)
            if replacement is None:
                leaving = private
            else:
                leaving = self._checked(replacement, private, "hook")
                replaced = True
        if leaving is tensor:
            return tensor
        return self.run_state.see(self, tensor, leaving, replaced)

    def _attach_backward_hooks(self, tensor: Tensor, handles: list[LensHandle]) -> Tensor:
        if not (torch.is_grad_enabled() and tensor.requires_grad):
            raise GradientError(
                f"{self.name} has a backward hook, but its activation carries no gradient: run with gradients enabled, "
                "and with parameters (or an input) that require them"
            )
        node = tensor.view_as(tensor)
        for handle in handles:
            node.register_hook(self._backward_hook(handle))
        return node

    def _backward_hook(self, handle: LensHandle) -> Callable[[Tensor], Tensor | None]:
        hook = handle.user_hook

        def observe(grad: Tensor) -> None:
            hook(grad, hook=self)

        def edit(grad: Tensor) -> Tensor:
            private = grad.clone()
            with self.run_state.calling(hook):
                replacement = hook(private, hook=self)
            if isinstance(replacement, tuple) and len(replacement) == 1:
                replacement = replacement[0]
            return private if replacement is None else self._checked(replacement, grad, "backward hook")

        return observe if isinstance(hook, CachingHook) else edit

    def _checked(self, replacement: Any, original: Tensor, what: str) -> Tensor:
        if not isinstance(replacement, Tensor):
            raise HookResultError(
                f"a {what} at {self.name} returned {type(replacement).__name__}; return a tensor, or None to leave it as it is"
            )
        if replacement.shape != original.shape or replacement.dtype != original.dtype:
            raise HookResultError(
                f"a {what} at {self.name} returned {_shape_text(replacement)} in place of {_shape_text(original)}"
                f"{' (' + ' '.join(self.axes) + ')' if self.axes else ''}; a replacement has the same shape and dtype"
            )
        if replacement.device != original.device:
            raise HookResultError(
                f"a {what} at {self.name} returned a tensor on {replacement.device} in place of one on {original.device}; "
                "move it there: replacement.to(tensor.device)"
            )
        return replacement

    def add_hook(
        self,
        hook: HookFunction,
        dir: Direction = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> LensHandle:
        """Attach a hook, which acts in the runs of every thread; ``prepend`` runs it before those already there.

        Raises:
            HookNameError: for what cannot be called.
        """
        check_hook(hook)
        return self.attach(LensHandle(hook, is_permanent, level, scope=self.scope_of(hook)), dir, prepend)

    def scope_of(self, hook: HookFunction) -> Scope:
        """Where a hook that is attached for every thread acts: a caching hook in no run that another hook starts."""
        if isinstance(hook, CachingHook):
            return Scope(depth=self.run_state.next_scope.depth)
        return EVERYWHERE

    def attach(self, handle: LensHandle, dir: Direction, prepend: bool = False) -> LensHandle:
        handles = self._handles(dir)
        handles.insert(0 if prepend else len(handles), handle)
        return handle

    def add_perma_hook(self, hook: HookFunction, dir: Direction = "fwd") -> LensHandle:
        """Attach a hook that ``reset_hooks`` leaves on."""
        return self.add_hook(hook, dir, is_permanent=True)

    def detach(self, handle: LensHandle) -> None:
        """Take off one hook, if it is still on."""
        _discard(self.fwd_hooks, handle)
        _discard(self.bwd_hooks, handle)

    def has_hooks(
        self, dir: Direction | Literal["both"] = "both", including_permanent: bool = True, level: int | None = None
    ) -> bool:
        """Whether a hook of this direction and level is attached."""
        handles = [handle for one in _directions(dir) for handle in self._handles(one)]
        return any(
            (including_permanent or not handle.is_permanent) and (level is None or handle.context_level == level)
            for handle in handles
        )

    def remove_hooks(
        self,
        dir: Direction | Literal["both"] = "fwd",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Take off hooks: of one level if one is given, permanent ones only if asked for. Those of contexts that other threads
        have open stay on.
        """
        own = (None, self.run_state.thread)
        for one in _directions(dir):
            handles = self._handles(one)
            for handle in tuple(handles):
                stays = handle.is_permanent and not including_permanent
                elsewhere = handle.scope.thread not in own or (level is not None and handle.context_level != level)
                if not stays and not elsewhere:
                    _discard(handles, handle)

    def clear_context(self) -> None:
        """Empty ``ctx``, the dictionary in which hooks may keep things between calls."""
        self.ctx = {}

    def layer(self) -> int:
        """The layer of a point inside a block.

        Raises:
            HookNameError: for a point outside the blocks, or one that no root module has named.
        """
        layer = block_of(self.name or "")
        if layer is None:
            raise HookNameError(f"{self.name!r} is not inside a block, so it has no layer")
        return layer

    def _handles(self, dir: Direction) -> list[LensHandle]:
        check_word("dir", dir, ("fwd", "bwd"), HookNameError)
        return self.fwd_hooks if dir == "fwd" else self.bwd_hooks

    def __getstate__(self) -> dict[str, Any]:  # copies of a model carry no hooks
        return self.__dict__ | {"fwd_hooks": [], "bwd_hooks": [], "ctx": {}}

    def extra_repr(self) -> str:
        return " ".join(self.axes)


def check_hook(hook: Any) -> None:
    """Refuse what cannot be called.

    Raises:
        HookNameError: for anything but a function.
    """
    if not callable(hook):
        raise HookNameError(f"a hook is a function of (tensor, hook), not {hook!r}")


def _discard(handles: list[LensHandle], handle: LensHandle) -> None:
    """Take a handle out of a list in one step, as other threads may change the list too."""
    with suppress(ValueError):
        handles.remove(handle)


def _directions(dir: Direction | Literal["both"]) -> tuple[Direction, ...]:
    check_word("dir", dir, ("fwd", "bwd", "both"), HookNameError)
    return ("fwd", "bwd") if dir == "both" else (dir,)


def _shape_text(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {dtype_name(tensor)}"
