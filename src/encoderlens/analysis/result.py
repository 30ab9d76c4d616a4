"""What every analysis returns: numbers whose axes and entries have names, shown as a table or written as JSON.

Two axes mean something to the code here: ``example`` counts the inputs that an analysis ran on, and is averaged over;
``component`` counts the parts of a sum.
"""

import importlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from io import StringIO
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from torch import Tensor

from encoderlens.errors import InputError, PackageMissingError
from encoderlens.given import Whole, is_whole
from encoderlens.tables import html_table

EXAMPLE = "example"
COMPONENT = "component"


@dataclass(frozen=True)
class Entry:
    """One value of a result, and its label on each axis."""

    labels: tuple[str, ...]
    value: float


@dataclass(frozen=True, eq=False)
class Interval:
    """A mean over examples with its confidence interval, in the shape and the units of the result without that axis.

    Attributes:
        mean, low, high: the mean and the ends of the interval.
        n: examples.
        level: the probability with which such an interval covers the true mean, for values that are normally distributed.
    """

    mean: Float64[Tensor, "*kept"]
    low: Float64[Tensor, "*kept"]
    high: Float64[Tensor, "*kept"]
    n: int
    level: float


@dataclass(frozen=True, eq=False)
class Result:
    """Values with a name for each axis and a label for each entry of an axis.

    The result of an analysis is a frozen dataclass (``eq=False``, since tensors have no single truth value) that adds its
    own fields: tensors, which are detached, numbers, strings, None, or tuples of these.

    Attributes:
        values: any shape, NaN and infinities allowed; detached.
        axes: the name of each axis of ``values``.
        labels: by the name of an axis, the label of each of its entries.

    Raises:
        InputError: for axes without a name or with the same one, and for labels that are not one an entry.
    """

    values: Tensor
    axes: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]] = field(repr=False)

    def __post_init__(self) -> None:
        for part in fields(self):
            value = getattr(self, part.name)
            if isinstance(value, Tensor):
                object.__setattr__(self, part.name, value.detach())
        _check_axes(self.values, self.axes)
        _check_labels(self.values, self.axes, self.labels)

    @property
    def title(self) -> str:
        """What stands above the table."""
        return ""

    def top(self, k: Whole = 10) -> list[Entry]:
        """The k entries of largest magnitude, largest first and NaN last; all entries where there are fewer.

        Of a result with examples, the k means over examples of largest magnitude.

        Raises:
            InputError: for a k below 1.
        """
        averages = self._averages().flatten()
        places = strongest(averages, k)
        return [
            Entry(self._labels_at(place), value)
            for place, value in zip(places.tolist(), averages[places].tolist(), strict=True)
        ]

    def mean(self, level: float = 0.95) -> Interval:
        """The mean over examples, with Student's t interval: mean ± t * s / sqrt(n), in float64 on the CPU.

        s is the standard deviation with n - 1 in the denominator; t has n - 1 degrees of freedom.

        Raises:
            InputError: for a result without examples or with fewer than two, and for a level outside (0, 1).
        """
        if EXAMPLE not in self.axes:
            raise InputError(
                f"axes are {_listed(self.axes)}, without examples to take a mean over; read the values, or run the analysis so "
                "that it keeps its examples apart"
            )
        if self._n_examples < 2:
            raise InputError(f"an interval needs at least 2 examples, not {self._n_examples}; run the analysis on more of them")
        if not 0 < level < 1:
            raise InputError(f"level={level}; a level is a probability between 0 and 1, such as 0.95")
        values, dim = _exact(self.values), self.axes.index(EXAMPLE)
        mean, error = values.mean(dim), values.std(dim, correction=1) / math.sqrt(self._n_examples)
        reach = t_quantile(level, self._n_examples - 1) * error
        return Interval(mean, mean - reach, mean + reach, self._n_examples, level)

    def table(self, k: Whole = 10) -> Table:
        """The k entries of ``top``, for rich to print: a column an axis, then the value.

        From two examples on, the mean over examples and its 95 % interval stand in place of the value.

        Raises:
            InputError: for a k below 1.
        """
        places = strongest(self._averages().flatten(), k)
        numbers = self._columns(places)
        table = Table(title=escape(self.title) or None, min_width=len(self.title))  # the title on one line
        for axis in self._kept:
            table.add_column(Text(axis), overflow="fold")
        for name in numbers:
            table.add_column(name, justify="right")
        for place, *row in zip(places.tolist(), *numbers.values(), strict=True):
            table.add_row(*map(Text, self._labels_at(place)), *row)  # as Text, or [MASK] would be read as markup
        return table

    def to_dict(self) -> dict[str, Any]:
        """Every field, those of a subclass included, by name; tensors and tuples as nested lists."""
        return {part.name: _plain(getattr(self, part.name)) for part in fields(self)}

    def to_json(self) -> str:
        """``to_dict`` as strict JSON, which has no NaN and no infinity: both become null."""
        return json.dumps(_finite(self.to_dict()), allow_nan=False)

    def to_pandas(self) -> Any:
        """A data frame with a row for each entry of ``values``: a column of labels for each axis, then ``value``. Analyses add
        columns of their own.

        Raises:
            PackageMissingError: where pandas is not installed.
        """
        return data_frame(self.columns())

    def columns(self) -> dict[str, list[Any]]:
        """The columns of ``to_pandas``, by name."""
        places = np.indices(tuple(self.values.shape)).reshape(self.values.ndim, -1)
        labelled = {
            axis: [self.labels[axis][index] for index in indices] for axis, indices in zip(self.axes, places, strict=True)
        }
        return labelled | {"value": self.values.flatten().tolist()}

    def __rich__(self) -> Table:
        return self.table()

    def _repr_html_(self) -> str:
        return html_table(self.table())

    def __str__(self) -> str:
        # A notebook's console would show the table there instead of writing it to the file.
        text = StringIO()
        Console(file=text, width=100, color_system=None, force_jupyter=False).print(self.table())
        return text.getvalue().rstrip("\n")

    @property
    def _kept(self) -> tuple[str, ...]:
        """The axes that are not averaged over."""
        return tuple(axis for axis in self.axes if axis != EXAMPLE)

    @property
    def _n_examples(self) -> int:
        return len(self.labels.get(EXAMPLE, ()))

    def _averages(self) -> Float64[Tensor, "*kept"]:
        """The values, or their mean over examples where there are some."""
        values = _exact(self.values)
        return values.mean(self.axes.index(EXAMPLE)) if EXAMPLE in self.axes else values

    def _labels_at(self, place: int) -> tuple[str, ...]:
        """The labels of an entry of the flattened averages."""
        shape = [len(self.labels[axis]) for axis in self._kept]
        indices = np.unravel_index(place, shape)
        return tuple(self.labels[axis][index] for axis, index in zip(self._kept, indices, strict=True))

    def _columns(self, places: Int64[Tensor, " k"]) -> dict[str, list[str]]:
        """The table's columns of numbers at some places of the flattened averages, by their headers."""
        if self._n_examples < 2:
            return {"value": _shown(self._averages(), places)}
        interval = self.mean()
        ends = zip(_shown(interval.low, places), _shown(interval.high, places), strict=True)
        return {
            "mean": _shown(interval.mean, places),
            f"{interval.level:.0%} interval": [f"{low} to {high}" for low, high in ends],
        }


