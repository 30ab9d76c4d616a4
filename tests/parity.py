"""One way to say "equal to Hugging Face": close at real positions, relative to the largest magnitude."""

from typing import Any

import torch
from torch import Tensor

from encoderlens.families import REGISTRY
from encoderlens.weights import invert

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
