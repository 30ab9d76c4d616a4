"""Peak memory of loading a folder of BERT-base's size, in units of the bytes of its weights (Linux).

Each load runs in a fresh process, which load_peak.py describes. Wanted: at most 1.2.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

TINY = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 99}
LOAD_PEAK = Path(__file__).with_name("load_peak.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes for each kind of folder")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: to try the script out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for kind, save in {"model.safetensors": save_file, "pytorch_model.bin": torch.save}.items():
            small, large = Path(scratch, "small", kind), Path(scratch, "large", kind)
            _write(small, save, TINY)
            size = _write(large, save, TINY if options.tiny else {})
            peak = max(_peak(small.parent, large.parent) for _ in range(options.repeats))
            print(f"{kind:17} {size / 2**20:6.1f} MiB of weights, peak {peak / 2**20:6.1f} MiB, ratio {peak / size:.2f}")
            small.unlink()
            large.unlink()


def _write(path: Path, save: Callable[[dict[str, Tensor], Path], None], sizes: dict[str, Any]) -> int:
    """Write a checkpoint folder of random weights; the bytes of its weights."""
    config = BertConfig.from_dict(sizes | {"architectures": ["BertForMaskedLM"]})
    config.save_pretrained(path.parent)
    state = BertForMaskedLM(config).state_dict()
    tensors = {name: tensor for name, tensor in state.items() if not name.startswith("cls.predictions.decoder")}
    save(tensors, path)
    return sum(tensor.nbytes for tensor in tensors.values())


def _peak(small: Path, large: Path) -> int:
    command = [sys.executable, str(LOAD_PEAK), str(small), str(large)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
