import gc
import math
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from encoderlens import FactoredMatrix
from encoderlens.errors import InputError
from tests.parity import assert_close, assert_parity

SIZES = st.integers(1, 5)
KINDS = st.sampled_from(["any", "singular", "zero"])
HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
thorough = settings(deadline=None, max_examples=25)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_factored(*leading, ldim=5, mdim=2, rdim=7, dtype=torch.float64):
    A, B = random(*leading, ldim, mdim, dtype=dtype), random(*leading, mdim, rdim, seed=1, dtype=dtype)
    return FactoredMatrix(A, B)


@st.composite
def broadcastable(draw, leading):
    """Leading axes that broadcast to at most these: some cut off in front, some of length one."""
    kept = leading[draw(st.integers(0, len(leading))) :]
    return [1 if draw(st.booleans()) else size for size in kept]


LEADING = st.lists(st.integers(1, 3), max_size=2)


@st.composite
def factors(draw, ldim=SIZES, mdim=SIZES, rdim=SIZES, leading=LEADING):
    """A and B of every shape, with leading axes that broadcast; sometimes of less than full rank, sometimes zero."""
    sizes = draw(leading)
    left, inner, right = draw(ldim), draw(mdim), draw(rdim)
    A = random(*draw(broadcastable(sizes)), left, inner, seed=draw(st.integers(0, 9)))
    B = random(*draw(broadcastable(sizes)), inner, right, seed=draw(st.integers(10, 19)))
    kind = draw(KINDS)
    if kind == "singular":
        A[..., -1, :], A[..., -1], B[..., -1] = A[..., 0, :], A[..., 0], B[..., 0]
    return A, torch.zeros_like(B) if kind == "zero" else B


@st.composite
def square_factors(draw):
    size = st.just(draw(SIZES))
    return draw(factors(ldim=size, rdim=size))


def product(A, B):
    return torch.einsum("...lm,...mr->...lr", A, B)


def assert_orthonormal(columns):
    identity = torch.eye(columns.shape[-1], dtype=columns.dtype).expand(*columns.shape[:-2], -1, -1)
    assert_close(columns.mT @ columns, identity)


@given(factors())
@thorough
def test_shapes_and_product(pair):
    A, B = pair
    factored, dense = FactoredMatrix(A, B), product(A, B)
    assert (factored.ldim, factored.mdim, factored.rdim) == (A.shape[-2], A.shape[-1], B.shape[-1])
    assert factored.shape == dense.shape
    assert factored.ndim == dense.ndim
    assert torch.equal(factored.A, A.expand_as(factored.A))
    assert torch.equal(factored.B, B.expand_as(factored.B))
    assert factored.A.shape[:-2] == factored.B.shape[:-2] == dense.shape[:-2]
    assert factored.pair[0] is factored.A
    assert factored.pair[1] is factored.B
    assert_close(factored.AB, dense)
    assert_close(factored.T.AB, dense.mT)


@given(square_factors())
@thorough
def test_BA(pair):
    A, B = pair
    assert_close(FactoredMatrix(A, B).BA, torch.einsum("...mr,...rn->...mn", B, A))


@given(factors())
@thorough
def test_svd(pair):
    factored, dense = FactoredMatrix(*pair), product(*pair)
    U, S, V = factored.svd()
    k = min(factored.ldim, factored.mdim, factored.rdim)
    leading = dense.shape[:-2]
    assert U.shape == (*leading, factored.ldim, k)
    assert S.shape == (*leading, k)
    assert V.shape == (*leading, factored.rdim, k)
    assert_close(U @ torch.diag_embed(S) @ V.mT, dense)
    assert_orthonormal(U)
    assert_orthonormal(V)
    assert (S >= 0).all()
    assert (S.diff(dim=-1) <= 0).all()
    assert_close(S, torch.linalg.svdvals(dense)[..., :k])
    assert (factored.U is U, factored.S is S, factored.V is V) == (True, True, True)
    assert torch.equal(factored.Vh, V.mT)


