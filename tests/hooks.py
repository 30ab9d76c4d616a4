"""Hook points of blocks as they are documented, and what tests ask of every hook point."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from encoderlens import HookPoint
from encoderlens.components.block import PreLNBlock

Axes = dict[str, str]
PAGE = Path(__file__).parents[1] / "docs" / "hook-points.md"


def norm(path: str, width: str = "d_model") -> Axes:
    """The hook points of a norm."""
    return {f"{path}.hook_scale": "batch pos 1", f"{path}.hook_normalized": f"batch pos {width}"}


SPLIT = {
    "hook_q_input": "batch pos head d_model",
    "hook_k_input": "batch pos head d_model",
    "hook_v_input": "batch pos head d_model",
}
ATTENTION = {
    "attn.hook_q": "batch pos head d_head",
    "attn.hook_k": "batch pos head d_head",
    "attn.hook_v": "batch pos head d_head",
    "attn.hook_attn_scores": "batch head query key",
    "attn.hook_pattern": "batch head query key",
    "attn.hook_z": "batch pos head d_head",
    "attn.hook_result": "batch pos head d_model",
    "hook_attn_out": "batch pos d_model",
    "hook_resid_mid": "batch pos d_model",
    "hook_mlp_in": "batch pos d_model",
}
MLP = {
    "mlp.hook_in": "batch pos d_model",
    "mlp.hook_pre": "batch pos d_mlp",
    "mlp.hook_post": "batch pos d_mlp",
    "hook_mlp_out": "batch pos d_model",
    "hook_resid_post": "batch pos d_model",
}
RESID_PRE = {"hook_resid_pre": "batch pos d_model"}
BLOCK_OUT = {"hook_block_out": "batch pos d_model"}
ROTARY = {"attn.hook_rot_q": "batch pos head d_head", "attn.hook_rot_k": "batch pos head d_head"}
POST_LN_BLOCK = (
    RESID_PRE
    | SPLIT
    | ATTENTION
    | norm("ln1")
    | {"hook_normalized_resid_mid": "batch pos d_model"}
    | MLP
    | norm("ln2")
    | {"hook_normalized_resid_post": "batch pos d_model"}
    | BLOCK_OUT
)
PRE_LN_BLOCK = RESID_PRE | SPLIT | norm("ln1") | ATTENTION | norm("ln2") | MLP | BLOCK_OUT


def in_layers(block: Axes, n_layers: int) -> Axes:
    """The hook points of so many blocks."""
    return {f"blocks.{layer}.{name}": axes for layer in range(n_layers) for name, axes in block.items()}


def declared(model: Any) -> Axes:
    """The axes that each hook point of a model says it has, by the name that it says it has."""
    return {str(point.name): " ".join(point.axes) for point in model.hook_dict.values()}


def assert_documented(model: Any) -> None:
    """Every hook point is in the table of docs/hook-points.md, with the axes that it says it has."""
    page = PAGE.read_text(encoding="utf-8")
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    shapes = {name: shape.split(", or ") for names, shape, _ in table for name in names.split(", ")}
    for name, axes in declared(model).items():
        row = re.sub(r"^frontend\.\d+", "frontend.i", re.sub(r"^blocks\.\d+", "blocks.l", name))
        assert f"`{row}`" in shapes, f"{row} is not in docs/hook-points.md"
        assert axes in shapes[f"`{row}`"], (row, axes)


def while_split(model: Any, axes_of: Axes) -> Axes:
    """The axes of hook points while inputs of attention are split: ln1 of a pre-LN block then sees every head's."""
    found = dict(axes_of)
    pre_ln = [layer for layer, block in enumerate(model.blocks) if isinstance(block, PreLNBlock)]
    for name in in_layers(norm("ln1"), len(model.blocks)):
        if name in found and int(name.split(".")[1]) in pre_ln:
            found[name] = found[name].replace("batch pos", "batch pos qkv_head")
    return found


def shape(axes: str, sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(sizes[axis] for axis in axes.split())


def other_value(tensor: Tensor, name: str) -> Tensor:
    """Something else of the same kind: patterns still sum to one, scales are positive."""
    if name.endswith("hook_pattern"):
        return tensor.roll(1, dims=-1)
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)).to(tensor.dtype)
    return tensor * (0.5 + noise.abs()) if name.endswith("hook_scale") else noise


def replaced(model: Any, name: str, run: Callable[[], Tensor]) -> tuple[Tensor, list[tuple[str, tuple[int, ...]]]]:
    """What a run returns with another value at a hook point, and every name and shape that the hook saw."""
    seen: list[tuple[str, tuple[int, ...]]] = []

    def replace(tensor: Tensor, hook: HookPoint) -> Tensor:
        seen.append((str(hook.name), tuple(tensor.shape)))
        return other_value(tensor, name)

    with torch.no_grad(), model.hooks([(name, replace)]):
        return run(), seen


@contextmanager
def modules_that_run(model: Any) -> Iterator[list[str]]:
    """The names of what stands in front of the blocks, the blocks and the heads' modules, as they run."""
    ran: list[str] = []
    skipped = (HookPoint, nn.ModuleList)
    tops = {name: module for name, module in model.named_children() if type(module) not in skipped}
    tops |= {f"blocks.{layer}": block for layer, block in enumerate(model.blocks)}
    handles = [
        module.register_forward_pre_hook(lambda module, args, name=name: ran.append(name)) for name, module in tops.items()
    ]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()
