"""Time and memory of additive analyses on random weights of BERT-base's size, against a plain forward pass to the final stream.

Wanted: all head rows within 3 forward passes; neuron rows without a tensor [neuron batch pos d_model]. Each peak of memory is
measured in a fresh process, which neuron_peak.py describes (Linux).
"""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from encoderlens import ActivationCache, HookedEncoder
from encoderlens.analysis import direct_logit_attribution, logit_lens
from timing import Run, benchmark_options, interleaved, print_row

BASE = {"d_model": 768, "n_layers": 12, "d_head": 64, "d_mlp": 3072, "d_vocab": 30522, "n_ctx": 512, "seed": 0}
TINY = {"d_model": 48, "n_layers": 2, "d_head": 12, "d_mlp": 64, "d_vocab": 99, "n_ctx": 128, "seed": 0}
BATCH, POS, POSITION, TARGET = 8, 128, 5, 17
NEEDED = ("hook_embed", "hook_pos_embed", "hook_token_type_embed", "hook_scale", "hook_z", "hook_post", "_resid_post")
NEURON_PEAK = Path(__file__).with_name("neuron_peak.py")
PEAKS = {"direct": "direct_logit_attribution(neurons=True)", "projected": "stack_neuron_results, onto one direction"}
FORWARD = "forward"
WIDTHS = (64, 12, 24)


def main() -> None:
    options = benchmark_options(__doc__)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    sizes = TINY if options.tiny else BASE
    model = HookedEncoder(sizes, device="cpu").eval()
    tokens = torch.randint(model.cfg.d_vocab, (BATCH, POS))
    threads = f"{torch.get_num_threads()} threads, {options.pairs} pairs"
    print(f"{'a tiny model' if options.tiny else 'BERT-base'}, {BATCH} x {POS}, float32, {threads}, torch {torch.__version__}")
    print_row("", "time", "in forward passes (quartiles)", widths=WIDTHS)
    for title, run in cases(model, tokens):
        if options.only in title:
            with torch.inference_mode():
                timings = interleaved({title: run, FORWARD: lambda: model(tokens, "hidden")}, options.pairs)
            print_row(
                title, f"{timings.milliseconds(title):.0f} ms", f"{timings.ratio(title, FORWARD):.2f}", widths=(64, 12, 24)
            )
    print()
    whole = model.cfg.n_layers * model.cfg.d_mlp * BATCH * POS * model.cfg.d_model * 4
    print(f"neuron rows as whole vectors [neuron batch pos d_model] would take {whole / 2**30:.1f} GiB")
    for how, title in PEAKS.items():
        command = [sys.executable, str(NEURON_PEAK), how, *(["--tiny"] if options.tiny else [])]
        peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{title:44} adds {peak / 2**20:7.1f} MiB to the peak of a plain forward pass")


def cases(model: HookedEncoder, tokens: Tensor) -> Iterator[tuple[str, Run]]:
    attribute = partial(direct_logit_attribution, model, tokens, TARGET, POSITION)
    yield "direct_logit_attribution: head rows", attribute
    yield "direct_logit_attribution: neuron rows", lambda: attribute(neurons=True)
    yield "head rows as whole vectors, at every position", lambda: cached(model, tokens).stack_head_results()
    yield "head rows of a logit, at every position", lambda: head_rows(model, tokens)
    yield "logit_lens: every layer and sublayer, at one position", lambda: logit_lens(model, tokens, POSITION)


def cached(model: HookedEncoder, tokens: Tensor) -> ActivationCache:
    """A run with what decompositions need."""
    return model.run_with_cache(tokens, None, names_filter=lambda name: name.endswith(NEEDED))[1]


def head_rows(model: HookedEncoder, tokens: Tensor) -> Tensor:
    cache = cached(model, tokens)
    return cache.logit_attrs(cache.stack_head_results(), tokens)


if __name__ == "__main__":
    main()