def test_the_svd_is_kept_by_the_instance_alone():
    factored = random_factored()
    kept = weakref.ref(factored.U)
    assert factored.U is factored.U
    del factored
    gc.collect()
    assert kept() is None


def test_an_svd_without_gradients_does_not_stand_in_for_one_with_them():
    factored = random_factored()
    factored.A.requires_grad_()
    with torch.no_grad():
        without = factored.S
        assert factored.S is without
    assert not without.requires_grad
    assert_close(factored.S.detach(), without)
    factored.S.sum().backward()
    assert factored.A.grad.abs().sum() > 0


@given(square_factors())
@thorough
def test_eigenvalues(pair):
    factored, dense = FactoredMatrix(*pair), product(*pair)
    eigenvalues = factored.eigenvalues
    assert eigenvalues.dtype == torch.complex128
    assert eigenvalues.shape == (*dense.shape[:-2], min(factored.ldim, factored.mdim))
    power = dense
    for exponent in range(1, factored.ldim + 1):  # power sums determine eigenvalues, and stay exact where these coincide
        trace = power.diagonal(dim1=-2, dim2=-1).sum(-1)
        scale = torch.linalg.matrix_norm(dense).max().item() ** exponent
        assert_parity(eigenvalues.pow(exponent).sum(-1), trace.to(torch.complex128), None, 1e-10, scale)
        power = power @ dense


def test_eigenvalues_of_a_projection_and_of_a_rotation():
    projection = FactoredMatrix(torch.eye(4)[:, :1] * 3, torch.ones(1, 4))
    assert_close(projection.eigenvalues, torch.tensor([3 + 0j]))
    rotation = FactoredMatrix(torch.tensor([[0.0, 1, 0], [-1, 0, 0]]), torch.eye(3, 2))  # mdim 3, larger than ldim
    assert_close(rotation.eigenvalues.imag.sort().values, torch.tensor([-1.0, 1]))


@given(factors())
@thorough
def test_norm(pair):
    assert_close(FactoredMatrix(*pair).norm(), torch.linalg.matrix_norm(product(*pair)))


@pytest.mark.parametrize("remainder", [0.0, 1e-5])
def test_norm_of_a_product_that_cancels(remainder):
    u, v = random(50, 1, dtype=torch.float32), random(1, 60, seed=1, dtype=torch.float32)
    factored = FactoredMatrix(torch.cat([u, u], 1), torch.cat([v, -v * (1 - remainder)]))
    exact = torch.linalg.matrix_norm(factored.A.double() @ factored.B.double()).float()
    scale = factored.A.norm() * factored.B.norm()
    assert_parity(factored.norm(), exact, None, 1e-6, float(scale))  # the root of rounding error would be 3e-4 * scale


@given(factors())
@thorough
def test_make_even_and_collapse(pair):
    factored, dense = FactoredMatrix(*pair), product(*pair)
    even = factored.make_even()
    assert even.mdim == min(factored.ldim, factored.mdim, factored.rdim)
    assert_close(even.AB, dense)
    assert_close(even.A.mT @ even.A, torch.diag_embed(factored.S))
    assert_close(even.B @ even.B.mT, torch.diag_embed(factored.S))
    left, right = factored.collapse_l(), factored.collapse_r()
    assert left.shape == (*dense.shape[:-2], even.mdim, factored.rdim)
    assert right.shape == (*dense.shape[:-2], factored.ldim, even.mdim)
    assert_close(factored.U @ left, dense)
    assert_close(right @ factored.Vh, dense)
    assert_close(left.mT @ left, dense.mT @ dense)
    assert_close(right @ right.mT, dense @ dense.mT)


@given(factors(), st.integers(0, 6))
@thorough
def test_get_corner(pair, k):
    dense = product(*pair)
    assert_close(FactoredMatrix(*pair).get_corner(k), dense[(slice(k),) * dense.ndim])
    assert FactoredMatrix(*pair).get_corner().shape == tuple(min(size, 3) for size in dense.shape)


