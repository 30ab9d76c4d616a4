"""What the removed class got wrong with audio, a test each. Text and caches: test_removed_class_defects.py."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from encoderlens import HookedAudioEncoder
from encoderlens.errors import WeightsError
from tests.parity import assert_changed, assert_parity
from tests.speech import AMIABLE, CLUBS, LAYOUTS, RATE, processor, speech
from tests.tiny import tiny_hf

GROUP, LAYER = "group norm, post-LN", "layer norm, pre-LN"
CLIP, SHORT = speech(CLUBS)[3000:4200], speech(AMIABLE)[9000:9740]


def twins(layout: str, hf_class: str = "HubertForCTC", **options: Any) -> tuple[Any, HookedAudioEncoder]:
    """A tiny Hugging Face model, and the hooked one with its weights and the processor that such checkpoints have."""
    hf_model = tiny_hf(hf_class, **LAYOUTS[layout])
    with_tokenizer = processor(masks=layout == LAYER)
    return hf_model, HookedAudioEncoder.from_pretrained(hf_model=hf_model, processor=with_tokenizer, device="cpu", **options)


def saved(hf_model: Any, folder: Path, masks: bool) -> Path:
    """The checkpoint as a folder, with the files of its processor."""
    hf_model.save_pretrained(folder)
    processor(masks).save_pretrained(folder)
    return folder


def hf_batch(masks: bool) -> dict[str, Tensor]:
    """Two clips, padded by Hugging Face's own processor."""
    extractor = processor(masks).feature_extractor
    return dict(extractor([CLIP, SHORT], sampling_rate=RATE, padding=True, return_tensors="pt"))


def hf_frames(hf_model: Any, values: Tensor) -> Tensor:
    """The projected frames of a Hugging Face base model."""
    projected = hf_model.feature_projection(hf_model.feature_extractor(values).mT)
    return projected[0] if isinstance(projected, tuple) else projected


def test_padding_does_not_reach_real_frames_through_the_positional_convolution() -> None:
    """Defect: padded frames went into the positional convolution as they were, and changed the real ones beside them."""
    hf_model, model = twins(LAYER)
    n_frames = int(model.frame_lengths(len(SHORT)))
    together, alone = model([CLIP, SHORT]), model(SHORT)
    assert_parity(together[1:, :n_frames], alone)
    with torch.no_grad():
        theirs = hf_model.hubert(**hf_batch(masks=True)).last_hidden_state
    assert_parity(together[1, :n_frames], theirs[1, :n_frames])
    frames, mask = model.to_frames([CLIP, SHORT])
    assert frames[1, n_frames:].abs().max() > 0.1  # a projection has a bias: padding is not zero by itself
    loud = frames.masked_fill(mask[..., None] == 0, 100.0)
    assert_parity(model((loud, mask))[1, :n_frames], alone[0])


@pytest.mark.parametrize("hf_class", ["HubertModel", "Wav2Vec2Model"])
def test_stable_layer_norm_checkpoints_run_pre_ln(hf_class: str) -> None:
    """Defect: checkpoints with do_stable_layer_norm ran as if each norm came after its sublayer."""
    hf_model, model = twins(LAYER, hf_class)
    with torch.no_grad():
        theirs = hf_model(**hf_batch(masks=True), output_hidden_states=True)
        ours, cache = model.run_with_cache([CLIP, SHORT])
    _, mask = model.to_frames([CLIP, SHORT])
    assert_parity(ours, theirs.last_hidden_state, mask)
    for layer in range(model.cfg.n_layers):
        assert_parity(cache["resid_pre", layer], theirs.hidden_states[layer], mask)
    assert "ln_final.hook_normalized" in cache
    assert "embed.ln.hook_normalized" not in cache


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_the_sampling_rate_is_heard(rate: int) -> None:
    """Defect: sampling_rate was taken and dropped, so that clips at another rate ran at the wrong speed."""
    _, model = twins(GROUP)
    resampled = soxr.resample(CLIP, rate, RATE)
    assert torch.equal(model(CLIP, sampling_rate=rate), model(resampled))
    assert torch.equal(model.to_frames(CLIP, rate)[0], model.to_frames(resampled)[0])
    assert model(CLIP, sampling_rate=rate).shape[1] == int(model.frame_lengths(len(resampled))) != model(CLIP).shape[1]


