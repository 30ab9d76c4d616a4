"""``encoderlens demo --audio``: a clip, seen from the inside of a speech model."""

import shlex
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from encoderlens.activation_cache import ActivationCache
from encoderlens.analysis import direct_logit_attribution, logit_lens
from encoderlens.audio import AudioBatch, read_audio
from encoderlens.cli.common import open_audio_model
from encoderlens.cli.items import surest_frame
from encoderlens.errors import TokenizerMissingError
from encoderlens.hooked_audio_encoder import HookedAudioEncoder
from encoderlens.names import head_label

TOP = 5


def show_clip(model: str, path: Path) -> None:
    """What a speech model makes of a clip: its prediction, how that forms, what decides it, and how far its heads look."""
    encoder = open_audio_model(model)
    samples, rate = read_audio(path, encoder.processing.rate)
    batch = encoder.prepare(samples, None, rate)
    with torch.inference_mode():
        _, cache = encoder.run_with_cache(batch)
    console = Console()
    cfg, seconds = encoder.cfg, len(samples) / rate
    title = f"{cfg.model_name}: {cfg.n_layers} layers, {cfg.n_heads} heads a layer"
    console.print(title, style="bold", markup=False, highlight=False)
    console.print(f"{path}: {seconds:.2f} s, {batch.sequence.pos} frames", style="italic", markup=False, highlight=False)
    sections = {"How much each layer changes the stream": _changes(encoder, cache)} | _head_sections(encoder, batch)
    sections["How far its heads look, nearest first"] = _reach(encoder, cache)
    for heading, section in sections.items():
        console.print(f"\n{heading}", style="bold")
        console.print(section)
    console.print("\nTry next", style="bold")
    for hint in (
        f"encoderlens run {shlex.quote(model)} --audio {shlex.quote(str(path))} --save activations.safetensors",
        f"encoderlens info {shlex.quote(model)}    every hook point, with its shape",
    ):
        console.print(f"  {hint}", markup=False, highlight=False, soft_wrap=True)


def _head_sections(encoder: HookedAudioEncoder, batch: AudioBatch) -> dict[str, object]:
    """What the head of the task says, and how it comes to that; nothing for a model without heads."""
    if encoder.task is None:
        return {}
    head, frame = encoder.heads[encoder.task], surest_frame(encoder, batch)
    with torch.inference_mode():
        logits = encoder(batch, return_type="logits")
    row = logits[0] if frame is None else logits[0, frame]
    best = int(row.argmax())
    where = "" if frame is None else f" at {batch.times[frame]:.3f} s, where it is surest of a symbol"
    return {
        "What it predicts": _prediction(encoder, batch),
        f"What it would say{where} after each layer and sublayer, through its own head": logit_lens(encoder, batch, frame, TOP),
        f"Which heads, MLPs and biases decide {head.output_name(best, encoder.tokenizer)!r}{where}": direct_logit_attribution(
            encoder, batch, best, frame
        ),
    }


def _prediction(encoder: HookedAudioEncoder, batch: AudioBatch) -> Text:
    try:
        with torch.inference_mode():
            return Text(str(encoder(batch, return_type="predictions")) or "(only blanks)")
    except TokenizerMissingError as error:
        return Text(str(error), style="dim")


def _changes(encoder: HookedAudioEncoder, cache: ActivationCache) -> Table:
    """The length of what attention and MLP write, over that of the stream that enters the layer; means over frames."""
    table = Table()
    for column in ("layer", "stream", "attention writes", "MLP writes"):
        table.add_column(column)
    for layer in range(encoder.cfg.n_layers):
        names = ("resid_pre", "attn_out", "mlp_out")
        stream, attention, mlp = (cache[name, layer].norm(dim=-1).mean().item() for name in names)
        table.add_row(str(layer), f"{stream:.2f}", f"{attention / stream:.0%}", f"{mlp / stream:.0%}")
    return table


def _reach(encoder: HookedAudioEncoder, cache: ActivationCache, most: int = 8) -> Table:
    """The mean distance between the frame that looks and those that it looks at, and the entropy of its patterns."""
    rows = []
    for layer in range(encoder.cfg.n_layers):
        pattern = cache["pattern", layer][0].float()
        frames = torch.arange(pattern.shape[-1], device=pattern.device)
        distances = (frames[:, None] - frames).abs() * encoder.timing.stride / encoder.timing.rate
        reach = (pattern * distances).sum(-1).mean(-1).tolist()
        bits = (torch.special.entr(pattern).sum(-1).mean(-1) / torch.log(torch.tensor(2.0))).tolist()
        rows += [(reach[head], bits[head], head_label(layer, head)) for head in range(encoder.cfg.n_heads)]
    table = Table()
    for column in ("head", "mean distance (s)", "entropy (bits)"):
        table.add_column(column)
    for distance, entropy, label in sorted(rows)[:most]:
        table.add_row(label, f"{distance:.3f}", f"{entropy:.2f}")
    return table
