"""FactoredMatrix: a product of two matrices that is kept as its factors."""

from collections.abc import Sequence
from reprlib import repr as short_repr
from types import EllipsisType
from typing import Any

import torch
from jaxtyping import Complex, Float
from rich.table import Table
from rich.text import Text
from torch import Tensor

from encoderlens.errors import InputError
from encoderlens.precision import at_least_float32
from encoderlens.tables import html_table

LARGEST_SHOWN = 2**22  # numbers in the larger factor up to which a notebook shows singular values


class FactoredMatrix:
    """``M = A @ B`` with a small inner dimension, multiplied out only where ``AB`` is asked for or is smaller than a factor.

    ``@`` takes matrices, vectors and other factored matrices on either side, ``*`` a number. In the shapes below, ``k`` is
    ``min(ldim, mdim, rdim)``, the greatest rank that M can have, and leading axes are ``batch``.

    Attributes:
        A: left factor [... ldim mdim].
        B: right factor [... mdim rdim]; both have the leading axes of M.

    Raises:
        InputError: for factors that are not matrices of real floating-point numbers, whose inner dimensions or dtypes differ,
            or whose leading axes do not broadcast against each other.
    """

    def __init__(self, A: Any, B: Any) -> None:
        for factor in (A, B):
            if not isinstance(factor, Tensor) or not factor.is_floating_point():
                found = f"{factor.dtype} tensor" if isinstance(factor, Tensor) else type(factor).__name__
                raise InputError(f"factors are tensors of real floating-point numbers, not a {found}: convert it with .float()")
        shapes = f"factors of shapes {list(A.shape)} and {list(B.shape)}"
        if min(A.ndim, B.ndim) < 2:
            raise InputError(f"{shapes} are not two matrices: make a vector one with [:, None] or [None]")
        if A.shape[-1] != B.shape[-2]:
            raise InputError(f"{shapes} have different inner dimensions: the last of A and the one before last of B must agree")
        if A.dtype != B.dtype:
            raise InputError(f"factors of dtypes {A.dtype} and {B.dtype}: convert one of them")
        leading = _common_leading(A.shape, B.shape)
        self.A = A.expand(*leading, *A.shape[-2:])
        self.B = B.expand(*leading, *B.shape[-2:])
        self._svd: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def pair(self) -> tuple[Float[Tensor, "*batch ldim mdim"], Float[Tensor, "*batch mdim rdim"]]:
        """``(A, B)``."""
        return self.A, self.B

    @property
    def ldim(self) -> int:
        return self.A.shape[-2]

    @property
    def mdim(self) -> int:
        return self.A.shape[-1]

    @property
    def rdim(self) -> int:
        return self.B.shape[-1]

    @property
    def shape(self) -> torch.Size:
        """The shape of the product [... ldim rdim]."""
        return torch.Size((*self.A.shape[:-1], self.rdim))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def has_leading_dims(self) -> bool:
        """Whether it is a stack of matrices, with axes in front of the two."""
        return self.ndim > 2

    @property
    def AB(self) -> Float[Tensor, "*batch ldim rdim"]:
        """The product, multiplied out."""
        return self.A @ self.B

    @property
    def BA(self) -> Float[Tensor, "*batch mdim mdim"]:
        """The factors multiplied in the other order.

        Raises:
            InputError: if M is not square.
        """
        self._require_square("BA")
        return self.B @ self.A

    @property
    def T(self) -> "FactoredMatrix":
        """The transpose of the two matrix axes [... rdim ldim]."""
        return FactoredMatrix(self.B.mT, self.A.mT)

    def svd(self) -> tuple[Float[Tensor, "*batch ldim k"], Float[Tensor, "*batch k"], Float[Tensor, "*batch rdim k"]]:
        """``(U, S, V)`` with ``M = U @ diag(S) @ V.mT``, orthonormal columns in U and V, and S in descending order.

        Found once and kept, unless it carries gradients: do not change the factors in place afterwards.
        """
        if torch.is_grad_enabled() and (self.A.requires_grad or self.B.requires_grad):
            return self._find_svd()  # a graph can be gone through once
        if self._svd is None:
            self._svd = self._find_svd()
        return self._svd

    def _find_svd(self) -> tuple[Tensor, Tensor, Tensor]:
        left, core, right = self._orthogonal_parts()
        U, S, Vh = torch.linalg.svd(core, full_matrices=False)
        return self._as_dtype(left @ U), self._as_dtype(S), self._as_dtype(right @ Vh.mT)

    @property
    def U(self) -> Float[Tensor, "*batch ldim k"]:
        """Left singular vectors, as columns."""
        return self.svd()[0]

    @property
    def S(self) -> Float[Tensor, "*batch k"]:
        """Singular values, the largest first."""
        return self.svd()[1]

    @property
    def V(self) -> Float[Tensor, "*batch rdim k"]:
        """Right singular vectors, as columns."""
        return self.svd()[2]

    @property
    def Vh(self) -> Float[Tensor, "*batch k rdim"]:
        """Right singular vectors, as rows: ``V^H``, as in ``torch.linalg.svd``. The ``Vh`` of TransformerLens is ``V``."""
        return self.V.mT

    @property
    def eigenvalues(self) -> Complex[Tensor, "*batch eigenvalue"]:
        """The ``min(ldim, mdim)`` eigenvalues of a square M that need not be zero, in no particular order.

        AB and BA have the same eigenvalues up to zeros, so they are found from the smaller of the two. If ``mdim < ldim``, the
        ``ldim - mdim`` others of M are zero and left out.

        Raises:
            InputError: if M is not square.
        """
        self._require_square("eigenvalues")
        A, B = at_least_float32(self.A), at_least_float32(self.B)
        return torch.linalg.eigvals(B @ A if self.mdim < self.ldim else A @ B)

    def norm(self) -> Float[Tensor, "*batch"]:
        """The Frobenius norm, to within rounding of ``norm(A) * norm(B)``. Has gradients where both factors have full rank."""
        # Not sqrt(trace(A^T A B B^T)): where the product cancels, that trace is rounding error, of either sign.
        _, core, _ = self._orthogonal_parts()
        return self._as_dtype(torch.linalg.matrix_norm(core))

    def make_even(self) -> "FactoredMatrix":
        """The same matrix as ``U sqrt(S)`` [... ldim k] times ``sqrt(S) V^T`` [... k rdim], whose singular values are equal."""
        U, S, V = self.svd()
        root = S.sqrt()
        return FactoredMatrix(U * root[..., None, :], root[..., None] * V.mT)

    def collapse_l(self) -> Float[Tensor, "*batch k rdim"]:
        """``diag(S) V^T``: M without the rotation on its left, with the inner products of its columns."""
        _, S, V = self.svd()
        return S[..., None] * V.mT

    def collapse_r(self) -> Float[Tensor, "*batch ldim k"]:
        """``U diag(S)``: M without the rotation on its right, with the inner products of its rows."""
        U, S, _ = self.svd()
        return U * S[..., None, :]

    def get_corner(self, k: int = 3) -> Float[Tensor, "*corner"]:
        """The first ``k`` entries of the product along every axis, leading ones included.

        Raises:
            InputError: for a negative ``k``.
        """
        if k < 0:
            raise InputError(f"get_corner({k}): a corner has a number of entries along each axis")
        return self[(slice(k),) * self.ndim].AB

    def unsqueeze(self, k: int) -> "FactoredMatrix":
        """A new leading axis of length one, before axis ``k``; a negative ``k`` counts as in ``torch.unsqueeze``.

        Raises:
            InputError: for a ``k`` that is out of range or would put the new axis after a matrix axis.
        """
        if not 0 <= (k if k >= 0 else k + self.ndim + 1) <= self.ndim - 2:
            raise InputError(
                f"unsqueeze({k}) of shape {list(self.shape)}: the matrix axes stay the last two, so take k from 0 to "
                f"{self.ndim - 2}, or from {-self.ndim - 1} to -3"
            )
        return FactoredMatrix(self.A.unsqueeze(k), self.B.unsqueeze(k))

    def __getitem__(self, index: Any) -> "FactoredMatrix":
        """Entries of M, as of a tensor, except that both matrix axes stay: there, an int leaves an axis of length one.

        Leading axes take whatever the axes of a tensor take. Rows and columns take an int, a slice, or a one-dimensional list
        or mask, each on its own: ``M[..., [0, 2], [1, 3]]`` are two rows by two columns, not two entries.

        Raises:
            InputError: for too many indices, a new axis after a matrix axis, or what is no index.
            IndexError: for an entry that an axis does not have.
        """
        leading, rows, columns = _split_index(index, self.ndim)
        return FactoredMatrix(self.A[leading][(..., *rows, slice(None))], self.B[leading][(..., *columns)])

    def __matmul__(self, other: Any) -> "FactoredMatrix | Tensor":
        """``M @ other``, with the smallest of the inner dimensions that the factors offer; leading axes broadcast.

        Args:
            other: a matrix [... rdim new_rdim] or a FactoredMatrix, which give a FactoredMatrix [... ldim new_rdim], or a
                vector [rdim], which gives a tensor [... ldim].

        Raises:
            InputError: if the shapes do not fit.
        """
        if not isinstance(other, Tensor | FactoredMatrix):
            return NotImplemented
        _common_leading(self.shape, other.shape)
        self._require_dtype(other)
        if isinstance(other, FactoredMatrix):
            return (self @ other.A) @ other.B
        if other.ndim == 1:
            return (self.A @ (self.B @ other[:, None]))[..., 0]
        if self.rdim < self.mdim:
            return FactoredMatrix(self.AB, other)
        return FactoredMatrix(self.A, self.B @ other)

    def __rmatmul__(self, other: Any) -> "FactoredMatrix | Tensor":
        """``other @ M``, for a matrix [... new_ldim ldim] or a vector [ldim], as ``M @ other``.

        Raises:
            InputError: if the shapes do not fit.
        """
        if not isinstance(other, Tensor):
            return NotImplemented
        _common_leading(other.shape, self.shape)
        self._require_dtype(other)
        if other.ndim == 1:
            return ((other[None] @ self.A) @ self.B)[..., 0, :]
        if self.ldim < self.mdim:
            return FactoredMatrix(other, self.AB)
        return FactoredMatrix(other @ self.A, self.B)

    def __mul__(self, scalar: Any) -> "FactoredMatrix":
        """M times a number or a tensor with one element; shape and dtype stay those of M.

        Raises:
            InputError: for a tensor with more elements, or a complex one.
        """
        if not isinstance(scalar, int | float | Tensor):
            return NotImplemented
        if isinstance(scalar, Tensor):
            if scalar.numel() != 1 or scalar.is_complex():
                raise InputError(f"* takes a real number, not a {scalar.dtype} tensor of shape {list(scalar.shape)}; see @")
            scalar = scalar.reshape(())  # a tensor without axes changes neither the shape nor the dtype
        return FactoredMatrix(self.A * scalar, self.B)

    def __rmul__(self, scalar: Any) -> "FactoredMatrix":
        """A number times M, as ``M * number``."""
        return self * scalar

    def __repr__(self) -> str:
        return f"FactoredMatrix: shape {list(self.shape)}, inner dimension {self.mdim}"

    def _orthogonal_parts(
        self,
    ) -> tuple[Float[Tensor, "*batch ldim a"], Float[Tensor, "*batch a b"], Float[Tensor, "*batch rdim b"]]:
        """``(Q, core, P)`` with ``M = Q @ core @ P.mT`` and orthonormal columns in Q and P, for M of any rank.

        The core has the singular values of M, and no axis longer than mdim.
        """
        Q, left = torch.linalg.qr(at_least_float32(self.A))
        P, right = torch.linalg.qr(at_least_float32(self.B).mT)
        return Q, left @ right.mT, P

    def _as_dtype(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.A.dtype)

    def _require_dtype(self, other: "Tensor | FactoredMatrix") -> None:
        dtype = other.A.dtype if isinstance(other, FactoredMatrix) else other.dtype
        if dtype != self.A.dtype:
            raise InputError(f"a product of {self.A.dtype} and {dtype}: convert one of them")

    def _repr_html_(self) -> str:
        table = Table(title=f"FactoredMatrix {list(self.shape)}")
        table.add_column("property")
        table.add_column("value")
        facts = {"A": list(self.A.shape), "B": list(self.B.shape), "dtype": self.A.dtype, "device": self.A.device}
        values = self._shown_singular_values()
        if values:
            facts["largest singular values"] = ", ".join(f"{value:.4g}" for value in values)
        for name, value in facts.items():
            table.add_row(name, Text(str(value)))
        return html_table(table)

    def _shown_singular_values(self, most: int = 5) -> list[float]:
        """The largest singular values of one matrix; none where they would take long, or where there are none."""
        size = self.mdim * max(self.ldim, self.rdim)
        if self.ndim > 2 or size == 0 or size > LARGEST_SHOWN:
            return []
        if not bool(self.A.isfinite().all() and self.B.isfinite().all()):
            return []
        return self.S[:most].detach().float().tolist()

    def _require_square(self, what: str) -> None:
        if self.ldim != self.rdim:
            raise InputError(f"{what} of shape {list(self.shape)}: only a square matrix has it, with ldim equal to rdim")


