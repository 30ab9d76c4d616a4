"""Whatever goes in: an error of ours, or a finite output of the right shape. ``make fuzz`` tries many more inputs."""

import os
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import numpy as np
import soundfile
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2PhonemeCTCTokenizer, Wav2Vec2Processor

from encoderlens import HookedAudioEncoder
from encoderlens.audio import read_audio
from encoderlens.errors import EncoderLensError
from tests.speech import HUBERT_LAYOUTS, LAYOUTS, ctc_tokenizer, tokenizer_of
from tests.tiny import tiny_hf

FUZZ = settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))
# Besides the usual ones: a single convolution, of which a short clip is a single frame.
SHAPES: dict[str, dict[str, Any]] = {
    **LAYOUTS,
    **HUBERT_LAYOUTS,
    "one convolution": {"conv_dim": (9,), "conv_kernel": (8,), "conv_stride": (5,)},
}
TAME_DTYPES = ("float32", "float64", "float16", ">f4", "int16", "int32")
WILD_DTYPES = (">f8", ">i2", "int8", "uint8", "uint16", "int64", "uint64", "bool", "complex64", "longdouble", "U1", "O")
TAME_RATES = (16_000, 16_000, 8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 1_000, 15_999.5, np.float32(32_000))
WILD_RATES = (0, -1, 16, 1_000_000, 1e7, float("nan"), float("inf"), "16k", None, True)
TAME_SCALES = (1.0, 0.1, 1e-3, 0.0, 1e-42, 3e4)
WILD_SCALES = (1e-300, 2.0**31, 4e9, 1e10, 1e20, 1e30, 3.4e38, 1e160, 1.7e308)
SPECIAL = (float("nan"), float("inf"), -float("inf"), 3.4e38, -1.7e308, 5e-324, 0.0)
PADDINGS = st.sampled_from(["batch", "independent"])
NOTHING: tuple[Any, ...] = (
    *(None, "a clip", "\0", "\udc80", b"clip", 0.5, 7, True, 10**400, {}, [], object(), range(900)),
    *([0.1, 0.2], [1, 2], [0.1, 1], np.ma.masked_array(np.zeros(900))),
    *(torch.zeros(900).to_sparse(), torch.zeros(900, device="meta")),
    torch.nested.nested_tensor([torch.zeros(900)], layout=torch.jagged),
)


@cache
def loaded(shape: str, dtype: torch.dtype) -> HookedAudioEncoder:
    return HookedAudioEncoder.from_pretrained(hf_model=tiny_hf("HubertForCTC", **SHAPES[shape]), device="cpu", dtype=dtype)


@cache
def processing(normalizes: bool, masks: bool, padding: float) -> Any:
    extractor = Wav2Vec2FeatureExtractor(do_normalize=normalizes, return_attention_mask=masks, padding_value=padding)
    return Wav2Vec2Processor(extractor, ctc_tokenizer())


SQUARE = np.where(np.arange(300) // 7 % 2, 0.25, -0.5)


@cache
def short_file() -> Path:
    """SQUARE, as an audio file."""
    path = Path(mkdtemp()) / "square.wav"
    soundfile.write(path, SQUARE, 16_000)
    return path


def n_samples(clip: Any) -> int:
    """How many samples a clip has, in whatever form it is given."""
    return max(np.shape(read_audio(clip)[0] if isinstance(clip, str | Path) else clip))


DRAWN_MODELS = st.fixed_dictionaries(
    {
        "shape": st.sampled_from(list(SHAPES)),
        "dtype": st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16]),
        "normalizes": st.booleans(),
        "masks": st.booleans(),
        "padding": st.sampled_from([0.0, 0.0, -1.0]),
    }
)


def model_of(drawn: dict[str, Any]) -> HookedAudioEncoder:
    """A tiny model of a drawn layout and dtype, with a drawn processor."""
    model = loaded(drawn["shape"], drawn["dtype"])
    model.processor = processing(drawn["normalizes"], drawn["masks"], drawn["padding"])
    return model


def among(tame: tuple[Any, ...], wild: tuple[Any, ...], is_wild: bool) -> st.SearchStrategy[Any]:
    """Of what a user should give, or else of everything."""
    return st.sampled_from(tame) | st.sampled_from(wild) if is_wild else st.sampled_from(tame)


