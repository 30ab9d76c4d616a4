"""Forced alignment: the best path against all paths, and where a model's transcripts lie in time."""

import json
import tracemalloc
from fractions import Fraction
from functools import cache
from itertools import groupby, pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

from encoderlens import HookedAudioEncoder
from encoderlens.audio import Timing, forced_alignment
from encoderlens.audio.forced_alignment import AlignedSpan, align_transcript, forced_path
from encoderlens.errors import AnalysisError, InputError, TaskError, TokenizerMissingError
from tests.speech import AMIABLE, CLUBS, DISPOSED, RATE, TRANSCRIPTS, ctc_tokenizer, processor, speech, tiny_speech
from tests.tiny import tiny_hf, tiny_waves

SYMBOLS = 4
# How many frames lie between those whose numbers are kept; the last one is what users have.
SEGMENTS = st.sampled_from([1, 2, 5, forced_alignment.SEGMENT])
LOGITS = {"width": 32, "allow_nan": False, "min_value": -9, "max_value": 9}


def collapsed(path: Any, blank: int) -> tuple[int, ...]:
    return tuple(symbol for symbol, _ in groupby(path) if symbol != blank)


@cache
def all_paths(n_frames: int, blank: int) -> dict[tuple[int, ...], np.ndarray]:
    """Every path of so many frames [path frame], by what it reads as."""
    paths = np.indices((SYMBOLS,) * n_frames).reshape(n_frames, -1).T
    read: dict[tuple[int, ...], list[np.ndarray]] = {}
    for path in paths:
        read.setdefault(collapsed(path.tolist(), blank), []).append(path)
    return {target: np.stack(found) for target, found in read.items()}


def probability(log_probs: np.ndarray, paths: np.ndarray) -> np.ndarray:
    """The log probability of each path [path frame]."""
    return log_probs[np.arange(len(log_probs)), paths].sum(-1)


def path_of(frames: list[range], target: list[int], blank: int, n_frames: int) -> list[int]:
    """The symbol at each frame."""
    path = [blank] * n_frames
    for span, symbol in zip(frames, target, strict=True):
        for frame in span:
            path[frame] = symbol
    return path


def drawn(n_frames: int, n_symbols: int = SYMBOLS, seed: int = 0) -> np.ndarray:
    logits = torch.randn(n_frames, n_symbols, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return logits.log_softmax(-1).numpy()


def saying(path: list[int], n_symbols: int = SYMBOLS, seed: int = 0) -> np.ndarray:
    """Log probabilities that say a path: its symbol is by far the most probable at each frame."""
    logits = torch.randn(len(path), n_symbols, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    logits[range(len(path)), path] += 12
    return logits.log_softmax(-1).numpy()


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, list[int], int]:
    """Log probabilities, a target and a blank; some probabilities are zero."""
    n_frames, blank = draw(st.integers(1, 6)), draw(st.integers(0, SYMBOLS - 1))
    row = st.lists(st.floats(**LOGITS) | st.just(-np.inf), min_size=SYMBOLS, max_size=SYMBOLS)
    logits = np.array(draw(st.lists(row.filter(lambda values: max(values) > -np.inf), min_size=n_frames, max_size=n_frames)))
    others = [symbol for symbol in range(SYMBOLS) if symbol != blank]
    target = draw(st.lists(st.sampled_from(others), max_size=3))
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True), target, blank


# The best path


@settings(max_examples=200, deadline=None)
@given(problems(), SEGMENTS)
def test_the_best_of_all_paths_is_found(problem: tuple[np.ndarray, list[int], int], segment: int) -> None:
    log_probs, target, blank = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forced_alignment, "SEGMENT", segment)
        check_the_best_path(log_probs, target, blank)


def check_the_best_path(log_probs: np.ndarray, target: list[int], blank: int) -> None:
    paths = all_paths(len(log_probs), blank).get(tuple(target))
    if paths is None:
        with pytest.raises(InputError, match=f"frames, and the clip has {len(log_probs)}$"):
            forced_path(log_probs, target, blank)
        return
    best = probability(log_probs, paths).max()
    if best == -np.inf:
        with pytest.raises(InputError, match="no path of the transcript any probability"):
            forced_path(log_probs, target, blank)
        return
    frames, log_probability = forced_path(log_probs, target, blank)
    found = path_of(frames, target, blank, len(log_probs))
    assert collapsed(found, blank) == tuple(target)
    assert log_probability == pytest.approx(best, rel=1e-12, abs=1e-12)
    assert probability(log_probs, np.array(found)) == pytest.approx(best, rel=1e-12, abs=1e-12)


