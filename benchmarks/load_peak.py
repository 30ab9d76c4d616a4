"""Prints how many bytes loading a folder adds to this process' peak memory (Linux): ``load_peak.py WARM_UP FOLDER``.

A tiny folder of the same kind is loaded first, so that whatever loading imports is counted before. The peak is VmHWM: resident
memory, pages of a mapped file included.
"""

import sys
from pathlib import Path

from encoderlens import HookedEncoder


def peak() -> int:
    """This process' high-water mark of resident memory, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def main() -> None:
    warm_up, folder = sys.argv[1:]
    HookedEncoder.from_pretrained(warm_up, device="cpu")
    before = peak()
    model = HookedEncoder.from_pretrained(folder, device="cpu")
    print(peak() - before)
    del model


if __name__ == "__main__":
    main()
