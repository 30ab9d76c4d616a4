"""The dtypes that a model can have, and what half precision computes in float32 all the same."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from encoderlens.errors import ConfigError

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def model_dtype(dtype: Any) -> torch.dtype:
    """A dtype that a model can compute in. Narrower ones, such as float8, only store numbers.

    Raises:
        ConfigError: for anything else.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r}; a model's dtype is torch.float32, float16, bfloat16 or float64")
    return dtype


def lengths_of(vectors: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows 1"]:
    """The Euclidean length of each vector, in float32 or wider; at least 1e-12, so that a zero vector can be divided by it."""
    return at_least_float32(vectors).norm(dim=-1, keepdim=True).clamp_min(1e-12)


def at_least_float32(tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """A half-precision tensor in float32; a wider one as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def same_numbers(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers, each compared as what the first is; NaN is the same as NaN."""
    if one is other:
        return True
    if one.shape != other.shape:
        return False
    other = other.to(one.device, one.dtype)
    if torch.equal(one, other):
        return True
    return bool(((one == other) | (one.isnan() & other.isnan())).all())
