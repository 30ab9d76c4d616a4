"""``encoderlens info``: what a model is made of, and every hook point with its shape."""

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from encoderlens.cli.common import AsJson, Model, Quiet, Task, axis_sizes, open_model
from encoderlens.config import SentenceEmbeddingPart
from encoderlens.encoder import Encoder
from encoderlens.given import dtype_name
from encoderlens.names import block_of
from encoderlens.progress import progress_bars


def info(model: Model, task: Task = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Show a model's architecture, parameters, and hook points with their shapes."""
    with progress_bars(not quiet):
        facts = describe(open_model(model, task))
    if as_json:
        print(json.dumps(facts))
        return
    console = Console()
    for name, value in facts["architecture"].items():
        console.print(f"{name:>12}  {value}", highlight=False, markup=False)
    console.print("\nHook points, in the order of a run; {l} is the layer", style="bold", highlight=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("shape", no_wrap=True)
    for point in facts["hook_points"]:
        table.add_row(point["name"] + (" *" if point["on_demand"] else ""), point["shape"])
    console.print(table)
    flags = ", ".join(sorted({f"cfg.{point['on_demand']}" for point in facts["hook_points"] if point["on_demand"]}))
    console.print(
        f"\n* On demand: computed when hooked. names_filter=None includes it when its flag is on: {flags}.", highlight=False
    )


def describe(model: Encoder) -> dict[str, Any]:
    """Architecture and hook points; those of block 0 stand for every block, as ``{l}``."""
    cfg = model.cfg
    architecture = {
        "model": cfg.model_name,
        "class": cfg.original_architecture,
        "heads": ", ".join(f"{task} (default)" if task == model.task else task for task in model.heads) or "none",
        "parameters": f"{cfg.n_params:,}",
        "layers": cfg.n_layers,
        "attention": f"{cfg.n_heads} heads of d_head {cfg.d_head}",
        "d_model": cfg.d_model,
        "d_mlp": f"{cfg.d_mlp} ({cfg.act_fn})",
        "d_vocab": cfg.d_vocab_out or "none",
        "positions": cfg.positional_embedding_type if cfg.n_ctx is None else f"{cfg.n_ctx} ({cfg.positional_embedding_type})",
        "norm": f"{cfg.normalization_type}, eps {cfg.eps:g}",
        "dtype": dtype_name(cfg.dtype),
    }
    sizes = axis_sizes(model)
    points = [
        {
            "name": name.replace("blocks.0.", "blocks.{l}.", 1),
            "shape": " ".join(f"{axis}={sizes[axis]}" if axis in sizes else axis for axis in point.axes),
            "on_demand": point.on_demand,
        }
        for name, point in model.hook_dict.items()
        if block_of(name) in (None, 0)
    ]
    if cfg.frontend is not None:
        part = cfg.frontend
        architecture["front end"] = f"{len(part.channels)} convolutions, a frame every {part.stride} samples"
    if cfg.sentence is not None:
        architecture |= _embedding(cfg.sentence)
    return {"architecture": architecture, "hook_points": points}


def _embedding(part: SentenceEmbeddingPart) -> dict[str, str]:
    """What a sentence encoder makes its embedding of, in the order of a run, and the prompts that it knows."""
    steps = [f"{' and '.join(part.pooling.modes)} pooling", *part.names]
    prompts = [f"{name} {text!r}{' (default)' if text == part.prompt else ''}" for name, text in part.prompts]
    return {"embedding": ", ".join(steps)} | ({"prompts": ", ".join(prompts)} if prompts else {})
