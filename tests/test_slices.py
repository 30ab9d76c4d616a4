import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoderlens import utils
from encoderlens.errors import InputError
from encoderlens.slices import Slice

LENGTH = 7
GRID = torch.arange(2 * LENGTH * 3).reshape(2, LENGTH, 3)

PARTS = st.none() | st.integers(-LENGTH - 2, LENGTH + 2)
RANGES = st.tuples(PARTS) | st.tuples(PARTS, PARTS) | st.tuples(PARTS, PARTS, st.none() | st.integers(1, 4))
INDICES = st.integers(-LENGTH, LENGTH - 1)


@given(RANGES)
@settings(deadline=None, max_examples=50)
def test_a_tuple_is_a_python_slice(parts):
    expected = GRID[:, slice(*parts)]
    assert torch.equal(Slice(parts).apply(GRID, dim=1), expected)
    assert torch.equal(Slice(parts).apply(GRID, dim=-2), expected)
    assert torch.equal(Slice(slice(*parts)).apply(GRID, dim=1), expected)
    assert Slice(parts).indices(LENGTH).tolist() == list(range(LENGTH))[slice(*parts)]


@given(INDICES)
@settings(deadline=None, max_examples=50)
def test_an_int_drops_the_axis_and_unwrapped_keeps_it(index):
    for given_index in (index, np.int64(index)):
        assert torch.equal(Slice(given_index).apply(GRID, dim=1), GRID[:, index])
        assert torch.equal(Slice.unwrap(given_index).apply(GRID, dim=1), GRID[:, [index]])
    assert Slice(index).indices(LENGTH).tolist() == [index % LENGTH]


@given(st.lists(INDICES, max_size=5))
@settings(deadline=None, max_examples=50)
def test_a_choice_takes_entries_in_its_order(indices):
    expected = GRID[:, torch.tensor(indices, dtype=torch.long)]
    arrays = [torch.tensor(indices, dtype=torch.int32), np.array(indices, dtype=np.int64)]
    for choice in [*arrays, *([indices] if indices else [])]:
        assert torch.equal(Slice(choice).apply(GRID, dim=1), expected)


def test_bytes_are_indices_and_not_a_mask():
    chosen = Slice(torch.tensor([1, 0, 1, 0, 0, 0, 0], dtype=torch.uint8)).apply(torch.arange(LENGTH))
    assert chosen.tolist() == [1, 0, 1, 0, 0, 0, 0]


def test_a_python_range():
    assert Slice(range(1, 4)).apply(torch.arange(LENGTH)).tolist() == [1, 2, 3]


@pytest.mark.parametrize("everything", [None, (None,), (None, None), slice(None)])
def test_everything(everything):
    assert Slice(everything).selects_all
    assert torch.equal(Slice(everything).apply(GRID, dim=1), GRID)


@pytest.mark.parametrize("some", [0, (0, LENGTH), [0], (None, None, 2)])
def test_not_everything(some):
    assert not Slice(some).selects_all


def test_unwrap_returns_a_slice_as_it_is():
    one = Slice(3)
    assert Slice.unwrap(one) is one
    assert Slice.unwrap((1, 3)).index == slice(1, 3)
    assert utils.Slice is Slice


@pytest.mark.parametrize(
    "wrong",
    [
        True,
        "abc",
        1.5,
        {1, 2},
        (),
        (1, 2, 3, 4),
        ("a",),
        (0, 5, -1),
        (0, 5, 0),
        (True, False),
        [],
        [0.5],
        ["a"],
        [[1, 2]],
        [True, False],
        torch.tensor([1.0]).half(),
        torch.tensor(3),
        np.zeros((2, 2), dtype=int),
    ],
    ids=repr,
)
def test_anything_else_is_refused(wrong, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it: annotations are not checked
    with pytest.raises(InputError, match="a slice "):
        Slice(wrong)
    with pytest.raises(InputError, match="a slice "):
        Slice.unwrap(wrong)


@pytest.mark.parametrize("outside", [LENGTH, -LENGTH - 1, [0, LENGTH], [-LENGTH - 1]])
def test_an_entry_that_the_axis_lacks(outside):
    with pytest.raises(InputError, match=rf"entry -?\d of an axis that has {LENGTH}"):
        Slice(outside).apply(GRID, dim=1)


def test_repr():
    assert repr(Slice((1, 2))) == "Slice(slice(1, 2, None))"
