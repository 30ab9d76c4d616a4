"""Compare HookedEncoder with that of TransformerLens 3.9, value by value, on the same random weights.

Both run the same padded batch with every ``use_*`` flag that both have. Activations and gradients at every hook point that both
have, logits, and every weight property are compared; a difference of more than 1e-5 of a tensor's largest magnitude, or other
labels, make the exit status 1. ``--out`` writes the table as a page of the documentation. Run it in the peers' environment.
"""

import argparse
import re
import sys
import warnings
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformer_lens  # pyright: ignore[reportMissingImports]
from torch import Tensor

import encoderlens

TOLERANCE = 1e-5
FLAGS = ("use_attn_result", "use_split_qkv_input", "use_hook_mlp_in")
CONFIG = {
    "d_model": 60,
    "n_layers": 3,
    "n_heads": 5,
    "d_head": 12,
    "d_mlp": 84,
    "d_vocab": 131,
    "n_ctx": 24,
    "eps": 1e-12,
    "act_fn": "gelu",
    "attention_dir": "bidirectional",
    "normalization_type": "LN",
    "device": "cpu",
    **dict.fromkeys(FLAGS, True),
}
MATRICES = ("W_E", "W_pos", "W_E_pos", "W_U", "W_Q", "W_K", "W_V", "W_O", "W_in", "W_out")
WEIGHTS = (*MATRICES, "b_U", "b_Q", "b_K", "b_V", "b_O", "b_in", "b_out")
PAGE = """# Compared with TransformerLens

`make compare-peers` builds a BERT-style encoder with random weights in TransformerLens {theirs}, loads its state dict here
with `HookedEncoder.from_transformer_lens_state_dict`, and runs the same batch through both: {shape},
some of them padded, two token types, no parameter left at zero or one. On are
{flags}. Float32, TransformerLens {theirs}, EncoderLens {ours}, torch {torch}.

A difference is the largest absolute one over all layers, in units of the largest magnitude in TransformerLens' tensor; more
than {tolerance:g} anywhere fails the command. Activations are compared at real positions (scores and patterns: for real
queries), scores where they are finite: padded keys have minus infinity in both. A gradient is that of randomly weighted
masked-LM logits at real positions (for the pooler and below the next-sentence head: of next-sentence logits) with respect to
what leaves the hook point.

## Hook points that both have

{activations}

Only in TransformerLens: {only_theirs}. Only here: {only_ours}.

## Outputs

{outputs}

## Weights

{weights}

`all_head_labels()`: {labels}.

## What TransformerLens has to be told

The numbers agree only if TransformerLens is given what it does not assume by itself:

- `attention_dir="bidirectional"` in a configuration of one's own: its default is causal attention, also for an encoder.
- `eps=1e-12`, BERT's value: the default of its configuration is 1e-5. Here it is 1e-12.
- `one_zero_attention_mask` with a padded batch of token ids. Here too: neither guesses padding from ids.
- `use_attn_result`, `use_split_qkv_input` and `use_hook_mlp_in`, without which hooks at the points that they add never fire.
  Here such a point is computed whenever a hook is attached to it.
"""


@dataclass(frozen=True)
class Row:
    """One comparison: relative differences of a tensor and, at hook points, of the gradient there."""

    name: str
    shape: tuple[int, ...]
    value: float
    gradient: float | None = None

    @property
    def worst(self) -> float:
        return max(self.value, self.gradient or 0.0)


@dataclass(frozen=True)
class Batch:
    """Tokens, token types and mask [batch pos]."""

    tokens: Tensor
    types: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Recording:
    """What a model gave: activations and gradients by hook name, and logits by head."""

    values: dict[str, Tensor]
    gradients: dict[str, Tensor]
    logits: dict[str, Tensor]


