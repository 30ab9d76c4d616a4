"""Time on one core and peak memory of forced alignment, from the logits of a CTC head to characters and words (Linux).

Each length is measured in a fresh process. The transcript is planted in the logits, and found again. The peak is VmHWM, beyond
what the process has with the logits. Wanted: half an hour of speech, 90,000 frames and 25,000 characters, in under 1 GiB.
"""

import argparse
import subprocess
import sys
import time

import torch

from encoderlens.audio import SpeechAlignment, Timing
from encoderlens.audio.forced_alignment import align_transcript
from encoderlens.audio.transcripts import Target
from load_peak import peak

TIMING = Timing(rate=16_000, stride=320, receptive_field=400)  # HuBERT's
SYMBOLS, BLANK, SPACE = 32, 0, 4
FRAMES, CHARACTERS = 3000, 833  # a minute


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=int, nargs="*", default=[5, 30], help="the lengths of the recordings")
    parser.add_argument("--here", type=int, help="measure this length in this process")
    options = parser.parse_args()
    if options.here is not None:
        measure(options.here)
        return
    for minutes in options.minutes:
        subprocess.run([sys.executable, __file__, "--here", str(minutes)], check=True)


def measure(minutes: int) -> None:
    """Align a recording of this length, and print what that takes."""
    measured = planted(1)
    aligned(*measured)  # whatever is imported late is there now
    logits, target = planted(minutes)
    before, start = peak(), time.process_time()
    spoken = aligned(logits, target)
    seconds, mebibytes = time.process_time() - start, (peak() - before) / 2**20
    assert "".join(span.text for span in spoken.characters) == "".join(text for text, _ in target)
    assert all(span.score > 0.9 for span in spoken.characters)
    print(
        f"{minutes:3} minutes, {len(logits):6,} frames, {len(target):6,} characters: {seconds:5.1f} s, "
        f"peak {mebibytes:4.0f} MiB beyond the logits",
        flush=True,
    )


def planted(minutes: int) -> tuple[torch.Tensor, Target]:
    """Logits that say a drawn transcript, each symbol on a frame of its own, with blanks between; and the transcript."""
    generator = torch.Generator().manual_seed(0)
    n_frames, n_characters = FRAMES * minutes, CHARACTERS * minutes
    symbols = torch.randint(SPACE, SYMBOLS, (n_characters,), generator=generator)
    symbols[0] = symbols[-1] = SYMBOLS - 1  # no word is empty at the ends
    frames = torch.randperm(n_frames // 2, generator=generator)[:n_characters].sort().values * 2
    logits = torch.randn(n_frames, SYMBOLS, generator=generator)
    logits[:, BLANK] += 12
    logits[frames, symbols] += 24
    return logits, [(" " if symbol == SPACE else chr(ord("A") + symbol), symbol) for symbol in symbols.tolist()]


def aligned(logits: torch.Tensor, target: Target) -> SpeechAlignment:
    """What ``HookedAudioEncoder.align`` makes of logits."""
    return align_transcript(logits.double().log_softmax(-1).numpy(), target, BLANK, TIMING)


if __name__ == "__main__":
    main()