def test_stereo_is_one_clip() -> None:
    """Defect: the channels of a stereo clip were put one after the other, as a clip of twice the length."""
    _, model = twins(GROUP)
    stereo = np.stack([CLIP, 0.3 * CLIP[::-1]])
    for form in (stereo, stereo.T, torch.from_numpy(stereo)):
        assert_parity(model([form]), model(stereo.mean(0)))
        assert model([form]).shape[1] == int(model.frame_lengths(len(CLIP)))


def test_a_matrix_of_waves_is_a_batch() -> None:
    """Defect: a batch of waves [batch sample] was run as one clip."""
    _, model = twins(LAYER)
    waves = np.stack([CLIP[:700], SHORT[:700], CLIP[500:]])
    for form in (waves, torch.from_numpy(waves)):
        assert_parity(model(form), torch.cat([model(wave) for wave in waves]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_weight_of_hf_model_is_used(layout: str) -> None:
    """Defect: of hf_model only the blocks were taken; the front end came from the hub, by another name."""
    hf_model = tiny_hf("HubertModel", **LAYOUTS[layout])
    before = HookedAudioEncoder.from_pretrained(hf_model=hf_model, device="cpu")
    with torch.no_grad():
        for part in (hf_model.feature_extractor, hf_model.feature_projection, hf_model.encoder.pos_conv_embed):
            for parameter in part.parameters():
                parameter.mul_(1 + 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        theirs = hf_model(**hf_batch(masks=False), output_hidden_states=True)
        frames = hf_frames(hf_model, hf_batch(masks=False)["input_values"])
    after = HookedAudioEncoder.from_pretrained(hf_model=hf_model, processor=processor(masks=False), device="cpu")
    assert_parity(after.to_frames([CLIP, SHORT])[0], frames)
    assert_parity(after([CLIP, SHORT], stop_at_layer=0), theirs.hidden_states[0])
    assert_parity(after([CLIP, SHORT]), theirs.last_hidden_state)
    assert_changed(after.to_frames(CLIP)[0], before.to_frames(CLIP)[0])


@pytest.mark.parametrize("hf_class", ["HubertModel", "HubertForCTC", "Wav2Vec2ForPreTraining"])
def test_a_name_gives_the_checkpoints_front_end_and_nothing_random(hf_class: str, tmp_path: Path) -> None:
    """Defect: one of the names for a checkpoint loaded blocks of the checkpoint behind a front end of random numbers."""
    hf_model = tiny_hf(hf_class)
    folder = saved(hf_model, tmp_path, masks=False)
    frames = hf_frames(getattr(hf_model, hf_model.base_model_prefix, hf_model), hf_batch(masks=False)["input_values"])
    for name in (folder, str(folder)):
        model = HookedAudioEncoder.from_pretrained(name, device="cpu")
        assert_parity(model.to_frames([CLIP, SHORT])[0], frames)
    tensors = load_file(folder / "model.safetensors")
    for missing in ("feature_extractor.conv_layers.1.conv.weight", "feature_projection.projection.bias"):
        (key,) = [key for key in tensors if key.endswith(missing)]
        save_file({name: tensor for name, tensor in tensors.items() if name != key}, folder / "model.safetensors")
        with pytest.raises(WeightsError, match=missing):
            HookedAudioEncoder.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("layout", [GROUP, LAYER])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.02), (torch.bfloat16, 0.1)])
def test_half_precision_runs_from_the_waveform_on(layout: str, dtype: torch.dtype, tolerance: float) -> None:
    """Defect: in float16 and bfloat16 the model crashed, on waveforms in float32."""
    _, model = twins(layout)
    _, loaded = twins(layout, dtype=dtype)
    expected, (_, mask) = model([CLIP, SHORT], return_type="logits"), model.to_frames([CLIP, SHORT])
    for half in (loaded, twins(layout)[1].to(dtype, print_details=False)):
        logits, cache = half.run_with_cache([CLIP, torch.from_numpy(SHORT)], return_type="logits")
        assert logits.dtype == cache["frontend.0.hook_conv"].dtype == cache["resid_post", 2].dtype == dtype
        assert_parity(logits.float(), expected, mask, tolerance)
        assert isinstance(half(CLIP, return_type="predictions"), str)


