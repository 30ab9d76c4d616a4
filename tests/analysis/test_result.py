import io
import itertools
import json
import math
import random
import sys
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor
from transformers import EsmTokenizer

from encoderlens import HookedEncoder
from encoderlens.analysis import (
    AdditiveResult,
    Entry,
    Interval,
    Result,
    contacts,
    direct_logit_attribution,
    fill_mask,
    logit_lens,
    minimal_pairs,
    pseudo_log_likelihood,
)
from encoderlens.analysis.result import t_quantile
from encoderlens.errors import InputError, PackageMissingError
from tests.checkpoints import save_tiny
from tests.parity import assert_close, assert_parity

NAN, INF = math.nan, math.inf
SHAPES = st.lists(st.integers(1, 4), max_size=3)
AXES = ("component", "pos", "example")


def labelled(values, *axes, kind=Result, **fields):
    """A result whose labels are the axis and the index: component0, component1, ..."""
    values = torch.as_tensor(values)
    labels = {axis: tuple(f"{axis}{i}" for i in range(size)) for axis, size in zip(axes, values.shape, strict=True)}
    return kind(values=values, axes=axes, labels=labels, **fields)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True, eq=False)
class Measured(Result):
    """A result with fields of its own, as an analysis adds them."""

    title: ClassVar[str] = "A title that is wider than its table"

    metric: str
    clean: Tensor
    layers: tuple[int, ...]
    threshold: float | None = None


# What a result is


def test_values_and_added_tensors_are_detached_and_otherwise_kept():
    values, clean = randn(2).half().requires_grad_(), randn(3).requires_grad_()
    result = labelled(values, "component", kind=Measured, metric="logit", clean=clean, layers=(0,))
    assert not result.values.requires_grad
    assert not result.clean.requires_grad
    assert values.requires_grad
    assert result.values.dtype == torch.float16
    assert result.values.data_ptr() == values.data_ptr()


@pytest.mark.parametrize("name", ["values", "axes", "labels", "total"])
def test_frozen(name):
    result = labelled([1.0], "component", kind=AdditiveResult, total=torch.tensor(1.0))
    with pytest.raises(FrozenInstanceError):
        setattr(result, name, None)
    with pytest.raises(FrozenInstanceError):
        result.top()[0].value = 2.0


@pytest.mark.parametrize(
    ("axes", "labels", "message"),
    [
        (("component",), {"component": ("a", "b")}, r"shape \[2, 3\], but the axes are \(component\); name each axis once"),
        (("pos", "pos"), {"pos": ("a", "b")}, r"axes are \(pos, pos\); give each a name of its own"),
        (AXES[:2], {"component": ("a", "b")}, r"labels are for \(component\), but the axes are \(component, pos\); label each"),
        (AXES[:2], dict.fromkeys(AXES, ("a", "b")), r"labels are for \(component, pos, example\), but the axes are"),
        (
            AXES[:2],
            {"component": ("a", "b"), "pos": ("x",)},
            r"axis 'pos' has 3 entries, but 1 labels; give one label an entry",
        ),
    ],
    ids=["too few axes", "same name", "axis without labels", "labels without axis", "too few labels"],
)
def test_axes_and_labels_that_do_not_fit_are_refused(axes, labels, message):
    with pytest.raises(InputError, match=message):
        Result(values=torch.zeros(2, 3), axes=axes, labels=labels)


def test_the_repr_leaves_out_the_labels():
    assert "component0" not in repr(labelled([1.0], "component"))


# top


@given(SHAPES, st.integers(1, 70), st.integers(0, 1000))
@settings(deadline=None, max_examples=60)
def test_top_is_what_sorting_everything_gives(shape, k, seed):
    axes = AXES[: len(shape)]
    values = randn(*shape, seed=seed)
    kept = [axis for axis in axes if axis != "example"]
    averages = values.double().mean(-1) if "example" in axes else values.double()
    places = itertools.product(*(range(size) for size in averages.shape))
    everything = [
        Entry(tuple(f"{axis}{i}" for axis, i in zip(kept, place, strict=True)), averages[place].item()) for place in places
    ]
    assert labelled(values, *axes).top(k) == sorted(everything, key=lambda entry: -abs(entry.value))[:k]


def test_the_example_axis_may_stand_anywhere():
    values = torch.tensor([[1.0, -4.0], [3.0, -6.0]])
    assert labelled(values, "example", "component").top() == [Entry(("component1",), -5.0), Entry(("component0",), 2.0)]
    assert labelled(values[0], "example").top() == [Entry((), -1.5)]


