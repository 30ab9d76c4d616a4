"""What the demos of texts and of clips share."""

import shlex
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from encoderlens.activation_cache import ActivationCache
from encoderlens.analysis import direct_logit_attribution, logit_lens
from encoderlens.cli.common import table_of
from encoderlens.cli.reading import TOP, Reading
from encoderlens.errors import InputError
from encoderlens.pretrained_encoder import PretrainedEncoder


@dataclass(frozen=True)
class Demo:
    """What a demo prints.

    Attributes:
        title: of the model.
        inputs: the input, a line each.
        sections: what rich prints under each heading.
        hints: commands to try next, by what they do.
    """

    title: str
    inputs: tuple[str, ...]
    sections: dict[str, Any]
    hints: dict[str, str]


def title_of(encoder: PretrainedEncoder) -> str:
    cfg = encoder.cfg
    return f"{cfg.model_name}: {cfg.n_layers} layers, {cfg.n_heads} heads per layer"


def command_line(*words: str) -> str:
    """A command that can be pasted into a shell."""
    return shlex.join(("encoderlens", *words))


def head_sections(encoder: PretrainedEncoder, value: Any, reading: Reading) -> dict[str, Any]:
    """What the head of the task says, how it comes to that, and what decides it; nothing without a head."""
    if encoder.task is None or reading.target is None:
        return {}
    head = encoder.heads[encoder.task]
    name = head.output_name(reading.target, encoder.tokenizer)
    rows = [
        (choice.where, output, f"{number:.1%}" if reading.measure == "probability" else f"{number:.4g}")
        for choice in reading.choices
        for output, number in choice.outputs
    ]
    placed = any(choice.where for choice in reading.choices)
    columns = ("at", "output", reading.measure)
    at = None if reading.position is None else [reading.position]
    answer = {}
    if head.over_positions:
        answer["What the model answers"] = Text(str(encoder(value, return_type="predictions")))
    return answer | {
        "What the model says": table_of(columns if placed else columns[1:], rows if placed else [row[1:] for row in rows]),
        "What it would say after each layer and sublayer, through its own head": logit_lens(encoder, value, at, TOP),
        f"Which heads, MLPs and biases decide {name!r}": direct_logit_attribution(
            encoder, value, reading.target, reading.position
        ),
    }


def other_output(encoder: PretrainedEncoder, reading: Reading) -> str | None:
    """Another output than the one explained, as the command line takes it: the runner-up where it has been shown."""
    if encoder.task is None or reading.target is None:
        return None
    head = encoder.heads[encoder.task]
    best = head.output_name(reading.target, encoder.tokenizer)
    names = [name for choice in reading.choices for name, _ in choice.outputs]
    others = [name for name in dict.fromkeys(names) if name != best]
    known = [name for name in (*others, best) if _names_an_output(encoder, name)]
    return known[0] if known else None


def _names_an_output(encoder: PretrainedEncoder, name: str) -> bool:
    """Whether ``--attribute`` would find the output of this name."""
    head = encoder.task_head()
    try:
        return head.output_name(head.output_index(name, encoder.tokenizer), encoder.tokenizer) == name
    except InputError:
        return False


def layer_changes(encoder: PretrainedEncoder, cache: ActivationCache) -> Table:
    """The length of what attention and MLP write, over that of the stream that enters the layer; means over positions."""
    rows = []
    for layer in range(encoder.cfg.n_layers):
        names = ("resid_pre", "attn_out", "mlp_out")
        stream, attention, mlp = (cache[name, layer].float().norm(dim=-1).mean().item() for name in names)
        rows.append((str(layer), f"{stream:.2f}", f"{attention / stream:.0%}", f"{mlp / stream:.0%}"))
    return table_of(("layer", "stream", "attention writes", "MLP writes"), rows)


def bits(pattern: torch.Tensor) -> torch.Tensor:
    """The entropy of attention patterns over their keys."""
    return torch.special.entr(pattern).sum(-1) / torch.log(torch.tensor(2.0))
