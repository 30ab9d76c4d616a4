"""Fields of a configuration: each holds what its annotation says, and numbers of numpy or torch become Python's own."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from encoderlens.errors import ConfigError
from encoderlens.given import is_whole, plain
from encoderlens.names import did_you_mean


@dataclass(frozen=True)
class Kind:
    """What a value is, where a type does not say it all.

    Attributes:
        what: in words, for messages.
        holds: whether a value is of this kind.
    """

    what: str
    holds: Callable[[Any], bool]


def is_number(value: Any) -> bool:
    return (isinstance(value, float) and math.isfinite(value)) or is_whole(value)


_SMALL = 2**31  # sizes of tensors are below
Size = Annotated[int, Kind("a positive whole number below 2**31", lambda value: bool(is_whole(value) and 0 < value < _SMALL))]
Count = Annotated[
    int, Kind("a positive whole number, or 0, below 2**31", lambda value: bool(is_whole(value) and 0 <= value < _SMALL))
]
Share = Annotated[float, Kind("a number from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1)]
NotNegative = Annotated[float, Kind("a number, not below zero", lambda value: is_number(value) and value >= 0)]
Positive = Annotated[float, Kind("a number above zero", lambda value: is_number(value) and value > 0)]
Seed = Annotated[int, Kind("a whole number of 64 bits", lambda value: is_whole(value) and -(2**63) <= value < 2**64)]
ActivationName = Annotated[str, Kind("the name of an activation function", lambda value: True)]  # the component knows which

_KINDS: dict[Any, Kind] = {
    bool: Kind("True or False", lambda value: isinstance(value, bool)),
    int: Kind("a whole number", is_whole),
    float: Kind("a number", is_number),
    str: Kind("a text", lambda value: isinstance(value, str)),
    Path: Kind("a path", lambda value: isinstance(value, Path)),
    NoneType: Kind("None", lambda value: value is None),
}


class Checked:
    """Base of frozen dataclasses whose fields are checked."""

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            object.__setattr__(self, field.name, frozen(getattr(self, field.name)))

    def check(self) -> None:
        """Refuse values that are not what a field is for, here and in the parts inside.

        Raises:
            ConfigError: with the field, its value, and what it must be.
        """
        for name, hint in _hints(type(self)).items():
            value = getattr(self, name)
            check_value(name, value, hint)
            for inside in value if isinstance(value, tuple) else (value,):
                if isinstance(inside, Checked):
                    inside.check()


def frozen(value: Any) -> Any:
    """A value with Python's own numbers in place of numpy's and torch's, and tuples in place of lists and arrays."""
    value = plain(value)
    return tuple(map(frozen, value)) if isinstance(value, list) else value


def check_value(name: str, value: Any, hint: Any) -> None:
    """Refuse a value that is not what an annotation says.

    Raises:
        ConfigError: with its name, and what it must be.
    """
    inner = get_args(hint)
    if get_origin(hint) is tuple and inner[-1] is Ellipsis and isinstance(value, tuple):
        for entry in value:
            check_value(f"an entry of {name}", entry, inner[0])
    elif not _fits(value, hint):
        suggestion = did_you_mean(value, inner) if get_origin(hint) is Literal else ""
        raise ConfigError(f"{name} is {value!r}; it must be {_described(hint)}{suggestion}")


@cache
def _hints(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cls)}


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return inner[1].holds(value)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        wanted = (inner[0],) * len(value) if isinstance(value, tuple) and inner[-1] is Ellipsis else inner
        return isinstance(value, tuple) and len(value) == len(wanted) and all(map(_fits, value, wanted))
    return _KINDS[hint].holds(value) if hint in _KINDS else isinstance(value, hint)


def _described(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return inner[1].what
    if origin in (Union, UnionType):
        return " or ".join(map(_described, inner))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is tuple:
        return f"a tuple whose entries are each {_described(inner[0])}"
    return _KINDS[hint].what if hint in _KINDS else f"of {hint.__name__}"
