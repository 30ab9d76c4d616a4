"""Freezing: holding a quantity at its value in the run, so that what remains is linear and has a constant gradient."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock, get_ident
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

Quantity = Literal["ln", "pattern", "gain"]
_CHANGING = Lock()  # held while a thread is added or taken out


class Freezable(nn.Module):
    """A module with a quantity that can be frozen: its values stay the same, and gradients do not flow through it.

    Attributes:
        quantity: the kind of quantity.
        frozen_in: the threads in whose runs it is frozen now; ``freeze`` sets them.
    """

    quantity: ClassVar[Quantity]
    frozen_in: frozenset[int] = frozenset()

    @property
    def frozen(self) -> bool:
        """Whether it is frozen in the runs of this thread."""
        return bool(self.frozen_in) and get_ident() in self.frozen_in

    def hold(self, tensor: Tensor) -> Tensor:
        """The tensor, without its gradient while frozen."""
        return tensor.detach() if self.frozen else tensor

    def check_freezable(self) -> None:
        """Refuse what cannot be frozen.

        Raises:
            AnalysisError: if the rest would not be linear.
        """

    def __getstate__(self) -> dict[str, Any]:  # copies of a model are not frozen
        return self.__dict__ | {"frozen_in": frozenset()}


@contextmanager
def freeze(modules: Iterable[nn.Module], quantities: Collection[Quantity]) -> Iterator[None]:
    """Context in which these quantities of the modules, and of all inside them, are frozen in the runs of this thread.

    Raises:
        AnalysisError: for a quantity that cannot be frozen.
    """
    inside = {part for module in modules for part in module.modules() if isinstance(part, Freezable)}
    chosen = [part for part in inside if part.quantity in quantities and not part.frozen]
    for part in chosen:
        part.check_freezable()
    thread = frozenset((get_ident(),))
    try:
        for part in chosen:
            with _CHANGING:
                part.frozen_in |= thread
        yield
    finally:
        for part in chosen:
            with _CHANGING:
                part.frozen_in -= thread
