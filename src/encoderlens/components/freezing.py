"""Freezing: holding a quantity at its value in the run, so that what remains is linear and has a constant gradient."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

Quantity = Literal["ln", "pattern", "gain"]


class Freezable(nn.Module):
    """A module with a quantity that can be frozen: its values stay the same, and gradients do not flow through it.

    Attributes:
        quantity: the kind of quantity.
        frozen: whether it is frozen now; ``freeze`` sets it.
    """

    quantity: ClassVar[Quantity]
    frozen: bool = False

    def hold(self, tensor: Tensor) -> Tensor:
        """The tensor, without its gradient while frozen."""
        return tensor.detach() if self.frozen else tensor

    def check_freezable(self) -> None:
        """Refuse what cannot be frozen.

        Raises:
            AnalysisError: if the rest would not be linear.
        """

    def __getstate__(self) -> dict[str, Any]:  # copies of a model are not frozen
        return self.__dict__ | {"frozen": False}


@contextmanager
def freeze(modules: Iterable[nn.Module], quantities: Collection[Quantity]) -> Iterator[None]:
    """Context in which these quantities of the modules, and of all inside them, are frozen.

    Raises:
        AnalysisError: for a quantity that cannot be frozen.
    """
    inside = {part for module in modules for part in module.modules() if isinstance(part, Freezable)}
    chosen = [part for part in inside if part.quantity in quantities and not part.frozen]
    for part in chosen:
        part.check_freezable()
    try:
        for part in chosen:
            part.frozen = True
        yield
    finally:
        for part in chosen:
            part.frozen = False
