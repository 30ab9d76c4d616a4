"""What several commands share: opening a model quietly, and numbers for axes."""

import logging
from typing import Annotated, Any

import typer

from encoderlens.encoder import Encoder
from encoderlens.hooked_encoder import HookedEncoder

DEMO_MODEL = "encoderlens/tiny-bert"

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A folder, a hub id, or an embedded name such as encoderlens/tiny-bert.")
]
Task = Annotated[str | None, typer.Option(help="Which of the model's heads to run; by default the checkpoint's own.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def open_model(name: str, task: str | None = None) -> HookedEncoder:
    """Load a model with transformers' own chatter off."""
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return HookedEncoder.from_pretrained(name, task=task)


def mask_positions(model: HookedEncoder, text: Any) -> list[int] | None:
    """Where a text has the mask token; None where it has none, or for a head that has no logits for positions."""
    if model.task is None or not model.heads[model.task].per_position or model.tokenizer.mask_token_id is None:
        return None
    tokens = model.to_tokens(text)[0][0]
    return (tokens == model.tokenizer.mask_token_id).nonzero().flatten().tolist() or None


def axis_sizes(model: Encoder) -> dict[str, int]:
    """The sizes that a model's configuration gives to axes of its hook points."""
    cfg = model.cfg
    return {"head": cfg.n_heads, "d_head": cfg.d_head, "d_model": cfg.d_model, "d_mlp": cfg.d_mlp, "d_vocab": cfg.d_vocab}
