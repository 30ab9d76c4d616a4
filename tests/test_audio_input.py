"""Inputs of HookedAudioEncoder: clips and frames of every form, rates, masks, return types, time, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Wav2Vec2FeatureExtractor

from encoderlens import HookedAudioEncoder
from encoderlens.audio import read_audio
from encoderlens.config import FrontendPart, ProjectionPart
from encoderlens.errors import (
    ConfigError,
    GradientError,
    HookUnreachableError,
    InputError,
    TaskError,
    TokenizerMissingError,
)
from tests.parity import GRADIENT, assert_changed, assert_parity
from tests.speech import AMIABLE, CLUBS, DISPOSED, LAYOUTS, RATE, processor, speech, tiny_speech
from tests.tiny import tiny_hf

CLIP = speech(CLUBS)[3000:4200]
OTHER = speech(AMIABLE)[9000:9740]
CLIPS = [CLIP, OTHER, CLIP[200:1000]]
GROUP, LAYER = "group norm, post-LN", "layer norm, pre-LN"  # the first without, the second with masked padding
N_FRAMES = 59  # of CLIP


@pytest.fixture(scope="module")
def plain() -> HookedAudioEncoder:
    """Without normalisation, so that a scale shows."""
    return with_extractor(GROUP, do_normalize=False)


@pytest.fixture(scope="module")
def models() -> dict[str, HookedAudioEncoder]:
    return {layout: tiny_speech(layout=layout) for layout in (GROUP, LAYER)}


@pytest.fixture(params=[GROUP, LAYER])
def model(request: pytest.FixtureRequest, models: dict[str, HookedAudioEncoder]) -> HookedAudioEncoder:
    return models[request.param]


@pytest.fixture
def group(models: dict[str, HookedAudioEncoder]) -> HookedAudioEncoder:
    return models[GROUP]


@pytest.fixture
def layer(models: dict[str, HookedAudioEncoder]) -> HookedAudioEncoder:
    return models[LAYER]


def with_extractor(layout: str, **options: Any) -> HookedAudioEncoder:
    """A tiny model whose feature extractor has these options."""
    model = tiny_speech(layout=layout)
    model.processor = Wav2Vec2FeatureExtractor(**({"return_attention_mask": False} | options))
    return model


def hf_batch(model: HookedAudioEncoder, clips: list[np.ndarray], **options: Any) -> dict[str, torch.Tensor]:
    """What Hugging Face's own processor makes of clips."""
    extractor = getattr(model.processor, "feature_extractor", model.processor)
    return dict(extractor(clips, sampling_rate=RATE, padding=True, return_tensors="pt", **options))


