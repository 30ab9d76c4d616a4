"""What every part of a configuration is."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from encoderlens.config.fields import Checked

AnyPart = TypeVar("AnyPart", bound="Part")


@dataclass(frozen=True)
class Part(Checked):
    """One part of a configuration; ``takes`` names what its component needs of the model around it.

    A field that is a part itself becomes that part's component.
    """

    component: ClassVar[str]
    takes: ClassVar[tuple[str, ...]] = ("d_model",)

    def arguments(self) -> dict[str, Any]:
        """The component's keyword arguments."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def at(self: AnyPart, layer: int) -> AnyPart:
        """The part as it is in one layer."""
        return self
