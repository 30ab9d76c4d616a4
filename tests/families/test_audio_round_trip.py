"""Audio models given back to Hugging Face, as a copy and as a base model that shares the parameters; and other dtypes."""

import copy
import logging
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Wav2Vec2FeatureExtractor

from encoderlens import HookedAudioEncoder
from tests.checkpoints import assert_same_tensors
from tests.parity import assert_changed, assert_gradient_parity, assert_parity, gradients_under_hf_names
from tests.speech import LAID_OUT, layouts_of, snippets
from tests.tiny import tiny_hf

EACH = pytest.mark.parametrize(("hf_class", "layout"), LAID_OUT)


@cache
def hf_twin(hf_class: str, layout: str) -> Any:
    return tiny_hf(hf_class, seed=5, **layouts_of(hf_class)[layout])


def load(hf_model: Any, dtype: torch.dtype = torch.float32) -> HookedAudioEncoder:
    return HookedAudioEncoder.from_pretrained(hf_model=hf_model, device="cpu", dtype=dtype)


def shown(config: Any) -> dict[str, Any]:
    """A configuration without what says where it comes from."""
    ignored = {"_attn_implementation_internal", "architectures", "dtype", "transformers_version"}
    return {name: value for name, value in config.to_dict().items() if name not in ignored}


def assert_comes_back(model: HookedAudioEncoder, hf_model: Any) -> None:
    """Tensor by tensor, bit by bit, with class, dtype and configuration."""
    back = model.to_hf()
    assert type(back) is type(hf_model)
    assert not back.training
    assert_same_tensors(back.state_dict(), hf_model.state_dict())
    assert shown(back.config) == shown(hf_model.config)
    assert back.config.architectures == [type(hf_model).__name__]
    assert back.config.dtype == hf_model.dtype


# Back


@EACH
def test_to_hf_is_bit_exact(hf_class: str, layout: str, caplog: pytest.LogCaptureFixture) -> None:
    hf_model = hf_twin(hf_class, layout)
    with caplog.at_level(logging.WARNING, "encoderlens"):
        assert_comes_back(load(hf_model), hf_model)
    assert caplog.messages == []


def test_what_only_pre_training_computes_with_comes_back() -> None:
    hf_model = hf_twin("Wav2Vec2ForPreTraining", "layer norm, pre-LN")
    model = load(hf_model)
    kept = {name for name in hf_model.state_dict() if not name.startswith("wav2vec2.")}
    assert kept == set(model.load_report.spare)
    assert {name.split(".")[0] for name in kept} == {"quantizer", "project_hid", "project_q"}
    back = model.to_hf()
    clips = model.processor([clip.numpy() for clip in snippets()[:2]], sampling_rate=16_000, padding=True, return_tensors="pt")
    with torch.no_grad():
        ours, theirs = back(**clips), hf_model(**clips)
    assert_parity(ours.projected_quantized_states, theirs.projected_quantized_states)
    assert_parity(ours.projected_states, theirs.projected_states, tolerance=1e-4)


def test_the_counter_of_a_batch_norm_comes_back() -> None:
    hf_model = tiny_hf("HubertModel", conv_pos_batch_norm=True)
    hf_model.encoder.pos_conv_embed.batch_norm.num_batches_tracked.fill_(17)
    assert load(hf_model).to_hf().encoder.pos_conv_embed.batch_norm.num_batches_tracked == 17
    half = load(hf_model, torch.bfloat16).to_hf().encoder.pos_conv_embed.batch_norm
    assert (half.num_batches_tracked.dtype, half.running_var.dtype) == (torch.int64, torch.bfloat16)


def test_to_hf_is_a_copy() -> None:
    model = load(hf_twin("HubertForCTC", "group norm, post-LN"))
    back = model.to_hf()
    theirs = {tensor.untyped_storage().data_ptr() for tensor in back.state_dict().values()}
    assert theirs.isdisjoint(parameter.untyped_storage().data_ptr() for parameter in model.parameters())


# Other dtypes


@cache
def in_float32(hf_class: str, layout: str) -> Tensor:
    """Logits, or the final stream of a model without a head."""
    model = load(hf_twin(hf_class, layout))
    return model(snippets(), return_type="logits" if model.task else "hidden")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@EACH
@torch.no_grad()
def test_half_precision_runs_end_to_end_and_comes_back_bit_by_bit(hf_class: str, layout: str, dtype: torch.dtype) -> None:
    model = load(hf_twin(hf_class, layout), dtype)
    returns = "logits" if model.task else "hidden"
    plain, (hooked, cache) = model(snippets(), return_type=returns), model.run_with_cache(snippets(), return_type=returns)
    per_position = model.task is None or model.heads[model.task].per_position
    real = model.prepare(snippets()).sequence.real if per_position else None
    tolerance = {torch.bfloat16: 0.15, torch.float16: 0.02}[dtype]
    assert plain.dtype == hooked.dtype == dtype
    assert_parity(plain.float(), in_float32(hf_class, layout), real, tolerance)
    assert_parity(hooked.float(), plain.float(), real, tolerance)
    assert all(value.isfinite().all() for name, value in cache.items() if not name.endswith("attn_scores"))
    assert_comes_back(model, copy.deepcopy(hf_twin(hf_class, layout)).to(dtype))