@st.composite
def values(draw: st.DrawFn, shape: tuple[int, ...], wild: bool) -> Any:
    """An array or a tensor of a drawn dtype: noise, a constant or a square wave of a drawn size, with a few odd values."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    size = int(np.prod(shape))
    form = {
        "noise": rng.uniform(-1, 1, size),
        "constant": np.full(size, -0.7),
        "square": np.where(np.arange(size) // 7 % 2, 1.0, -1.0),
        "impulse": np.eye(1, max(size, 1), size // 2)[0, :size],
    }[draw(st.sampled_from(["noise", "noise", "constant", "square", "impulse"]))]
    drawn = form * draw(among(TAME_SCALES, WILD_SCALES, wild))
    if wild and size and draw(st.booleans()):
        drawn[draw(st.integers(0, size - 1))] = draw(st.sampled_from(SPECIAL))
    with np.errstate(all="ignore"):
        array = drawn.astype(draw(among(TAME_DTYPES, WILD_DTYPES, wild))).reshape(shape)
    return draw(given_as(array))


@st.composite
def given_as(draw: st.DrawFn, array: np.ndarray) -> Any:
    """The array as it is, through a view, read-only, or as a tensor where there are tensors of such a kind."""
    way = draw(st.sampled_from(["array", "reversed", "read-only", "tensor", "with gradients"]))
    if way == "reversed" and array.ndim:
        return array[..., ::-1]
    if way == "read-only":
        array.flags.writeable = False
    if way not in ("tensor", "with gradients") or array.dtype.char in "gUO" or not array.dtype.isnative:
        return array
    tensor = torch.from_numpy(array)
    return tensor.requires_grad_(way == "with gradients" and tensor.is_floating_point())


@st.composite
def clips(draw: st.DrawFn, wild: bool) -> Any:
    """One waveform, several, or what is none."""
    lengths = st.integers(30, 90) | st.integers(200, 700)
    lengths, counts = (lengths | st.integers(0, 40), st.integers(0, 3)) if wild else (lengths, st.integers(1, 3))
    way = draw(st.sampled_from(["one", "batch", "list", "list", "tuple", "stereo", "odd"][: 7 if wild else 6]))
    if way == "one":
        return draw(values((draw(lengths),), wild))
    if way == "batch":
        return draw(values((draw(counts), draw(lengths)), wild))
    if way == "stereo":
        shape = (draw(counts), draw(lengths))
        return [draw(values(shape if draw(st.booleans()) else shape[::-1], wild))]
    if way == "odd":
        shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
        nothing = st.sampled_from([*NOTHING, *([thing] for thing in NOTHING)])
        return draw(nothing | values(draw(shapes), wild))
    items = [draw(values((draw(lengths),), wild)) for _ in range(draw(counts))]
    if items and draw(st.booleans()):
        items[0] = draw(st.sampled_from([short_file(), str(short_file()), SQUARE.tolist()]))
    return items if way == "list" else tuple(items)


@st.composite
def masks(draw: st.DrawFn, batch: int, sizes: tuple[int, ...]) -> Any:
    """None, or ones and zeros, mostly of a fitting shape."""
    if draw(st.booleans()):
        return None
    size = draw(st.sampled_from(sizes))
    mask = np.arange(size) < draw(st.integers(0, size + 1))
    if draw(st.integers(0, 5)) == 0:
        mask = ~mask
    rows = np.repeat(mask[None], draw(st.sampled_from([batch, batch, batch, 1, 2])), 0)
    kinds = st.sampled_from(["int64", "bool", "bool", "float32", "uint8", ">i4", "int8", "O", "U1"])
    return draw(given_as(rows.astype(draw(kinds))))


def runs(model: HookedAudioEncoder, inputs: Any, **options: Any) -> bool:
    """Whether it is run to the end, every number finite and as many as there should be, or refused in our own words."""
    try:
        batch = model.prepare(inputs, **options)
        hidden = model(inputs, **options)
        logits = model(batch, return_type="logits")
    except EncoderLensError as error:
        event(type(error).__name__)
        return False
    event("ran")
    shape = (batch.sequence.batch, batch.sequence.pos)
    assert hidden.shape == (*shape, model.cfg.d_model)
    assert logits.shape == (*shape, 32)
    assert hidden.dtype == logits.dtype == model.cfg.dtype
    assert hidden.isfinite().all()
    assert logits.isfinite().all()
    transcripts = model(batch, return_type="predictions")
    assert isinstance(transcripts, str) if batch.single else len(transcripts) == shape[0]
    return True


@given(st.data(), st.booleans())
@FUZZ
def test_clips(data: st.DataObject, wild: bool) -> None:
    model, inputs = model_of(data.draw(DRAWN_MODELS)), data.draw(clips(wild))
    rate, padding = data.draw(among(TAME_RATES, WILD_RATES, wild)), data.draw(PADDINGS)
    if not runs(model, inputs, sampling_rate=rate, padding=padding):
        return
    frames, mask = model.to_frames(inputs, rate, padding=padding)
    assert frames.isfinite().all()
    assert frames.shape == (*mask.shape, model.cfg.d_model)
    if rate == 16_000:
        counts = model.frame_lengths([n_samples(clip) for clip in ([inputs] if model.prepare(inputs).single else inputs)])
        assert mask.shape == (len(counts), counts.max())
        assert torch.equal(mask.sum(1), counts) or (padding == "batch" and mask.all())


@given(st.data(), st.booleans())
@FUZZ
def test_clips_with_masks(data: st.DataObject, wild: bool) -> None:
    model = model_of(data.draw(DRAWN_MODELS))
    batch, length = data.draw(st.integers(1, 3)), data.draw(st.integers(60, 120))
    inputs = data.draw(values((batch, length), wild=False))
    n_frames = int(model.frame_lengths(length))
    mask = data.draw(masks(batch, (n_frames, length, n_frames + 1) if wild else (n_frames, length)))
    spans = data.draw(masks(batch, (n_frames,)))
    runs(model, inputs, one_zero_attention_mask=mask, mask_time_indices=spans, padding=data.draw(PADDINGS))


@given(st.data(), st.booleans())
@FUZZ
def test_frames(data: st.DataObject, wild: bool) -> None:
    model = model_of(data.draw(DRAWN_MODELS))
    width = data.draw(st.sampled_from([model.cfg.d_model] * 4 + [7])) if wild else model.cfg.d_model
    sizes = st.integers(0, 2) if wild else st.integers(1, 3)
    batch, pos = data.draw(sizes), data.draw(sizes | st.integers(1, 30))
    frames, inside = data.draw(values((batch, pos, width), wild)), data.draw(masks(batch, (pos, pos, pos, pos + 1)))
    inputs = (frames, inside) if data.draw(st.booleans()) else frames
    beside = data.draw(masks(batch, (pos,))) if wild else None
    runs(model, inputs, one_zero_attention_mask=beside, padding=data.draw(PADDINGS))


WORDS = st.lists(st.lists(st.integers(0, 13), min_size=1, max_size=4), min_size=1, max_size=4)
OPTIONS: tuple[tuple[Any, dict[str, Any]], ...] = (
    (Wav2Vec2CTCTokenizer, {}),
    (Wav2Vec2CTCTokenizer, {"do_lower_case": True}),
    (Wav2Vec2CTCTokenizer, {"word_delimiter_token": None}),
    (Wav2Vec2CTCTokenizer, {"unk_token": None}),
    (Wav2Vec2PhonemeCTCTokenizer, {}),
    (Wav2Vec2PhonemeCTCTokenizer, {"word_delimiter_token": "|", "unk_token": None}),
)


@given(st.data(), st.lists(st.text("ABCDEFGH", min_size=2, max_size=3), min_size=6, max_size=6, unique=True), WORDS)
@FUZZ
def test_transcripts(data: st.DataObject, longer: list[str], spoken: list[list[int]]) -> None:
    model, (kind, options) = model_of(data.draw(DRAWN_MODELS)), data.draw(st.sampled_from(OPTIONS))
    symbols = [*"ABCDEFGH", *longer]
    with TemporaryDirectory() as folder:
        specials = ["<pad>", *(["|"] if data.draw(st.booleans()) else [])]
        tokenizer = tokenizer_of([*specials, *symbols], Path(folder), kind, **options)
    model.processor = Wav2Vec2Processor(model.processor.feature_extractor, tokenizer)
    phonemes = kind is Wav2Vec2PhonemeCTCTokenizer
    words = [[symbols[number] for number in word] for word in spoken]
    between = data.draw(st.sampled_from(["|", " | ", "\n|"] if phonemes else [" ", "  ", "|", "\n", " | "]))
    transcript = between.join((" " if phonemes else "").join(word) for word in words)
    if "do_lower_case" in options:
        transcript = transcript.lower()
    wave = data.draw(values((data.draw(st.integers(400, 800)),), wild=False))
    unknown = data.draw(st.sampled_from(["", "", "", "é", "\udc80", "<pad>", "7"]))
    try:
        alignment = model.align(wave, transcript + unknown)
    except EncoderLensError as error:
        event(type(error).__name__)
        refused = str(error)
    else:
        event("ran")
        refused = ""
    if refused:
        loud = model.cfg.dtype == torch.float16 and max(map(abs, wave.tolist())) > 16
        assert unknown or "the transcript needs" in refused or (loud and "too large for float16" in refused)
        return
    assert not unknown
    assert [word.text for word in alignment.words] == ["".join(word) for word in words]
    spans = [span.frames for span in alignment.characters]
    assert all(one.stop <= other.start for one, other in pairwise(spans))
    characters = [span for span in alignment.characters if span.text != " "]
    assert "".join(span.text for span in characters) == "".join(map("".join, words))
    assert {word.frames.start for word in alignment.words} <= {span.frames.start for span in characters}
    assert all(0 <= span.score <= 1 for span in (*alignment.characters, *alignment.words))


@given(st.data())
@FUZZ
def test_labels(data: st.DataObject) -> None:
    model = model_of(data.draw(DRAWN_MODELS))
    inputs = [np.sin(np.arange(data.draw(st.integers(60, 200))) / 3.0) for _ in range(data.draw(st.integers(1, 3)))]
    symbols = st.integers(0, 31) | st.sampled_from([-100, -100, -1, 32, 127])
    size = data.draw(st.integers(0, 6))
    rows = data.draw(st.lists(st.lists(symbols, min_size=size, max_size=size), min_size=len(inputs), max_size=len(inputs)))
    kinds = st.sampled_from([torch.int64, torch.int64, torch.int32, torch.int16, torch.int8, torch.bool, torch.float32])
    labels = torch.tensor(rows).reshape(len(rows), size).to(data.draw(kinds))
    try:
        loss = model(inputs, return_type="loss", labels=labels)
    except EncoderLensError as error:
        event(type(error).__name__)
        return
    event("ran")
    assert loss.shape == ()
    assert loss.isfinite()
    assert loss > -1e-6
