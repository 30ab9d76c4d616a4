"""Forced alignment: where the symbols of a known transcript lie in time, by the best CTC path (Kürzinger et al. 2020)."""

from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
from jaxtyping import Float, Int

from encoderlens.audio_input import Timing
from encoderlens.errors import InputError


@dataclass(frozen=True)
class AlignedSpan:
    """A piece of a transcript, and where it lies.

    Attributes:
        text: the character or word.
        start, end: in seconds.
        score: the mean probability of its symbols over its frames.
        frames: its frames.
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


@dataclass(frozen=True, eq=False)
class ForcedPath:
    """The most probable CTC path of a target.

    Attributes:
        frames: the frames of each target symbol.
        log_probability: of the path.
    """

    frames: tuple[range, ...]
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
    path = forced_path(log_probs, [symbol for _, symbol in target], blank)
    probabilities = [np.exp(log_probs[list(frames), symbol]) for frames, (_, symbol) in zip(path.frames, target, strict=True)]

    def spanning(text: str, members: list[int]) -> AlignedSpan:
        first, last = path.frames[members[0]][0], path.frames[members[-1]][-1]
        score = float(np.concatenate([probabilities[member] for member in members]).mean())
        return AlignedSpan(text, *timing.span(first, last), score, range(first, last + 1))

    characters = tuple(spanning(text, [index]) for index, (text, _) in enumerate(target))
    words = [list(members) for space, members in groupby(range(len(target)), lambda i: target[i][0] == " ") if not space]
    named = (("".join(target[member][0] for member in members), members) for members in words)
    return SpeechAlignment(characters, tuple(spanning(text, members) for text, members in named), path.log_probability)


def frames_needed(target: list[int]) -> int:
    """A frame a symbol, and a blank between a symbol and itself."""
    return len(target) + sum(one == other for one, other in pairwise(target))


def forced_path(log_probs: Float[np.ndarray, "frame symbol"], target: list[int], blank: int) -> ForcedPath:
    """The most probable path that reads as ``target`` (Viterbi over blank-interleaved states, Graves et al. 2006, section 4.1).

    Args:
        log_probs: log probabilities of each symbol at each frame.
        target: symbol ids, without blanks.
        blank: the id of the blank.

    Raises:
        InputError: if there are fewer frames than the target needs, or no path has any probability.
    """
    if len(log_probs) < frames_needed(target):
        raise InputError(f"the transcript needs {frames_needed(target)} frames, and the clip has {len(log_probs)}")
    states = np.full(2 * len(target) + 1, blank)
    states[1::2] = target
    emitted = log_probs.astype(np.float64)[:, states]
    path, total = _best_states(emitted, _may_skip(states, blank))
    if total == -np.inf:
        raise InputError("the model gives no path of the transcript any probability")
    spans = [np.flatnonzero(path == state) for state in range(1, len(states), 2)]
    return ForcedPath(tuple(range(int(span[0]), int(span[-1]) + 1) for span in spans), float(total))


def _may_skip(states: Int[np.ndarray, " state"], blank: int) -> np.ndarray:
    """Whether a state may be entered from the one before the last: a symbol, from another one."""
    skips = np.zeros(len(states), dtype=bool)
    skips[2:] = (states[2:] != blank) & (states[2:] != states[:-2])
    return skips


def _best_states(emitted: Float[np.ndarray, "frame state"], skips: np.ndarray) -> tuple[Int[np.ndarray, " frame"], float]:
    """The state at each frame of the best path, and its log probability."""
    n_frames, n_states = emitted.shape
    best = np.full(n_states, -np.inf)
    best[:2] = emitted[0, :2]
    steps = np.zeros((n_frames, n_states), dtype=np.int8)
    for frame in range(1, n_frames):
        by_one = np.concatenate([[-np.inf], best[:-1]])
        by_two = np.where(skips, np.concatenate([[-np.inf, -np.inf], best[:-2]])[:n_states], -np.inf)
        came = np.stack([best, by_one, by_two])
        steps[frame] = came.argmax(0)
        best = came.max(0) + emitted[frame]
    ends = best[-2:]
    path = np.empty(n_frames, dtype=np.int64)
    path[-1] = n_states - len(ends) + int(ends.argmax())
    for frame in range(n_frames - 1, 0, -1):
        path[frame - 1] = path[frame] - steps[frame, path[frame]]
    return path, float(ends.max())
