"""Half precision: what is computed in float32 all the same."""

import torch
from jaxtyping import Float
from torch import Tensor


def at_least_float32(tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """A half-precision tensor in float32; a wider one as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
