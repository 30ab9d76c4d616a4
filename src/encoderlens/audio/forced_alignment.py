"""Forced alignment: where the symbols of a known transcript lie in time, by the best CTC path (Kürzinger et al. 2020)."""

from dataclasses import dataclass
from itertools import groupby

import numpy as np
from jaxtyping import Bool, Float, Int

from encoderlens.audio.timing import Timing
from encoderlens.components.heads import frames_needed
from encoderlens.errors import InputError


@dataclass(frozen=True)
class AlignedSpan:
    """A piece of a transcript, and where it lies.

    Attributes:
        text: the character or word.
        start, end: in seconds.
        score: the mean probability of its symbols at the frames where they stand; blanks between them are left out.
        frames: from the first to the last of these.
    """

    text: str
    start: float
    end: float
    score: float
    frames: range


@dataclass(frozen=True)
class SpeechAlignment:
    """A transcript against a clip.

    Attributes:
        characters: each symbol, in order; between words stands the delimiter, as a space.
        words: each word, from the first frame of its first symbol to the last frame of its last.
        log_probability: of the best path.
    """

    characters: tuple[AlignedSpan, ...]
    words: tuple[AlignedSpan, ...]
    log_probability: float


def align_transcript(
    log_probs: Float[np.ndarray, "frame symbol"], target: list[tuple[str, int]], blank: int, timing: Timing
) -> SpeechAlignment:
    """Where the symbols and words of a transcript lie.

    Args:
        log_probs: log probabilities of each symbol at each frame.
        target: the transcript's symbols and their ids; a space between words.
        blank: the id of the blank.
        timing: where frames lie in time.

    Raises:
        InputError: as ``forced_path``.
    """
    frames, log_probability = forced_path(log_probs, [symbol for _, symbol in target], blank)

    def spanning(members: list[int]) -> AlignedSpan:
        text = "".join(target[member][0] for member in members)
        scores = np.concatenate([np.exp(log_probs[list(frames[member]), target[member][1]]) for member in members])
        first, last = frames[members[0]][0], frames[members[-1]][-1]
        return AlignedSpan(text, *timing.span(first, last), float(scores.mean()), range(first, last + 1))

    indices = range(len(target))
    words = [list(members) for space, members in groupby(indices, lambda index: target[index][0] == " ") if not space]
    return SpeechAlignment(tuple(spanning([index]) for index in indices), tuple(map(spanning, words)), log_probability)


def forced_path(log_probs: Float[np.ndarray, "frame symbol"], target: list[int], blank: int) -> tuple[list[range], float]:
    """The most probable path that reads as ``target`` (Viterbi over blank-interleaved states, Graves et al. 2006, section 4.1).

    Args:
        log_probs: log probabilities of each symbol at each frame.
        target: symbol ids, without blanks.
        blank: the id of the blank.

    Returns:
        The frames of each target symbol, and the log probability of the path.

    Raises:
        InputError: if there are fewer frames than the target needs, it has symbols that are not there, or no path has any
            probability.
    """
    n_frames, n_symbols = log_probs.shape
    strange = [symbol for symbol in target if symbol == blank or not 0 <= symbol < n_symbols]
    if strange:
        raise InputError(
            f"the transcript has symbol {strange[0]}; the model's run from 0 to {n_symbols - 1}, and {blank} is the blank: is "
            "this the model's own tokenizer?"
        )
    if n_frames < frames_needed(target):
        raise InputError(f"the transcript needs {frames_needed(target)} frames, and the clip has {n_frames}")
    states = np.full(2 * len(target) + 1, blank)
    states[1::2] = target
    skips = states != np.roll(states, 2)  # a symbol may follow another one without a blank in between
    path, total = _best_states(log_probs.astype(np.float64)[:, states], skips)
    if not np.isfinite(total):
        raise InputError("the model gives no path of the transcript any probability")
    symbols = np.arange(1, len(states), 2)
    starts, stops = np.searchsorted(path, symbols), np.searchsorted(path, symbols, side="right")
    return list(map(range, starts.tolist(), stops.tolist())), total


def _best_states(
    emitted: Float[np.ndarray, "frame state"], skips: Bool[np.ndarray, " state"]
) -> tuple[Int[np.ndarray, " frame"], float]:
    """The state at each frame of the best path, and its log probability.

    Args:
        emitted: log probabilities of each state's symbol at each frame.
        skips: whether a state may be entered from the one before the last.
    """
    n_frames, n_states = emitted.shape
    best = np.full(2 + n_states, -np.inf)  # behind two states that no path has been in
    best[2:4] = emitted[0, :2]
    steps = np.zeros((n_frames, n_states), dtype=np.int8)
    for frame in range(1, n_frames):
        came = np.stack([best[2:], best[1:-1], np.where(skips, best[:-2], -np.inf)])
        steps[frame] = came.argmax(0)
        best[2:] = came.max(0) + emitted[frame]
    path = np.empty(n_frames, dtype=np.int64)
    path[-1] = n_states - 2 + best[-2:].argmax()
    for frame in range(n_frames - 1, 0, -1):
        path[frame - 1] = path[frame] - steps[frame, path[frame]]
    return path, float(best[-2:].max())
