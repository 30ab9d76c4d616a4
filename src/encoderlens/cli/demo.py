"""``encoderlens demo``: a masked sentence, or a clip, seen from the inside."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from encoderlens.activation_cache import ActivationCache
from encoderlens.analysis import direct_logit_attribution, logit_lens
from encoderlens.cli.common import DEMO_MODEL, open_text_model
from encoderlens.cli.demo_audio import show_clip
from encoderlens.errors import InputError, TaskError
from encoderlens.hooked_encoder import HookedEncoder
from encoderlens.names import head_label

SENTENCE = "She opened the [MASK] and walked into the room."
TOP = 5


def demo(
    text: Annotated[str, typer.Option(help="A sentence with the model's mask token in it.")] = SENTENCE,
    model: Annotated[
        str, typer.Option(help="A masked-LM checkpoint (with --audio, a speech one): folder, hub id or embedded name.")
    ] = DEMO_MODEL,
    audio: Annotated[Path | None, typer.Option(help="A WAV or FLAC file, for a speech model given by --model.")] = None,
) -> None:
    """Open up a model: its guess, how it forms layer by layer, what decides it, and where heads look."""
    if audio is not None:
        if model == DEMO_MODEL:
            raise InputError("no speech checkpoint ships with the package: give a folder or hub id by --model")
        show_clip(model, audio)
        return
    encoder = open_text_model(model)
    if "masked_lm" not in encoder.heads:
        raise TaskError(f"{model} has no masked-LM head, which the demo reads; try it with {DEMO_MODEL}")
    encoder.task = "masked_lm"
    with torch.inference_mode():
        logits, cache = encoder.run_with_cache(text)
    tokens = list(encoder.align(text).tokens)
    mask = _mask_position(encoder, cache)
    console = Console()
    title = f"{encoder.cfg.model_name}: {encoder.cfg.n_layers} layers, {encoder.cfg.n_heads} heads a layer"
    console.print(title, style="bold", markup=False, highlight=False)
    console.print(text, style="italic", markup=False, highlight=False)
    guess = int(logits[0, mask].argmax())
    sections = {
        "What the model puts in place of the first mask": _guesses(encoder, logits[0, mask]),
        "What it would say after each layer and sublayer, through its own head": logit_lens(encoder, text, mask, TOP),
        "Which heads, MLPs and biases decide it": direct_logit_attribution(encoder, text, guess, mask),
        "Where its heads look from the mask, sharpest first": _attention(encoder, cache, tokens, mask),
    }
    for title, section in sections.items():
        console.print(f"\n{title}", style="bold")
        console.print(section)
    mask_token = encoder.tokenizer.mask_token
    hints = (
        f"encoderlens demo --text 'The old man sat down in his {mask_token}.'",
        f"encoderlens run {shlex.quote(model)} --text {shlex.quote(text)} --lens --attribute WORD    what decides another word",
        f"encoderlens info {shlex.quote(model)}    every hook point, with its shape",
        "the example in the README, to change an activation",
    )
    console.print("\nTry next", style="bold")
    for hint in hints:
        console.print(f"  {hint}", markup=False, highlight=False, soft_wrap=True)


def _mask_position(encoder: HookedEncoder, cache: ActivationCache) -> int:
    token = encoder.tokenizer.mask_token_id
    positions = (cache.tokens[0] == token).nonzero().flatten().tolist() if cache.tokens is not None else []
    if not positions:
        raise InputError(f"the demo looks at a masked word: put {encoder.tokenizer.mask_token} in the sentence")
    return positions[0]


def _guesses(encoder: HookedEncoder, logits: Float[Tensor, " d_vocab"]) -> Table:
    table = Table()
    for column in ("word", "probability"):
        table.add_column(column)
    for word, probability in top_words(encoder, logits):
        table.add_row(Text(word), f"{probability:.1%}")
    return table


def top_words(encoder: HookedEncoder, logits: Float[Tensor, " d_vocab"], k: int = TOP) -> list[tuple[str, float]]:
    """The k best word pieces and their probabilities."""
    best = logits.float().softmax(-1).topk(k)
    words = encoder.tokenizer.convert_ids_to_tokens(best.indices.tolist())
    return list(zip(words, best.values.tolist(), strict=True))


@dataclass(frozen=True)
class HeadSummary:
    """Where one head looks from one position: entropy in bits of its pattern there, and its two strongest keys."""

    label: str
    bits: float
    strongest: list[tuple[int, float]]


def summarise_heads(encoder: HookedEncoder, cache: ActivationCache, position: int) -> list[HeadSummary]:
    """A summary of every head, from the sharpest pattern to the most diffuse."""
    summaries = []
    for layer in range(encoder.cfg.n_layers):
        rows = cache["pattern", layer][0, :, position].float()
        entropy = torch.special.entr(rows).sum(-1) / torch.log(torch.tensor(2.0))
        best = rows.topk(2)
        for head in range(encoder.cfg.n_heads):
            pairs = list(zip(best.indices[head].tolist(), best.values[head].tolist(), strict=True))
            summaries.append(HeadSummary(head_label(layer, head), entropy[head].item(), pairs))
    return sorted(summaries, key=lambda summary: summary.bits)


def _attention(encoder: HookedEncoder, cache: ActivationCache, tokens: list[str], mask: int, most: int = 8) -> Table:
    table = Table()
    for column in ("head", "entropy (bits)", "looks at"):
        table.add_column(column)
    for summary in summarise_heads(encoder, cache, mask)[:most]:
        looks = "  ".join(f"{tokens[key]} {weight:.0%}" for key, weight in summary.strongest)
        table.add_row(summary.label, f"{summary.bits:.2f}", Text(looks))
    return table
