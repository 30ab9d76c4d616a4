"""Freezing: holding a quantity at its value in the run, so that what remains is linear and has a constant gradient."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from encoderlens.run_state import RunAware, Scope

Quantity = Literal["ln", "pattern", "gain"]
_CHANGING = Lock()  # held while a scope is added or taken out


class Freezable(RunAware):
    """A module with a quantity that can be frozen: its values stay the same, and gradients do not flow through it.

    Attributes:
        quantity: the kind of quantity.
        frozen_in: the runs in which it is frozen; ``freeze`` sets them.
    """

    quantity: ClassVar[Quantity]
    frozen_in: tuple[Scope, ...] = ()

    @property
    def frozen(self) -> bool:
        """Whether it is frozen in the run under way."""
        return bool(self.frozen_in) and any(map(self.run_state.is_in, self.frozen_in))

    def hold(self, tensor: Tensor) -> Tensor:
        """The tensor, without its gradient while frozen."""
        return tensor.detach() if self.frozen else tensor

    def check_freezable(self) -> None:
        """Refuse what cannot be frozen.

        Raises:
            AnalysisError: if the rest would not be linear.
        """

    def __getstate__(self) -> dict[str, Any]:  # copies of a model are not frozen
        return self.__dict__ | {"frozen_in": ()}


@contextmanager
def freeze(modules: Iterable[nn.Module], quantities: Collection[Quantity]) -> Iterator[None]:
    """Context in which these quantities of the modules, and of all inside them, are frozen: in the runs that this thread starts
    from here, and not in those that hooks start in them.

    Raises:
        AnalysisError: for a quantity that cannot be frozen.
    """
    inside = {part for module in modules for part in module.modules() if isinstance(part, Freezable)}
    chosen = {part: part.run_state.here for part in inside if part.quantity in quantities}
    for part in chosen:
        part.check_freezable()
    try:
        for part, scope in chosen.items():
            with _CHANGING:
                part.frozen_in = (*part.frozen_in, scope)
        yield
    finally:
        for part, scope in chosen.items():
            with _CHANGING:
                part.frozen_in = tuple(other for other in part.frozen_in if other is not scope)