@pytest.mark.parametrize("layout", [GROUP, LAYER])
def test_gradients_reach_the_waveform(layout: str) -> None:
    """Defect: the waveform went through numpy and the processor, so that nothing could be attributed to its samples."""
    hf_model, model = twins(layout)
    wave = torch.from_numpy(CLIP).requires_grad_()
    (gradient,) = torch.autograd.grad(model(wave, return_type="logits").logsumexp(-1).sum(), wave)
    other = torch.from_numpy(CLIP).requires_grad_()
    values = (other - other.mean()) / (other.var(correction=0) + 1e-7).sqrt()
    (expected,) = torch.autograd.grad(hf_model(values[None]).logits.logsumexp(-1).sum(), other)
    assert_parity(gradient, expected, tolerance=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_hugging_face_layer_is_kept(layout: str) -> None:
    """Defect: the whole Hugging Face model stayed inside for its front end, layers that never ran included."""
    hf_model, model = twins(layout)
    assert not [module for module in model.modules() if type(module).__module__.startswith("transformers")]
    ours, theirs = (sum(parameter.numel() for parameter in owner.parameters()) for owner in (model, hf_model))
    assert ours == theirs
    own = {parameter.data_ptr() for parameter in model.parameters()}
    assert {parameter.data_ptr() for parameter in model.hubert_model.parameters()} <= own  # made on demand, of the same memory


OUTSIDE = {
    "frontend.0.hook_conv",
    "frontend.0.hook_post",
    "frontend.2.hook_post",
    "projection.ln.hook_scale",
    "projection.ln.hook_normalized",
    "projection.hook_out",
    "embed.hook_embed",
    "embed.hook_pos_embed",
    "embed.ln.hook_normalized",
    "hook_full_embed",
    "ctc_head.hook_out",
}


def test_there_are_hooks_outside_the_blocks() -> None:
    """Defect: front end, projection, embeddings and head had no hook points."""
    _, model = twins(GROUP)
    logits, cache = model.run_with_cache(CLIP, return_type="logits")
    assert {name for name in cache if not name.startswith("blocks.")} >= OUTSIDE
    assert torch.equal(cache["ctc_head.hook_out"], logits)
    for name in sorted(OUTSIDE):
        noise = torch.rand(cache[name].shape, generator=torch.Generator().manual_seed(0))
        edits = [(name, lambda tensor, hook, noise=noise: tensor + noise)]
        assert_changed(model.run_with_hooks(CLIP, return_type="logits", fwd_hooks=edits), logits)


@pytest.mark.parametrize("hf_class", ["HubertForCTC", "Wav2Vec2ForCTC"])
def test_ctc_checkpoints_load_and_transcribe(hf_class: str, tmp_path: Path) -> None:
    """Defect: checkpoints with a CTC head were refused, and the head could not be run."""
    hf_model = tiny_hf(hf_class, seed=1, **LAYOUTS[LAYER])
    model = HookedAudioEncoder.from_pretrained(saved(hf_model, tmp_path, masks=True), device="cpu")
    with torch.no_grad():
        theirs = hf_model(**hf_batch(masks=True)).logits
    _, mask = model.to_frames([CLIP, SHORT])
    assert model.task == "ctc"
    assert_parity(model([CLIP, SHORT], return_type="logits"), theirs, mask)
    assert torch.equal(model([CLIP, SHORT], use_proj=True), model([CLIP, SHORT], return_type="logits"))
    rows = [row[real.bool()] for row, real in zip(theirs.argmax(-1), mask, strict=True)]
    expected = [processor(masks=True).batch_decode(row[None])[0] for row in rows]
    assert model([CLIP, SHORT], return_type="predictions") == expected
    assert all(len(set(transcript)) > 1 for transcript in expected)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("layout", [GROUP, LAYER])
def test_padding_is_masked_as_the_processor_says(layout: str, masks: bool, tmp_path: Path) -> None:
    """Defect: padding was always masked, also for checkpoints whose processor says that it is read as silence."""
    hf_model = tiny_hf("HubertModel", **LAYOUTS[layout])
    model = HookedAudioEncoder.from_pretrained(saved(hf_model, tmp_path, masks), device="cpu")
    with torch.no_grad():
        theirs, overridden = (hf_model(**hf_batch(policy)).last_hidden_state for policy in (masks, not masks))
    n_frames = int(model.frame_lengths(len(SHORT)))
    ours = model([CLIP, SHORT])
    assert_parity(ours[0], theirs[0])
    assert_parity(ours[1, :n_frames], theirs[1, :n_frames])
    assert_changed(overridden[1, :n_frames], ours[1, :n_frames], 1e-2)
    assert model.to_frames([CLIP, SHORT])[1][1].sum() == (n_frames if masks else ours.shape[1])
