"""``encoderlens demo`` of a speech model: what it makes of a clip."""

from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from encoderlens.activation_cache import ActivationCache
from encoderlens.audio import AudioBatch, read_audio
from encoderlens.cli.common import table_of
from encoderlens.cli.demo_parts import (
    Demo,
    bits,
    command_line,
    head_sections,
    layer_changes,
    other_output,
    title_of,
)
from encoderlens.cli.reading import read
from encoderlens.errors import TokenizerMissingError
from encoderlens.hooked_audio_encoder import HookedAudioEncoder
from encoderlens.names import head_label


def demo_of_clip(encoder: HookedAudioEncoder, name: str, path: str) -> Demo:
    """The demo of a speech model: its prediction, how that forms, what decides it, and how far its heads look.

    Args:
        name: the model, as it was given.
        path: a WAV or FLAC file.

    Raises:
        InputError: for a file that cannot be read, or a clip that is too short.
    """
    samples, rate = read_audio(path, encoder.processing.rate)
    batch = encoder.prepare(samples, None, rate)
    _, cache = encoder.run_with_cache(batch, return_type=None)
    reading = read(encoder, batch)
    sections: dict[str, Any] = {"How much each layer changes the stream": layer_changes(encoder, cache)}
    transcript = None
    if reading.position is not None:  # a class stands among the outputs below
        transcript = _prediction(encoder, batch)
        sections["What it predicts"] = Text(transcript or "(only blanks)")
    sections |= head_sections(encoder, batch, reading)
    sections["How far its heads look, nearest first"] = _reach(encoder, cache)
    asked = ("run", name, path)
    hints = {}
    other = other_output(encoder, reading)
    if other is not None:
        hints[f"what decides {other!r}"] = command_line(*asked, "--lens", "--attribute", other)
    if "ctc" in encoder.heads and encoder.tokenizer is not None and transcript:
        hints["where each word lies"] = command_line("align", name, path, transcript)
    hints["keep every activation"] = command_line(*asked, "--save", "activations.safetensors")
    hints["every hook point, with its shape"] = command_line("info", name)
    line = f"{path}: {len(samples) / rate:.2f} s, {batch.sequence.pos} frames"
    return Demo(title_of(encoder), (line,), sections, hints)


def _prediction(encoder: HookedAudioEncoder, batch: AudioBatch) -> str:
    try:
        return str(encoder(batch, return_type="predictions"))
    except TokenizerMissingError as error:
        return str(error)


def _reach(encoder: HookedAudioEncoder, cache: ActivationCache, most: int = 8) -> Table:
    """The mean distance between the frame that looks and those that it looks at, and the entropy of its patterns."""
    found = []
    for layer in range(encoder.cfg.n_layers):
        pattern = cache["pattern", layer][0].float()
        frames = torch.arange(pattern.shape[-1], device=pattern.device)
        distances = (frames[:, None] - frames).abs() * encoder.timing.stride / encoder.timing.rate
        reach = (pattern * distances).sum(-1).mean(-1).tolist()
        entropy = bits(pattern).mean(-1).tolist()
        labels = [head_label(layer, head) for head in range(encoder.cfg.n_heads)]
        found += zip(reach, entropy, labels, strict=True)
    rows = [(label, f"{far:.3f}", f"{some:.2f}") for far, some, label in sorted(found)[:most]]
    return table_of(("head", "mean distance (s)", "entropy (bits)"), rows)