@dataclass(frozen=True, eq=False)
class AdditiveResult(Result):
    """Parts, along the axis ``component``, that add up to a number.

    Attributes:
        total: what the parts must add up to, computed without them; the shape of ``values`` without ``component``.

    Raises:
        InputError: as ``Result``, for axes without ``component``, and for a total of another shape.
    """

    total: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if COMPONENT not in self.axes:
            raise InputError(f"axes are {_listed(self.axes)}; parts that add up lie along an axis named {COMPONENT!r}")
        expected = [size for axis, size in zip(self.axes, self.values.shape, strict=True) if axis != COMPONENT]
        if list(self.total.shape) != expected:
            raise InputError(
                f"total has shape {list(self.total.shape)}; make it {expected}, the shape of values without {COMPONENT!r}"
            )

    @property
    def error(self) -> float:
        """The completeness error: of each total, |sum of the parts - total| / max(|total|, |part|), in float64, and the largest
        of these; 0 if all are zero.
        """
        parts, total, dim = _exact(self.values), _exact(self.total), self.axes.index(COMPONENT)
        gaps = (parts.sum(dim) - total).abs()
        scales = torch.maximum(parts.abs().amax(dim), total.abs()) if parts.shape[dim] else total.abs()
        return _largest(torch.where(gaps == 0, 0.0, gaps / scales))

    def table(self, k: Whole = 10) -> Table:
        """As ``Result.table``, with the total (its mean over examples) and the completeness error below.

        Where other axes are left there are many totals, and only the error is shown.
        """
        table = super().table(k)
        one_total = self._kept == (COMPONENT,)
        adds_up = f"adds up to {_exact(self.total).mean().item():.4g}; " if one_total else ""
        caption = f"{adds_up}completeness error {self.error:.1g}"
        table.caption, table.min_width = caption, max(len(caption), len(self.title))
        return table

    def to_dict(self) -> dict[str, Any]:
        """As ``Result.to_dict``, with the completeness error as ``error``."""
        return {**super().to_dict(), "error": self.error}


