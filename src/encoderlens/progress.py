"""Progress bars for long loops: none unless somebody asks, and none for what takes less than two seconds."""

import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SECONDS = 2.0  # that a task may take before its bar appears

Item = TypeVar("Item")
_shown: ContextVar["Bars | None"] = ContextVar("encoderlens_progress", default=None)


class Bars:
    """The bars of the tasks that run at the moment.

    Args:
        progress: what draws them; it starts when the first task has lasted long enough.
    """

    def __init__(self, progress: "Progress") -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._finished = False

    @contextmanager
    def task(self, what: str, total: int | None) -> Iterator["Task"]:
        """Context of one task, whose bar appears after a while and goes when it ends."""
        task = Task(self._progress, self._progress.add_task(what, total=total, visible=False))
        timer = threading.Timer(SECONDS, self._show, [task])
        timer.daemon = True
        timer.start()
        try:
            yield task
        finally:
            timer.cancel()
            with self._lock:
                self._progress.remove_task(task.number)
                task.ended = True

    def _show(self, task: "Task") -> None:
        with self._lock:
            if task.ended or self._finished:
                return
            self._progress.update(task.number, visible=True)
            self._progress.start()

    def close(self) -> None:
        """Take every bar off the terminal."""
        with self._lock:
            self._finished = True
            self._progress.stop()


class Task:
    """Something that takes a while.

    Attributes:
        number: of its bar.
        ended: whether it is over.
    """

    def __init__(self, progress: "Progress", number: "TaskID") -> None:
        self._progress = progress
        self.number = number
        self.ended = False

    def advance(self) -> None:
        """One more item is done."""
        self._progress.advance(self.number)


@contextmanager
def progress_bars(enabled: bool = True) -> Iterator[None]:
    """Context in which whatever takes longer than two seconds shows a progress bar on stderr.

    Bars are drawn only where stdout and stderr are both terminals, so pipes and files have none.

    Args:
        enabled: False shows none, whatever the terminal.
    """
    if not enabled or not (sys.stdout.isatty() and sys.stderr.isatty()):
        yield
        return
    bars = Bars(_terminal_progress())
    token = _shown.set(bars)
    try:
        yield
    finally:
        _shown.reset(token)
        bars.close()


@contextmanager
def step(what: str) -> Iterator[None]:
    """Context of one long step without a known length, such as loading a model."""
    bars = _shown.get()
    if bars is None:
        yield
        return
    with bars.task(what, None):
        yield


def tracked(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """The items as they are, with a progress bar where ``progress_bars`` shows one.

    Args:
        items: what a loop goes through.
        what: what the loop does, as shown before the bar.
        total: how many items there are.
    """
    bars = _shown.get()
    if bars is None:
        yield from items
        return
    with bars.task(what, total) as task:
        for item in items:
            yield item
            task.advance()


def _terminal_progress() -> "Progress":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
