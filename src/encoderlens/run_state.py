"""RunState: which runs of a model are under way, apart for every thread, and where hooks act."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from encoderlens.sequence import Sequence

Direction = Literal["fwd", "bwd"]


@dataclass(frozen=True)
class Scope:
    """Where a hook acts.

    Attributes:
        thread: in the runs of one thread, by its ``RunState.thread``; None for those of every thread.
        depth: in runs that are nested so deep; None for all. A run that a hook starts is nested one deeper.
    """

    thread: object | None = None
    depth: int | None = None


EVERYWHERE = Scope()


@dataclass(frozen=True, eq=False)
class Run:
    """One run of a model.

    Attributes:
        sequence: mask and size of the batch that it reads.
        tokens: its token ids [batch pos]; None for anything else.
    """

    sequence: Sequence
    tokens: Tensor | None


@dataclass(frozen=True)
class Watcher:
    """What an analysis is told of hooks that act in its run.

    Attributes:
        scope: the run.
        see: called as ``see(point, entered, leaving, replaced)`` where hooks may have changed what passes; ``replaced`` if a
            hook returned a tensor. What it returns flows on.
    """

    scope: Scope
    see: Callable[[Any, Tensor, Tensor, bool], Tensor]


class RunState(threading.local):
    """What a root module shares with its hook points. Every thread sees a state of its own.

    Attributes:
        thread: stands for the thread in scopes.
        runs: those under way, each started inside the one before it.
        last: the run that ended last.
        called: the hook functions that are being called.
        level: how many ``hooks()`` contexts are open.
        tasks: of the ``use_task()`` contexts that are open.
        silent: the directions whose hooks do not act.
        watcher: what an analysis is told of hooks.
    """

    def __init__(self) -> None:
        self.thread = object()
        self.runs: list[Run] = []
        self.last: Run | None = None
        self.called: list[Callable[..., Any]] = []
        self.level = 0
        self.tasks: list[str | None] = []
        self.silent: frozenset[Direction] = frozenset()
        self.watcher: Watcher | None = None

    def __reduce__(self) -> tuple[Any, ...]:  # copies of a model start without a run
        return RunState, ()

    @contextmanager
    def run(self, sequence: Sequence, tokens: Tensor | None) -> Iterator[None]:
        """Context of one run."""
        run = Run(sequence, tokens)
        self.runs.append(run)
        try:
            yield
        finally:
            self.runs.pop()
            self.last = run

    @contextmanager
    def calling(self, hook: Callable[..., Any]) -> Iterator[None]:
        """Context in which a hook is called. It does not act in runs that it starts."""
        self.called.append(hook)
        try:
            yield
        finally:
            self.called.pop()

    @contextmanager
    def silenced(self, *directions: Direction) -> Iterator[None]:
        """Context in which the hooks of these directions do not act in runs of this thread."""
        before = self.silent
        self.silent = before.union(directions)
        try:
            yield
        finally:
            self.silent = before

    @contextmanager
    def watched(self, see: Callable[[Any, Tensor, Tensor, bool], Tensor]) -> Iterator[None]:
        """Context in which an analysis is told what hooks change in the runs that it starts."""
        before = self.watcher
        self.watcher = Watcher(self.next_scope, see)
        try:
            yield
        finally:
            self.watcher = before

    @property
    def depth(self) -> int:
        """How deep the run under way is nested."""
        return max(len(self.called), len(self.runs) - 1)

    @property
    def next_scope(self) -> Scope:
        """Of the runs that this thread starts from here, without those that their hooks start."""
        return Scope(self.thread, max(len(self.called), len(self.runs)))

    def is_in(self, scope: Scope) -> bool:
        """Whether the run under way is one in which a hook of this scope acts."""
        return scope.thread in (None, self.thread) and scope.depth in (None, self.depth)

    def see(self, point: Any, entered: Tensor, leaving: Tensor, replaced: bool) -> Tensor:
        """Tell an analysis, if one watches this run, what hooks made of a tensor; and what flows on."""
        watcher = self.watcher
        if watcher is None or not self.is_in(watcher.scope):
            return leaving
        return watcher.see(point, entered, leaving, replaced)