@pytest.mark.parametrize("leading", [(), (3,), (3, 4)])
def test_unsqueeze(leading):
    factored = random_factored(*leading)
    ndim = factored.ndim
    for k in [*range(ndim - 1), *range(-ndim - 1, -2)]:
        assert_close(factored.unsqueeze(k).AB, factored.AB.unsqueeze(k))
    for k in (-ndim - 2, -2, -1, ndim - 1, ndim, ndim + 1):
        with pytest.raises(InputError, match=rf"unsqueeze\({k}\) .* from 0 to {ndim - 2}, or from {-ndim - 1} to -3"):
            factored.unsqueeze(k)


@st.composite
def slices(draw, size):
    bounds = st.none() | st.integers(-size - 1, size + 1)
    return slice(draw(bounds), draw(bounds), draw(st.none() | st.integers(1, 3)))


@st.composite
def axis_index(draw, size, length):
    """An int, a range or a choice of so many entries, as a list, an array or a tensor."""
    entries = st.integers(-size, size - 1)
    choice = st.lists(entries, min_size=length, max_size=length)
    masks = st.permutations([True] * min(length, size) + [False] * (size - length)) if length <= size else st.nothing()
    numpy_or_torch = st.sampled_from([list, np.array, torch.tensor])
    made = st.tuples(numpy_or_torch, choice | masks).map(lambda pair: pair[0](pair[1]))
    return draw(entries | entries.map(np.int64) | entries.map(torch.tensor) | slices(size) | made)


@given(factors(leading=st.lists(st.integers(1, 3), max_size=3)), st.data())
@settings(deadline=None, max_examples=120)
def test_indexing_is_that_of_the_product(pair, data):
    factored, dense = FactoredMatrix(*pair), product(*pair)
    length = data.draw(st.integers(1, 3))
    parts = [data.draw(axis_index(size, length)) for size in dense.shape]
    start = data.draw(st.integers(0, dense.ndim))
    stop = data.draw(st.integers(start, dense.ndim))
    parts[start:stop] = [slice(None)] * (stop - start)
    *leading, rows, columns = parts

    index = parts[:start] + ([Ellipsis] if stop < dense.ndim or data.draw(st.booleans()) else []) + parts[stop:]
    new_axes = data.draw(st.integers(0, start if start <= dense.ndim - 2 else 0))
    if data.draw(st.booleans()):
        index.insert(new_axes, None)
        leading.insert(new_axes, None)

    expected = dense[tuple(leading)]
    for axis, part in ((-2, rows), (-1, columns)):
        chosen = torch.atleast_1d(torch.arange(dense.shape[axis])[part])
        expected = expected.index_select(axis, chosen)
    picked = factored[tuple(index)]
    assert isinstance(picked, FactoredMatrix)
    assert picked.mdim == factored.mdim
    assert_close(picked.AB, expected)


@pytest.mark.parametrize(
    "index",
    [
        1, -1, (1, 2), (slice(0, 2),), (slice(None), 3), [0, 2], ([0, 2], [1, 1]), torch.tensor([[0, 1], [1, 2]]), None, ...,
        (..., 0), (..., -1), (..., slice(3), 2), (1, 2, slice(None), 5), (1, 2, 4), (1, 2, 4, 6), (..., -5, -7), (None, 1, ...),
        (1, None, 2), (..., None, slice(None), slice(None)), (0, [0, 3], ..., slice(1, 4)), (), [], (slice(2), ..., [0, 2], 1),
        torch.ones(3, 4) > 0, (torch.eye(3, 4) > 0, slice(1, 3), 2), (torch.tensor([True, False, True]), 3),
        (..., torch.tensor([True, False, False, True, True]), slice(None)), ((0, 2),), (..., (4, 0), slice(None)),
        (np.int64(2), slice(None), np.int64(4)),
    ],
    ids=repr,
)  # fmt: skip
def test_indexing_by_example(index):
    factored = random_factored(3, 4)
    picked, expected = factored[index], factored.AB[index]
    assert picked.ndim >= 2
    assert_close(picked.AB.reshape(expected.shape), expected)


