"""``encoderlens run``: one forward pass from the shell, on text or audio: predictions, lens, attributions, activations."""

import json
import math
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from encoderlens import loading
from encoderlens.activation_cache import ActivationCache
from encoderlens.analysis import Result, direct_logit_attribution, logit_lens
from encoderlens.cli.common import AsJson, Model, Task, open_audio_model, open_text_model
from encoderlens.cli.items import Item, audio_items, sentence_items, text_items
from encoderlens.errors import InputError
from encoderlens.precision import at_least_float32
from encoderlens.pretrained_encoder import PretrainedEncoder

Texts = Annotated[list[str] | None, typer.Option("--text", help="The text; repeat it for a batch.")]
Files = Annotated[
    list[Path] | None,
    typer.Option("--audio", help="A WAV or FLAC file, for models that read waveforms; repeat it for several."),
]
Pairs = Annotated[
    list[str] | None,
    typer.Option(
        "--pair",
        help="A second text for each --text: of one pair, for heads that read pairs; to compare, for sentence encoders.",
    ),
]
Hooks = Annotated[
    list[str] | None, typer.Option("--hooks", help="Hook points to keep, as 'encoderlens info' names them; repeatable.")
]
Save = Annotated[Path | None, typer.Option("--save", help="Write what is kept (everything, without --hooks) as safetensors.")]
Lens = Annotated[bool, typer.Option("--lens", help="Show what the head would say after every layer and sublayer.")]
Attribute = Annotated[
    str | None, typer.Option(metavar="WORD", help="Show the heads, MLPs and biases that decide the logit of a word or label.")
]
Position = Annotated[
    int | None,
    typer.Option(
        help="The position that --lens and --attribute look at; by default that of the mask token, or the frame at which a CTC "
        "head is surest of a symbol."
    ),
]


def run(
    model: Model,
    text: Texts = None,
    pair: Pairs = None,
    audio: Files = None,
    hooks: Hooks = None,
    save: Save = None,
    task: Task = None,
    lens: Lens = False,
    attribute: Attribute = None,
    position: Position = None,
    as_json: AsJson = False,
) -> None:
    """Run a model on text or audio: what it predicts, how it comes to that, and the activations at any hook points."""
    _check_target(save)
    if bool(text) == bool(audio):
        raise typer.BadParameter("give --text, or --audio, one or several times")
    if position is not None and not lens and attribute is None:
        raise InputError("--position is where --lens and --attribute look: give one of them too")
    encoder, items, batch = _opened(model, task, text, pair, audio)
    with torch.inference_mode():
        report = _report(encoder, items, batch)
        for entry, item in zip(report["inputs"], items, strict=True):
            try:
                entry |= _analyses(encoder, item, lens, attribute, position)
            except InputError as error:
                raise InputError(f"{item.option}: {error}") from error
        if hooks or save:
            _, cache = encoder.run_with_cache(batch, return_type=_richest(encoder), names_filter=hooks or None)
            report["activations"] = _statistics(cache) if hooks else []
            if save:
                cache.save(save)
                report["saved"] = str(save)
    if as_json:
        print(json.dumps(report, allow_nan=False, default=lambda result: json.loads(result.to_json())))
    else:
        _show(report)


def _opened(
    model: str, task: str | None, texts: list[str] | None, pairs: list[str] | None, files: list[Path] | None
) -> tuple[PretrainedEncoder, list[Item], Any]:
    """The model, each input, and all of them as one batch."""
    if files:
        if pairs:
            raise InputError("--pair goes with --text")
        if loading.modality_of(model) != "audio":
            raise InputError(f"{model} reads text: give --text")
        audio_encoder = open_audio_model(model, task)
        return audio_encoder, *audio_items(audio_encoder, files)
    texts, paired = texts or [], _paired(texts or [], pairs or [])
    if loading.modality_of(model) != "text":
        raise InputError(f"{model} reads audio: give --audio")
    encoder = open_text_model(model, task)
    if paired and encoder.sentence_embedding is not None and task is None:
        items = sentence_items(encoder, paired)
    else:
        items = text_items(encoder, paired or texts)
    return encoder, items, encoder.prepare([item.value for item in items])


def _richest(encoder: PretrainedEncoder) -> str:
    """The return type that computes most."""
    if encoder.task is not None:
        return "logits"
    return "hidden" if encoder.sentence_embedding is None else "embedding"


def _paired(texts: list[str], pairs: list[str]) -> list[tuple[str, str]]:
    """Each --text with its --pair; empty without any --pair."""
    if not pairs:
        return []
    if len(pairs) != len(texts):
        raise InputError(f"there are {len(texts)} --text and {len(pairs)} --pair; give one --pair for each --text")
    return list(zip(texts, pairs, strict=True))