def frames_of_samples(model: HookedAudioEncoder, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The mask over frames that goes with what a processor made: ones without its mask."""
    values = batch["input_values"]
    mask = batch.get("attention_mask", torch.ones_like(values))
    lengths = model.frame_lengths(mask.sum(1).long())
    return (torch.arange(model.frame_lengths(values.shape[1]).item()) < lengths[:, None]).long()


# Clips

FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "tensor": torch.from_numpy,
    "float64": lambda x: x.astype(np.float64),
    "float64 tensor": lambda x: torch.from_numpy(x).double(),
    "int16": lambda x: (x * 2**15).astype(np.int16),
    "int16 tensor": lambda x: (torch.from_numpy(x) * 2**15).short(),
    "int32": lambda x: (x.astype(np.float64) * 2**31).astype(np.int32),
    "int32 tensor": lambda x: (torch.from_numpy(x).double() * 2**31).int(),
    "big-endian": lambda x: x.astype(">f4"),
    "big-endian float64": lambda x: x.astype(">f8"),
    "big-endian int16": lambda x: (x * 2**15).astype(">i2"),
    "every second of an array": lambda x: np.repeat(x, 2)[::2],
    "a column": lambda x: np.stack([x, -x], 1)[:, 0],
    "every second of a tensor": lambda x: torch.from_numpy(np.repeat(x, 2))[::2],
    "negative stride": lambda x: x[::-1].copy()[::-1],
    "memory map": lambda x: np.frombuffer(x.tobytes(), np.float32),  # read-only
    "read-only column": lambda x: np.broadcast_to(x[:, None], (len(x), 2))[:, 1],
    "unaligned": lambda x: np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32),
    "tensor with gradients": lambda x: torch.from_numpy(x).requires_grad_(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_waveform_gives_what_float32_gives(plain: HookedAudioEncoder, form: str) -> None:
    expected = plain(CLIP)
    assert expected.shape == (1, N_FRAMES, 24)
    given = FORMS[form](CLIP)
    assert torch.equal(plain(given), expected)
    assert torch.equal(plain([given]), expected)


def test_a_list_of_floats_is_one_waveform(model: HookedAudioEncoder) -> None:
    expected, other = model(CLIP.astype(np.float64)), model(OTHER.astype(np.float64))
    for floats in (CLIP.tolist(), tuple(CLIP.tolist()), list(CLIP)):
        assert torch.equal(model(floats), expected)
        assert isinstance(model(floats, return_type="predictions"), str)
    together = model([CLIP.tolist(), torch.from_numpy(OTHER)], padding="independent")
    assert_parity(together[0], expected[0])
    assert_parity(together[1, : other.shape[1]], other[0])
    assert len(model([CLIP.tolist()], return_type="predictions")) == 1


@pytest.mark.parametrize("halved", [CLIP.astype(np.float16), torch.from_numpy(CLIP).half(), torch.from_numpy(CLIP).bfloat16()])
def test_half_precision_waveforms_are_their_values_in_float32(group: HookedAudioEncoder, halved: Any) -> None:
    values = torch.as_tensor(halved).float()
    assert torch.equal(group(halved), group(values))
    assert not torch.equal(values, torch.from_numpy(CLIP))


def test_the_input_is_left_as_it_was(model: HookedAudioEncoder) -> None:
    given, frames = [CLIP.copy(), torch.from_numpy(OTHER.copy())], model.to_frames(CLIP)[0]
    kept = frames.clone()
    model(given)
    model(frames, torch.arange(N_FRAMES) < 20)
    assert np.array_equal(given[0], CLIP)
    assert np.array_equal(given[1], OTHER)
    assert torch.equal(frames, kept)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_list_of_uneven_clips_is_what_the_processor_makes_of_it(layout: str) -> None:
    model, hf_model = tiny_speech(layout=layout), tiny_hf("HubertForCTC", **LAYOUTS[layout])
    batch = hf_batch(model, CLIPS)
    with torch.no_grad():
        ours = model(CLIPS, return_type="logits")
        theirs = hf_model(**batch).logits
    assert_parity(ours, theirs, frames_of_samples(model, batch))


def test_a_tuple_is_a_list_and_items_may_differ_in_form(model: HookedAudioEncoder) -> None:
    expected = model(CLIPS)
    assert torch.equal(model(tuple(CLIPS)), expected)
    assert torch.equal(model((CLIP, OTHER)), model([CLIP, OTHER]))
    mixed = [torch.from_numpy(CLIP).double(), (OTHER * 2**15).astype(">i2"), CLIPS[2][::-1].copy()[::-1]]
    assert_parity(model(mixed), expected, tolerance=1e-6)


@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy, lambda x: (torch.from_numpy(x) * 2**15).short()])
def test_a_bare_matrix_is_a_batch(model: HookedAudioEncoder, form: Any) -> None:
    rows = np.stack([CLIP[:700], OTHER[:700]])
    assert_parity(model(form(rows)), torch.cat([model(row) for row in rows]))
    assert_parity(model(form(rows[:1])), model(rows[0]))


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_channels_of_an_item_are_averaged(model: HookedAudioEncoder, channels: int) -> None:
    stereo = np.stack([CLIP, -0.4 * CLIP[::-1], 0.1 + 0 * CLIP][:channels])
    expected = model([stereo.mean(0), OTHER])
    assert_parity(model([stereo, OTHER]), expected)
    assert_parity(model([stereo.T, torch.from_numpy(OTHER)]), expected)
    assert_parity(model([torch.from_numpy(stereo.T.astype(np.float64)), OTHER]), expected)
    integers = (stereo * 2**15).astype(np.int16)
    assert_parity(model([integers, OTHER]), model([(integers / 2**15).mean(0), OTHER]))


def test_clips_that_are_read_from_a_file_and_prepared_are_run_as_they_are(model: HookedAudioEncoder) -> None:
    samples, rate = read_audio(CLUBS)
    batch = model.prepare([samples[:1600], OTHER], sampling_rate=rate)
    assert batch.sequence.batch == 2
    assert batch.labels == ("0", "1")
    assert batch.position_labels[:2] == ("0 0.0009s", "1 0.0021s")
    for options in ({"return_type": "hidden"}, {"return_type": "logits"}, {"return_type": "predictions"}):
        ours, expected = model(batch, **options), model([samples[:1600], OTHER], **options)
        assert torch.equal(ours, expected) if isinstance(ours, torch.Tensor) else ours == expected
    assert torch.equal(model.prepare(batch).waves, batch.waves)
    part = batch.part(slice(1, 2))
    assert_parity(model(part)[:, :20], model(batch)[1:, :20])


# Frames


def test_frames_and_the_mask_over_them_give_what_the_clips_give(model: HookedAudioEncoder) -> None:
    frames, mask = model.to_frames(CLIPS)
    assert mask.dtype == torch.int64
    assert torch.equal(model((frames, mask)), model(CLIPS))
    assert torch.equal(model(frames, mask), model(CLIPS))
    assert torch.equal(model((frames, None), mask.bool()), model(CLIPS))
    assert_parity(model(frames[:1]), model(CLIPS[:1]))


def test_to_frames_says_which_frames_are_real(group: HookedAudioEncoder, layer: HookedAudioEncoder) -> None:
    lengths = group.frame_lengths([len(clip) for clip in CLIPS])
    assert lengths.tolist() == [59, 36, 39]
    real = (torch.arange(N_FRAMES) < lengths[:, None]).long()
    assert torch.equal(group.to_frames(CLIPS)[1], torch.ones(3, N_FRAMES, dtype=torch.long))
    assert torch.equal(group.to_frames(CLIPS, padding="independent")[1], real)
    assert torch.equal(layer.to_frames(CLIPS)[1], real)
    assert torch.equal(layer.to_frames(CLIP)[1], real[:1])


@pytest.mark.parametrize("layout", [*LAYOUTS, "no projection norm, batch norm, summed layers"])
def test_independent_frames_fed_back_give_each_clip_alone(layout: str) -> None:
    model = tiny_speech(layout=layout)
    frames, mask = model.to_frames(CLIPS, padding="independent")
    again = model((frames, mask), padding="independent")
    assert_parity(again, model(CLIPS, padding="independent"))
    for row, clip, real in zip(again, CLIPS, mask.bool(), strict=True):
        assert_parity(row[real], model(clip)[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_frames_are_those_of_hugging_face(layout: str) -> None:
    model, hf_model = tiny_speech(layout=layout), tiny_hf("HubertForCTC", **LAYOUTS[layout]).hubert
    values = hf_batch(model, CLIPS)["input_values"]
    assert_parity(model.to_frames(CLIPS)[0], hf_model.feature_projection(hf_model.feature_extractor(values).mT))


@pytest.mark.parametrize(
    "form", ["float64", "big-endian", "read-only", "negative stride", "every second of an array", "tensor with gradients"]
)
def test_frames_and_masks_as_arrays_of_every_form(model: HookedAudioEncoder, form: str) -> None:
    frames, _ = model.to_frames(CLIPS)
    mask = torch.ones(3, N_FRAMES, dtype=torch.long)
    mask[1, 30:] = mask[2, 39:] = 0
    forms: dict[str, Callable[[np.ndarray], Any]] = {
        "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
        "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
        "every second of an array": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        "tensor with gradients": lambda x: torch.from_numpy(x).float().requires_grad_(),
    }
    change = (FORMS | forms)[form]
    expected = model(frames, mask)
    assert torch.equal(model(change(frames.detach().numpy()), change(mask.numpy())), expected)
    samples = (torch.arange(len(CLIP)) < torch.tensor([[1200], [740]])).long()
    padded = np.stack([CLIP, np.pad(OTHER, (0, 460))])
    assert torch.equal(model(padded, change(samples.numpy())), model(padded, samples))


def test_encoder_output_is_the_final_stream(model: HookedAudioEncoder) -> None:
    frames, mask = model.to_frames(CLIPS, padding="independent")
    assert torch.equal(model.encoder_output(frames, mask), model(frames, mask, return_type="hidden"))
    assert torch.equal(model.encoder_output((frames, mask)), model(frames, mask))
    assert_changed(model.encoder_output(frames)[1, :20], model(frames, mask)[1, :20])


# Rates


@pytest.mark.parametrize("rate", [44_100, 8_000])
def test_a_clip_at_another_rate_is_the_same_clip(model: HookedAudioEncoder, rate: int) -> None:
    low = soxr.resample(speech(CLUBS), RATE, 8_000)  # so that every version has the same band
    expected, version = soxr.resample(low, 8_000, RATE), soxr.resample(low, 8_000, rate)
    frames, reference = model.to_frames(version, sampling_rate=rate)[0], model.to_frames(expected)[0]
    assert abs(frames.shape[1] - reference.shape[1]) <= 1
    shared = min(frames.shape[1], reference.shape[1])
    gap = (frames[:, :shared] - reference[:, :shared]).norm() / reference.norm()
    assert gap < 0.02
    unheard, _ = model.to_frames(version)  # as if it were at the model's rate
    assert (unheard[:, :400] - reference[:, :400]).norm() / reference[:, :400].norm() > 0.2


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050.0, np.int64(44_100), np.float32(48_000), 16_000.5])
def test_resampling_is_that_of_soxr(model: HookedAudioEncoder, rate: Any) -> None:
    at_rate = [soxr.resample(clip, float(rate), RATE) for clip in CLIPS]
    assert torch.equal(model(CLIPS, sampling_rate=rate), model(at_rate))
    assert torch.equal(model.to_frames(CLIPS, rate)[0], model.to_frames(at_rate)[0])
    assert model(CLIP, sampling_rate=rate, return_type="predictions") == model(at_rate[0], return_type="predictions")
    assert torch.equal(model(CLIP, sampling_rate=float(RATE)), model(CLIP))


def test_the_processor_says_the_models_rate() -> None:
    model = with_extractor(GROUP, sampling_rate=8_000)
    assert torch.equal(model(CLIP, sampling_rate=8_000), with_extractor(GROUP)(CLIP))
    assert torch.equal(model(CLIP), model(soxr.resample(CLIP, RATE, 8_000), sampling_rate=8_000))
    assert torch.equal(model.frame_times(5), 2 * with_extractor(GROUP).frame_times(5))
    with pytest.raises(InputError, match=r"clip 0 has 20 samples at 8000 Hz; one frame needs 28 \(3.5 ms\)"):
        model(CLIP[:20], sampling_rate=8_000)


# Gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_reach_the_waveform(model: HookedAudioEncoder, dtype: torch.dtype) -> None:
    model = HookedAudioEncoder.from_pretrained(hf_model=model.to_hf(), processor=model.processor, device="cpu", dtype=dtype)
    clips = [torch.from_numpy(clip).to(dtype).requires_grad_() for clip in CLIPS]
    (alone,) = torch.autograd.grad(model(clips[0]).square().sum(), clips[0])
    assert alone.dtype == dtype
    assert (alone != 0).float().mean() > 0.9
    together = torch.autograd.grad(model(clips, padding="independent")[0].square().sum(), clips, allow_unused=True)
    assert_parity(together[0], alone, tolerance=GRADIENT)
    assert all(other is None or not other.any() for other in together[1:])
    stereo = torch.stack([clips[0], clips[0]], 1).detach().requires_grad_()
    (of_channels,) = torch.autograd.grad(model([stereo]).square().sum(), stereo)
    assert_parity(of_channels.sum(1), alone, tolerance=GRADIENT)


def test_a_gradient_is_the_slope(layer: HookedAudioEncoder) -> None:
    model = HookedAudioEncoder.from_pretrained(hf_model=layer.to_hf(), device="cpu", dtype=torch.float64)
    clip = torch.from_numpy(CLIP[:300]).double().requires_grad_()
    direction = torch.randn(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.linspace(-1, 1, 24, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((model(clip) * weights).sum(), clip)
    with torch.no_grad():
        above, below = ((model(clip + step * direction) * weights).sum() for step in (1e-6, -1e-6))
    assert_parity((gradient * direction).sum(), (above - below) / 2e-6, tolerance=1e-5)


def test_gradients_reach_frames(model: HookedAudioEncoder) -> None:
    frames = model.to_frames(CLIP)[0].detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model(frames).square().sum(), frames)
    assert gradient.abs().amax(-1).min() > 0


def test_gradients_at_another_rate_are_refused(model: HookedAudioEncoder) -> None:
    clip = torch.from_numpy(CLIP).requires_grad_()
    with pytest.raises(GradientError, match=r"the waveform carries gradients at 8000 Hz.*16000 Hz would cut them: resample it"):
        model(clip, sampling_rate=8000)
    with pytest.raises(GradientError, match="clip 1 carries gradients"):
        model([OTHER, clip], sampling_rate=44_100)
    assert model(clip.detach(), sampling_rate=8000).isfinite().all()


# Masks


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32, np.bool_, np.int8, np.float64])
def test_a_mask_over_frames_is_read_in_every_dtype(model: HookedAudioEncoder, kind: Any) -> None:
    mask = torch.arange(N_FRAMES) < torch.tensor([[59], [20]])
    given = mask.to(kind) if isinstance(kind, torch.dtype) else mask.numpy().astype(kind)
    clips = np.stack([CLIP, CLIP[::-1]])
    masked = model(clips, given)
    assert_parity(masked, model((model.to_frames(clips)[0], mask)))
    assert_parity(masked[0], model(clips)[0])
    assert_changed(masked[1, :20], model(clips)[1, :20])


def test_a_mask_over_frames_may_have_holes_and_one_row(model: HookedAudioEncoder) -> None:
    mask = torch.ones(N_FRAMES, dtype=torch.long)
    mask[10:20] = 0
    frames, _ = model.to_frames(CLIP)
    changed = frames.clone()
    changed[:, 10:20] = 9.0
    for form in (mask, mask[None], mask.numpy(), mask[None].numpy()):
        assert_parity(model(CLIP, form), model(changed, mask), mask[None])
    assert_changed(model(CLIP, mask), model(CLIP))


@pytest.mark.parametrize("normalizes", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_mask_over_samples_is_the_padding_of_the_shorter_clip(layout: str, normalizes: bool) -> None:
    model, hf_model = with_extractor(layout, do_normalize=normalizes), tiny_hf("HubertForCTC", **LAYOUTS[layout])
    generator = np.random.default_rng(0)
    padded = np.stack([CLIP, np.concatenate([OTHER, generator.normal(size=460)])]).astype(np.float32)
    mask = torch.arange(1200) < torch.tensor([[1200], [740]])
    batch = hf_batch(model, [CLIP, OTHER], return_attention_mask=True)
    assert torch.equal(batch["attention_mask"], mask.int())
    prepared = model.prepare(padded, mask)
    assert_parity(prepared.waves, batch["input_values"])
    with torch.no_grad():
        theirs = hf_model(**batch).logits
        for ours in (model(padded, mask, return_type="logits"), model([CLIP, OTHER], mask.numpy(), return_type="logits")):
            assert_parity(ours, theirs, frames_of_samples(model, batch))


def test_a_mask_over_the_samples_of_one_clip(model: HookedAudioEncoder) -> None:
    padded = np.concatenate([OTHER, CLIP[:460]])
    mask = torch.arange(1200) < 740
    expected = model(OTHER)
    n_frames = expected.shape[1]
    for form in (mask, mask[None], mask.numpy(), mask.int()[None].numpy()):
        assert_parity(model(padded, form, padding="independent")[:, :n_frames], expected)
    assert torch.equal(model(padded, torch.ones(1200)), model(padded))


@pytest.mark.parametrize(
    ("inputs", "mask", "message"),
    [
        (CLIPS, torch.ones(3, 58), r"mask has shape \[3, 58\]; the clips have frames \[3, 59\]"),
        (CLIPS, torch.ones(2, 59), r"mask has shape \[2, 59\]; the clips have frames \[3, 59\]"),
        (CLIPS, torch.ones(59), r"mask has shape \[1, 59\]; the clips have frames \[3, 59\]"),
        (CLIPS, torch.ones(3, 59, 1), r"mask has shape \[3, 59, 1\]"),
        (CLIP, torch.ones(1199), r"mask has shape \[1, 1199\]; the clips have frames \[1, 59\]"),
        (CLIP, torch.full((1, 59), 0.5), "holds 1 .or True. and 0, and nothing else"),
        (CLIP, torch.full((1, 59), float("nan")), "holds 1 .or True. and 0, and nothing else"),
        (CLIP, -torch.ones(1, 1200, dtype=torch.long), "holds 1 .or True. and 0, and nothing else"),
        (CLIP, [1] * 59, "the mask is a list; give a tensor or an array"),
        (CLIP, "all", "the mask is a str; give a tensor or an array"),
        (CLIP, np.full((1, 59), "1"), r"the mask is a ndarray of shape \[1, 59\] and dtype <U1; give one of a dtype that"),
        (CLIP, torch.zeros(1, 59), "leaves clip 0 without a real frame"),
        (CLIPS, torch.arange(59) < torch.tensor([[59], [0], [1]]), "leaves clip 1 without a real frame"),
        (CLIP, torch.arange(1200) >= 200, "a mask over samples has its ones first: padding stands at the end"),
        (CLIP, (torch.arange(1200) < 300) | (torch.arange(1200) > 900), "a mask over samples has its ones first"),
        (CLIPS, torch.arange(1200) < torch.tensor([[1200], [27], [28]]), "clip 1 has 27 samples .* one frame needs 28"),
        (CLIP, torch.zeros(1, 1200), "clip 0 has 0 samples .* one frame needs 28"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(model: HookedAudioEncoder, inputs: Any, mask: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model(inputs, mask)


def test_a_mask_is_given_once_and_at_the_models_rate(model: HookedAudioEncoder) -> None:
    frames, mask = model.to_frames(CLIP)
    with pytest.raises(InputError, match=r"the mask is given twice: as \(frames, mask\), and as one_zero_attention_mask"):
        model((frames, mask), mask)
    with pytest.raises(InputError, match=r"a prepared batch has its rate, its padding and its masks; give these to prepare"):
        model(model.prepare(CLIP), mask)
    with pytest.raises(InputError, match="a mask over samples does not fit resampled clips; give a list of clips of their own"):
        model(CLIP, torch.ones(len(soxr.resample(CLIP, 44_100, RATE))), sampling_rate=44_100)


# Return types


def test_each_return_type(model: HookedAudioEncoder) -> None:
    hidden, logits = model(CLIPS), model(CLIPS, return_type="logits")
    assert hidden.shape == (3, N_FRAMES, 24)
    assert logits.shape == (3, N_FRAMES, 32)
    assert torch.equal(model(CLIPS, return_type="hidden"), hidden)
    assert torch.equal(model(CLIPS, use_proj=True), logits)
    assert torch.equal(model(CLIPS, use_proj=True, return_type="logits"), logits)
    assert_parity(model.ctc_head(hidden), logits)
    assert model(CLIPS, return_type=None) is None
    assert_parity(model(CLIPS, return_type="logits", logits_at=[3, -1]), logits[:, [3, -1]])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_predictions_are_the_greedy_transcripts_of_hugging_face(layout: str) -> None:
    model, hf_model = tiny_speech(layout=layout, seed=1), tiny_hf("HubertForCTC", 1, **LAYOUTS[layout])
    batch = hf_batch(model, CLIPS)
    real = frames_of_samples(model, batch).bool()
    with torch.no_grad():
        ids = hf_model(**batch).logits.argmax(-1)
    expected = [model.processor.batch_decode(row[mask][None])[0] for row, mask in zip(ids, real, strict=True)]
    assert model(CLIPS, return_type="predictions") == expected
    assert all(len(set(transcript)) > 1 for transcript in expected)
    alone = hf_batch(model, CLIPS[:1])
    with torch.no_grad():
        (transcript,) = model.processor.batch_decode(hf_model(**alone).logits.argmax(-1))
    assert model(CLIP, return_type="predictions") == transcript
    assert model([CLIP], return_type="predictions") == [transcript]
    assert model(CLIP[None], return_type="predictions") == [transcript]
    assert model(model.to_frames(CLIP), return_type="predictions") == [transcript]


def test_labels_of_clips_are_predicted_by_name() -> None:
    names = {"id2label": {i: f"word {i}" for i in range(5)}, "label2id": {f"word {i}": i for i in range(5)}}
    hf_model = tiny_hf("HubertForSequenceClassification", **names)
    model = HookedAudioEncoder.from_pretrained(hf_model=hf_model, processor=processor(masks=True), device="cpu")
    batch = hf_batch(model, CLIPS)
    with torch.no_grad():
        logits = hf_model(**batch).logits
    assert_parity(model(CLIPS, return_type="logits"), logits)
    expected = [f"word {best}" for best in logits.argmax(-1).tolist()]
    assert model(CLIPS, return_type="predictions") == expected
    assert isinstance(model(CLIP, return_type="predictions"), str)
    labels = torch.tensor([4, 0, 2])
    assert_parity(model(CLIPS, return_type="loss", labels=labels), hf_model(**batch, labels=labels).loss)
    for wrong, message in (([5, 0, 0], r"labels run from 0 to 5; they lie in 0 \.\. 4"), ([1, 1], "labels have shape")):
        with pytest.raises(InputError, match=message):
            model(CLIPS, return_type="loss", labels=torch.tensor(wrong))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_loss_is_that_of_hugging_face(layout: str) -> None:
    model, hf_model = tiny_speech(layout=layout), tiny_hf("HubertForCTC", **LAYOUTS[layout])
    labels = torch.tensor([[11, 5, 5, 10], [7, 7, -100, -100], [6, -100, -100, -100]])
    theirs = hf_model(**hf_batch(model, CLIPS), labels=labels).loss
    for form in (labels, labels.int(), labels.short(), labels.to(torch.int8), labels.numpy(), labels.numpy().astype(">i2")):
        assert_parity(model(CLIPS, return_type="loss", labels=form), theirs)


def test_labels_in_bytes_fit_clips_of_many_frames(group: HookedAudioEncoder) -> None:
    labels = torch.tensor([[9, 9, 31]])
    clip = speech(CLUBS)[2000:9000]
    assert group.frame_lengths(len(clip)).item() > 256
    expected = group(clip, return_type="loss", labels=labels)
    for dtype in (torch.uint8, torch.uint16, torch.uint32, torch.uint64):
        assert torch.equal(group(clip, return_type="loss", labels=labels.to(dtype)), expected)
        assert torch.equal(group(clip, return_type="loss", labels=labels.to(dtype).numpy()), expected)


def test_labels_that_repeat_need_a_frame_more(model: HookedAudioEncoder) -> None:
    clip = CLIP[: 28 + 2 * 20]  # three frames
    assert model.frame_lengths(len(clip)).tolist() == [3]
    for labels in ([[5, 6, 7]], [[5, 5]], [[5, 5, -100, 0]]):
        assert model(clip, return_type="loss", labels=torch.tensor(labels)).isfinite()
    for labels, needed in (([[5, 6, 7, 8]], 4), ([[5, 5, 6]], 4), ([[5, 5, 5]], 5)):
        with pytest.raises(InputError, match=rf"labels of clip 0 need {needed} frames .*blank in between.*it has 3"):
            model(clip, return_type="loss", labels=torch.tensor(labels))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"return_type": "logit"},
            "return_type='logit' is unknown; it is one of 'logits', 'predictions', 'hidden', 'loss', 'embedding', None",
        ),
        ({"return_type": "loss"}, "return_type='loss' with no labels; labels and return_type='loss' go together"),
        ({"labels": torch.zeros(1, 2)}, "return_type='hidden' with labels"),
        ({"return_type": "logits", "labels": torch.zeros(1, 2)}, "return_type='logits' with labels"),
        (
            {"return_type": "predictions", "use_proj": True},
            "use_proj=True is return_type='logits', and return_type='predictions'",
        ),
        ({"return_type": "loss", "labels": torch.ones(1, 2)}, r"labels are symbol ids \[1 target\], .* not float32 \[1, 2\]"),
        ({"return_type": "loss", "labels": torch.ones(1, 2).bool()}, r"labels are symbol ids .* not bool \[1, 2\]"),
        ({"return_type": "loss", "labels": torch.ones(2).long()}, r"labels are symbol ids .* not int64 \[2\]"),
        ({"return_type": "loss", "labels": torch.ones(2, 2).long()}, r"symbol ids \[1 target\], .* not int64 \[2, 2\]"),
        (
            {"return_type": "loss", "labels": torch.tensor([[4, 32]])},
            "there is no symbol 32: ids run from 0 to 31, and -100 is",
        ),
        ({"return_type": "loss", "labels": torch.tensor([[4, -1]])}, "there is no symbol -1: ids run from 0 to 31"),
        ({"return_type": "loss", "labels": torch.arange(60)[None] % 20 + 4}, "clip 0 need 60 frames .* and it has 59"),
        ({"logits_at": 0}, "logits_at chooses positions of return_type='logits'"),
        ({"return_type": "logits", "logits_at": [59]}, "logits_at asks for positions 59 to 59; the input has 59"),
        ({"padding": "none"}, "padding='none' is unknown; it is 'batch' or 'independent'"),
        ({"padding": "independant"}, "padding='independant' is unknown; .*; did you mean 'independent'"),
        ({"padding": np.array(["batch", "batch"])}, "padding=array.* is unknown; it is 'batch' or 'independent'"),
        ({"stop_at_layer": 4}, "layers run from 0 to 3"),
        ({"mask_time_indices": torch.zeros(1, 60)}, r"mask has shape \[1, 60\]; the clips have frames \[1, 59\]"),
    ],
)
def test_options_that_do_not_fit_are_refused(group: HookedAudioEncoder, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        group(CLIP, **options)


def test_labels_are_a_tensor(group: HookedAudioEncoder, unchecked: None) -> None:
    with pytest.raises(InputError, match="labels are a tensor, not a list"):
        group(CLIP, return_type="loss", labels=[[1, 2]])


def test_what_a_model_lacks_is_named() -> None:
    model = HookedAudioEncoder.from_pretrained(hf_model=tiny_hf("HubertModel"), device="cpu")
    for options in ({"return_type": "logits"}, {"return_type": "predictions"}, {"use_proj": True}):
        with pytest.raises(TaskError, match="needs a head, and this model has none; take 'hidden'"):
            model(CLIP, **options)
    silent = with_extractor(GROUP)  # an extractor has no tokenizer
    with pytest.raises(TokenizerMissingError, match=r"set model.processor to a Wav2Vec2Processor, or take the logits"):
        silent(CLIP, return_type="predictions")
    for other in ("a processor", None):
        with pytest.raises(ConfigError, match="processor is a Wav2Vec2Processor or a Wav2Vec2FeatureExtractor"):
            silent.processor = other


# Devices

SMALL = {
    "d_model": 8,
    "n_layers": 1,
    "n_heads": 2,
    "conv_dim": (4, 5),
    "conv_kernel": (5, 3),
    "conv_stride": (3, 2),
    "num_conv_pos_embeddings": 2,
    "num_conv_pos_embedding_groups": 2,
}


def test_input_moves_to_the_models_device_unless_that_is_refused(group: HookedAudioEncoder) -> None:
    far = HookedAudioEncoder(SMALL, device="meta", init_weights=False)  # which stands for a GPU
    clip, frames = torch.from_numpy(CLIP), torch.zeros(1, 7, 8)
    assert torch.equal(group(clip, move_to_device=False), group(clip))
    for form in (clip, clip[None], [OTHER, clip], frames, (frames, torch.ones(1, 7))):
        assert far(form).device.type == "meta"
        with pytest.raises(InputError, match="the input is on cpu, the model on meta; leave move_to_device on"):
            far(form, move_to_device=False)
    assert far.to_frames(CLIP)[1].device.type == "meta"
    assert far(CLIP, move_to_device=False).device.type == "meta"  # an array is on no device


# Time


def test_hubert_has_a_frame_every_20_ms_from_12_and_a_half_on() -> None:
    sizes = {"d_model": 16, "n_layers": 1, "n_heads": 2}  # the front end of HuBERT-base
    model = HookedAudioEncoder(sizes, device="cpu", init_weights=False)
    expected = torch.tensor([(200 + 320 * i) / 16_000 for i in range(150)], dtype=torch.float64)
    assert torch.equal(model.frame_times(150), expected)
    assert expected[:3].tolist() == [0.0125, 0.0325, 0.0525]
    assert model.frame_lengths([399, 400, 719, 720, 16_000]).tolist() == [0, 1, 1, 2, 49]
    assert model.frames_of(0.0, 1.0) == slice(0, 50)
    assert model.frames_of(0.5, 0.75) == slice(25, 37)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_frame_lengths_are_those_of_the_run_and_of_hugging_face(layout: str) -> None:
    model, hf_model = tiny_speech(layout=layout), tiny_hf("HubertModel", **LAYOUTS[layout])
    shortest = next(n for n in range(100) if model.frame_lengths(n).item())
    counts = list(range(shortest, shortest + 45))
    lengths = model.frame_lengths(counts)
    assert lengths.dtype == torch.int64
    assert lengths.tolist() == [model.to_frames(CLIP[:n])[0].shape[1] for n in counts]
    assert torch.equal(lengths, hf_model._get_feat_extract_output_lengths(torch.tensor(counts)))
    assert torch.equal(model.frame_lengths(torch.tensor(counts, dtype=torch.int32)), lengths)
    for dtype in (np.int64, np.uint8, np.uint16, np.uint64, ">i4"):
        assert torch.equal(model.frame_lengths(np.array(counts, dtype)), lengths)
    with pytest.raises(InputError, match=f"has {shortest - 1} samples at 16000 Hz; one frame needs {shortest}"):
        model(CLIP[: shortest - 1])


@pytest.mark.parametrize(
    "counts",
    [
        torch.ones(2, dtype=torch.cfloat),
        "many",
        None,
        [1, [2]],
        [],
        [1.5],
        1.0,
        True,
        [-1],
        torch.ones(2, 2).long(),
        10**30,
        {},
    ],
)
def test_numbers_of_samples_are_whole(group: HookedAudioEncoder, counts: Any) -> None:
    with pytest.raises(InputError, match=r"(?s)n_samples=.*; give whole numbers of samples"):
        group.frame_lengths(counts)


convolutions = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), min_size=1, max_size=3)
rates = st.sampled_from([1_000, 8_000, 11_025, 16_000, 22_050, 44_099, 44_100, 192_000])


def with_frontend(sizes: list[tuple[int, int]], rate: int = RATE) -> HookedAudioEncoder:
    """A model with these kernels and strides, and layer norms in between."""
    kernels, strides = zip(*sizes, strict=True)
    encoder = HookedAudioEncoder(SMALL, device="cpu", init_weights=False).cfg.encoder
    frontend = FrontendPart((4,) * len(sizes), kernels, strides, True, "layer")
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=rate, do_normalize=False)
    cfg = replace(encoder, frontend=frontend, projection=ProjectionPart(4, 1e-5))
    return HookedAudioEncoder(cfg, processor=extractor, device="cpu", dtype=torch.float64, init_weights=False)


@given(convolutions)
@settings(deadline=None, max_examples=20, derandomize=True)
def test_a_frame_lies_in_the_middle_of_the_samples_that_change_it(sizes: list[tuple[int, int]]) -> None:
    model = with_frontend(sizes)
    model.initialise(seed=0)
    generator = torch.Generator().manual_seed(0)
    field = model.timing.receptive_field
    n_samples = field + 2 * model.timing.stride + 1
    wave = torch.randn(n_samples, generator=generator, dtype=torch.float64)
    plain, changed = model.frontend(wave[None]), model.frontend(wave + 3 * torch.eye(n_samples, dtype=torch.float64))
    seen = ((changed - plain).abs() > 1e-9).any(-1)  # [sample frame]
    assert seen.shape[1] == model.frame_lengths(n_samples).item() == len(model.frame_times(seen.shape[1]))
    for frame, time in zip(seen.T, model.frame_times(seen.shape[1]).tolist(), strict=True):
        first, last = frame.nonzero().flatten()[[0, -1]].tolist()
        assert last - first + 1 == field
        assert time == (first + last + 1) / 2 / RATE


@given(convolutions, rates, st.integers(0, 100_000), st.integers(1, 100_000))
@settings(deadline=None, max_examples=40, derandomize=True)
def test_the_frames_of_the_times_of_frames(sizes: list[tuple[int, int]], rate: int, first: int, count: int) -> None:
    model = with_frontend(sizes, rate)
    times = model.frame_times(first + count + 1)
    start, end = float(times[first]), float(times[first + count])
    assert model.frames_of(start, end) == slice(first, first + count)
    assert model.frames_of(start, start + 1e-9) == slice(first, first + 1)


@given(convolutions, rates, st.floats(-0.1, 0.5), st.floats(0, 0.2))
@settings(deadline=None, max_examples=40, derandomize=True)
def test_the_frames_of_any_span_are_those_with_their_middle_in_it(
    sizes: list[tuple[int, int]], rate: int, start: float, length: float
) -> None:
    model, end = with_frontend(sizes, rate), start + length
    times = model.frame_times(int(rate * 0.8) + 1)
    inside = ((times >= start) & (times < end)).nonzero().flatten().tolist()
    if not inside:
        with pytest.raises(InputError, match="no frame has its middle in"):
            model.frames_of(start, end)
    elif min((times - edge).abs().min() for edge in (start, end)) > 1e-9:  # edges are read to a millionth of a sample
        assert model.frames_of(start, end) == slice(inside[0], inside[-1] + 1)


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (0.0, 0.0, r"no frame has its middle in \[0.0, 0.0\) s; they are 0.00125 s apart"),
        (1.0, 0.5, "no frame has its middle in"),
        (0.001, 0.002, "no frame has its middle in"),  # the first lie at 0.875 and 2.125 ms
        (-3.0, 0.0, "no frame has its middle in"),
        (float("nan"), 1.0, "start_s=nan; it is a number of seconds"),
        (0.0, float("inf"), "end_s=inf; it is a number of seconds"),
        (0.0, 10**400, "end_s=10+; it is a number of seconds"),
        (np.int64(-(2**63)), 1.0, r"start_s=.*; it is a number of seconds"),
    ],
)
def test_a_span_without_a_frame_is_refused(group: HookedAudioEncoder, start: float, end: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        group.frames_of(start, end)


@pytest.mark.parametrize("wrong", ["1", None, True, [0.0]])
def test_seconds_are_numbers(group: HookedAudioEncoder, wrong: Any, unchecked: None) -> None:
    with pytest.raises(InputError, match=r"start_s=.*; it is a number of seconds"):
        group.frames_of(wrong, 1.0)
    assert group.frames_of(np.float32(0), 1) == group.frames_of(0.0, 1.0)


# What is refused


def wave_with(value: float) -> np.ndarray:
    clip = CLIP.copy()
    clip[[7, 900]] = value
    return clip


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "the list of waveforms is empty"),
        (torch.zeros(0, 400), "the list of waveforms is empty"),
        (torch.zeros(0), "the waveform is empty"),
        ([CLIP, np.zeros(0)], "clip 1 is empty"),
        ([CLIP, np.zeros((2, 0))], "clip 1 is empty"),
        ([np.zeros((0, 400))], "clip 0 is empty"),
        (np.zeros((3, 0)), "clip 0 is empty"),
        (wave_with(np.nan), "the waveform holds 2 samples that are NaN or infinite, the first at sample 7"),
        (
            [CLIP, torch.from_numpy(wave_with(-np.inf))],
            "clip 1 holds 2 samples that are NaN or infinite, the first at sample 7",
        ),
        (np.stack([CLIP, wave_with(np.inf)]), "clip 1 holds 2 samples that are NaN"),
        (1e30 * CLIP, r"the waveform has samples of \d\S*e\+29; waveforms lie between -1 and 1"),
        ([CLIP, -1e200 * CLIP.astype(np.float64)], r"clip 1 has samples of \d\S*e\+199; waveforms lie"),
        (CLIP[:27], r"clip 0 has 27 samples at 16000 Hz; one frame needs 28 \(1.75 ms\)"),
        ([CLIP, OTHER[:1]], "clip 1 has 1 samples at 16000 Hz; one frame needs 28"),
        (np.stack([CLIP, CLIP], 1), r"clip 0 has 2 samples .*; stereo \[sample channel\] goes in as \[waveform\], a list"),
        (torch.zeros(1200, 1), r"clip 0 has 1 samples .*; stereo \[sample channel\] goes in as \[waveform\], a list"),
        (CLIP > 0, "the waveform has dtype bool; samples are floating-point numbers, int16 or int32"),
        (torch.from_numpy(CLIP) > 0, "the waveform has dtype bool; samples are"),
        ([CLIP, CLIP.astype(np.complex64)], "clip 1 has dtype complex64; samples are"),
        (torch.zeros(400, dtype=torch.uint8), "the waveform has dtype uint8; samples are"),
        (np.zeros(400, np.uint16), "the waveform has dtype uint16; samples are"),
        (torch.zeros(400, dtype=torch.int64), "the waveform has dtype int64; samples are"),
        (
            CLIP.astype(np.longdouble),
            "the waveform is a ndarray of .* dtype (float128|float96); give one of a dtype that tensors",
        ),
        (CLIP.astype(object), r"the waveform is a ndarray of shape \[1200\] and dtype object"),
        (CLIP.astype(str), "the waveform is a ndarray of .* dtype <U"),
        ([0.1, 0.2, 0.3], "clip 0 has 3 samples at 16000 Hz; one frame needs 28"),
        ([0.1, 0, 0.3], "clip 0 is a float; a list of numbers is one waveform if all are floats: otherwise give an array"),
        ([100, 0, -7], "clip 0 is an int; a list of numbers is one waveform if all are floats"),
        ((CLIP, 44_100), "clip 1 is an int; .* A rate is given as sampling_rate"),  # what soundfile.read returns
        ([np.int16(100)] * 400, "clip 0 is an int16; a list of numbers is one waveform if all are floats"),
        ([[[0.1] * 400]], "clip 0 is a list; give a tensor or an array"),
        ([CLIP, [7] * 400], "clip 1 is a list; give a tensor or an array"),
        ([CLIP, None], "clip 1 is a NoneType"),
        ((CLIP, "a mask"), "there is no audio file 'a mask'"),
        ("a text, " * 999, "there is no audio file 'a text, .*"),
        ("\0", r"there is no audio file '\\x00'"),
        (str(CLUBS).encode(), "the input is a bytes; give one waveform"),
        (None, "there is no input: give waveforms, or what a feature extractor returns"),
        (
            0.25,
            r"the input is a float; give one waveform \[sample\], a list of waveforms, .* the path of an audio file",
        ),
        ({"waveform": CLIP}, "the dictionary has 'waveform', which the model does not read"),
        (0.5, "the input is a float; give one waveform"),
        (iter(CLIPS), "the input is a list_iterator; give one waveform"),
        (torch.tensor(0.5), r"the input is a Tensor of shape \[\] and dtype float32; give one waveform .* projected frames"),
        (np.float32(0.5), "the input is a float32; give one waveform"),
        (torch.zeros(1, 2, 3, 24), r"the input is a Tensor of shape \[1, 2, 3, 24\]"),
        ([torch.tensor(0.5)], r"clip 0 has shape \[\]; a waveform is \[sample\], or with channels \[channel sample\]"),
        ([np.array(0.5)], r"clip 0 has shape \[\]"),
        ([np.zeros((1, 2, 400))], r"clip 0 has shape \[1, 2, 400\]; a waveform is"),
        ([np.zeros((40, 50))], r"clip 0 has shape \[40, 50\], where neither axis can be channels; give one waveform a clip"),
        ([np.zeros((30, 30))], r"clip 0 has shape \[30, 30\], where neither axis can be channels"),
        (
            torch.zeros(1, 5, 23),
            r"frames are float32 \[1, 5, 23\]; they are floating-point numbers \[batch frame 24\], as to_frames",
        ),
        (np.zeros((1, 5, 25)), r"frames are float64 \[1, 5, 25\]; they are floating-point numbers \[batch frame 24\]"),
        (torch.zeros(1, 5, 24, dtype=torch.long), r"frames are int64 \[1, 5, 24\]; they are floating-point numbers"),
        (np.zeros((1, 5, 24), np.complex64), r"frames are complex64 \[1, 5, 24\]; they are floating-point"),
        (torch.zeros(1, 0, 24), r"frames are float32 \[1, 0, 24\]"),
        (torch.zeros(0, 5, 24), r"frames are float32 \[0, 5, 24\]"),
        (np.full((1, 5, 24), "a"), r"the input is a ndarray of shape \[1, 5, 24\] and dtype <U1"),
        (torch.full((1, 5, 24), float("nan")), "frames hold NaN, infinities, or values beyond"),
        (np.full((1, 5, 24), 1e300), "frames hold NaN, infinities, or values beyond 4.29e\\+09, whose squares overflow"),
        (torch.full((1, 5, 24), -1e20), "frames hold NaN, infinities, or values beyond"),
        ((torch.zeros(1, 5, 24), torch.ones(1, 6)), r"mask has shape \[1, 6\]; the clips have frames \[1, 5\]"),
        ((torch.zeros(1, 5, 24), torch.zeros(1, 5, 24)), r"mask has shape \[1, 5, 24\]"),
        ((torch.zeros(1, 5, 24), torch.zeros(1, 5)), "leaves clip 0 without a real frame"),
    ],
)
def test_bad_input_says_what_is_wrong(group: HookedAudioEncoder, inputs: Any, message: str) -> None:
    runs: list[str] = []
    points = [group.hook_dict[name] for name in ("frontend.0.hook_conv", "embed.hook_embed")]
    for point in points:
        point.add_hook(lambda tensor, hook: runs.append(hook.name))
    try:
        with pytest.raises(InputError, match=message):
            group(inputs)
    finally:
        for point in points:
            point.remove_hooks()
    assert not runs


@pytest.mark.parametrize(
    "rate", [0, -1, 16, -16_000, 999, 1_000_001, "16k", "16000", None, True, float("nan"), float("inf"), [16_000], 16_000j]
)
def test_rates_are_in_hertz(model: HookedAudioEncoder, rate: Any) -> None:
    for run in (model, model.to_frames, lambda clip, sampling_rate: model(model.to_frames(clip), sampling_rate=sampling_rate)):
        with pytest.raises(InputError, match=r"sampling_rate=.*; it is a number of samples a second, such as 16000 or 44100"):
            run(CLIP, sampling_rate=rate)


@pytest.mark.parametrize("rate", [48_000, 8_000])
def test_too_short_after_resampling(model: HookedAudioEncoder, rate: int) -> None:
    needed = 28 * rate // RATE
    assert model(CLIP[: needed + 1], sampling_rate=rate).shape == (1, 1, 24)
    with pytest.raises(InputError, match=r"clip 0 has \d+ samples at 16000 Hz; one frame needs 28"):
        model(CLIP[: needed - 2], sampling_rate=rate)
    with pytest.raises(InputError, match="clip 0 has 0 samples at 16000 Hz"):
        model(CLIP[:1], sampling_rate=1_000_000)


def test_loud_clips_where_nothing_normalises_them() -> None:
    model = with_extractor(LAYER, do_normalize=False)
    assert model(2.0**31 * CLIP).isfinite().all()
    half = HookedAudioEncoder.from_pretrained(
        hf_model=model.to_hf(), processor=model.processor, device="cpu", dtype=torch.float16
    )
    assert half(10 * CLIP).isfinite().all()
    with pytest.raises(
        InputError, match=r"clip 1 has samples of .*, too large for float16 \(at most 16\); waveforms lie between"
    ):
        half([CLIP, 100 * CLIP])


def test_to_frames_wants_waveforms(model: HookedAudioEncoder) -> None:
    with pytest.raises(InputError, match="to_frames makes frames of waveforms, and these are frames already"):
        model.to_frames(model.to_frames(CLIP))


# Files


@pytest.mark.parametrize("path", [DISPOSED, AMIABLE, CLUBS, str(CLUBS)])
def test_audio_files_are_read(path: Path | str) -> None:
    samples, rate = read_audio(path)
    assert rate == RATE
    assert samples.dtype == np.float32
    assert np.array_equal(samples, speech(Path(path)))
    assert 0.1 < np.abs(samples).max() <= 1


@pytest.mark.parametrize("name", ["clip.wav", "clip.flac", "clip.ogg"])
@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_stereo_and_other_rates_are_read(name: str, rate: int, tmp_path: Path) -> None:
    stereo = np.stack([soxr.resample(speech(CLUBS), RATE, rate)[: rate // 2] * gain for gain in (0.9, 0.3)], 1)
    soundfile.write(tmp_path / name, stereo, rate)
    samples, found = read_audio(tmp_path / name)
    assert found == rate
    assert samples.shape == (rate // 2,)
    gap = np.abs(samples - stereo.mean(1)).max()
    assert gap < (0.2 if name.endswith("ogg") else 2**-14)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_every_depth_is_read_to_the_same_numbers(subtype: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.wav", CLIP, RATE, subtype=subtype)
    assert np.array_equal(read_audio(tmp_path / "clip.wav")[0], CLIP)


def test_files_that_are_no_audio_are_refused(tmp_path: Path) -> None:
    flac = CLUBS.read_bytes()
    files = {
        "text.wav": b"not audio at all\n" * 40,
        "empty.flac": b"",
        "header.raw": flac,  # a name that promises samples without a header
        "cut.flac": flac[: len(flac) // 2],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name} cannot be read as audio: .+"):
            read_audio(tmp_path / name)
    for missing in (tmp_path / "none.wav", tmp_path, ""):
        with pytest.raises(InputError, match="there is no audio file"):
            read_audio(missing)
    soundfile.write(tmp_path / "silent.wav", np.zeros(0), RATE)
    with pytest.raises(InputError, match=r"silent\.wav holds no samples"):
        read_audio(tmp_path / "silent.wav")


@pytest.fixture(scope="module")
def at_8_khz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP in a file at another rate than the models'."""
    path = tmp_path_factory.mktemp("rates") / "clip.wav"
    soundfile.write(path, soxr.resample(CLIP, RATE, 8_000), 8_000, subtype="FLOAT")
    return path


def test_a_path_is_a_clip_at_the_rate_that_its_file_says(model: HookedAudioEncoder, at_8_khz: Path) -> None:
    samples, rate = read_audio(at_8_khz)
    assert rate == 8_000
    expected = model(samples, sampling_rate=8_000)
    for path in (at_8_khz, str(at_8_khz)):
        assert torch.equal(model(path), expected)
        assert torch.equal(model(path, sampling_rate=8_000), expected)
        assert torch.equal(model([path]), expected)
        assert torch.equal(model.to_frames(path)[0], model.to_frames(samples, 8_000)[0])
        assert torch.equal(model(model.prepare(path)), expected)
    assert isinstance(model(at_8_khz, return_type="predictions"), str)
    assert len(model([at_8_khz, CLUBS], return_type="predictions")) == 2
    assert model.align(CLUBS, "TEN OF CLUBS") == model.align(speech(CLUBS), "TEN OF CLUBS", sampling_rate=RATE)
    _, cache = model.run_with_cache(at_8_khz)
    assert torch.equal(cache.frame_times, model.frame_times(expected.shape[1]))


def test_files_of_several_rates_and_waveforms_go_together(model: HookedAudioEncoder, at_8_khz: Path) -> None:
    low = read_audio(at_8_khz)[0]
    brought = soxr.resample(low, 8_000, RATE)
    assert torch.equal(model([at_8_khz, CLUBS, OTHER]), model([brought, speech(CLUBS), OTHER]))
    assert torch.equal(model([at_8_khz, low], sampling_rate=8_000), model([brought, brought]))
    with pytest.raises(InputError, match="a mask over samples does not fit resampled clips"):
        model([CLIP, at_8_khz], torch.ones(2, len(CLIP)))


def test_a_rate_that_a_file_contradicts_is_refused(model: HookedAudioEncoder, at_8_khz: Path, tmp_path: Path) -> None:
    message = r"sampling_rate=16000 is given, and .*clip\.wav has 8000 Hz: leave it out for files"
    for run in (model, model.to_frames, model.prepare):
        with pytest.raises(InputError, match=message):
            run(at_8_khz, sampling_rate=RATE)
        with pytest.raises(InputError, match=message):
            run([OTHER, at_8_khz], sampling_rate=RATE)
    with pytest.raises(InputError, match=message):
        model.align(at_8_khz, "TEN", sampling_rate=RATE)
    soundfile.write(tmp_path / "slow.wav", CLIP, 500)
    with pytest.raises(InputError, match=r"slow\.wav has 500 samples a second; it is a number of samples a second, such as"):
        model(tmp_path / "slow.wav")


def test_a_file_of_numbers_that_are_no_sound_is_named(model: HookedAudioEncoder, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "broken.wav", wave_with(np.nan), RATE, subtype="FLOAT")
    with pytest.raises(InputError, match=r"broken\.wav holds 2 samples that are NaN or infinite, the first at sample 7"):
        model([CLIP, tmp_path / "broken.wav"])


@pytest.mark.parametrize("rate", [0, 16, "16k", True, float("nan"), [16_000]])
def test_files_are_read_at_rates_in_hertz(rate: Any) -> None:
    with pytest.raises(InputError, match=r"sampling_rate=.*; it is a number of samples a second"):
        read_audio(CLUBS, rate)


@pytest.mark.parametrize("path", [None, 3, b"clip.wav", CLIP])
def test_what_names_no_file_is_refused(path: Any) -> None:
    with pytest.raises(InputError, match="an audio file is named by its path, not by a "):
        read_audio(path)


# Prepared batches, and the processor


def test_a_batch_of_another_model_is_refused(model: HookedAudioEncoder) -> None:
    other = tiny_speech("HubertForCTC", "two convolutions, layer norm, post-LN, relu")
    for batch in (other.prepare(speech(CLUBS)), other.prepare(other.to_frames(speech(CLUBS))[0])):
        with pytest.raises(InputError, match="prepared by another model"):
            model(batch)


def test_a_batch_follows_its_model_and_leaves_inference_mode() -> None:
    model = tiny_speech()
    with torch.inference_mode():
        batch = model.prepare(speech(CLUBS))
    model(batch).square().mean().backward()
    assert model.blocks[0].attn.q.weight.grad.abs().max() > 0
    expected = model(batch)
    assert_parity(model.half()(batch).float(), expected, tolerance=0.05)


def test_a_processor_that_is_changed_in_place_is_used_as_it_is() -> None:
    model = tiny_speech()
    clips = [speech(CLUBS), speech(CLUBS)[:9000]]
    before, batch = model(clips), model.prepare(clips)
    model.processor.feature_extractor.return_attention_mask = True
    assert model.prepare(clips).sequence.mask is not None
    assert_changed(model(clips), before)
    with pytest.raises(InputError, match="before its processor changed"):
        model(batch)
    model.processor.tokenizer = None
    assert model.tokenizer is None


def test_another_blank_than_the_tokenizers_is_refused_where_there_is_text() -> None:
    model = HookedAudioEncoder.from_pretrained(
        hf_model=tiny_hf("HubertForCTC", pad_token_id=31), processor=processor(masks=False), device="cpu"
    )
    for run in (lambda: model(speech(CLUBS), return_type="predictions"), lambda: model.align(speech(CLUBS), "TEN")):
        with pytest.raises(InputError, match=r"blank is symbol 31 .* the tokenizer's is 0 \(<pad>\)"):
            run()
    assert model(speech(CLUBS), return_type="logits").isfinite().all()


def test_to_frames_refuses_hooks_that_it_does_not_reach(model: HookedAudioEncoder) -> None:
    with (
        model.hooks([("blocks.0.hook_attn_out", lambda x, hook: None)]),
        pytest.raises(HookUnreachableError, match="to_frames runs the front end and the projection"),
    ):
        model.to_frames(speech(CLUBS))


CHANGED_LATER: dict[str, Callable[[], Any]] = {
    "tensor": lambda: torch.from_numpy(CLIP.copy()),
    "array": CLIP.copy,
    "batch": lambda: torch.from_numpy(np.stack([CLIP, CLIP[::-1]])),
    "list": lambda: [torch.from_numpy(CLIP.copy()), OTHER.copy()],
    "frames": lambda: torch.randn(1, N_FRAMES, 24),
}


@pytest.mark.parametrize("normalizes", [True, False])
@pytest.mark.parametrize("dtype", [torch.bool, torch.long])
@pytest.mark.parametrize("form", CHANGED_LATER)
def test_what_the_caller_changes_later_changes_no_batch_and_no_cache(form: str, dtype: torch.dtype, normalizes: bool) -> None:
    model, inputs = with_extractor(LAYER, do_normalize=normalizes), CHANGED_LATER[form]()
    frame = torch.arange(N_FRAMES).repeat(2 if form in ("batch", "list") else 1, 1)
    mask, masked = (frame < 50).to(dtype), (frame // 9 == 2).to(dtype)
    prepared = model.prepare(inputs, mask, mask_time_indices=masked)
    expected, (_, cache) = model(prepared), model.run_with_cache(inputs, mask, mask_time_indices=masked)
    kept, frames = cache.mask.clone(), cache["embed"].clone()
    for tensor in (*(inputs if form == "list" else [inputs]), mask, masked):
        tensor[...] = 1 - tensor if tensor.dtype != torch.bool else ~tensor
    assert torch.equal(model(prepared), expected)
    assert torch.equal(cache.mask, kept)
    assert torch.equal(cache["embed"], frames)


def test_what_is_changed_in_a_cache_changes_no_batch() -> None:
    model = tiny_speech()
    batch = model.prepare(model.to_frames(CLIP)[0], torch.arange(N_FRAMES)[None] < 50)
    unmasked = model.prepare(model.to_frames(CLIP)[0])
    for prepared in (batch, unmasked):
        expected, (_, cache) = model(prepared), model.run_with_cache(prepared)
        for name in ("embed.hook_embed", "hook_full_embed"):
            cache[name].zero_()
        if cache.mask is not None:
            cache.mask.logical_not_()
        assert torch.equal(model(prepared), expected)


@pytest.mark.parametrize("n_frames", [-1, "x", 1.5, True, None, 10**12, 10**400])
def test_times_of_what_is_no_number_of_frames(n_frames: object) -> None:
    with pytest.raises(InputError, match="it is a number of frames"):
        tiny_speech().frame_times(n_frames)


UNREADABLE: dict[str, Callable[[torch.Tensor], Any]] = {
    "sparse tensor": lambda tensor: tensor.to_sparse(),
    "meta device": lambda tensor: tensor.to("meta"),
    "nested tensor": lambda tensor: torch.nested.nested_tensor(list(tensor)),
    "a nested tensor": lambda tensor: torch.nested.nested_tensor(list(tensor), layout=torch.jagged),
    "quantised tensor": lambda tensor: torch.quantize_per_tensor(tensor, 1.0, 0, torch.qint32),
    "MaskedArray": lambda tensor: np.ma.masked_array(tensor.numpy(), np.ones(tensor.shape)),
}


@pytest.mark.filterwarnings("ignore")  # of torch, on nested and quantised tensors
@pytest.mark.parametrize("kind", UNREADABLE)
def test_tensors_without_all_of_their_numbers_are_refused(group: HookedAudioEncoder, kind: str) -> None:
    make, clips = UNREADABLE[kind], np.stack([CLIP, CLIP[::-1]])
    for waves in (
        make(torch.from_numpy(clips.copy())),
        [make(torch.from_numpy(clips.copy()))],
        [CLIP, make(torch.zeros(1, 900))],
    ):
        with pytest.raises(InputError, match=kind):
            group(waves)
    for frames in (make(torch.zeros(2, N_FRAMES, 24)), (make(torch.zeros(2, N_FRAMES, 24)), torch.ones(2, N_FRAMES))):
        with pytest.raises(InputError, match=kind):
            group(frames)
    for mask in (make(torch.ones(2, N_FRAMES)), make(torch.ones(2, len(CLIP)))):
        with pytest.raises(InputError, match=kind):
            group(clips, mask)
        with pytest.raises(InputError, match=kind):
            group((torch.zeros(2, N_FRAMES, 24), mask))
        with pytest.raises(InputError, match=kind):
            group(clips, mask_time_indices=mask)