def test_an_int_keeps_a_matrix_axis():
    factored = random_factored(3, 4)
    assert factored[..., 0].shape == (3, 4, 5, 1)
    assert factored[1, 2, 4].shape == (1, 7)
    assert factored[1, 2, 4, 6].shape == (1, 1)


def test_rows_and_columns_are_chosen_each_on_its_own():
    factored = random_factored(3)
    picked = factored[[0, 2], [0, 1, 1], [6, 3]]
    assert picked.shape == (2, 3, 2)
    assert_close(picked.AB, factored.AB[[0, 2]][:, [0, 1, 1]][:, :, [6, 3]])


def test_bytes_are_indices_and_not_a_mask():
    factored = random_factored(2)
    index = torch.tensor([1, 0], dtype=torch.uint8)
    assert_close(factored[index, index].AB, factored.AB[[1, 0]][:, [1, 0]])


def test_loops_end_with_the_first_axis():
    for factored in (random_factored(3), random_factored()):
        assert_close(torch.cat([part.AB for part in factored]), factored.AB.reshape(-1, 7))


@pytest.mark.parametrize("index", [(3,), (-4,), (0, 5), (..., -6, 0), (..., 7), (..., -8), (..., [7]), (..., [True, False])])
def test_entries_that_an_axis_does_not_have(index):
    with pytest.raises(IndexError):
        random_factored(3)[index]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ((0, 0, 0, 0), "index .* is for 4 axes, but the matrix has 3"),
        ((..., 0, 0, 0, 0), "is for 4 axes"),
        ((torch.ones(3, 5) > 0, 0, 0), "is for 4 axes"),
        ((..., 0, ...), "more than one '...'"),
        ((..., None), "the matrix axes stay the last two"),
        ((0, slice(None), None, 0), "the matrix axes stay the last two"),
        ((..., [[0, 1]]), "one-dimensional list"),
        ((torch.ones(3, 5) > 0, 0), "masks of more axes go before them"),
        (torch.ones(3, 5, 7) > 0, "masks of more axes go before them"),
        (1.0, "an index is an int, .* not 1.0"),
        ([0.5], "an index is an int"),
        (True, "an index is an int, .* not True"),
        ("head", "'head' is no index"),
        ([[0], [1, 2]], "is no index"),
    ],
)
def test_what_is_no_index(index, message):
    with pytest.raises(InputError, match=message):
        random_factored(3)[index]


@st.composite
def operands(draw):
    """Factors of M, a matrix that fits on its right, and one that fits on its left."""
    leading = draw(LEADING)
    A, B = draw(factors(leading=st.just(leading)))
    right = random(*draw(broadcastable(leading)), B.shape[-1], draw(SIZES), seed=20)
    left = random(*draw(broadcastable(leading)), draw(SIZES), A.shape[-2], seed=21)
    return (A, B), left, right


@given(operands())
@thorough
def test_products_with_matrices(given_operands):
    pair, left, right = given_operands
    factored, dense = FactoredMatrix(*pair), product(*pair)
    after, before = factored @ right, left @ factored
    assert isinstance(after, FactoredMatrix)
    assert isinstance(before, FactoredMatrix)
    assert after.mdim == min(factored.mdim, factored.rdim)
    assert before.mdim == min(factored.mdim, factored.ldim)
    assert_close(after.AB, product(dense, right))
    assert_close(before.AB, product(left, dense))


@given(factors(leading=st.just([2, 3])), st.data())
@thorough
def test_products_of_factored_matrices(pair, data):
    first, dense = FactoredMatrix(*pair), product(*pair)
    other = data.draw(factors(ldim=st.just(first.rdim), leading=st.just([2, 3])))
    both = first @ FactoredMatrix(*other)
    assert isinstance(both, FactoredMatrix)
    assert both.mdim == min(first.mdim, first.rdim, other[0].shape[-1])
    assert_close(both.AB, product(dense, product(*other)))


