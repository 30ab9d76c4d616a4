"""SpecAugment: random spans that are masked in training (Park et al. 2019)."""

from collections.abc import Sequence as Items

import torch
from jaxtyping import Bool
from torch import Tensor


def mask_spans(
    lengths: Items[int], size: int, share: float, span: int, least: int, device: torch.device
) -> Bool[Tensor, "batch size"]:
    """Random spans of each row; they may overlap.

    As many as would cover ``share`` of a row's length if none overlapped, rounded up or down at random (alike for all rows),
    but at least ``least``, and no more than there are places for.

    Args:
        lengths: the real length of each row, in which spans lie.
        size: the length of the rows.
        share: of each row.
        span: the length of a span.
        least: the smallest number of spans.
    """
    starts = torch.zeros(len(lengths), size, dtype=torch.bool)
    rounding = float(torch.rand(()))
    for row, length in zip(starts, lengths, strict=True):
        places = max(length - span + 1, 0)
        wanted = max(int(share * length / span + rounding), least)
        row[torch.randperm(places)[: min(wanted, size // span)]] = True
    covered = torch.stack([starts.roll(offset, 1) for offset in range(span)]).any(0) if size >= span else starts
    return covered.to(device)