def from_a_whole_table(log_probs: np.ndarray, target: list[int]) -> list[range]:
    """The frames of each symbol on the best path, by a table of every frame and state; of equally good steps the shortest, and
    the end in the last symbol rather than in a blank.
    """
    states = [0, *(state for symbol in target for state in (symbol, 0))]
    scores = [[-np.inf] * len(states) for _ in log_probs]
    scores[0][:2] = log_probs[0, states[:2]]

    def came(frame: int, state: int) -> list[float]:
        """How good the ways are that stay, come up by one state, and by two."""
        two = state > 1 and states[state] != states[state - 2]
        return [scores[frame - 1][state - step] for step in range(1 + (state > 0) + two)]

    for frame, state in product(range(1, len(log_probs)), range(len(states))):
        scores[frame][state] = max(came(frame, state)) + log_probs[frame, states[state]]
    state = len(states) - 2 + int(scores[-1][-1] > scores[-1][-2])
    path = [state]
    for frame in range(len(log_probs) - 1, 0, -1):
        ways = came(frame, path[0])
        path.insert(0, path[0] - ways.index(max(ways)))
    return [range(path.index(2 * i + 1), path.index(2 * i + 1) + path.count(2 * i + 1)) for i in range(len(target))]


@pytest.mark.parametrize("segment", [1, 2, 7, forced_alignment.SEGMENT])
@pytest.mark.parametrize("kind", ["drawn", "of a few values", "all alike"])
def test_the_path_is_that_of_a_whole_table_also_where_several_are_as_good(
    kind: str, segment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forced_alignment, "SEGMENT", segment)
    generator = np.random.default_rng(0)
    for n_frames, n_symbols in [(9, 2), (9, 4), (40, 3), (40, 20), (41, 15)]:
        drawn = generator.uniform(size=(n_frames, SYMBOLS))
        log_probs = -{"drawn": drawn, "of a few values": np.round(2 * drawn), "all alike": np.ones_like(drawn)}[kind]
        target = generator.integers(1, SYMBOLS, n_symbols).tolist()
        assert forced_path(log_probs, target, blank=0)[0] == from_a_whole_table(log_probs, target)