@given(factors())
@thorough
def test_products_with_vectors(pair):
    factored, dense = FactoredMatrix(*pair), product(*pair)
    right, left = random(factored.rdim), random(factored.ldim)
    assert_close(factored @ right, torch.einsum("...lr,r->...l", dense, right))
    assert_close(left @ factored, torch.einsum("l,...lr->...r", left, dense))


def test_a_parameter_on_the_left():
    factored, weight = random_factored(), torch.nn.Parameter(random(3, 5))
    assert_close((weight @ factored).AB, weight @ factored.AB)


@given(factors(), st.floats(-9, 9) | st.integers(-9, 9))
@thorough
def test_scalars(pair, number):
    factored, expected = FactoredMatrix(*pair), product(*pair) * number
    tensor = torch.tensor(number, dtype=torch.float64)
    for scalar in (number, np.float64(number), tensor, tensor[None], tensor[None, None, None, None]):
        for scaled in (factored * scalar, scalar * factored):
            assert isinstance(scaled, FactoredMatrix)
            assert scaled.mdim == factored.mdim
            assert_close(scaled.AB, expected)


def test_a_scalar_of_another_dtype_does_not_change_that_of_the_matrix():
    factored = random_factored(dtype=torch.float32)
    for scalar in (torch.tensor([2.0], dtype=torch.float64), torch.tensor(2), torch.tensor([2.0], dtype=torch.float16)):
        assert torch.equal((scalar * factored).AB, 2 * factored.AB)


@HALVES
@given(factors())
@settings(deadline=None, max_examples=10)
def test_half_precision(dtype, pair):
    factored = FactoredMatrix(*(factor.to(dtype) for factor in pair))
    exact = FactoredMatrix(factored.A.float(), factored.B.float())
    even = factored.make_even()
    results = [*factored.svd(), factored.Vh, factored.norm(), factored.collapse_l(), factored.collapse_r(), *even.pair]
    assert {result.dtype for result in results} == {dtype}
    assert_close(factored.norm(), exact.norm().to(dtype))
    for rounded, unrounded in zip(factored.svd(), exact.svd(), strict=True):
        assert torch.equal(rounded, unrounded.to(dtype))
    assert_parity(even.AB.float(), exact.AB, None, 0.02, 1 + exact.norm().max().item())
    assert (factored * 2.0).AB.dtype == (factored @ factored.T).AB.dtype == dtype
    if factored.ldim == factored.rdim:
        assert torch.equal(factored.eigenvalues, exact.eigenvalues)
        assert factored.eigenvalues.dtype == torch.complex64


def raises_for_shapes(left, right):
    return pytest.raises(InputError, match=rf"shapes \[{left}\] and \[{right}\]")


def test_shapes_that_do_not_fit():
    factored = random_factored(3)
    with raises_for_shapes("3, 5, 7", "6, 2"):
        factored @ torch.ones(6, 2)
    with raises_for_shapes("3, 5, 7", "6"):
        factored @ torch.ones(6)
    with raises_for_shapes("3, 5, 7", "3, 5, 7"):
        factored @ factored
    with raises_for_shapes("2, 6", "3, 5, 7"):
        torch.ones(2, 6) @ factored
    with raises_for_shapes("7", "3, 5, 7"):
        torch.ones(7) @ factored
    with raises_for_shapes("3, 5, 7", ""):
        factored @ torch.tensor(2.0)
    with raises_for_shapes("", "3, 5, 7"):
        torch.tensor(2.0) @ factored
    with raises_for_shapes("3, 5, 7", "2, 7, 1"):
        factored @ torch.ones(2, 7, 1)
    with raises_for_shapes("2, 1, 5", "3, 5, 7"):
        torch.ones(2, 1, 5) @ factored


