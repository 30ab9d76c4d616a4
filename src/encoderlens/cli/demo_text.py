"""``encoderlens demo`` of a text model: what it makes of a text, or of two."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from encoderlens.activation_cache import ActivationCache
from encoderlens.analysis import cosine_attribution, token_pairs
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
from encoderlens.cli.reading import Reading, read
from encoderlens.cli.run import COSINE
from encoderlens.errors import InputError
from encoderlens.hooked_encoder import HookedEncoder
from encoderlens.names import head_label

MASK = "[MASK]"  # stands for the model's own mask token
SENTENCES = ("She opened the [MASK] and walked into the room.", "MKTVRQERLKSIVRILERSK[MASK]PVSGAQLAEELSVSRQ")
TWO = ("The cat sits on the mat.", "A cat is lying on a rug.")
SAMPLES = {
    "masked_lm": SENTENCES,
    "next_sentence": (("She opened the door.", "Then she walked into the room."),),
    "sentence_order": (("She opened the door.", "Then she walked into the room."),),
    "question_answering": (("Where is Anna?", "Anna lives in Paris."),),
    "token_classification": ("My friend Anna lives in Paris and works for the bank.",),
    "replaced_token_detection": ("The cook put the soup into the violin and stirred it.",),
    "sequence_classification": ("I have never seen a film as good as this one.",),
}
PLAIN = ("She opened the door and walked into the room.", "MKTVRQERLKSIVRILERSKEPVSGAQLAEELSVSRQ")


def demo_of_text(encoder: HookedEncoder, name: str, given: str | None, pair: str | None, task: str | None) -> Demo:
    """The demo of a text model.

    Args:
        name: the model, as it was given.
        given: a text; None for one of the demo's own.
        pair: the second text; None for none.
        task: the head that was asked for; None for a masked-LM head where there is one, otherwise the checkpoint's own.

    Raises:
        InputError: for a text that the model cannot read, one without a mask token for a masked-LM head, or a missing second
            text of a sentence encoder.
    """
    if task is None and "masked_lm" in encoder.heads:
        encoder.task = "masked_lm"
    if encoder.task is None and encoder.sentence_embedding is not None:
        return _of_sentence_encoder(encoder, name, given, pair)
    value: Any = given if pair is None else (given, pair)
    if given is None:
        value = _sample(encoder)
    if encoder.task is not None:
        encoder.task_head().check_input(encoder.prepare(value))
    reading = read(encoder, value)
    _, cache = encoder.run_with_cache(value, return_type=None)
    sections = head_sections(encoder, value, reading)
    if not sections:
        sections = {"How much each layer changes the stream": layer_changes(encoder, cache)}
    tokens = encoder.to_str_tokens(value)
    look = reading.position or 0
    sections[f"Where its heads look from {tokens[look]!r}, sharpest first"] = _attention(encoder, cache, tokens, look)
    texts = value if isinstance(value, tuple) else (value,)
    return Demo(title_of(encoder), texts, sections, _hints(encoder, name, texts, reading, task))


def _of_sentence_encoder(encoder: HookedEncoder, name: str, given: str | None, pair: str | None) -> Demo:
    """Two texts, their cosine, and which heads and pairs of tokens make it."""
    if given is not None and pair is None:
        raise InputError(f"{name} is a sentence encoder, which compares two texts: give the other by --pair")
    first, second = TWO if given is None or pair is None else (given, pair)
    pairs = token_pairs(encoder, first, second)
    sections = {
        "How similar it finds them": table_of(("cosine",), [(f"{pairs.cosine:.4f}",)]),
        "Which heads, MLPs and biases make the cosine": cosine_attribution(encoder, first, second),
        "Which pairs of tokens make it": pairs,
    }
    asked = ("run", name, first, "--pair", second)
    hints = {
        "the same as JSON": command_line(*asked, "--attribute", COSINE, "--json"),
        "another text against it": command_line("demo", name, first, "--pair", "It rains."),
        "every hook point, with its shape": command_line("info", name),
    }
    return Demo(title_of(encoder), (first, second), sections, hints)


def _sample(encoder: HookedEncoder) -> Any:
    """A text of the demo's own, or a pair, that fits the head: the first that the tokenizer knows every word of."""
    samples = [*SAMPLES.get(encoder.task or "", PLAIN), *PLAIN]
    if encoder.task is not None and encoder.task_head().measure == "value":
        samples = [TWO]  # a score is mostly of two texts
    mask = None if encoder.tokenizer is None else encoder.tokenizer.mask_token
    texts = [_with_mask(sample, mask) for sample in samples]
    return next((text for text in texts if _known(encoder, text)), texts[0])


def _with_mask(sample: Any, mask: str | None) -> Any:
    return sample.replace(MASK, mask) if isinstance(sample, str) and mask is not None else sample


def _known(encoder: HookedEncoder, text: Any) -> bool:
    """Whether the tokenizer has no unknown token in a text."""
    unknown = None if encoder.tokenizer is None else encoder.tokenizer.unk_token_id
    return unknown is None or unknown not in encoder.to_tokens(text)[0][0].tolist()


def _hints(encoder: HookedEncoder, name: str, texts: tuple[str, ...], reading: Reading, task: str | None) -> dict[str, str]:
    first, *second = texts
    asked = ["run", name, first, *(part for text in second for part in ("--pair", text))]
    asked += [] if encoder.task is None or task is None else ["--task", task]
    hints = {}
    other = other_output(encoder, reading)
    if other is not None:
        hints[f"what decides {other!r}"] = command_line(*asked, "--lens", "--attribute", other)
    if reading.choices and encoder.task == "masked_lm":
        hints["more words for each mask"] = command_line("fill", name, first, "--top-k", "10")
    hints["keep every attention pattern"] = command_line(*asked, "--hooks", "pattern", "--save", "patterns.safetensors")
    hints["every hook point, with its shape"] = command_line("info", name)
    return hints


@dataclass(frozen=True)
class HeadSummary:
    """Where one head looks from one position: the entropy of its pattern there in bits, and its two strongest keys."""

    label: str
    bits: float
    strongest: list[tuple[int, float]]


def _summaries(encoder: HookedEncoder, cache: ActivationCache, position: int) -> Iterator[HeadSummary]:
    for layer in range(encoder.cfg.n_layers):
        rows = cache["pattern", layer][0, :, position].float()
        entropy, best = bits(rows).tolist(), rows.topk(min(2, rows.shape[-1]))
        for head in range(encoder.cfg.n_heads):
            pairs = zip(best.indices[head].tolist(), best.values[head].tolist(), strict=True)
            yield HeadSummary(head_label(layer, head), entropy[head], list(pairs))


def _attention(encoder: HookedEncoder, cache: ActivationCache, tokens: list[str], position: int, most: int = 8) -> Table:
    rows = []
    sharpest = sorted(_summaries(encoder, cache, position), key=lambda summary: summary.bits)
    for summary in sharpest[:most]:
        looks = "  ".join(f"{tokens[key]} {weight:.0%}" for key, weight in summary.strongest)
        rows.append((summary.label, f"{summary.bits:.2f}", looks))
    return table_of(("head", "entropy (bits)", "looks at"), rows)