def test_memory_stays_far_below_a_byte_for_each_frame_and_state() -> None:
    n_frames, log_probs = 5000, drawn(5000)
    target = np.random.default_rng(0).integers(1, SYMBOLS, 2000).tolist()
    tracemalloc.start()
    try:
        forced_path(log_probs, target, blank=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < n_frames * (2 * len(target) + 1) / 3


def likelihood(log_probs: np.ndarray, target: list[int], blank: int) -> float:
    """The log probability of all paths of a target together, by torch."""
    lengths = torch.tensor([len(log_probs)]), torch.tensor([len(target)])
    return -float(F.ctc_loss(torch.tensor(log_probs)[:, None], torch.tensor([target]), *lengths, blank, "sum"))


@pytest.mark.parametrize("seed", range(5))
def test_no_path_is_more_probable_than_all_together(seed: int) -> None:
    log_probs, target = drawn(30, 9, seed), [1, 5, 5, 2, 8, 1]
    _, best = forced_path(log_probs, target, blank=4)
    paths = 30 * np.log(2 * len(target) + 1)  # at most so many, as a logarithm
    assert likelihood(log_probs, target, 4) - paths < best < likelihood(log_probs, target, 4)


@pytest.mark.parametrize("target", [[1, 2, 3], [2, 2], [3, 3, 3, 1], [1]])
def test_as_many_frames_as_needed_leave_one_path(target: list[int]) -> None:
    needed = [target[0]]
    for one, other in pairwise(target):
        needed += [0, other] if one == other else [other]
    log_probs = drawn(len(needed))
    frames, log_probability = forced_path(log_probs, target, blank=0)
    assert path_of(frames, target, 0, len(needed)) == needed
    assert log_probability == pytest.approx(likelihood(log_probs, target, 0), rel=1e-12)
    fewer = f"the transcript needs {len(needed)} frames, and the clip has {len(needed) - 1}"
    with pytest.raises(InputError, match=f"^{fewer}$"):
        forced_path(log_probs[:-1], target, blank=0)


PLANTED = {
    "blanks at both ends": [0, 0, 1, 0, 2, 2, 0, 0, 0],
    "no blank at all": [1, 1, 2, 3, 3, 3],
    "a repeated letter": [0, 2, 0, 2, 2, 0, 0, 2, 0],
    "a long letter among short ones": [1, *[3] * 40, 2, 0, 1],
    "a long silence": [2, *[0] * 60, 2, 2],
    "one frame": [3],
    "nothing but blanks": [0, 0, 0],
}


@pytest.mark.parametrize("blank", range(SYMBOLS))
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_path_is_recovered(name: str, blank: int) -> None:
    path = [(symbol + blank) % SYMBOLS for symbol in PLANTED[name]]
    target = list(collapsed(path, blank))
    frames, log_probability = forced_path(saying(path), target, blank)
    assert path_of(frames, target, blank, len(path)) == path
    assert log_probability == pytest.approx(probability(saying(path), np.array(path)), rel=1e-12)


def test_a_letter_that_is_said_once_without_a_pause_is_parted_where_that_costs_least() -> None:
    log_probs = np.log(np.array([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7], [0.1, 0.9]]))
    frames, log_probability = forced_path(log_probs, [1, 1], blank=0)
    assert frames == [range(0, 2), range(3, 4)]
    assert np.exp(log_probability) == pytest.approx(0.9 * 0.8 * 0.3 * 0.9)


def test_symbols_without_probability_are_gone_around() -> None:
    log_probs = saying([1, 1, 1, 2, 2, 2])
    log_probs[:, 3] = -np.inf
    assert forced_path(log_probs, [1, 2], blank=0)[0] == [range(0, 3), range(3, 6)]
    log_probs[2, 1] = -np.inf
    assert forced_path(log_probs, [1, 2], blank=0)[0] == [range(0, 2), range(3, 6)]
    log_probs[:, 0] = -np.inf
    assert forced_path(log_probs, [1, 2], blank=0)[0] == [range(0, 2), range(2, 6)]
    log_probs[2, 2] = -np.inf
    with pytest.raises(InputError, match="no path of the transcript any probability"):
        forced_path(log_probs, [1, 2], blank=0)
    with pytest.raises(InputError, match="no path of the transcript any probability"):
        forced_path(np.full((6, SYMBOLS), np.nan), [1, 2], blank=0)


def test_a_long_recording() -> None:
    generator = np.random.default_rng(0)
    target = generator.integers(1, 400, 500).tolist()
    log_probs = drawn(3000, 400)
    frames, log_probability = forced_path(log_probs, target, blank=0)
    assert len(frames) == 500
    assert all(one.start < one.stop <= other.start < other.stop <= 3000 for one, other in pairwise(frames))
    path = path_of(frames, target, 0, 3000)
    assert collapsed(path, 0) == tuple(target)
    assert log_probability == pytest.approx(probability(log_probs, np.array(path)), rel=1e-12)


@pytest.mark.parametrize(("target", "named"), [([1, 4], 4), ([-1], -1), ([2, 3, 1], 3)])
def test_symbols_that_the_model_lacks_are_refused(target: list[int], named: int) -> None:
    message = f"has symbol {named}; the model's run from 0 to 3, and 3 is the blank: is this the model's own tokenizer"
    with pytest.raises(InputError, match=message):
        forced_path(drawn(9), target, blank=3)


# Transcripts