def _check_target(save: Path | None) -> None:
    if save is not None and not save.absolute().parent.is_dir():
        raise InputError(f"--save {save}: the folder {save.absolute().parent} does not exist")
    if save is not None and save.is_dir():
        raise InputError(f"--save {save} is a folder; give the name of a file")


def _report(encoder: PretrainedEncoder, items: list[Item], batch: Any) -> dict[str, Any]:
    predictions, note = _predictions(encoder, batch)
    inputs = [dict(item.shown) for item in items]
    for entry, prediction in zip(inputs, predictions or [], strict=bool(predictions)):
        entry["prediction"] = prediction
    report: dict[str, Any] = {"model": encoder.cfg.model_name, "task": encoder.task, "inputs": inputs}
    if encoder.sentence_embedding is not None:
        vectors = at_least_float32(encoder(batch, return_type="embedding"))
        for entry, vector in zip(inputs, vectors.tolist(), strict=True):
            entry["embedding"] = vector
        unit = torch.nn.functional.normalize(vectors, dim=-1)
        report["cosines"] = (unit @ unit.mT).tolist()
        for entry, item, row in zip(inputs, items, report["cosines"], strict=True):
            if item.other is not None:
                entry["cosine"] = row[item.other]
        return report
    return report if note is None else report | {"note": note}


def _analyses(
    encoder: PretrainedEncoder, item: Item, lens: bool, attribute: str | None, position: int | None
) -> dict[str, Result]:
    found: dict[str, Result] = {}
    if lens:
        found["lens"] = logit_lens(encoder, item.value, item.focus if position is None else [position])
    if attribute is not None:
        at = item.attributed if position is None else position
        found["attribution"] = direct_logit_attribution(encoder, item.value, attribute, at)
    return found


def _statistics(cache: ActivationCache) -> list[dict[str, Any]]:
    """Name, shape, mean and standard deviation; of finite values, since padded keys have score minus infinity."""
    rows = []
    for name, value in cache.items():
        finite = value[value.isfinite()].float()
        mean, std = finite.mean().item(), finite.std(correction=0).item()
        rows.append({"name": name, "shape": list(value.shape), "mean": mean, "std": std})
    return rows


def _predictions(encoder: PretrainedEncoder, batch: Any) -> tuple[list[Any] | None, str | None]:
    """A prediction for each input, or why there is none."""
    if encoder.task is None:
        return None, "the checkpoint has no head, so there is nothing to predict"
    try:
        return encoder(batch, return_type="predictions"), None
    except InputError as error:
        return None, str(error)


def _heading(entry: dict[str, Any]) -> str:
    if "audio" in entry:
        return f"{entry['audio']}: {entry['seconds']} s, {entry['frames']} frames"
    return entry["text"] if isinstance(entry["text"], str) else " | ".join(entry["text"])


def _cosines(report: dict[str, Any]) -> Table:
    """The cosine of the embeddings of each text with each, texts in columns by their numbers."""
    table = Table(title="Cosines")
    table.add_column("text", overflow="fold")
    for number in range(1, len(report["cosines"]) + 1):
        table.add_column(str(number), justify="right", no_wrap=True)
    for number, (entry, row) in enumerate(zip(report["inputs"], report["cosines"], strict=True), 1):
        table.add_row(Text(f"{number} {_heading(entry)}"), *(f"{cosine:.3f}" for cosine in row))
    return table


def _show(report: dict[str, Any]) -> None:
    console = Console()
    for entry in report["inputs"]:
        console.print(_heading(entry), style="bold", markup=False, highlight=False)
        if "tokens" in entry:
            console.print(f"  tokens      {' '.join(entry['tokens'])}", markup=False, highlight=False)
        if "prediction" in entry:
            value = entry["prediction"]
            shown = ", ".join(value) if isinstance(value, list) else value
            console.print(f"  prediction  {shown}", markup=False, highlight=False, soft_wrap=True)
        if "embedding" in entry:
            vector = entry["embedding"]
            console.print(f"  embedding   {len(vector)} numbers, of length {math.hypot(*vector):.4g}", highlight=False)
        if "cosine" in entry:
            console.print(f"  cosine      {entry['cosine']:.4f}, with the text in front", highlight=False)
        for name in ("lens", "attribution"):
            if name in entry:
                console.print(entry[name])
    if len(report.get("cosines", ())) > 1:
        console.print(_cosines(report))
    if "note" in report:
        console.print(f"No prediction: {report['note']}.", style="dim", markup=False, highlight=False, soft_wrap=True)
    if report.get("activations"):
        table = Table(box=None, pad_edge=False)
        for column in ("activation", "shape", "mean", "std"):
            table.add_column(column, overflow="fold")
        for row in report["activations"]:
            table.add_row(row["name"], " ".join(map(str, row["shape"])), f"{row['mean']:.4f}", f"{row['std']:.4f}")
        console.print(table)
    if "saved" in report:
        console.print(f"Saved to {report['saved']}", highlight=False)
