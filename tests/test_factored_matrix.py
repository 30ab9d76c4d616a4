import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoderlens import FactoredMatrix
from encoderlens.errors import InputError


def random_factors(*leading, ldim=5, mdim=2, rdim=7):
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(*leading, ldim, mdim, generator=generator)
    return A, torch.randn(*leading, mdim, rdim, generator=generator)


@given(st.lists(st.integers(1, 3), max_size=2), st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
@settings(deadline=None, max_examples=30)
def test_shapes_and_product(leading, ldim, mdim, rdim):
    A, B = random_factors(*leading, ldim=ldim, mdim=mdim, rdim=rdim)
    factored = FactoredMatrix(A, B)
    assert (factored.ldim, factored.mdim, factored.rdim) == (ldim, mdim, rdim)
    assert factored.shape == (*leading, ldim, rdim)
    assert factored.ndim == len(leading) + 2
    assert torch.equal(factored.A, A)
    assert torch.equal(factored.B, B)
    assert factored.AB.shape == factored.shape
    torch.testing.assert_close(factored.AB, torch.einsum("...lm,...mr->...lr", A, B))
    torch.testing.assert_close(factored.T.AB, factored.AB.mT)
    assert factored.T.shape == (*leading, rdim, ldim)


def test_leading_axes_broadcast():
    A, B = torch.randn(3, 1, 5, 2), torch.randn(4, 2, 7)
    factored = FactoredMatrix(A, B)
    assert factored.shape == (3, 4, 5, 7)
    torch.testing.assert_close(factored.AB, A @ B)
    torch.testing.assert_close(factored[2, 3].AB, A[2, 0] @ B[3])


@pytest.mark.parametrize("index", [1, -1, (1, 2), slice(0, 2), (slice(None), 3), ([0, 2],)])
def test_indexing_takes_leading_axes(index):
    factored = FactoredMatrix(*random_factors(3, 4))
    picked = factored[index]
    assert isinstance(picked, FactoredMatrix)
    torch.testing.assert_close(picked.AB, factored.AB[index])


@pytest.mark.parametrize(("leading", "index"), [((), 0), ((3,), (0, 1)), ((3, 4), (0, 1, 2))])
def test_too_many_indices(leading, index):
    with pytest.raises(InputError, match=f"but there are {len(leading)} leading axes"):
        FactoredMatrix(*random_factors(*leading))[index]


def test_inner_dimensions_that_differ():
    with pytest.raises(InputError, match=r"shapes \[5, 2\] and \[3, 7\] have different inner dimensions"):
        FactoredMatrix(torch.ones(5, 2), torch.ones(3, 7))


def test_repr():
    assert repr(FactoredMatrix(*random_factors(3))) == "FactoredMatrix: shape [3, 5, 7], inner dimension 2"


def test_gradients_flow_to_the_factors():
    A, B = (factor.requires_grad_() for factor in random_factors())
    FactoredMatrix(A, B).AB.sum().backward()
    torch.testing.assert_close(A.grad, B.detach().sum(1).expand(5, 2))


def test_circuits_of_the_model(bert):
    layer, head = 1, 3
    attn = bert.blocks[layer].attn
    torch.testing.assert_close(bert.QK[layer, head].AB, attn.W_Q[head] @ attn.W_K[head].T)
    torch.testing.assert_close(bert.OV[layer, head].AB, attn.W_V[head] @ attn.W_O[head])
    assert bert.QK.shape == bert.OV.shape == (3, 5, 40, 40)
    assert bert.OV.mdim == 8