def test_top_puts_infinities_first_and_nan_last():
    entries = labelled([1.0, NAN, -INF, 0.0, -2.0], "pos").top()
    assert [entry.labels for entry in entries] == [("pos2",), ("pos4",), ("pos0",), ("pos3",), ("pos1",)]
    assert math.isnan(entries[-1].value)
    averaged = labelled([[NAN, 1.0], [1.0, 2.0]], "pos", "example").top()
    assert [entry.labels for entry in averaged] == [("pos1",), ("pos0",)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_top_of_every_dtype(dtype):
    values = torch.tensor([[0, 1, 1], [0, 0, 1]]).to(dtype)
    assert labelled(values, "component", "example").top(1) == [Entry(("component0",), (0 + 1 + 1) / 3)]


def test_half_precision_does_not_overflow_in_the_mean():
    values = torch.full((1, 4), 60000.0, dtype=torch.float16)
    assert labelled(values, "component", "example").top()[0].value == values[0, 0].item()


def test_top_of_nothing():
    assert labelled(torch.zeros(0), "component").top() == []


@pytest.mark.parametrize("k", [0, -3])
def test_less_than_one_entry_is_refused(k):
    result = labelled([1.0], "component")
    for ask in (result.top, result.table):
        with pytest.raises(InputError, match=f"k={k}; it is a whole number from 1"):
            ask(k)


# The interval


@pytest.mark.parametrize(
    ("probability", "freedom", "published"),
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.30265),
        (0.975, 3, 3.18245),
        (0.975, 5, 2.57058),
        (0.975, 10, 2.22814),
        (0.975, 30, 2.04227),
        (0.975, 100, 1.98397),
        (0.975, 1000, 1.96234),
        (0.95, 3, 2.35336),
        (0.995, 4, 4.60409),
        (0.9995, 9, 4.78091),
    ],
)
def test_t_quantiles_against_published_tables(probability, freedom, published):
    assert t_quantile(2 * probability - 1, freedom) == pytest.approx(published, rel=3e-6)  # six digits are published


@given(st.floats(0.001, 0.999))
@settings(deadline=None, max_examples=50)
def test_t_quantiles_that_have_a_closed_form(level):
    assert t_quantile(level, 1) == pytest.approx(math.tan(math.pi / 2 * level), rel=1e-9)
    assert t_quantile(level, 2) == pytest.approx(level * math.sqrt(2 / (1 - level**2)), rel=1e-9)


@given(st.floats(0.01, 0.999), st.integers(1, 60))
@settings(deadline=None, max_examples=50)
def test_the_density_up_to_a_t_quantile_holds_the_level(level, freedom):
    t = t_quantile(level, freedom)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    # By t = sqrt(freedom) tan(angle), so that the integrand is a power of a cosine, which is smooth up to the end.
    angles = torch.linspace(0, math.atan(t / math.sqrt(freedom)), 2001, dtype=torch.float64)
    density = scale * math.sqrt(freedom) * angles.cos() ** (freedom - 1)
    assert 2 * torch.trapezoid(density, angles).item() == pytest.approx(level, abs=1e-5)


@given(st.floats(0.05, 0.99), st.integers(1, 300))
@settings(deadline=None, max_examples=50)
def test_t_quantiles_fall_towards_those_of_the_normal_distribution(level, freedom):
    normal = NormalDist().inv_cdf((1 + level) / 2)
    assert t_quantile(level, freedom) > t_quantile(level, freedom + 1) > normal


def test_t_quantiles_of_many_degrees_of_freedom_are_nearly_normal():
    assert t_quantile(0.95, 20_000) == pytest.approx(NormalDist().inv_cdf(0.975), rel=1e-4)


def test_the_interval_is_students():
    interval = labelled([[1.0, 2.0, 3.0, 4.0], [5.0, 5.0, 5.0, 5.0]], "component", "example").mean(0.9)
    reach = 2.35336 * math.sqrt(5 / 3) / 2
    assert (interval.n, interval.level) == (4, 0.9)
    assert interval.mean.tolist() == [2.5, 5.0]
    assert interval.low.tolist() == pytest.approx([2.5 - reach, 5.0], rel=1e-5)
    assert interval.high.tolist() == pytest.approx([2.5 + reach, 5.0], rel=1e-5)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_the_interval_has_the_shape_without_examples_and_float64(dim):
    axes = ["component", "pos"]
    axes.insert(dim, "example")
    values = randn(2, 3, 4)
    interval = labelled(values, *axes).mean()
    for part in (interval.mean, interval.low, interval.high):
        assert part.dtype == torch.float64
    assert_close(interval.mean, values.double().mean(dim))
    assert_close(interval.high - interval.mean, interval.mean - interval.low)
    assert (interval.low < interval.high).all()


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_interval_covers_the_true_mean_as_often_as_it_says(level):
    trials, n = 20_000, 5
    interval = labelled(3 + 2 * randn(trials, n, seed=1), "component", "example").mean(level)
    covered = ((interval.low <= 3) & (interval.high >= 3)).double().mean().item()
    assert covered == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / trials))


