"""Forced alignment: where the symbols of a known transcript lie in time, by the best CTC path (Kürzinger et al. 2020)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from encoderlens.audio.timing import Timing
from encoderlens.audio.transcripts import Target
from encoderlens.components.heads import frames_needed
from encoderlens.errors import InputError

SEGMENT = 512  # frames


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
    log_probs: Float[np.ndarray, "frame symbol"], target: Target, blank: int, timing: Timing
) -> SpeechAlignment:
    """Where the symbols and words of a transcript lie.

    Args:
        log_probs: log probabilities of each symbol at each frame.
        target: the transcript's symbols and their ids; a space between words, without an id if the model has none for it.
        blank: the id of the blank.
        timing: where frames lie in time.

    Raises:
        InputError: as ``forced_path``.
    """
    said = [(text, symbol) for text, symbol in target if symbol is not None]
    frames, log_probability = forced_path(log_probs, [symbol for _, symbol in said], blank)

    def spanning(members: list[int]) -> AlignedSpan:
        text = "".join(said[member][0] for member in members)
        scores = np.concatenate([np.exp(log_probs[list(frames[member]), said[member][1]]) for member in members])
        first, last = frames[members[0]][0], frames[members[-1]][-1]
        return AlignedSpan(text, *timing.span(first, last), float(scores.mean()), range(first, last + 1))

    characters = tuple(spanning([member]) for member in range(len(said)))
    return SpeechAlignment(characters, tuple(map(spanning, _words(target))), log_probability)


def _words(target: Target) -> list[list[int]]:
    """Of each word, the numbers of its symbols among those that have ids."""
    words: list[list[int]] = [[]]
    number = 0
    for text, symbol in target:
        if text == " ":
            words.append([])
        else:
            words[-1].append(number)
        number += symbol is not None
    return [word for word in words if word]


def forced_path(log_probs: Float[np.ndarray, "frame symbol"], target: list[int], blank: int) -> tuple[list[range], float]:
    """The most probable path that reads as ``target`` (Viterbi over blank-interleaved states, Graves et al. 2006, section 4.1).

    The memory beside ``log_probs`` is a number for each state and each SEGMENT frames: 80 MiB for half an hour of speech.

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
    path, total = _best_states(log_probs.astype(np.float64, copy=False), states)
    symbols = np.arange(1, len(states), 2)
    starts, stops = np.searchsorted(path, symbols), np.searchsorted(path, symbols, side="right")
    return list(map(range, starts.tolist(), stops.tolist())), total


def _best_states(
    log_probs: Float[np.ndarray, "frame symbol"], states: Int[np.ndarray, " state"]
) -> tuple[Int[np.ndarray, " frame"], float]:
    """The state at each frame of the best path, and its log probability.

    How the best paths got to each state is not kept, only how good they are at every SEGMENTth frame. From there the steps are
    found again, the last segment first, in the few states from which a path can still get to where the next segment begins.

    Args:
        log_probs: log probabilities of each symbol at each frame.
        states: the symbol of each.

    Raises:
        InputError: if no path has any probability.
    """
    n_frames, n_states = len(log_probs), len(states)
    barrier = np.where(states != np.roll(states, 2), 0.0, -np.inf)  # a symbol that repeats has a blank in between
    best = np.full(2 + n_states, -np.inf)  # behind two states that no path has been in
    best[2:4] = log_probs[0, states[:2]]
    kept = [best.copy()]
    for frame in range(1, n_frames):
        came = np.maximum(best[2:], best[1:-1])
        best[2:] = np.maximum(came, best[:-2] + barrier) + log_probs[frame, states]
        if frame % SEGMENT == 0:
            kept.append(best.copy())
    total = float(best[-2:].max())
    if not np.isfinite(total):
        raise InputError("the model gives no path of the transcript any probability")
    path = np.empty(n_frames, dtype=np.int64)
    path[-1] = n_states - 2 + best[-2:].argmax()
    for number, row in reversed(list(enumerate(kept))):
        segment = slice(number * SEGMENT, (number + 1) * SEGMENT + 1)
        last = int(path[segment][-1])
        first = max(0, last - 2 * SEGMENT)
        near = states[first : last + 1]
        steps = _steps(row[first : last + 3], log_probs[segment][:, near], barrier[first : last + 1])
        for frame in range(len(steps) - 1, 0, -1):
            before = number * SEGMENT + frame - 1
            path[before] = path[before + 1] - steps[frame, path[before + 1] - first]
    return path, total


def _steps(
    best: Float[np.ndarray, " state_2"], emitted: Float[np.ndarray, "frame state"], barrier: Float[np.ndarray, " state"]
) -> Int[np.ndarray, "frame state"]:
    """How many states each state's best path came up by at each frame: 0, 1 or 2; the fewest of equally good ones.

    Args:
        best: log probabilities of the best path to each state at the first frame, and to the two states before.
        emitted: log probabilities of each state's symbol.
        barrier: minus infinity where no path comes up by 2, otherwise 0.
    """
    steps = np.zeros(emitted.shape, dtype=np.int8)
    for frame in range(1, len(emitted)):
        came = np.stack([best[2:], best[1:-1], best[:-2] + barrier])
        steps[frame] = came.argmax(0)
        best[2:] = came.max(0) + emitted[frame]
    return steps