@lru_cache
def t_quantile(level: float, freedom: int) -> float:
    """The t that a Student's t variable stays within, from -t to t, with a probability of ``level``.

    ``freedom`` is whole degrees of freedom, for which the distribution is a finite series in the angle
    theta = atan(t / sqrt(freedom)): Abramowitz & Stegun 26.7.3 (odd) and 26.7.4 (even). Solved by bisection of the angle,
    which unlike t is bounded. Time grows with ``freedom``.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # down to the resolution of a float
        middle = (low + high) / 2
        if _t_probability(middle, freedom) < level:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan(low)


def _t_probability(theta: float, freedom: int) -> float:
    """The probability A(t | freedom) of staying within -t to t, where t = sqrt(freedom) * tan(theta)."""
    odd = freedom % 2
    square = math.cos(theta) ** 2
    series, term = 0.0, math.cos(theta) ** odd
    for power in range(odd, freedom - 1, 2):  # of the cosine in this term
        series += term
        term *= square * (power + 1) / (power + 2)
    series *= math.sin(theta)
    return 2 / math.pi * (theta + series) if odd else series


def data_frame(columns: Mapping[str, list[Any]]) -> Any:
    """A data frame of columns.

    Raises:
        PackageMissingError: where pandas is not installed.
    """
    try:
        pandas = importlib.import_module("pandas")
    except ImportError as error:
        raise PackageMissingError("to_pandas needs pandas, which is not installed: run pip install pandas") from error
    return pandas.DataFrame(dict(columns))


def _check_axes(values: Tensor, axes: tuple[str, ...]) -> None:
    if len(axes) != values.ndim:
        raise InputError(f"values have shape {list(values.shape)}, but the axes are {_listed(axes)}; name each axis once")
    if len(set(axes)) != len(axes):
        raise InputError(f"axes are {_listed(axes)}; give each a name of its own")


def _check_labels(values: Tensor, axes: tuple[str, ...], labels: Mapping[str, tuple[str, ...]]) -> None:
    if set(labels) != set(axes):
        raise InputError(
            f"labels are for {_listed(labels)}, but the axes are {_listed(axes)}; label each axis, and nothing else"
        )
    for axis, size in zip(axes, values.shape, strict=True):
        if len(labels[axis]) != size:
            raise InputError(f"axis {axis!r} has {size} entries, but {len(labels[axis])} labels; give one label an entry")


def _listed(names: Iterable[str]) -> str:
    return f"({', '.join(names)})"


def _exact(values: Tensor) -> Float64[Tensor, "..."]:
    return values.cpu().double()  # on the CPU, since not every device has float64


def strongest(values: Float[Tensor, " entries"], k: Whole) -> Int64[Tensor, " k"]:
    """Where the k values of largest magnitude stand, largest first and NaN last."""
    if not is_whole(k) or k < 1:
        raise InputError(f"k={k!r}; it is a whole number from 1")
    magnitudes = values.abs().masked_fill(values.isnan(), -1)
    return magnitudes.topk(min(int(k), len(values))).indices


def _largest(values: Float64[Tensor, "..."]) -> float:
    """The largest magnitude, NaN if there is a NaN, 0 of nothing."""
    return values.abs().max().item() if values.numel() else 0.0


def _shown(values: Float64[Tensor, "..."], places: Int64[Tensor, " k"]) -> list[str]:
    """Entries of the flattened values, in four digits."""
    return [f"{value:.4g}" for value in values.flatten()[places].tolist()]


def _plain(value: Any) -> Any:
    """A field as plain Python."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(entry) for entry in value]
    return value


def _finite(value: Any) -> Any:
    """Plain Python with None in place of NaN and infinities."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