def _common_leading(left: Sequence[int], right: Sequence[int]) -> torch.Size:
    """The leading axes of the product of two operands of these shapes, where one axis is a vector.

    Raises:
        InputError: if their inner dimensions differ, if one has no axis, or if the leading axes do not broadcast.
    """
    shapes = f"shapes {list(left)} and {list(right)}"
    if not left or not right or left[-1] != right[-2:][0]:
        raise InputError(
            f"{shapes} cannot be multiplied: the last axis of the left one must be as long as the one before last of the right "
            "one, or as the only one of a vector; a number is multiplied with *"
        )
    try:
        return torch.broadcast_shapes(left[:-2], right[:-2])
    except RuntimeError:
        raise InputError(f"the leading axes of {shapes} do not broadcast: each pair must be equal, or one of them 1") from None


def _split_index(index: Any, ndim: int) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
    """The parts of an index that are for the leading axes, for the rows and for the columns of ``ndim`` axes.

    An int for rows or columns comes with a None, which puts the axis back that it takes.

    Raises:
        InputError: as ``FactoredMatrix.__getitem__``.
    """
    parts = [_index_part(part) for part in (index if isinstance(index, tuple) else (index,))]
    taken = sum(_axes_taken(part) for part in parts)
    if taken > ndim:
        raise InputError(f"the index {short_repr(index)} is for {taken} axes, but the matrix has {ndim}, leading ones included")
    dots = [place for place, part in enumerate(parts) if part is Ellipsis] or [len(parts)]
    if len(dots) > 1:
        raise InputError(f"the index {short_repr(index)} has more than one '...'")
    parts[dots[0] : dots[0] + 1] = [slice(None)] * (ndim - taken)
    matrix = [part for part in parts[-2:] if isinstance(part, int | slice) or (isinstance(part, Tensor) and part.ndim == 1)]
    if len(matrix) < 2:
        raise InputError(
            "rows and columns take an int, a slice or a one-dimensional list each, since the matrix axes stay the last two; "
            f"new axes and masks of more axes go before them, not {short_repr(index)}"
        )
    rows, columns = [(part, None) if isinstance(part, int) else (part,) for part in matrix]
    return tuple(parts[:-2]), rows, columns


def _index_part(part: Any) -> int | slice | Tensor | EllipsisType | None:
    """An int for whatever is one, a tensor for lists and arrays; slices, None and ``...`` as they are.

    Raises:
        InputError: for anything else.
    """
    if part is None or part is Ellipsis or isinstance(part, slice):
        return part
    try:
        chosen = torch.as_tensor(part)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{short_repr(part)} is no index: {error}") from None
    if chosen.dtype == torch.bool and chosen.ndim:
        return chosen
    if chosen.numel() and (chosen.dtype == torch.bool or chosen.is_floating_point() or chosen.is_complex()):
        raise InputError(f"an index is an int, a slice, a list of ints, a mask, None or '...', not {short_repr(part)}")
    return chosen.long() if chosen.ndim else int(chosen)  # long, because bytes would be taken for a mask


def _axes_taken(part: Any) -> int:
    """How many axes of a tensor a part of an index stands for."""
    if isinstance(part, Tensor) and part.dtype == torch.bool:
        return part.ndim
    return 0 if part is None or part is Ellipsis else 1