def test_values_far_from_zero_keep_their_spread():
    noise = randn(1, 50)
    interval = labelled(1e6 + noise.double(), "component", "example").mean()
    near = labelled(noise.double(), "component", "example").mean()
    assert_parity(interval.high - interval.low, near.high - near.low, tolerance=1e-9)


def test_an_interval_without_examples_is_refused():
    with pytest.raises(InputError, match=r"axes are \(component\), without examples .* keeps its examples apart"):
        labelled([1.0], "component").mean()


@pytest.mark.parametrize("n", [0, 1])
def test_an_interval_of_too_few_examples_is_refused(n):
    with pytest.raises(InputError, match=f"needs at least 2 examples, not {n}; run the analysis on more"):
        labelled(torch.zeros(3, n), "component", "example").mean()


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0, NAN])
def test_a_level_that_is_no_probability_is_refused(level):
    with pytest.raises(InputError, match="a level is a probability between 0 and 1"):
        labelled(torch.zeros(3, 2), "component", "example").mean(level)


def test_an_interval_is_frozen():
    interval = labelled(torch.zeros(1, 2), "component", "example").mean()
    assert isinstance(interval, Interval)
    with pytest.raises(FrozenInstanceError):
        interval.n = 3


# The table


def rows_of(text):
    """The cells of each row of a printed table, headers first."""
    lines = [line.replace("┃", "│") for line in text.splitlines()]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]


def test_the_table_has_a_column_an_axis_and_the_values():
    result = labelled([[0.5, -2.0], [123.456, 0.0]], "component", "pos")
    assert rows_of(str(result)) == [
        ["component", "pos", "value"],
        ["component1", "pos0", "123.5"],
        ["component0", "pos1", "-2"],
        ["component0", "pos0", "0.5"],
        ["component1", "pos1", "0"],
    ]
    assert result.table(2).row_count == 2


def test_the_table_over_examples_shows_the_mean_and_its_interval():
    result = labelled([[1.0, 2.0, 3.0, 4.0], [-5.0, -5.0, -5.0, -5.0]], "component", "example")
    assert rows_of(str(result)) == [
        ["component", "mean", "95% interval"],
        ["component1", "-5", "-5 to -5"],
        ["component0", "2.5", "0.4457 to 4.554"],
    ]


def test_the_table_of_one_example_shows_its_value():
    assert rows_of(str(labelled([[3.0]], "component", "example"))) == [["component", "value"], ["component0", "3"]]


def test_labels_are_not_markup_and_are_shown_whole():
    labels = ("[MASK]", "[bold]", "[/bold]", "\\[", "x" * 150, ":smile:")
    result = Result(values=torch.arange(6.0), axes=("pos",), labels={"pos": labels})
    text = str(result)
    for label in labels:
        assert label in text or label == "x" * 150
    assert text.count("x") == 150
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) == 100


def test_the_title_is_a_class_variable():
    text = str(labelled([1.0], "component", kind=Measured, metric="logit difference", clean=torch.zeros(2), layers=(0, 1)))
    assert text.splitlines()[0].strip() == Measured.title