@EACH
@torch.no_grad()
def test_float64_agrees_to_its_own_precision(hf_class: str, layout: str) -> None:
    hf_model = copy.deepcopy(hf_twin(hf_class, layout)).double()
    model = load(hf_model, torch.float64)
    model.processor = Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    inputs = model.processor([clip.numpy() for clip in snippets()], sampling_rate=16_000, padding=True, return_tensors="pt")
    inputs["input_values"] = inputs["input_values"].double()
    real = model.prepare(snippets()).sequence.real
    theirs = hf_model.base_model(**inputs).last_hidden_state
    assert_parity(model(snippets()), theirs, real, tolerance=1e-13)
    if model.task is not None:
        real = real if model.heads[model.task].per_position else None
        assert_parity(model(snippets(), return_type="logits"), hf_model(**inputs).logits, real, tolerance=1e-13)


# The base model inside


def same_clips(model: HookedAudioEncoder) -> dict[str, Tensor]:
    """What our front end reads, as input of a Hugging Face model."""
    batch = model.prepare(snippets()[:2])
    lengths = torch.tensor([len(clip) for clip in snippets()[:2]])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return {"input_values": batch.waves} | ({} if batch.sequence.mask is None else {"attention_mask": mask.long()})


@EACH
def test_every_parameter_of_the_base_model_is_ours(hf_class: str, layout: str) -> None:
    hf_model = hf_twin(hf_class, layout)
    model = load(hf_model)
    base, inputs, real = model.hubert_model, same_clips(model), model.prepare(snippets()[:2]).sequence.real
    assert type(base) is type(hf_model.base_model)
    assert not base.training
    with torch.no_grad():
        assert_parity(base(**inputs).last_hidden_state, hf_model.base_model(**inputs).last_hidden_state, real)
    own = {id(parameter) for parameter in model.parameters()}
    assert all(id(parameter) in own for parameter in base.parameters())
    shared = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    assert all(tensor.untyped_storage().data_ptr() in shared for tensor in base.state_dict().values() if tensor.ndim)
    assert len(list(base.parameters())) == len([name for name, _ in model.named_parameters() if is_of_encoder(name)])

    base(**inputs).last_hidden_state[real].square().mean().backward()
    through_base = gradients_under_hf_names(model, hf_model)
    model.zero_grad()
    model(snippets()[:2])[real].square().mean().backward()
    assert_gradient_parity(gradients_under_hf_names(model, hf_model), through_base)

    before = base(**inputs).last_hidden_state
    with torch.no_grad():
        model.blocks[1].mlp.W_out[3] *= -2
        model.embed.pos_embed.bias += 0.5
        after = base(**inputs).last_hidden_state
        assert_changed(after, before)
        assert_parity(model(snippets()[:2]), after, real)
        base.encoder.layers[0].attention.q_proj.weight.zero_()
        assert not model.blocks[0].attn.W_Q.any()


def is_of_encoder(name: str) -> bool:
    return name.split(".")[0] in ("frontend", "projection", "embed", "blocks", "ln_final")


@pytest.mark.parametrize("layout", layouts_of("HubertModel"))
def test_the_base_model_leaves_frozen_parameters_frozen(layout: str) -> None:
    model = load(hf_twin("HubertModel", layout))
    model.frontend.requires_grad_(False)
    model.blocks[0].requires_grad_(False)
    before = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    base = model.hubert_model
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == before
    base(**same_clips(model)).last_hidden_state.square().mean().backward()
    assert base.feature_extractor.conv_layers[0].conv.weight.grad is None
    assert base.encoder.layers[1].attention.q_proj.weight.grad.any()


@torch.no_grad()
def test_the_base_model_has_the_dtype_that_the_model_has_now() -> None:
    model = load(hf_twin("HubertForCTC", "layer norm, pre-LN")).to(torch.float64, print_details=False)
    theirs = model.hubert_model(**same_clips(model)).last_hidden_state
    assert theirs.dtype == torch.float64
    assert_parity(model(snippets()[:2]), theirs, model.prepare(snippets()[:2]).sequence.real, tolerance=1e-13)


def test_the_base_model_of_a_checkpoint_without_the_vector_for_masked_frames() -> None:
    hf_model = tiny_hf("Wav2Vec2ForCTC")
    del hf_model.wav2vec2.masked_spec_embed
    model = load(hf_model)
    base = model.hubert_model
    assert not base.masked_spec_embed.any()
    assert_parity(base(**same_clips(model)).last_hidden_state, hf_model.wav2vec2(**same_clips(model)).last_hidden_state)
