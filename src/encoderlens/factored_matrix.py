"""FactoredMatrix: a product of two matrices that is kept as its factors."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from encoderlens.errors import InputError


class FactoredMatrix:
    """``A @ B`` with a small inner dimension, never multiplied out unless asked (``AB``).

    Args:
        A: left factor [... ldim mdim].
        B: right factor [... mdim rdim]; leading axes broadcast against those of A.

    Raises:
        InputError: if the inner dimensions differ.
    """

    def __init__(self, A: Float[Tensor, "*batch_a ldim mdim"], B: Float[Tensor, "*batch_b mdim_b rdim"]) -> None:
        if A.shape[-1] != B.shape[-2]:
            raise InputError(f"factors of shapes {list(A.shape)} and {list(B.shape)} have different inner dimensions")
        leading = torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])
        self.A = A.expand(*leading, *A.shape[-2:])
        self.B = B.expand(*leading, *B.shape[-2:])

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
        return torch.Size((*self.A.shape[:-1], self.rdim))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def AB(self) -> Float[Tensor, "*batch ldim rdim"]:
        """The product, multiplied out."""
        return self.A @ self.B

    @property
    def T(self) -> "FactoredMatrix":
        return FactoredMatrix(self.B.mT, self.A.mT)

    def __getitem__(self, index: Any) -> "FactoredMatrix":
        """Entries along the leading axes: ``model.QK[layer, head]``."""
        picked = index if isinstance(index, tuple) else (index,)
        if len(picked) > self.ndim - 2:
            raise InputError(f"indexing with {len(picked)} indices, but there are {self.ndim - 2} leading axes")
        return FactoredMatrix(self.A[picked], self.B[picked])

    def __repr__(self) -> str:
        return f"FactoredMatrix: shape {list(self.shape)}, inner dimension {self.mdim}"