def test_spans_of_a_planted_transcript() -> None:
    timing = Timing(rate=1000, stride=7, receptive_field=10)
    path = [0, 1, 1, 0, 2, 3, 3, 1, 0, 1]
    log_probs = saying(path)
    spoken = align_transcript(log_probs, [("A", 1), ("B", 2), (" ", 3), ("A", 1), ("A", 1)], 0, timing)
    assert [(span.text, span.frames) for span in spoken.characters] == [
        ("A", range(1, 3)),
        ("B", range(4, 5)),
        (" ", range(5, 7)),
        ("A", range(7, 8)),
        ("A", range(9, 10)),
    ]
    assert [(span.text, span.frames) for span in spoken.words] == [("AB", range(1, 5)), ("AA", range(7, 10))]
    # Frame i stands for the samples from 7 i + 1.5 to 7 i + 8.5.
    assert [(word.start, word.end) for word in spoken.words] == [(0.0085, 0.0365), (0.0505, 0.0715)]
    chances = np.exp(log_probs[range(10), path])
    assert [word.score for word in spoken.words] == pytest.approx([chances[[1, 2, 4]].mean(), chances[[7, 9]].mean()])
    assert [span.score for span in spoken.characters] == pytest.approx(
        [chances[1:3].mean(), chances[4], chances[5:7].mean(), chances[7], chances[9]]
    )
    assert spoken.log_probability == pytest.approx(np.log(chances).sum())


@pytest.mark.parametrize(
    ("text", "words"), [("AB", ["AB"]), (" A B ", ["A", "B"]), ("A  B", ["A", "B"]), (" ", []), ("AAB", ["AAB"])]
)
def test_words_are_what_lies_between_spaces(text: str, words: list[str]) -> None:
    target = [(character, " AB".index(character) + 1) for character in text]
    spoken = align_transcript(drawn(12), target, 0, Timing(16000, 320, 400))
    assert "".join(span.text for span in spoken.characters) == text
    assert [word.text for word in spoken.words] == words


@pytest.fixture(scope="module")
def model() -> HookedAudioEncoder:
    return tiny_speech()


LAYOUT_STRIDES = {
    "group norm, post-LN": (20, 28),
    "layer norm, pre-LN": (20, 28),
    "two convolutions, layer norm, post-LN, relu": (12, 19),
}


@pytest.mark.parametrize("path", [CLUBS, DISPOSED])
@pytest.mark.parametrize("layout", LAYOUT_STRIDES)
def test_what_holds_of_every_alignment(layout: str, path: Path) -> None:
    model = tiny_speech(layout=layout)
    wave, transcript = speech(path)[:9000], TRANSCRIPTS[path]
    spoken = model.align(wave, transcript)
    assert "".join(span.text for span in spoken.characters) == transcript
    assert [word.text for word in spoken.words] == transcript.split()
    stride, receptive_field = LAYOUT_STRIDES[layout]
    for span in spoken.characters + spoken.words:
        first, last = (Fraction(stride * frame + Fraction(receptive_field - stride, 2)) for frame in span_ends(span))
        assert (span.start, span.end) == (float(first / RATE), float(last / RATE))
        assert model.frames_of(span.start, span.end) == slice(span.frames.start, span.frames.stop)
        assert 0 <= span.score <= 1
    for spans in (spoken.characters, spoken.words):
        assert all(one.frames.stop <= other.frames.start and one.end <= other.start for one, other in pairwise(spans))
    assert spoken.characters[-1].frames.stop <= model(wave).shape[1]
    assert spoken.characters[-1].end <= len(wave) / RATE
    members = iter(spoken.characters)
    for word in spoken.words:
        characters = [next(members) for _ in word.text]
        next(members, None)  # the space
        assert (word.start, word.end) == (characters[0].start, characters[-1].end)
        weights = [len(span.frames) for span in characters]
        assert word.score == pytest.approx(np.average([span.score for span in characters], weights=weights))


def span_ends(span: AlignedSpan) -> tuple[int, int]:
    return span.frames.start, span.frames.stop