@pytest.mark.parametrize(
    ("A", "B", "message"),
    [
        (torch.ones(5, 2), torch.ones(3, 7), r"shapes \[5, 2\] and \[3, 7\] have different inner dimensions"),
        (torch.ones(2), torch.ones(2, 7), r"shapes \[2\] and \[2, 7\] are not two matrices"),
        (torch.ones(5, 2), torch.ones(2), r"shapes \[5, 2\] and \[2\] are not two matrices"),
        (torch.ones(3, 5, 2), torch.ones(4, 2, 7), r"leading axes of shapes \[3, 5, 2\] and \[4, 2, 7\] do not broadcast"),
        (torch.ones(5, 2), torch.ones(2, 7, dtype=torch.float64), "dtypes torch.float32 and torch.float64"),
    ],
)
def test_factors_that_are_refused(A, B, message, unchecked):
    with pytest.raises(InputError, match=message):
        FactoredMatrix(A, B)


@pytest.mark.parametrize("member", ["BA", "eigenvalues"])
def test_members_of_square_matrices(member):
    with pytest.raises(InputError, match=rf"{member} of shape \[3, 5, 7\]: only a square matrix has it"):
        getattr(random_factored(3), member)


def test_what_is_no_scalar():
    factored = random_factored()
    with pytest.raises(InputError, match=r"a torch.float32 tensor of shape \[2\]; see @"):
        factored * torch.ones(2)
    with pytest.raises(InputError, match=r"a torch.float32 tensor of shape \[5, 7\]; see @"):
        torch.ones(5, 7) * factored
    with pytest.raises(InputError, match=r"a torch.complex64 tensor"):
        factored * torch.tensor(1j)
    for wrong in (factored, None, 1j):
        with pytest.raises(TypeError, match="unsupported operand"):
            factored * wrong


def test_what_is_no_matrix():
    factored = random_factored()
    for wrong in ("2", 2, [[1.0]]):
        with pytest.raises(TypeError, match="unsupported operand"):
            factored @ wrong
        with pytest.raises(TypeError, match="unsupported operand"):
            wrong @ factored


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.numel = max(self.numel, *sizes, 0)
        return result


HUGE = 200_000  # squared, and in float64, 320 GB


def test_a_huge_product_is_never_formed():
    A, B = random(HUGE, 4), random(4, HUGE, seed=1)
    corner = A[:3] @ B[:, :3]
    with LargestTensor() as largest:
        factored = FactoredMatrix(A, B)
        assert factored.shape == (HUGE, HUGE)
        U, S, V = factored.svd()
        assert_close((U[:3] * S) @ V[:3].mT, corner)
        assert_close(factored.norm(), S.norm())
        assert_close(factored.eigenvalues.sum().real, (A * B.mT).sum())
        assert_close(factored.make_even().get_corner(), corner)
        assert_close(factored.T.get_corner(), corner.mT)
        assert_close((factored * 2).get_corner(), 2 * corner)
        assert_close((U.mT @ factored).AB, factored.collapse_l())
        assert_close((factored @ V).AB, factored.collapse_r())
        assert_close((factored @ factored).get_corner(), A[:3] @ factored.BA @ B[:, :3])
        assert_close(factored @ V[:, 0], U[:, 0] * S[0])
        assert_close(U[:, 0] @ factored, V[:, 0] * S[0])
        assert_close(factored[HUGE - 1, [5, 6]].AB, A[-1:] @ B[:, 5:7])
        assert factored[-1].AB.shape == (1, HUGE)
        assert_close(factored.unsqueeze(0)[0, :3, :3].AB, corner)
        assert repr(factored) == f"FactoredMatrix: shape [{HUGE}, {HUGE}], inner dimension 4"
    assert largest.numel == 4 * HUGE


