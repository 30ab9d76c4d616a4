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

from encoderlens.activation_cache import ActivationCache
from encoderlens.analysis import (
    Result,
    cosine_attribution,
    direct_logit_attribution,
    logit_lens,
    token_pairs,
)
from encoderlens.cli.common import (
    AsJson,
    Model,
    Quiet,
    Task,
    modality_of,
    open_audio_model,
    open_text_model,
    print_line,
)
from encoderlens.cli.items import Item, audio_items, sentence_items, text_items
from encoderlens.cli.reading import Choice, Reading, read
from encoderlens.errors import InputError
from encoderlens.names import check_word, matching
from encoderlens.precision import at_least_float32
from encoderlens.pretrained_encoder import PretrainedEncoder
from encoderlens.progress import progress_bars, step, tracked

COSINE = "cosine"  # what --attribute explains of a sentence encoder

Inputs = Annotated[
    list[str] | None,
    typer.Argument(metavar="INPUT", help="Texts; or WAV or FLAC files, for a model that reads audio."),
]
Files = Annotated[
    list[Path] | None,
    typer.Option("--audio", help="A WAV or FLAC file, which INPUT takes as well; repeatable."),
]
Pairs = Annotated[
    list[str] | None,
    typer.Option(
        "--pair",
        help="A second text for each first one: of one pair, for heads that read pairs; to compare, for sentence encoders.",
    ),
]
Hooks = Annotated[
    list[str] | None,
    typer.Option(
        "--hooks",
        help="Hook points to keep: a name from 'encoderlens info', a short name (pattern: in every "
        "layer; q0: in layer 0), or a glob ('blocks.*.hook_resid_post'); repeatable.",
    ),
]
Save = Annotated[
    Path | None,
    typer.Option("--save", help="Write what is kept (everything, without --hooks) as safetensors."),
]
Lens = Annotated[
    bool,
    typer.Option("--lens", help="Show what the head would say after every layer and sublayer."),
]
Attribute = Annotated[
    str | None,
    typer.Option(
        metavar="WORD",
        help="Show the heads, MLPs and biases that decide the logit of a word, a label, a symbol, or "
        "the start or end of an answer; 'cosine', of a sentence encoder, explains a cosine with "
        "--pair.",
    ),
]
Position = Annotated[
    int | None,
    typer.Option(
        help="The position that --lens and --attribute look at. By default that of the mask token; the "
        "frame at which a CTC head is surest of a symbol; the token at which a label, or the start or "
        "end of an answer, is most probable."
    ),
]