def test_the_probabilities_are_the_model_s_own(model: HookedAudioEncoder) -> None:
    wave, transcript = speech(CLUBS), TRANSCRIPTS[CLUBS]
    spoken = model.align(wave, transcript)
    logits = model(wave, return_type="logits")[0].detach()
    log_probs = logits.double().log_softmax(-1).numpy()
    target = ctc_tokenizer()(transcript).input_ids
    frames = [span.frames for span in spoken.characters]
    path = path_of(frames, target, 0, len(logits))
    assert spoken.log_probability == pytest.approx(probability(log_probs, np.array(path)), rel=1e-6)
    for span, symbol in zip(spoken.characters, target, strict=True):
        assert span.score == pytest.approx(np.exp(log_probs[list(span.frames), symbol]).mean(), rel=1e-5)
    with torch.no_grad():
        loss = model(wave, return_type="loss", labels=torch.tensor([target]))  # of all paths together
    assert float(loss) < -spoken.log_probability


# (word, its first frame, the frames of each letter, blanks after each letter)
SPOKEN = (("HELLO", 20, 3, 2), ("ALL", 61, 1, 1), ("OF", 100, 7, 0), ("YOU", 700, 20, 5))


def spoken_path(n_frames: int) -> list[int]:
    """Symbols at each frame: the planted words, and a delimiter in front of each but the first."""
    vocabulary = ctc_tokenizer().get_vocab()
    path = [0] * n_frames
    for word, first, length, pause in SPOKEN:
        for index, letter in enumerate(word):
            start = first + index * (length + pause)
            path[start : start + length] = [vocabulary[letter]] * length
        path[first - 1] = vocabulary["|"]
    path[SPOKEN[0][1] - 1] = 0
    return path


def planting(path: list[int]) -> list[tuple[str, Any]]:
    logits = torch.tensor(saying(path, 32)).float()[None]
    return [("ctc_head.hook_out", lambda tensor, hook: logits)]


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000, 22_050])
def test_a_planted_transcript_is_found_where_it_was_planted_at_every_sampling_rate(
    model: HookedAudioEncoder, rate: int
) -> None:
    wave = soxr.resample(speech(CLUBS), RATE, rate)
    path = spoken_path(model(wave, sampling_rate=rate).shape[1])
    with model.hooks(planting(path)):
        spoken = model.align(wave, "HELLO ALL OF YOU", sampling_rate=rate)
        assert model(wave, sampling_rate=rate, return_type="predictions") == "HELLO ALL OF YOU"
    ends = [first + len(word) * (length + pause) - pause for word, first, length, pause in SPOKEN]
    assert [(word.text, *span_ends(word)) for word in spoken.words] == [
        (word, first, end) for (word, first, _, _), end in zip(SPOKEN, ends, strict=True)
    ]
    assert [word.start for word in spoken.words] == [(20 * first + 4) / RATE for _, first, _, _ in SPOKEN]
    assert [word.end for word in spoken.words] == [(20 * end + 4) / RATE for end in ends]
    assert path_of([span.frames for span in spoken.characters], list(collapsed(path, 0)), 0, len(path)) == path
    assert min(word.score for word in spoken.words) > 0.99


def test_weights_that_spell_the_sound_are_aligned_with_it() -> None:
    # The head answers with A where the stream points along the way from noise to silence, and with B where it points back.
    wave = torch.cat([tiny_waves(8000)[0], torch.zeros(8000)])
    speller = tiny_speech(layout="layer norm, pre-LN")
    stream = speller(wave)[0]
    noise, silence = stream[:390].mean(0), stream[410:].mean(0)
    dense = speller.ctc_head.dense
    with torch.no_grad():
        dense.weight.zero_()
        dense.bias.fill_(-100.0)
        dense.weight[[7, 24]] = torch.stack([silence - noise, noise - silence])
        middle = (noise + silence) / 2 @ (silence - noise)
        dense.bias[[7, 24]] = torch.stack([-middle, middle])
    first, second = speller.align(wave, "BA").characters
    assert first.frames.start == 0
    assert first.end == second.start == pytest.approx(0.5, abs=0.005)


@pytest.mark.parametrize("rate", [32_000, 48_000])
def test_times_are_those_of_the_clip_whatever_its_sampling_rate(model: HookedAudioEncoder, rate: int) -> None:
    plain = model.align(speech(CLUBS), TRANSCRIPTS[CLUBS])
    other = model.align(soxr.resample(speech(CLUBS), RATE, rate), TRANSCRIPTS[CLUBS], sampling_rate=rate)
    assert [word.frames for word in other.words] == [word.frames for word in plain.words]
    assert [word.start for word in other.words] == [word.start for word in plain.words]
    assert other.log_probability == pytest.approx(plain.log_probability, rel=1e-2)


