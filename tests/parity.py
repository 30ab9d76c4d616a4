"""One way to say "equal to Hugging Face": close at real positions, relative to the largest magnitude."""

import torch
from torch import Tensor

FORWARD = 1e-5
GRADIENT = 1e-4


def assert_parity(ours: Tensor, theirs: Tensor, mask: Tensor | None = None, tolerance: float = FORWARD) -> None:
    """Max abs difference at real positions within ``tolerance`` of the largest magnitude; finite everywhere.

    Args:
        mask: 1 at real positions, over the leading axes of both tensors.
    """
    assert ours.shape == theirs.shape
    assert ours.isfinite().all(), "not finite"
    if mask is not None:
        ours, theirs = ours[mask.bool()], theirs[mask.bool()]
    difference, scale = (ours - theirs).abs().max(), theirs.abs().max()
    assert difference <= tolerance * scale, f"max difference {difference:.3g} of largest magnitude {scale:.3g}"


def assert_gradient_parity(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = GRADIENT) -> None:
    """As ``assert_parity``, against the largest gradient in the model."""
    assert ours.keys() == theirs.keys()
    scale = max(float(gradient.abs().max()) for gradient in theirs.values())
    for name, gradient in ours.items():
        difference = (gradient - theirs[name]).abs().max()
        assert difference <= tolerance * scale, f"{name}: max difference {difference:.3g} of largest gradient {scale:.3g}"
    assert torch.tensor(scale) > 0