def run(
    model: Model,
    inputs: Inputs = None,
    pair: Pairs = None,
    audio: Files = None,
    hooks: Hooks = None,
    save: Save = None,
    task: Task = None,
    lens: Lens = False,
    attribute: Attribute = None,
    position: Position = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run a model on text or audio: what it predicts, how it comes to that, and the activations at any hook points."""
    _check_target(save)
    if bool(inputs) == bool(audio):
        raise typer.BadParameter("give one or several texts, or audio files, after the model")
    if position is not None and not lens and attribute is None:
        raise InputError("--position is where --lens and --attribute look: give one of them too")
    with progress_bars(not quiet):
        encoder, items, batch = _opened(model, task, inputs or [], pair or [], audio or [])
        names = None if not hooks else _hook_names(encoder, hooks)
        with torch.inference_mode():
            report = _report(encoder, items, batch)
            for index, item in enumerate(tracked(items, "reading", len(items))):
                report["inputs"][index] |= _analysed(encoder, items, item, lens, attribute, position)
            if hooks or save:
                report |= _kept(encoder, batch, names, save)
    if as_json:
        print(json.dumps(report, allow_nan=False, default=_as_json))
    else:
        _show(report)


def _opened(
    model: str, task: str | None, inputs: list[str], pairs: list[str], files: list[Path]
) -> tuple[PretrainedEncoder, list[Item], Any]:
    """The model, each input, and all of them as one batch."""
    if modality_of(model) == "audio":
        if pairs:
            raise InputError(f"--pair goes with texts, and {model} reads audio")
        audio_encoder = open_audio_model(model, task)
        return audio_encoder, *audio_items(audio_encoder, [*map(Path, inputs), *files])
    if files:
        raise InputError(f"{model} reads text: give texts in place of --audio")
    paired = _paired(inputs, pairs)
    encoder = open_text_model(model, task)
    if paired and encoder.sentence_embedding is not None and task is None:
        items = sentence_items(encoder, paired)
    else:
        items = text_items(encoder, paired or inputs)
    return encoder, items, encoder.prepare([item.value for item in items])


def _hook_names(encoder: PretrainedEncoder, patterns: list[str]) -> list[str]:
    """The hook points that patterns stand for; by globs and short names those that the run computes unasked, if any."""
    plan = encoder.plan(_richest(encoder))
    computed = [name for name in encoder.default_hook_names() if plan.reaches(name)]
    return matching(patterns, list(encoder.hook_dict), computed)


def _richest(encoder: PretrainedEncoder) -> str:
    """The return type that computes most."""
    if encoder.task is not None:
        return "logits"
    return "hidden" if encoder.sentence_embedding is None else "embedding"


def _paired(texts: list[str], pairs: list[str]) -> list[tuple[str, str]]:
    """Each text with its --pair; empty without any --pair."""
    if not pairs:
        return []
    if len(pairs) != len(texts):
        raise InputError(f"there are {len(texts)} texts and {len(pairs)} --pair; give one --pair for each text")
    return list(zip(texts, pairs, strict=True))


def _check_target(save: Path | None) -> None:
    if save is not None and not save.absolute().parent.is_dir():
        raise InputError(f"--save {save}: the folder {save.absolute().parent} does not exist")
    if save is not None and save.is_dir():
        raise InputError(f"--save {save} is a folder; give the name of a file")


def _report(encoder: PretrainedEncoder, items: list[Item], batch: Any) -> dict[str, Any]:
    with step("running"):
        predictions, note = _predictions(encoder, batch)
    inputs = [dict(item.shown) for item in items]
    for entry, prediction in zip(inputs, predictions or [], strict=bool(predictions)):
        entry["prediction"] = prediction
    report: dict[str, Any] = {
        "model": encoder.cfg.model_name,
        "task": encoder.task,
        "inputs": inputs,
    }
    if encoder.sentence_embedding is not None:
        return report | _compared(encoder, items, inputs, batch)
    return report if note is None else report | {"note": note}


def _compared(encoder: PretrainedEncoder, items: list[Item], inputs: list[dict[str, Any]], batch: Any) -> dict[str, Any]:
    """The cosines of all embeddings, which each input gets too."""
    vectors = at_least_float32(encoder(batch, return_type="embedding"))
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    cosines = (unit @ unit.mT).tolist()
    for entry, item, vector, row in zip(inputs, items, vectors.tolist(), cosines, strict=True):
        entry["embedding"] = vector
        if item.other is not None:
            entry["cosine"] = row[item.other]
    return {"cosines": cosines}


def _analysed(
    encoder: PretrainedEncoder,
    items: list[Item],
    item: Item,
    lens: bool,
    attribute: str | None,
    position: int | None,
) -> dict[str, Any]:
    """Probabilities, lens and attributions of one input.

    Raises:
        InputError: with how the input was given, and --position in place of the argument of the analysis.
    """
    try:
        reading = read(encoder, item.value)
        found: dict[str, Any] = {"probabilities": reading.choices} if reading.choices else {}
        if reading.measure != "probability":
            found = {}
        if lens:
            where = reading.positions if position is None else [position]
            found["lens"] = logit_lens(encoder, item.value, None if where is None else list(where))
        if attribute is not None:
            found |= _attributed(encoder, items, item, reading, attribute, position)
        return found
    except InputError as error:
        message = str(error).replace("with position=", "with --position")
        raise InputError(f"{item.given}: {message}") from error


def _attributed(
    encoder: PretrainedEncoder,
    items: list[Item],
    item: Item,
    reading: Reading,
    attribute: str,
    position: int | None,
) -> dict[str, Result]:
    if encoder.task is None and encoder.sentence_embedding is not None:
        return _attributed_cosine(encoder, items, item, attribute)
    target = encoder.task_head().output_index(attribute, encoder.tokenizer)
    at = reading.place_of(target) if position is None else position
    several = position is None and not reading.places and len(reading.positions or ()) > 1
    where = None if several else at  # the analysis says that there are several masks
    return {"attribution": direct_logit_attribution(encoder, item.value, target, where)}


def _attributed_cosine(encoder: PretrainedEncoder, items: list[Item], item: Item, attribute: str) -> dict[str, Result]:
    """What makes the cosine of a text with the one that it is compared with; nothing for a first text."""
    check_word("--attribute", attribute, (COSINE,))
    if all(other.other is None for other in items):
        raise InputError(f"--attribute {COSINE} explains the cosine of two texts: give the other one by --pair")
    if item.other is None:
        return {}
    first = items[item.other].value
    return {
        "attribution": cosine_attribution(encoder, first, item.value),
        "token_pairs": token_pairs(encoder, first, item.value),
    }


def _kept(encoder: PretrainedEncoder, batch: Any, names: list[str] | None, save: Path | None) -> dict[str, Any]:
    """Statistics of what is kept, and where it was saved."""
    _, cache = encoder.run_with_cache(batch, return_type=_richest(encoder), names_filter=names)
    report: dict[str, Any] = {"activations": [] if names is None else _statistics(cache)}
    if save:
        cache.save(save)
        report["saved"] = str(save)
    return report


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


def _as_json(value: Any) -> Any:
    """A result, or the best outputs at one place, as plain values."""
    if isinstance(value, Choice):
        outputs = [{"output": name, "probability": number} for name, number in value.outputs]
        return {"at": value.where or None, "outputs": outputs}
    return json.loads(value.to_json())


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
    rows = zip(report["inputs"], report["cosines"], strict=True)
    for number, (entry, row) in enumerate(rows, 1):
        table.add_row(Text(f"{number} {_heading(entry)}"), *(f"{cosine:.3f}" for cosine in row))
    return table


def shown_choice(choice: Choice) -> str:
    """The best outputs at one place, with their probabilities, on a line."""
    outputs = ", ".join(f"{name} {value:.1%}" for name, value in choice.outputs)
    return f"{choice.where}: {outputs}" if choice.where else outputs


def _show(report: dict[str, Any]) -> None:
    console = Console()
    for entry in report["inputs"]:
        _show_input(console, entry)
    if len(report.get("cosines", ())) > 1:
        console.print(_cosines(report))
    if "note" in report:
        print_line(console, f"No prediction: {report['note']}.", "dim")
    if report.get("activations"):
        console.print(_activations(report["activations"]))
    if "saved" in report:
        print_line(console, f"Saved to {report['saved']}")


def _show_input(console: Console, entry: dict[str, Any]) -> None:
    print_line(console, _heading(entry), "bold")
    lines = {}
    if "tokens" in entry:
        lines["tokens"] = " ".join(entry["tokens"])
    if "prediction" in entry:
        value = entry["prediction"]
        lines["prediction"] = ", ".join(value) if isinstance(value, list) else str(value)
    if "embedding" in entry:
        vector = entry["embedding"]
        lines["embedding"] = f"{len(vector)} numbers, of length {math.hypot(*vector):.4g}"
    if "cosine" in entry:
        lines["cosine"] = f"{entry['cosine']:.4f}, with the text in front"
    for name, line in lines.items():
        print_line(console, f"  {name:<11} {line}")
    for number, choice in enumerate(entry.get("probabilities", ())):
        print_line(console, f"  {'' if number else 'probability':<11} {shown_choice(choice)}")
    for name in ("lens", "attribution", "token_pairs"):
        if name in entry:
            console.print(entry[name])


def _activations(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("activation", "shape", "mean", "std"):
        table.add_column(column, overflow="fold")
    for row in rows:
        shape = " ".join(map(str, row["shape"]))
        table.add_row(row["name"], shape, f"{row['mean']:.4f}", f"{row['std']:.4f}")
    return table