def test_spaces_around_and_between_words_do_not_matter(model: HookedAudioEncoder) -> None:
    wave = speech(CLUBS)
    assert model.align([wave], "  TEN\tOF\n CLUBS ") == model.align(torch.tensor(wave), "TEN OF CLUBS")


def test_a_tokenizer_of_lower_case_reads_lower_case(model: HookedAudioEncoder, tmp_path: Path) -> None:
    ctc_tokenizer().save_vocabulary(str(tmp_path))
    lower = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), do_lower_case=True)
    other = tiny_speech()
    other.processor = Wav2Vec2Processor(Wav2Vec2FeatureExtractor(return_attention_mask=False), lower)
    assert other.align(speech(CLUBS), "Ten of clubs") == model.align(speech(CLUBS), "TEN OF CLUBS")


def test_a_blank_that_is_not_the_first_symbol(tmp_path: Path) -> None:
    backwards = {symbol: 31 - index for symbol, index in ctc_tokenizer().get_vocab().items()}
    (tmp_path / "vocab.json").write_text(json.dumps(backwards))
    with_tokenizer = Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json")))
    hf_model = tiny_hf("HubertForCTC", pad_token_id=31)
    other = HookedAudioEncoder.from_pretrained(hf_model=hf_model, processor=with_tokenizer, device="cpu")
    path = [31 - symbol for symbol in spoken_path(875)]
    with other.hooks(planting(path)):
        assert other(speech(CLUBS)[:17_508], return_type="predictions") == "HELLO ALL OF YOU"
        spoken = other.align(speech(CLUBS)[:17_508], "HELLO ALL OF YOU")
    frames = [span.frames for span in spoken.characters]
    assert path_of(frames, list(collapsed(path, 31)), 31, len(path)) == path


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    half = HookedAudioEncoder.from_pretrained(
        hf_model=tiny_hf("HubertForCTC"), processor=processor(masks=False), device="cpu", dtype=dtype
    )
    spoken = half.align(speech(CLUBS), "TEN OF CLUBS")
    assert [word.text for word in spoken.words] == ["TEN", "OF", "CLUBS"]
    assert np.isfinite(spoken.log_probability)
    assert all(0 <= span.score <= 1 for span in spoken.characters)


# What is refused


@pytest.mark.parametrize("transcript", ["", "   ", "\n\t", None, ["TEN", "OF"], 3])
def test_an_empty_transcript_is_refused(model: HookedAudioEncoder, unchecked: None, transcript: Any) -> None:
    with pytest.raises(InputError, match=r"the transcript is .*; give what is said in the clip"):
        model.align(speech(CLUBS), transcript)


