"""One way to compare numbers: finite, and off by no more than a part of the largest magnitude, which follows their dtype.

Bounds hold for every processor: a sum in another order, or another kernel, changes the last digits of the largest number, and
says nothing of a small one beside it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from encoderlens.families import REGISTRY
from encoderlens.weights import invert

# Of the largest magnitude. Against Hugging Face:
FORWARD = 1e-5
GRADIENT = 1e-4
# Between two orders of the same sums:
ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# What a change must exceed:
CHANGE = 1e-3


def assert_parity(
    ours: Tensor, theirs: Tensor, mask: Tensor | None = None, tolerance: float = FORWARD, scale: float | None = None
) -> None:
    """Max abs difference at real positions within ``tolerance`` of the largest magnitude; finite everywhere.

    Args:
        mask: 1 at real positions, over the leading axes of both tensors.
        scale: the largest magnitude, where these are parts of something larger; None: that of ``theirs``.
    """
    assert ours.shape == theirs.shape
    assert ours.isfinite().all(), "not finite"
    gap, largest = largest_of(ours - theirs, mask), largest_of(theirs, mask) if scale is None else scale
    assert gap <= tolerance * largest, f"max difference {gap:.3g} of largest magnitude {largest:.3g}"


def assert_close(ours: Tensor, theirs: Tensor, scale: float | None = None, equal_nan: bool = False) -> None:
    """The same numbers by another way, which may round otherwise: as ``assert_parity``, within ``ROUNDING``.

    Args:
        equal_nan: both may be NaN at the same places.
    """
    assert ours.dtype == theirs.dtype
    if equal_nan:
        assert torch.equal(ours.isnan(), theirs.isnan())
        ours, theirs = ours.nan_to_num(nan=0.0), theirs.nan_to_num(nan=0.0)
    assert_parity(ours, theirs, None, ROUNDING[theirs.abs().dtype], scale)


def assert_changed(after: Tensor, before: Tensor, part: float = CHANGE) -> None:
    """Max abs difference above a part of the largest magnitude, far beyond rounding; finite everywhere."""
    assert after.isfinite().all(), "not finite"
    assert largest_of(after - before) > part * largest_of(before)


def changed_along(dim: int, after: Tensor, before: Tensor) -> list[bool]:
    """Of each entry of an axis: whether it changed, as ``assert_changed`` has it. All others are the same but for rounding."""
    scale = largest_of(before)
    gaps = (after - before).abs().movedim(dim, 0).reshape(after.shape[dim], -1).amax(1)
    changed = gaps > CHANGE * scale
    assert (gaps[~changed] <= ROUNDING[before.abs().dtype] * scale).all(), f"neither changed nor the same: {gaps}"
    return changed.tolist()


def assert_complete(rows: Any, tolerance: float = FORWARD) -> None:
    """The rows of an additive result sum to its total, up to a part of the largest row."""
    assert rows.values.isfinite().all(), "not finite"
    assert rows.error <= tolerance, f"completeness error {rows.error:.3g}"


def assert_gradient_parity(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], tolerance: float = GRADIENT) -> None:
    """As ``assert_parity``, against the largest gradient in the model."""
    assert ours.keys() == theirs.keys()
    scale = max(map(largest_of, theirs.values()))
    assert scale > 0
    for name, gradient in ours.items():
        assert_parity(gradient, theirs[name], None, tolerance, scale)


def gradients(hf_model: Any) -> dict[str, Tensor]:
    return {name: _gradient(parameter) for name, parameter in hf_model.named_parameters()}


def gradients_under_hf_names(model: Any, hf_model: Any) -> dict[str, Tensor]:
    """Our gradients, through the family's inverse table, under the names of Hugging Face's parameters."""
    family = REGISTRY[model.cfg.family]
    holder = type(model)(model.cfg.encoder, device="cpu", init_weights=False)
    with torch.no_grad():
        for mine, copy in zip(model.parameters(), holder.parameters(), strict=True):
            copy.copy_(_gradient(mine))
    tensors = invert(family.rows_of(model.cfg.encoder), holder, {"head": model.cfg.n_heads})
    for name, spare in model.load_report.spare.items():  # stored by the class, not computed with
        tensors[name] = torch.zeros_like(spare)
    base = model.cfg.original_architecture == family.base_class
    named = {name.removeprefix(family.base_prefix) if base else name: value for name, value in tensors.items()}
    parameters = {name for name, _ in hf_model.named_parameters()}
    return {name: value for name, value in named.items() if name in parameters}


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def largest_of(tensor: Tensor, mask: Tensor | None = None) -> float:
    """The largest magnitude at real positions; 0 of nothing."""
    real = tensor if mask is None else tensor[mask.bool()]
    return float(real.detach().abs().max()) if real.numel() else 0.0