def test_a_huge_inner_dimension_goes():
    A, B = random(4, HUGE), random(HUGE, 4, seed=1)
    dense = A @ B
    with LargestTensor() as largest:
        factored = FactoredMatrix(A, B)
        U, S, V = factored.svd()
        assert_close((U * S) @ V.mT, dense)
        assert_close(factored.norm(), dense.norm())
        assert_close(factored.eigenvalues.sum().real, dense.trace())
        assert factored.make_even().mdim == (factored @ dense).mdim == (dense @ factored).mdim == 4
        assert (factored @ factored).mdim == 4
    assert largest.numel == 4 * HUGE


def test_repr():
    assert repr(random_factored(3)) == "FactoredMatrix: shape [3, 5, 7], inner dimension 2"


@pytest.mark.parametrize("sizes", [(5, 2, 7), (2, 5, 3), (4, 4, 4)])
def test_gradients_flow_to_the_factors(sizes):
    ldim, mdim, rdim = sizes
    A, B = random(2, ldim, mdim).requires_grad_(), random(mdim, rdim, seed=1).requires_grad_()
    for member in ("AB", "S"):
        assert torch.autograd.gradcheck(lambda A, B, member=member: getattr(FactoredMatrix(A, B), member), (A, B))
    assert torch.autograd.gradcheck(lambda A, B: FactoredMatrix(A, B).norm(), (A, B))
    assert torch.autograd.gradcheck(lambda A, B: (FactoredMatrix(A, B) @ B.mT)[..., 0].AB, (A, B))


def test_empty_choices():
    factored = random_factored(3)[:, [], 2:2]
    assert factored.AB.shape == (3, 0, 0)
    assert factored.S.shape == (3, 0)
    assert torch.equal(factored.norm(), torch.zeros(3, dtype=torch.float64))


def test_circuits_of_the_model(bert):
    layer, head = 1, 3
    attn = bert.blocks[layer].attn
    assert_close(bert.QK[layer, head].AB, attn.W_Q[head] @ attn.W_K[head].T)
    assert_close(bert.OV[layer, head].AB, attn.W_V[head] @ attn.W_O[head])
    assert bert.QK.shape == bert.OV.shape == (3, 5, 40, 40)
    assert bert.OV.mdim == 8
    assert math.isclose(bert.OV.norm()[layer, head].item(), bert.OV[layer, head].AB.norm().item(), rel_tol=1e-5)


@pytest.mark.parametrize(
    "factors",
    [
        (torch.tensor([[1, 2], [3, 4]]), torch.eye(2)),
        (torch.eye(2), torch.eye(2, dtype=torch.complex64)),
        ([[1.0]], torch.eye(1)),
    ],
)
def test_factors_that_are_no_real_numbers_are_refused(factors):
    with pytest.raises(InputError, match="factors are tensors of real floating-point numbers, not a"):
        FactoredMatrix(*factors)


def test_singular_values_can_be_differentiated_more_than_once():
    A = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    factored = FactoredMatrix(A, torch.randn(3, 4, dtype=torch.float64))
    first, second = (torch.autograd.grad(factored.S.sum(), A)[0] for _ in range(2))
    assert_close(first, second)


def test_another_dtype_on_either_side_is_refused():
    factored, wide = FactoredMatrix(torch.ones(5, 2), torch.ones(2, 7)), torch.float64
    for product in (lambda: factored @ torch.ones(7, dtype=wide), lambda: torch.ones(2, 5, dtype=wide) @ factored):
        with pytest.raises(InputError, match="convert one of them"):
            product()


def test_notebooks_show_shapes_and_the_largest_singular_values() -> None:
    shown = FactoredMatrix(torch.diag(torch.tensor([3.0, 2.0])), torch.eye(2))._repr_html_()
    assert "FactoredMatrix [2, 2]" in shown
    assert "<td>largest singular values</td><td>3, 2</td>" in shown
    for odd in (torch.full((2, 2), torch.nan), torch.ones(4, 2, 2), torch.ones(2, 0)):
        assert "singular" not in FactoredMatrix(odd, odd.mT)._repr_html_()
