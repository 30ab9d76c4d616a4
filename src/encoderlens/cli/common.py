"""What several commands share: opening a model quietly, and numbers for axes."""

import logging
from typing import Annotated, Any

import typer

from encoderlens import loading
from encoderlens.encoder import Encoder
from encoderlens.hooked_audio_encoder import HookedAudioEncoder
from encoderlens.hooked_encoder import HookedEncoder

DEMO_MODEL = "encoderlens/tiny-bert"

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A folder, a hub id, or an embedded name such as encoderlens/tiny-bert.")
]
Task = Annotated[str | None, typer.Option(help="Which of the model's heads to run; by default the checkpoint's own.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def open_text_model(name: str, task: str | None = None) -> HookedEncoder:
    """Load a text model."""
    _quiet()
    return HookedEncoder.from_pretrained(name, task=task)


def open_audio_model(name: str, task: str | None = None) -> HookedAudioEncoder:
    """Load a model that reads waveforms."""
    _quiet()
    return HookedAudioEncoder.from_pretrained(name, task=task)


def open_model(name: str, task: str | None = None) -> HookedEncoder | HookedAudioEncoder:
    """Load a model, whatever it reads."""
    _quiet()
    return open_text_model(name, task) if loading.modality_of(name) == "text" else open_audio_model(name, task)


def _quiet() -> None:
    """Turn transformers' own chatter off."""
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def axis_sizes(model: Encoder) -> dict[str, Any]:
    """The sizes that a model's configuration gives to axes of its hook points."""
    cfg = model.cfg
    sizes = {"head": cfg.n_heads, "d_head": cfg.d_head, "d_model": cfg.d_model, "d_mlp": cfg.d_mlp, "d_vocab": cfg.d_vocab_out}
    return {axis: size for axis, size in sizes.items() if size is not None}
