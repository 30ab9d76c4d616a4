"""RunState: which runs of a model are under way, apart for every thread, and where hooks act."""

import threading
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any, Literal
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from encoderlens.sequence import Sequence

Direction = Literal["fwd", "bwd"]
# Where a thread is: how many hooks are being called, each in a run that the one before it started, and how many runs are
# under way. (A plain tuple, as every hook point that has hooks asks for it.)
Place = tuple[int, int]


class Thread:
    """A thread, as scopes know it.

    Attributes:
        contexts: the dictionary that each hook point keeps for its hooks in this thread.
    """

    def __init__(self) -> None:
        self.contexts: MutableMapping[Any, dict[Any, Any]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Scope:
    """Where a hook acts.

    Attributes:
        thread: in the runs of one thread; None for those of every thread.
        place: in runs, and in calls of single modules, that were started at this place; None for those
            started anywhere. What a hook starts in such a run is started at another place.
    """

    thread: Thread | None = None
    place: Place | None = None

    def includes(self, thread: Thread, place: Place) -> bool:
        """Whether a thread is in this scope when it is at a place."""
        if self.thread is not None and self.thread is not thread:
            return False
        if self.place is None:
            return True
        hooks, runs = self.place
        return hooks == place[0] and 0 <= place[1] - runs <= 1


EVERYWHERE = Scope()


@dataclass(eq=False)
class Run:
    """One run of a model.

    Attributes:
        sequence: mask and size of the batch that it reads; None until that is known.
        tokens: its token ids [batch pos]; None for anything else.
    """

    sequence: Sequence | None = None
    tokens: Tensor | None = None


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
    """What a root module shares with the modules inside it. Every thread sees a state of its own.

    Attributes:
        thread: stands for the thread in scopes.
        runs: those under way, each started inside the one before it.
        last: the run that ended last.
        called: the hook functions that are being called.
        level: how many ``hooks()`` contexts are open.
        tasks: of the ``use_task()`` contexts that are open, each with the runs in which it is the task.
        silent: directions whose hooks do not act, each with the runs in which they do not.
        watcher: what an analysis is told of hooks.
    """

    def __init__(self) -> None:
        self.thread = Thread()
        self.runs: list[Run] = []
        self.last: Run | None = None
        self.called: list[Callable[..., Any]] = []
        self.level = 0
        self.tasks: list[tuple[Scope, str | None]] = []
        self.silent: tuple[tuple[Scope, Direction], ...] = ()
        self.watcher: Watcher | None = None

    def __reduce__(self) -> tuple[Any, ...]:  # copies of a model start without a run
        return RunState, ()

    # Where this thread is

    @property
    def place(self) -> Place:
        """Where this thread is now."""
        return len(self.called), len(self.runs)

    @property
    def next_place(self) -> Place:
        """Where it will be in the run that comes next: that of the model's call, if one has just begun."""
        return len(self.called), len(self.runs) + (not self._has_room)

    @property
    def here(self) -> Scope:
        """The runs that this thread starts from here, without those that their hooks start."""
        return Scope(self.thread, self.place)

    def is_in(self, scope: Scope) -> bool:
        """Whether this thread is in a scope now."""
        return scope.includes(self.thread, self.place)

    @property
    def _has_room(self) -> bool:
        """Whether the model has been called, and what it reads is not known yet."""
        return bool(self.runs) and self.runs[-1].sequence is None

    # Contexts

    @contextmanager
    def call(self) -> Iterator[None]:
        """Context of one call of the model, which is one run."""
        run = Run()
        self.runs.append(run)
        try:
            yield
        finally:
            self.runs.pop()
            self.last = run

    @contextmanager
    def run(self, sequence: Sequence, tokens: Tensor | None) -> Iterator[None]:
        """Context in which a batch is read: in the call of the model that has begun, or else in one of its own."""
        if not self._has_room:
            with self.call(), self.run(sequence, tokens):
                yield
            return
        self.runs[-1].sequence, self.runs[-1].tokens = sequence, tokens
        yield

    @contextmanager
    def calling(self, hook: Callable[..., Any], thread: Thread) -> Iterator[None]:
        """Context in which a hook is called. It does not act in runs that it starts.

        Args:
            hook: the hook.
            thread: of the run that it belongs to. Torch may call backward hooks in a thread of its own.
        """
        before, self.thread = self.thread, thread
        self.called.append(hook)
        try:
            yield
        finally:
            self.called.pop()
            self.thread = before

    def is_being_called(self, hook: Callable[..., Any]) -> bool:
        """Whether a hook is among those that are being called."""
        return any(_is_same(hook, called) for called in self.called)

    @contextmanager
    def silenced(self, *directions: Direction) -> Iterator[None]:
        """Context in which the hooks of these directions do not act, in the runs that are started from here."""
        before, scope = self.silent, self.here
        self.silent = (*before, *((scope, direction) for direction in directions))
        try:
            yield
        finally:
            self.silent = before

    def is_silent(self, direction: Direction, place: Place) -> bool:
        """Whether the hooks of a direction do not act at a place."""
        return any(dir == direction and scope.includes(self.thread, place) for scope, dir in self.silent)

    @contextmanager
    def watched(self, see: Callable[[Any, Tensor, Tensor, bool], Tensor]) -> Iterator[None]:
        """Context in which an analysis is told what hooks change in the runs that it starts."""
        before = self.watcher
        self.watcher = Watcher(self.here, see)
        try:
            yield
        finally:
            self.watcher = before

    def see(self, point: Any, entered: Tensor, leaving: Tensor, replaced: bool) -> Tensor:
        """Tell an analysis, if one watches this run, what hooks made of a tensor; and what flows on."""
        watcher = self.watcher
        if watcher is None or not self.is_in(watcher.scope):
            return leaving
        return watcher.see(point, entered, leaving, replaced)

    @contextmanager
    def doing(self, task: str) -> Iterator[None]:
        """Context in which a task is that of the runs that are started from here."""
        self.tasks.append((self.here, task))
        try:
            yield
        finally:
            self.tasks.pop()

    @property
    def chosen_task(self) -> int | None:
        """Which of ``tasks`` is that of the runs that are started from here, if any is."""
        indices = range(len(self.tasks) - 1, -1, -1)
        return next((index for index in indices if self.is_in(self.tasks[index][0])), None)


class RunAware(nn.Module):
    """A module that behaves in some runs otherwise than in others.

    Attributes:
        run_state: that of its root module, once that has been set up.
    """

    def __init__(self) -> None:
        super().__init__()
        self.run_state = RunState()


def _is_same(hook: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether two hooks are one: the same object, or the same method of the same object."""
    if isinstance(hook, MethodType) and isinstance(other, MethodType):
        return hook.__func__ is other.__func__ and hook.__self__ is other.__self__
    return hook is other
