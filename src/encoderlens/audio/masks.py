"""Masks over frames and over samples."""

from collections.abc import Sequence as Items
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from encoderlens.errors import InputError
from encoderlens.given import as_booleans, as_tensor


def check_frame_mask(mask: Any, batch: int, n_frames: int) -> Bool[Tensor, "batch pos"]:
    """A mask over frames as booleans, which share nothing with what was given.

    Raises:
        InputError: for another shape or other values than 0 and 1, or a clip without a real frame.
    """
    given = torch.atleast_2d(as_tensor(mask, "the mask"))
    if tuple(given.shape) != (batch, n_frames):
        raise InputError(f"the mask has shape {list(given.shape)}; the clips have frames {[batch, n_frames]}")
    return as_booleans(given, "the mask")


def check_real(mask: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"] | None:
    """A frame mask; None when every frame is real.

    Raises:
        InputError: if a clip has no real frame.
    """
    empty = (~mask.any(1)).nonzero().flatten().tolist()
    if empty:
        raise InputError(f"one_zero_attention_mask leaves clip {empty[0]} without a real frame")
    return None if bool(mask.all()) else mask


def lengths_of_sample_mask(mask: Bool[Tensor, "batch sample"]) -> list[int]:
    """How many samples of each clip are real, by a mask with padding at the end.

    Raises:
        InputError: for padding anywhere else.
    """
    lengths = mask.sum(1)
    if not torch.equal(mask, torch.arange(mask.shape[1], device=mask.device) < lengths[:, None]):
        raise InputError("a mask over samples has its ones first: padding stands at the end of a clip")
    return lengths.tolist()


def mask_of_lengths(lengths: Items[int], n_frames: int) -> Int[Tensor, "batch pos"]:
    """1 at the first so many frames of each clip."""
    return (torch.arange(n_frames) < torch.tensor(list(lengths))[:, None]).long()
