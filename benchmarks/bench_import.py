"""What ``import encoderlens`` costs beyond ``import torch``: fresh interpreters, interleaved."""

import argparse
import subprocess
import sys
from functools import partial

from timing import interleaved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15, help="timed rounds")
    timings = interleaved({name: partial(_import, name) for name in ("encoderlens", "torch")}, parser.parse_args().pairs)
    print(f"import encoderlens {timings.milliseconds('encoderlens'):7.0f} ms")
    print(f"import torch       {timings.milliseconds('torch'):7.0f} ms")
    print(f"ratio              {timings.ratio('encoderlens', 'torch'):.2f}, wanted: at most 1.3")


def _import(module: str) -> None:
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)


if __name__ == "__main__":
    main()
