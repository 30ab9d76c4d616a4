"""Speed on the same random weights of BERT-base's size, here and in TransformerLens' HookedEncoder (3.9, the last to have one).

A ratio below 1 means that EncoderLens is faster. Run it in the peers' environment: ``make bench-peers``.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
import transformer_lens  # pyright: ignore[reportMissingImports]
from torch import Tensor

from encoderlens import HookedEncoder
from timing import Run, Timings, benchmark_options, interleaved, print_row

OURS, THEIRS = "encoderlens", "transformer_lens"
WIDTHS = (28, 9, 14, 18, 24)
SHAPES = ((8, 128), (1, 16))
BASE = {"d_model": 768, "n_layers": 12, "n_heads": 12, "d_head": 64, "d_mlp": 3072, "d_vocab": 30522, "n_ctx": 512}
SAME = {"act_fn": "gelu", "eps": 1e-12, "attention_dir": "bidirectional", "normalization_type": "LN", "device": "cpu"}
TINY = {"d_model": 48, "n_layers": 2, "n_heads": 4, "d_head": 12, "d_mlp": 64, "d_vocab": 99, "n_ctx": 128}


def main() -> None:
    options = benchmark_options(__doc__)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    warnings.simplefilter("ignore", DeprecationWarning)
    theirs, ours = _twins(TINY if options.tiny else BASE)
    print(f"BERT-base, float32, {torch.get_num_threads()} threads, {options.pairs} pairs, torch {torch.__version__}")
    print_row("", "batch", "encoderlens", "transformer_lens", "ratio (quartiles)", widths=WIDTHS)
    for batch, pos in SHAPES:
        for title, run_ours, run_theirs in _cases(ours, theirs, torch.randint(ours.cfg.d_vocab, (batch, pos))):
            if options.only in title:
                with torch.inference_mode():
                    timings = interleaved({OURS: run_ours, THEIRS: run_theirs}, options.pairs)
                print_row(title, f"{batch} x {pos}", *_figures(timings), widths=WIDTHS)


def _twins(sizes: dict[str, int]) -> tuple[Any, HookedEncoder]:
    """A TransformerLens model with random weights, and the same model here."""
    torch.manual_seed(0)
    cfg = sizes | SAME
    theirs = transformer_lens.HookedEncoder(cfg).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    ours = HookedEncoder.from_transformer_lens_state_dict(theirs.state_dict(), cfg)
    return theirs, ours


def _cases(ours: HookedEncoder, theirs: Any, tokens: Tensor) -> Iterator[tuple[str, Run, Run]]:
    hooks = [("blocks.1.hook_attn_out", _halve)]
    yield "hidden", lambda: ours.encoder_output(tokens), lambda: theirs.encoder_output(tokens)
    yield "logits", lambda: ours(tokens), lambda: theirs(tokens)
    yield "run_with_cache", lambda: ours.run_with_cache(tokens), lambda: theirs.run_with_cache(tokens)
    yield (
        "run_with_hooks, one hook",
        lambda: ours.run_with_hooks(tokens, fwd_hooks=hooks),
        lambda: theirs.run_with_hooks(tokens, fwd_hooks=hooks),
    )


def _figures(timings: Timings) -> tuple[str, ...]:
    times = (f"{timings.milliseconds(name):.1f} ms" for name in (OURS, THEIRS))
    return (*times, f"{timings.ratio(OURS, THEIRS):.3f}")


def _halve(tensor: Tensor, hook: Any) -> Tensor:
    return tensor / 2


if __name__ == "__main__":
    main()