@pytest.mark.parametrize(
    ("transcript", "missing"),
    [("ten", "'e', 'n', 't'"), ("TEN OF CLÜBS", "'Ü'"), ("TEN, OF", "','"), ("A<pad>B", "'<pad>'"), ("A<unk>", "'<unk>'")],
)
def test_characters_that_the_tokenizer_lacks_are_named(model: HookedAudioEncoder, transcript: str, missing: str) -> None:
    has = " ".join("'ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    with pytest.raises(InputError, match=f"^the transcript has {missing}, which the tokenizer lacks; it has {has}$"):
        model.align(speech(CLUBS), transcript)


def test_a_clip_too_short_for_the_transcript_is_refused(model: HookedAudioEncoder) -> None:
    letters = len(TRANSCRIPTS[AMIABLE])
    needed = letters + 1  # a blank in BEEN
    wave = speech(AMIABLE)[: 28 + 20 * (needed - 2)]
    with pytest.raises(InputError, match=f"the transcript needs {needed} frames, and the clip has {needed - 1}$"):
        model.align(wave, TRANSCRIPTS[AMIABLE])
    longer = speech(AMIABLE)[: 28 + 20 * (needed - 1)]
    assert [len(span.frames) for span in model.align(longer, TRANSCRIPTS[AMIABLE]).characters] == [1] * letters


def test_one_waveform_at_a_time(model: HookedAudioEncoder) -> None:
    clips: list[Any] = [tiny_waves(500, 700), torch.zeros(2, 500), torch.zeros(1, 30, 24)]
    for clip in (*clips, model.prepare(tiny_waves(500, 700)), (torch.zeros(1, 30, 24), torch.ones(1, 30))):
        with pytest.raises(InputError, match="align takes one waveform at a time"):
            model.align(clip, "A")


def test_what_align_needs_of_the_model() -> None:
    with pytest.raises(TaskError, match=r"align needs a CTC head; the heads of .*: sequence_classification$"):
        tiny_speech("HubertForSequenceClassification").align(speech(CLUBS), "TEN")
    with pytest.raises(TaskError, match=r"the heads of .*: none$"):
        tiny_speech("HubertModel").align(speech(CLUBS), "TEN")
    model = tiny_speech()
    model.processor = Wav2Vec2FeatureExtractor()
    with pytest.raises(TokenizerMissingError, match=r"set model.processor to a Wav2Vec2Processor"):
        model.align(speech(CLUBS), "TEN")


def test_a_tokenizer_of_another_kind_is_refused(tokenizer: Any) -> None:
    model = tiny_speech()
    model.processor = Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), tokenizer)
    with pytest.raises(InputError, match="a Wav2Vec2CTCTokenizer or a Wav2Vec2PhonemeCTCTokenizer, not a BertTokenizer"):
        model.align(speech(CLUBS), "TEN")


def test_a_tokenizer_with_more_symbols_than_the_model_is_refused(tmp_path: Path) -> None:
    model, more = tiny_speech(), processor(masks=False)
    ctc_tokenizer().save_pretrained(tmp_path)
    more.tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(tmp_path)
    more.tokenizer.add_tokens(["É"])
    model.processor = more
    with pytest.raises(InputError, match="has symbol 32; the model's run from 0 to 31, and 0 is the blank"):
        model.align(speech(CLUBS), "ÉTÉ")


@pytest.mark.parametrize("task", ["ctc", None])
def test_the_task_stays_and_gradients_are_off(task: str | None) -> None:
    model = tiny_speech()
    model.task = task
    seen: list[bool] = []
    with model.hooks([("ctc_head.hook_out", lambda tensor, hook: seen.append(tensor.requires_grad))]):
        model.align(speech(CLUBS), "TEN")
    assert seen == [False]
    assert model.task == task
    with pytest.raises(InputError, match="the transcript needs"):
        model.align(tiny_waves(28)[0], "TEN")
    assert model.task == task


def test_a_hook_that_fails_leaves_the_task() -> None:
    model = tiny_speech()
    model.task = None

    def failing(tensor: torch.Tensor, hook: Any) -> None:
        raise RuntimeError("stop here")

    with model.hooks([("ctc_head.hook_out", failing)]), pytest.raises(RuntimeError, match="stop here"):
        model.align(speech(CLUBS), "TEN")
    assert model.task is None


def test_padding_of_a_prepared_clip_is_left_out() -> None:
    model = tiny_speech("HubertForCTC", "layer norm, pre-LN")
    wave = torch.from_numpy(speech(CLUBS))
    padded, mask = torch.zeros(1, len(wave) + 9000), torch.zeros(1, len(wave) + 9000)
    padded[0, : len(wave)], mask[0, : len(wave)] = wave, 1
    found, alone = model.align(model.prepare(padded, mask), TRANSCRIPTS[CLUBS]), model.align(wave, TRANSCRIPTS[CLUBS])
    assert [span.frames for span in found.characters] == [span.frames for span in alone.characters]
    assert found.log_probability == pytest.approx(alone.log_probability, rel=1e-4)


def test_in_training_mode_nothing_is_aligned() -> None:
    with pytest.raises(AnalysisError, match="training mode"):
        tiny_speech().train().align(speech(CLUBS), TRANSCRIPTS[CLUBS])


def test_special_symbols_are_no_transcript() -> None:
    with pytest.raises(InputError, match=r"has '<s>', which the tokenizer lacks"):
        tiny_speech().align(speech(CLUBS), "<s> TEN")