@dataclass(frozen=True)
class Comparison:
    """Everything that was compared, and the hook points of one side only."""

    activations: list[Row]
    outputs: list[Row]
    weights: list[Row]
    same_labels: bool
    only_theirs: list[str]
    only_ours: list[str]

    @property
    def rows(self) -> list[Row]:
        return [*self.activations, *self.outputs, *self.weights]

    @property
    def failures(self) -> list[str]:
        return [row.name for row in self.rows if not row.worst <= TOLERANCE] + ([] if self.same_labels else ["all_head_labels"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where the page goes; left out, only the table is printed")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    options = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)
    theirs = _their_model(options.seed)
    ours = encoderlens.HookedEncoder.from_transformer_lens_state_dict(theirs.state_dict(), CONFIG)
    batch = _batch()
    comparison = _compare(theirs, ours, batch)
    print(_table(comparison.rows))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(_page(comparison, batch), encoding="utf-8")
    failures = ", ".join(comparison.failures)
    sys.exit(f"differs by more than {TOLERANCE:g}: {failures}" if failures else 0)


def _compare(theirs: Any, ours: encoderlens.HookedEncoder, batch: Batch) -> Comparison:
    common = [name for name in ours.hook_dict if name in theirs.hook_dict]
    recorded = _record(theirs, transformer_lens, batch, common)
    recorded_here = _record(ours, encoderlens, batch, common)
    return Comparison(
        activations=_over_layers(_activation_rows(recorded, recorded_here, ours, batch.mask)),
        outputs=[_row(name, logits, recorded_here.logits[name]) for name, logits in recorded.logits.items()],
        weights=list(_weight_rows(theirs, ours)),
        same_labels=theirs.all_head_labels() == ours.all_head_labels(),
        only_theirs=_lacking(theirs.hook_dict, ours.hook_dict),
        only_ours=_lacking(ours.hook_dict, theirs.hook_dict),
    )


def _their_model(seed: int) -> Any:
    """A TransformerLens model with all parameters random: weights as after training, biases and norms away from 0 and 1."""
    model = transformer_lens.HookedEncoder(dict(CONFIG)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = re.search(r"\bln\d?\.w$", name)
            parameter.copy_(1 + 0.3 * noise if is_scale else 0.15 * noise)
    return model


def _batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(CONFIG["d_vocab"], (3, 17), generator=generator)
    types = torch.randint(2, (3, 17), generator=generator)
    mask = (torch.arange(17) < torch.tensor([[17], [11], [6]])).long()
    return Batch(tokens, types, mask)


def _record(model: Any, package: Any, batch: Batch, names: Collection[str]) -> Recording:
    """Both heads' runs with hooks on all ``names``; a point that both runs reach shows the masked-LM run."""
    recording = Recording({}, {}, {})
    heads = {"next-sentence logits": package.BertNextSentencePrediction(model), "masked-LM logits": model}

    def keep(tensor: Tensor, hook: Any) -> None:
        recording.values[hook.name] = tensor.detach().clone()

    def keep_gradient(tensor: Tensor, hook: Any) -> None:
        recording.gradients[hook.name] = tensor.detach().clone()

    for title, head in heads.items():
        with model.hooks(fwd_hooks=[(names.__contains__, keep)], bwd_hooks=[(names.__contains__, keep_gradient)]):
            logits = head(batch.tokens, token_type_ids=batch.types, one_zero_attention_mask=batch.mask)
            real = logits if logits.ndim == 2 else logits[batch.mask.bool()]
            weighting = torch.randn(real.shape, generator=torch.Generator().manual_seed(2))
            (real * weighting).sum().backward()
        recording.logits[title] = real.detach()
    return recording


def _activation_rows(theirs: Recording, ours: Recording, model: Any, mask: Tensor) -> Iterator[Row]:
    for name, value in theirs.values.items():
        axes = model.hook_dict[name].axes
        pairs = ((theirs.values, ours.values), (theirs.gradients, ours.gradients))
        value_row, gradient_row = (_row(name, *(_real(side[name], axes, mask) for side in pair)) for pair in pairs)
        yield Row(name, tuple(value.shape), value_row.value, gradient_row.value)


def _real(tensor: Tensor, axes: tuple[str, ...], mask: Tensor) -> Tensor:
    """Entries at real positions (queries); all of a tensor without positions."""
    if "query" in axes:
        tensor = tensor.transpose(1, 2)
    return tensor[mask.bool()] if "query" in axes or "pos" in axes else tensor


def _row(name: str, theirs: Tensor, ours: Tensor) -> Row:
    finite = theirs.isfinite()
    if theirs.shape != ours.shape or not torch.equal(finite, ours.isfinite()):
        return Row(name, tuple(theirs.shape), torch.inf)
    theirs_finite, ours_finite = theirs[finite], ours[finite]
    difference = (theirs_finite - ours_finite).abs().max() / theirs_finite.abs().max()
    return Row(name, tuple(theirs.shape), difference.item())


def _weight_rows(theirs: Any, ours: Any) -> Iterator[Row]:
    for name in WEIGHTS:
        yield _row(name, getattr(theirs, name).detach(), getattr(ours, name).detach())
    for name in ("QK", "OV"):
        yield _row(f"{name}.AB", getattr(theirs, name).AB.detach(), getattr(ours, name).AB.detach())


def _over_layers(rows: Iterable[Row]) -> list[Row]:
    """One row for all layers of a hook point, with the largest differences."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_any_layer(row.name), []).append(row)
    return [
        Row(name, group[0].shape, max(row.value for row in group), max(row.gradient or 0.0 for row in group))
        for name, group in groups.items()
    ]


def _any_layer(name: str) -> str:
    return re.sub(r"^blocks\.\d+\.", "blocks.l.", name)


def _lacking(names: Iterable[str], other: Collection[str]) -> list[str]:
    """Those of ``names`` that ``other`` lacks, once for all layers."""
    return list(dict.fromkeys(_any_layer(name) for name in names if name not in other))


def _table(rows: list[Row]) -> str:
    with_gradients = any(row.gradient is not None for row in rows)
    head = ["name", "shape", "difference", "gradient's difference"][: 4 if with_gradients else 3]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        gradient = "" if row.gradient is None else f"{row.gradient:.1e}"
        lines.append([f"`{row.name}`", " ".join(map(str, row.shape)), f"{row.value:.1e}", gradient][: len(head)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _page(comparison: Comparison, batch: Batch) -> str:
    n_sequences, n_positions = batch.tokens.shape
    return PAGE.format(
        theirs=version("transformer-lens"),
        ours=encoderlens.__version__,
        torch=torch.__version__.split("+")[0],
        shape=f"{n_sequences} sequences of {n_positions} positions",
        flags=", ".join(f"`{flag}`" for flag in FLAGS),
        tolerance=TOLERANCE,
        activations=_table(comparison.activations),
        only_theirs=_listed(comparison.only_theirs),
        only_ours=_listed(comparison.only_ours),
        outputs=_table(comparison.outputs),
        weights=_table(comparison.weights),
        labels="equal" if comparison.same_labels else "different",
    )


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


if __name__ == "__main__":
    main()