def test_rich_prints_the_table_and_str_is_the_same_without_colour(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = labelled(randn(4), "component")
    console = Console(file=io.StringIO(), width=100)
    console.print(result)
    coloured = console.file.getvalue()
    assert "\x1b" in coloured
    assert "\x1b" not in str(result)
    assert [word for word in str(result).split() if word.startswith("component")] == [
        "component",
        *(entry.labels[0] for entry in result.top()),
    ]
    assert all(entry.labels[0] in coloured for entry in result.top())


def test_str_is_text_in_a_notebook_too(monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert "component0" in str(labelled([1.0], "component"))


# JSON


@given(SHAPES, st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_json_round_trip(shape, seed):
    result = labelled(randn(*shape, seed=seed), *AXES[: len(shape)])
    read = json.loads(result.to_json())
    assert read == result.to_dict()
    axes, labels = tuple(read["axes"]), {axis: tuple(names) for axis, names in read["labels"].items()}
    again = Result(values=torch.tensor(read["values"]).reshape(shape), axes=axes, labels=labels)
    assert torch.equal(again.values, result.values)
    assert (again.axes, again.labels) == (result.axes, result.labels)


def test_the_fields_of_a_subclass_are_in_the_dictionary():
    result = labelled([1.0], "pos", kind=Measured, metric="[MASK] é", clean=torch.tensor([[1, 2]]), layers=(0, 1))
    expected = {
        "values": [1.0],
        "axes": ["pos"],
        "labels": {"pos": ["pos0"]},
        "metric": "[MASK] é",
        "clean": [[1, 2]],
        "layers": [0, 1],
        "threshold": None,
    }
    assert result.to_dict() == expected
    assert json.loads(result.to_json()) == expected


def test_json_has_no_nan_and_no_infinities():
    result = labelled([NAN, INF, 1.0], "pos", kind=Measured, metric="m", clean=torch.tensor(-INF), layers=(), threshold=NAN)
    read = json.loads(result.to_json(), parse_constant=pytest.fail)
    assert (read["values"], read["clean"], read["threshold"]) == ([None, None, 1.0], None, None)
    assert result.to_dict()["values"][1] == INF


# Parts that add up


def additive(values, *axes, total):
    return labelled(values, *axes, kind=AdditiveResult, total=torch.as_tensor(total))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8), st.floats(-1e6, 1e6))
@settings(deadline=None, max_examples=60)
def test_the_error_is_the_gap_over_the_largest_magnitude(parts, total):
    result = additive(torch.tensor(parts, dtype=torch.float64), "component", total=torch.tensor(total, dtype=torch.float64))
    largest = max(map(abs, [*parts, total]))
    expected = abs(math.fsum(parts) - total) / largest if largest else 0.0
    assert result.error == pytest.approx(expected, rel=1e-9, abs=1e-14)
    assert result.to_dict()["error"] == result.error


def test_the_error_is_the_worst_over_the_other_axes_and_finds_the_component_axis():
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, -8.0]])
    assert additive(values, "example", "component", total=[6.0, 1.0]).error == 0.0
    assert additive(values, "example", "component", total=[6.0, 3.0]).error == pytest.approx(2 / 8)
    assert additive(values, "component", "example", total=[5.0, 7.0, -5.0]).error == 0.0


def test_the_error_is_computed_in_float64():
    parts = [random.Random(0).uniform(0, 1) for _ in range(10_000)]
    values = torch.tensor(parts).float()
    assert additive(values, "component", total=values.double().sum()).error < 1e-12
    assert additive(values.half(), "component", total=values.half().double().sum()).error < 1e-12


def test_errors_of_zeros_of_nothing_and_of_nan():
    assert additive([0.0, 0.0], "component", total=0.0).error == 0.0
    assert additive(torch.zeros(0), "component", total=2.0).error == 1.0
    assert additive(torch.zeros(3, 0), "component", "example", total=torch.zeros(0)).error == 0.0
    assert math.isnan(additive([NAN, 1.0], "component", total=0.0).error)
    assert math.isnan(additive([1.0, 1.0], "component", total=NAN).error)
    assert json.loads(additive([NAN], "component", total=0.0).to_json())["error"] is None


def test_the_caption_gives_the_total_and_the_error():
    whole = additive([4.0, 0.25], "component", total=4.25)
    assert str(whole).splitlines()[-1].strip() == "adds up to 4.25; completeness error 0"
    averaged = additive([[1.0, 2.0], [1.0, 4.0]], "component", "example", total=[2.0, 6.0])
    assert str(averaged).splitlines()[-1].strip() == "adds up to 4; completeness error 0"
    off = additive([4.2125, 0.0], "component", total=torch.tensor(4.2125 + 1.3e-6, dtype=torch.float64))
    assert str(off).splitlines()[-1].strip() == "adds up to 4.213; completeness error 3e-07"
    many = additive(torch.ones(2, 3), "component", "pos", total=[2.0, 2.0, 2.0])
    assert str(many).splitlines()[-1].strip() == "completeness error 0"


def test_a_total_of_another_shape_is_refused():
    with pytest.raises(InputError, match=r"total has shape \[2\]; make it \[3\], the shape of values without 'component'"):
        additive(torch.ones(2, 3), "component", "pos", total=[1.0, 1.0])


