"""What every part of a configuration is."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from encoderlens.errors import ConfigError
from encoderlens.given import is_whole

AnyPart = TypeVar("AnyPart", bound="Part")


@dataclass(frozen=True)
class Part:
    """One part of a configuration; ``takes`` names what its component needs of the model around it.

    A field that is a part itself becomes that part's component.
    """

    component: ClassVar[str]
    takes: ClassVar[tuple[str, ...]] = ("d_model",)
    sizes: ClassVar[tuple[str, ...]] = ()  # fields that are positive whole numbers

    def check(self) -> None:
        """Refuse sizes that are none.

        Raises:
            ConfigError: with the field and its value.
        """
        for name in self.sizes:
            check_size(name, getattr(self, name))

    def arguments(self) -> dict[str, Any]:
        """The component's keyword arguments."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def at(self: AnyPart, layer: int) -> AnyPart:
        """The part as it is in one layer."""
        return self


def check_size(name: str, value: Any) -> None:
    if not is_whole(value) or value < 1:
        raise ConfigError(f"{name} is {value!r}; it must be a positive whole number")
