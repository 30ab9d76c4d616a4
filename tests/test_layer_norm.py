"""LayerNorm has three ways through: fused, in one pass when its hooks only cache, and step by step. All give the same."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from encoderlens import HookedRootModule
from encoderlens.components.norm import LayerNorm
from tests.parity import assert_parity


class Root(HookedRootModule):
    """A LayerNorm of its own."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.ln = LayerNorm(d_model=13, eps=1e-3)
        for parameter in (self.ln.w, self.ln.b):
            parameter.data = torch.randn(13, generator=generator).to(dtype)
        self.setup()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ln(x)


def leave(tensor: torch.Tensor, hook: object) -> None:
    """A hook that could edit, and does not."""


RUNS: dict[str, Callable[[Root, torch.Tensor], torch.Tensor]] = {
    "fused": lambda root, x: root(x),
    "caching": lambda root, x: root.run_with_cache(x)[0],
    "step by step": lambda root, x: root.run_with_hooks(x, fwd_hooks=[("ln.hook_scale", leave)]),
    "caching one, editing the other": lambda root, x: root.run_with_hooks(
        x, fwd_hooks=[*root.get_caching_hooks("ln.hook_scale")[1], ("ln.hook_normalized", leave)]
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("way", RUNS)
def test_every_way_is_the_same_norm(way: str, dtype: torch.dtype) -> None:
    root, x = Root(dtype), (3 * torch.randn(2, 5, 13) + 1).to(dtype)
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    out = RUNS[way](root, x)
    assert out.dtype == dtype
    assert_parity(out.double(), F.layer_norm(x.double(), (13,), root.ln.w.double(), root.ln.b.double(), 1e-3), None, tolerance)


@pytest.mark.parametrize("way", RUNS)
def test_every_way_has_the_same_gradients(way: str) -> None:
    root = Root()
    x = torch.randn(2, 5, 13, requires_grad=True)
    weights = torch.randn(2, 5, 13)
    expected = torch.autograd.grad((root(x) * weights).sum(), [x, root.ln.w, root.ln.b])
    found = torch.autograd.grad((RUNS[way](root, x) * weights).sum(), [x, root.ln.w, root.ln.b])
    for ours, fused in zip(found, expected, strict=True):
        assert_parity(ours, fused)


def test_what_is_cached_is_the_scale_and_the_normalised_stream() -> None:
    root, x = Root(), 3 * torch.randn(2, 5, 13) + 1
    _, cache = root.run_with_cache(x)
    centred = x - x.mean(-1, keepdim=True)
    scale = (x.var(-1, keepdim=True, unbiased=False) + 1e-3).sqrt()
    assert_parity(cache["ln.hook_scale"], scale)
    assert_parity(cache["ln.hook_normalized"], centred / scale)


def test_half_precision_is_normalised_and_cached_in_float32() -> None:
    root, x = Root(torch.float16), torch.randn(2, 5, 13).half()
    _, cache = root.run_with_cache(x)
    assert {value.dtype for value in cache.values()} == {torch.float32}


def test_an_edit_of_the_scale_changes_the_output() -> None:
    root, x = Root(), torch.randn(2, 5, 13)
    halved = root.run_with_hooks(x, fwd_hooks=[("ln.hook_scale", lambda scale, hook: 2 * scale)])
    assert_parity(halved - root.ln.b, (root(x) - root.ln.b) / 2)
