"""``encoderlens run``: one forward pass from the shell: predictions, the lens, attributions and activations."""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from encoderlens.activation_cache import ActivationCache
from encoderlens.analysis import Result, direct_logit_attribution, logit_lens
from encoderlens.cli.common import AsJson, Model, Task, mask_positions, open_model
from encoderlens.errors import InputError
from encoderlens.hooked_encoder import HookedEncoder

Texts = Annotated[list[str], typer.Option("--text", help="The text; repeat it for a batch.")]
Pairs = Annotated[list[str] | None, typer.Option("--pair", help="The second text of each --text, for heads that read pairs.")]
Hooks = Annotated[
    list[str] | None, typer.Option("--hooks", help="Hook points to keep, as 'encoderlens info' names them; repeatable.")
]
Save = Annotated[Path | None, typer.Option("--save", help="Write what is kept (everything, without --hooks) as safetensors.")]
Lens = Annotated[bool, typer.Option("--lens", help="Show what the head would say after every layer and sublayer.")]
Attribute = Annotated[
    str | None, typer.Option(metavar="WORD", help="Show the heads, MLPs and biases that decide the logit of a word or label.")
]
Position = Annotated[
    int | None, typer.Option(help="The position that --lens and --attribute look at; by default that of the mask token.")
]


def run(
    model: Model,
    text: Texts,
    pair: Pairs = None,
    hooks: Hooks = None,
    save: Save = None,
    task: Task = None,
    lens: Lens = False,
    attribute: Attribute = None,
    position: Position = None,
    as_json: AsJson = False,
) -> None:
    """Run a model on text: what it predicts, how it comes to that, and the activations at any hook points."""
    _check_target(save)
    if position is not None and not lens and attribute is None:
        raise InputError("--position is where --lens and --attribute look: give one of them too")
    texts = _paired(text, pair)
    encoder = open_model(model, task)
    with torch.inference_mode():
        report = _report(encoder, texts)
        for entry, one in zip(report["inputs"], texts, strict=True):
            try:
                entry |= _analyses(encoder, one, lens, attribute, position)
            except InputError as error:
                raise InputError(f"--text {one!r}: {error}") from error
        if hooks or save:
            _, cache = encoder.run_with_cache(texts, names_filter=hooks or None)
            report["activations"] = _statistics(cache) if hooks else []
            if save:
                cache.save(save)
                report["saved"] = str(save)
    if as_json:
        print(json.dumps(report, allow_nan=False, default=lambda result: json.loads(result.to_json())))
    else:
        _show(report)


def _paired(texts: list[str], pairs: list[str] | None) -> list[str] | list[tuple[str, str]]:
    if not pairs:
        return texts
    if len(pairs) != len(texts):
        raise InputError(f"there are {len(texts)} --text and {len(pairs)} --pair; give one --pair for each --text")
    return list(zip(texts, pairs, strict=True))


def _check_target(save: Path | None) -> None:
    if save is not None and not save.absolute().parent.is_dir():
        raise InputError(f"--save {save}: the folder {save.absolute().parent} does not exist")
    if save is not None and save.is_dir():
        raise InputError(f"--save {save} is a folder; give the name of a file")


def _report(encoder: HookedEncoder, texts: Any) -> dict[str, Any]:
    report: dict[str, Any] = {"model": encoder.cfg.model_name, "task": encoder.task, "inputs": []}
    predictions, note = _predictions(encoder, texts)
    for index, tokens in enumerate(encoder.tokens_to_str(texts)):
        entry: dict[str, Any] = {"text": texts[index], "tokens": tokens}
        if predictions is not None:
            entry["prediction"] = predictions[index]
        report["inputs"].append(entry)
    if note:
        report["note"] = note
    return report


def _analyses(encoder: HookedEncoder, text: Any, lens: bool, attribute: str | None, position: int | None) -> dict[str, Result]:
    found: dict[str, Result] = {}
    if lens:
        found["lens"] = logit_lens(encoder, text, mask_positions(encoder, text) if position is None else [position])
    if attribute is not None:
        found["attribution"] = direct_logit_attribution(encoder, text, attribute, position)
    return found


def _statistics(cache: ActivationCache) -> list[dict[str, Any]]:
    """Name, shape, mean and standard deviation; of finite values, since padded keys have score minus infinity."""
    rows = []
    for name, value in cache.items():
        finite = value[value.isfinite()].float()
        mean, std = finite.mean().item(), finite.std(correction=0).item()
        rows.append({"name": name, "shape": list(value.shape), "mean": mean, "std": std})
    return rows


def _predictions(encoder: HookedEncoder, texts: Any) -> tuple[list[Any] | None, str | None]:
    """A prediction for each text, or why there is none. Text that the model cannot read at all is an error."""
    encoder.to_tokens(texts, truncate=False)
    if encoder.task is None:
        return None, "the checkpoint has no head, so there is nothing to predict"
    try:
        return encoder(texts, "predictions"), None
    except InputError as error:
        return None, str(error)


def _show(report: dict[str, Any]) -> None:
    console = Console()
    for entry in report["inputs"]:
        text = entry["text"] if isinstance(entry["text"], str) else " | ".join(entry["text"])
        console.print(text, style="bold", markup=False, highlight=False)
        console.print(f"  tokens      {' '.join(entry['tokens'])}", markup=False, highlight=False)
        if "prediction" in entry:
            value = entry["prediction"]
            console.print(
                f"  prediction  {', '.join(value) if isinstance(value, list) else value}", markup=False, highlight=False
            )
        for name in ("lens", "attribution"):
            if name in entry:
                console.print(entry[name])
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