def test_parts_without_a_component_axis_are_refused():
    with pytest.raises(InputError, match=r"axes are \(pos\); parts that add up lie along an axis named 'component'"):
        additive([1.0], "pos", total=1.0)


def test_an_additive_result_takes_part_in_everything_else():
    result = additive([[1.0, 3.0], [-5.0, -5.0]], "component", "example", total=[-4.0, -2.0])
    assert result.top(1) == [Entry(("component1",), -5.0)]
    assert result.mean().n == 2
    assert json.loads(result.to_json())["total"] == [-4.0, -2.0]


def test_the_error_of_one_bad_example_is_not_hidden_by_another() -> None:
    values, total = torch.tensor([[1000.0, 0.001], [0.0, 0.001]]), torch.tensor([1000.0, 0.0])
    labels = {"component": ("a", "b"), "example": ("one", "two")}
    assert AdditiveResult(values, ("component", "example"), labels, total).error == pytest.approx(2.0)


def test_notebooks_show_the_table_as_html() -> None:
    result = Result(torch.tensor([0.5, -2.0]), ("component",), {"component": ("<b>", "[MASK]")})
    shown = result._repr_html_()
    assert "<th>component</th><th>value</th>" in shown
    assert "<tr><td>[MASK]</td><td>-2</td></tr><tr><td>&lt;b&gt;</td><td>0.5</td></tr>" in shown


def test_to_pandas_has_a_row_for_each_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = SimpleNamespace(DataFrame=lambda columns: columns)
    monkeypatch.setitem(sys.modules, "pandas", frames)
    result = Result(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), ("a", "b"), {"a": ("x", "y"), "b": ("u", "v")})
    columns = {"a": ["x", "x", "y", "y"], "b": ["u", "v", "u", "v"], "value": [1.0, 2.0, 3.0, 4.0]}
    assert result.to_pandas() == columns
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(PackageMissingError, match="pip install pandas"):
        result.to_pandas()


def test_every_analysis_labels_its_tokens() -> None:
    model = HookedEncoder.from_pretrained("encoderlens/tiny-bert", device="cpu")
    text, other = "She opened the [MASK].", "A [MASK]."
    decided = direct_logit_attribution(model, [text, other], "door")
    assert decided.tokens == ("4 [MASK]", "2 [MASK]")
    columns = decided.columns()
    assert columns["position"][:2] == ["4 [MASK]", "2 [MASK]"]
    assert columns["value"] == decided.values.flatten().tolist()
    assert "door at 4 [MASK]" in direct_logit_attribution(model, text, "door").title
    lens = logit_lens(model, [text, other], top_k=2)
    columns = lens.columns()
    assert len(columns["value"]) == 9 * 2 * (7 + 5), "no row for a position that the shorter text lacks"
    last = [place for place, example in enumerate(columns["example"]) if example == other]
    assert [columns["token"][place] for place in last[-10::2]] == ["0 [CLS]", "1 a", "2 [MASK]", "3 .", "4 [SEP]"]
    at = lens.ids[-1, 1, 2, 0].item()
    place = max(place for place in last if columns["token"][place] == "2 [MASK]" and columns["rank"][place] == "1")
    assert columns["output"][place] == lens.names[at]
    filled = fill_mask(model, [text, other], top_k=2).columns()
    assert filled["token"][0] == "door"
    assert len(filled["value"]) == 4
    scored = pseudo_log_likelihood(model, ["The boys", "souvenir"]).columns()
    assert scored["example"] == ["The boys"] * 2 + ["souvenir"] * (len(scored["token"]) - 2)
    assert scored["token"][:2] == ["the", "boys"]
    assert minimal_pairs(model, [("The boys are", "The boys is")]).columns()["bad"] == ["The boys is"]


def test_contacts_label_each_examples_own_residues(tmp_path: Path) -> None:
    save_tiny("EsmForMaskedLM", tmp_path, vocab_size=33, mask_token_id=32)
    vocabulary = ("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>")
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    EsmTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    model = HookedEncoder.from_pretrained(tmp_path, device="cpu")
    found = contacts(model, ["MQI", "GI"])
    columns = found.columns()
    assert columns["residue"] == ["1 M"] * 3 + ["2 Q"] * 3 + ["3 I"] * 3 + ["1 G"] * 2 + ["2 I"] * 2
    assert columns["value"][-1] == found.values[1, 1, 1].item()
