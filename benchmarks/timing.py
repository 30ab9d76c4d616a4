"""Interleaved timing, shared by the benchmarks.

What is compared runs in turn, A B A B …, in random order within each round, so that neither a drifting clock nor what the
other one leaves in the caches favours a side. Ratios are taken round by round; medians and quartiles are reported.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Run = Callable[[], object]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some numbers."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


@dataclass(frozen=True)
class Timings:
    """Seconds by name, one entry a round."""

    seconds: Mapping[str, list[float]]

    def ratio(self, name: str, reference: str) -> Spread:
        """How long ``name`` takes in units of ``reference``, round by round."""
        return Spread.of(a / b for a, b in zip(self.seconds[name], self.seconds[reference], strict=True))

    def milliseconds(self, name: str) -> float:
        return 1e3 * statistics.median(self.seconds[name])


def interleaved(runs: Mapping[str, Run], rounds: int, warm_up: int = 2, seed: int = 0) -> Timings:
    """Time every callable once a round, in an order drawn anew for each round.

    Args:
        runs: what is compared.
        rounds: how many are timed.
        warm_up: how many are run first and not counted.
        seed: of the order.
    """
    order = random.Random(seed)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(-warm_up, rounds):
        for name in order.sample(list(runs), len(runs)):
            start = time.perf_counter()
            runs[name]()
            if index >= 0:
                seconds[name].append(time.perf_counter() - start)
    return Timings(seconds)


def benchmark_options(description: str | None) -> argparse.Namespace:
    """What every benchmark of speed can be told on the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--pairs", type=int, default=9, help="timed rounds of every row")
    parser.add_argument("--threads", type=int, help="threads of torch; its own choice by default")
    parser.add_argument("--only", default="", help="just the rows whose title holds this text")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: to try the script out")
    return parser.parse_args()


def print_row(*cells: str, widths: tuple[int, ...] = (56, 9, 12, 14, 24, 8)) -> None:
    """One aligned line, at once: a run that is cut short has shown what it measured."""
    print("".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=False)).rstrip(), flush=True)


def matmul_flops(n_layers: int, d_model: int, d_mlp: int, batch: int, pos: int) -> tuple[float, float]:
    """Floating-point operations of an encoder's matrix products: those with weights, and those of attention."""
    rows = batch * pos
    weights = n_layers * 2 * rows * (4 * d_model**2 + 2 * d_model * d_mlp)
    attention = n_layers * 2 * 2 * rows * pos * d_model
    return float(weights), float(attention)


def weight_products(blocks: nn.Module, batch: int, pos: int) -> Run:
    """Just the products with the weights of ``blocks``: the rate that a forward pass is held against."""
    matrices = [parameter.detach() for parameter in blocks.parameters() if parameter.ndim == 2]
    inputs: dict[int, Tensor] = {width: torch.randn(batch, pos, width) for width in {m.shape[1] for m in matrices}}

    def run() -> None:
        for matrix in matrices:
            nn.functional.linear(inputs[matrix.shape[1]], matrix)

    return run
