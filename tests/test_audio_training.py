"""Audio models in training: dropout, layers left out, SpecAugment and batch norms as Hugging Face has them, and not in eval."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices

from encoderlens import HookedAudioEncoder
from encoderlens.components.spec_augment import mask_spans
from tests.parity import assert_changed, assert_parity
from tests.speech import HUBERT_LAYOUTS, LAYOUTS, snippets
from tests.tiny import tiny_hf

DROPOUTS = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout")
NONE: dict[str, Any] = dict.fromkeys((*DROPOUTS, "layerdrop"), 0.0) | {"apply_spec_augment": False}
EACH = pytest.mark.parametrize("layout", LAYOUTS | HUBERT_LAYOUTS)
ON_CPU = torch.device("cpu")


def twins(hf_class: str = "HubertForCTC", layout: str = "group norm, post-LN", **values: Any) -> tuple[Any, HookedAudioEncoder]:
    """In training, with nothing random but what is asked for."""
    hf_model = tiny_hf(hf_class, **(NONE | (LAYOUTS | HUBERT_LAYOUTS)[layout] | values))
    model = HookedAudioEncoder.from_pretrained(hf_model=hf_model, device="cpu")
    return hf_model.train(), model.train()


def both(hf_model: Any, model: HookedAudioEncoder, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Our logits and theirs, at real frames of a padded batch, from the same state of torch's generator."""
    inputs = model.processor([clip.numpy() for clip in snippets()], sampling_rate=16_000, padding=True, return_tensors="pt")
    batch = model.prepare(snippets())
    torch.manual_seed(seed)
    ours = model(batch, return_type="logits")
    torch.manual_seed(seed)
    theirs = hf_model(**inputs).logits
    return (ours, theirs) if ours.ndim == 2 else (ours[batch.sequence.real], theirs[batch.sequence.real])


@EACH
@pytest.mark.parametrize("hf_class", ["HubertForCTC", "HubertForSequenceClassification"])
def test_training_without_anything_random(hf_class: str, layout: str) -> None:
    hf_model, model = twins(hf_class, layout)
    for _ in range(2):  # the second run normalises by statistics that the first has moved
        ours, theirs = both(hf_model, model)
        assert_parity(ours, theirs)
    hf_model.eval()
    model.eval()
    assert_parity(*both(hf_model, model))
    if "batch norm" in layout:
        normed = hf_model.hubert.encoder.pos_conv_embed.batch_norm
        assert_parity(model.embed.pos_embed.mean, normed.running_mean)
        assert_parity(model.embed.pos_embed.var, normed.running_var)


@pytest.mark.parametrize("dropout", DROPOUTS)
@EACH
def test_each_dropout_acts_where_hugging_face_has_it_and_only_in_training(dropout: str, layout: str) -> None:
    hf_model, model = twins("HubertForCTC", layout, **{dropout: 0.3})
    ours, theirs = both(hf_model, model)
    assert_parity(ours, theirs)
    other, _ = both(hf_model, model, seed=1)
    assert_changed(other, ours, 0.01)
    hf_model.eval()
    model.eval()
    evaluated, expected = both(hf_model, model, seed=1)
    assert_parity(evaluated, expected)
    assert torch.equal(evaluated, both(hf_model, model, seed=2)[0])


def test_all_of_it_at_once() -> None:
    hf_model, model = twins(layout="layer norm, pre-LN", **dict.fromkeys((*DROPOUTS, "layerdrop"), 0.2))
    for seed in range(4):
        assert_parity(*both(hf_model, model, seed))


# Layers that are left out


@EACH
def test_some_layers_are_left_out(layout: str) -> None:
    hf_model, model = twins("HubertForCTC", layout, layerdrop=0.5)
    found = []
    for seed in range(6):
        ours, theirs = both(hf_model, model, seed)
        assert_parity(ours, theirs)
        found.append(float(ours.detach().sum()))
    assert len(set(found)) > 2


@EACH
def test_all_layers_are_left_out(layout: str) -> None:
    _, model = twins("HubertModel", layout, layerdrop=1.0)
    hidden, cache = model.run_with_cache(snippets()[0])
    assert_parity(hidden, model.ln_final(cache["full_embed"]) if model.ln_final else cache["full_embed"])
    inside = {name for name in cache if name.startswith("blocks.")}
    assert inside == {f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers)}, "hooks still see each stream"
    assert all(torch.equal(cache[name], cache["full_embed"]) for name in inside)
    assert model.eval().run_with_cache(snippets()[0])[1].keys() > cache.keys()


def test_a_sum_over_streams_takes_the_stream_as_it_is_where_a_layer_is_left_out() -> None:
    layout = "group norm, pre-LN, biases, summed layers"
    _, model = twins("HubertForSequenceClassification", layout, layerdrop=1.0)
    logits, cache = model.run_with_cache(snippets()[0], return_type="logits")
    assert_parity(cache["layer_sum.hook_out"], cache["full_embed"], tolerance=1e-6)
    assert_parity(logits, model.classifier(model.projector(cache["full_embed"]).mean(1)))


# SpecAugment


def embedded(model: HookedAudioEncoder, **options: Any) -> Tensor:
    """What enters the positional convolution, of the snippets, padding masked."""
    padded = model.frame_lengths([len(clip) for clip in snippets()])[:, None] <= torch.arange(34)
    _, cache = model.run_with_cache(snippets(), ~padded, names_filter="embed.hook_embed", **options)
    return cache["embed.hook_embed"]


def augmented(**values: Any) -> tuple[HookedAudioEncoder, Tensor, Tensor]:
    """A model in training that masks, what it embeds without masking, and where the frames are real."""
    _, model = twins("HubertModel", apply_spec_augment=True, **values)
    plain = embedded(model.eval())
    return model.train(), plain, plain.any(-1)


def test_the_snippets_are_as_long_as_they_should_be() -> None:
    assert augmented(mask_time_prob=0.1)[2].sum(1).tolist() == [34, 19, 1]


def test_masked_frames_hold_the_vector_and_the_others_what_they_held() -> None:
    model, plain, real = augmented(mask_time_prob=0.4, mask_time_length=3, mask_time_min_masks=0)
    shares = []
    for seed in range(40):
        torch.manual_seed(seed)
        found = embedded(model)
        masked = (found == model.embed.mask_embed).all(-1)
        assert torch.equal(found[~masked], plain[~masked])
        assert not (masked & ~real).any()
        assert not masked[2].any(), "one frame has no place for a span of three"
        for row, length in zip(masked[:2], (34, 19), strict=True):
            assert_spans(row, length, 3, {int(0.4 * length / 3), int(0.4 * length / 3) + 1})
        shares.append(masked[0].float().mean())
    assert torch.stack(shares).mean().item() == pytest.approx(0.34, abs=0.04)  # less than 0.4: spans overlap


def test_masked_channels_are_zero_in_every_frame_also_in_masked_ones() -> None:
    model, plain, real = augmented(mask_time_prob=0.4, mask_time_length=3, mask_feature_prob=0.5, mask_feature_length=4)
    for seed in range(20):
        torch.manual_seed(seed)
        for row, before, frames in zip(embedded(model), plain, real, strict=True):
            channels = ~row[frames].any(0)
            assert_spans(channels, 24, 4, {3})
            masked = (row == model.embed.mask_embed.masked_fill(channels, 0)).all(-1) & frames
            assert torch.equal(row[~masked], before.masked_fill(channels, 0)[~masked])
            assert masked.any() or frames.sum() == 1


def test_at_least_so_many_spans() -> None:
    model, _, _ = augmented(mask_time_prob=1e-9, mask_time_length=2, mask_time_min_masks=4)
    masked = (embedded(model) == model.embed.mask_embed).all(-1)
    assert 5 <= masked[0].sum() <= 8
    assert 5 <= masked[1].sum() <= 8
    assert not masked[2].any()


@pytest.mark.parametrize(
    "values",
    [
        {"apply_spec_augment": False, "mask_time_prob": 0.9, "mask_feature_prob": 0.9},
        {"apply_spec_augment": True, "mask_time_prob": 0.0, "mask_feature_prob": 0.0},
    ],
    ids=["switched off", "no share"],
)
def test_nothing_is_masked(values: dict[str, Any]) -> None:
    _, model = twins("HubertModel", **values)
    assert torch.equal(embedded(model), embedded(model.eval()))


def test_without_the_vector_no_frame_is_masked_but_channels_are() -> None:
    hf_model = tiny_hf("HubertModel", **(NONE | {"apply_spec_augment": True, "mask_time_prob": 0.9, "mask_feature_prob": 0.9}))
    del hf_model.masked_spec_embed
    model = HookedAudioEncoder.from_pretrained(hf_model=hf_model, device="cpu")
    plain = embedded(model)
    torch.manual_seed(0)
    found = embedded(model.train())
    assert ((found == plain) | (found == 0)).all()
    zeroed = ~found[0].any(0)
    assert 10 <= zeroed.sum() < 24
    assert found[0][:, ~zeroed].all()


def test_frames_that_are_named_are_masked_in_place_of_random_ones() -> None:
    model, plain, real = augmented(mask_time_prob=0.9, mask_time_length=2)
    named = torch.zeros(3, 34, dtype=torch.bool)
    named[0, 5] = named[1, 30] = True
    found = embedded(model, mask_time_indices=named)
    assert torch.equal(found[0, 5], model.embed.mask_embed)
    assert torch.equal(found[~(named & real)], plain[~(named & real)])


def test_eval_mode_is_the_same_every_time_and_after_training() -> None:
    values = dict.fromkeys((*DROPOUTS, "layerdrop"), 0.5) | {"apply_spec_augment": True, "mask_time_prob": 0.9}
    _, model = twins("HubertForCTC", **values)
    before = model.eval()(snippets())
    assert not torch.equal(model.train()(snippets()), before)
    assert torch.equal(model.eval()(snippets()), before)


# Spans


def assert_spans(row: Tensor, length: int, span: int, counts: set[int]) -> None:
    """True in spans of at least this length, within the row's own, that so many distinct spans can cover."""
    edges = torch.cat([torch.zeros(1), row.float(), torch.zeros(1)]).diff().nonzero().flatten().view(-1, 2)
    assert ((edges[:, 1] - edges[:, 0]) >= span).all()
    assert not row[length:].any()
    covered = int(row.sum())
    assert any(count * span >= covered and (covered >= span + count - 1 if count else covered == 0) for count in counts)


@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=4),
    padding=st.integers(0, 20),
    share=st.floats(0.0, 1.0),
    span=st.integers(1, 12),
    least=st.integers(0, 5),
    seed=st.integers(0, 10_000),
)
@settings(deadline=None, max_examples=200)
def test_spans(lengths: list[int], padding: int, share: float, span: int, least: int, seed: int) -> None:
    size = max(lengths) + padding
    torch.manual_seed(seed)
    found = mask_spans(lengths, size, share, span, least, ON_CPU)
    assert found.shape == (len(lengths), size)
    for row, length in zip(found, lengths, strict=True):
        places, room = max(length - span + 1, 0), size // span
        rounded = (int(share * length / span), int(share * length / span + 1))
        assert_spans(row, length, span, {min(max(count, least), room, places) for count in rounded})


def test_spans_are_as_many_as_those_of_hugging_face() -> None:
    lengths, size, draws = [50, 31, 12], 50, 400
    mask = torch.arange(size) < torch.tensor(lengths)[:, None]
    torch.manual_seed(0)
    np.random.seed(0)
    ours = sum(mask_spans(lengths, size, 0.5, 4, 1, ON_CPU).float() for _ in range(draws)) / draws
    theirs = sum(torch.from_numpy(_compute_mask_indices((3, size), 0.5, 4, mask, 1)).float() for _ in range(draws)) / draws
    for mine, other, length in zip(ours, theirs, lengths, strict=True):
        assert mine[:length].mean().item() == pytest.approx(other[:length].mean().item(), rel=0.04)
        assert (mine - other).abs().max() < 0.12, "every frame is as likely"


def test_rounding_is_alike_for_all_rows_and_right_on_average() -> None:
    torch.manual_seed(0)
    draws = [mask_spans([10, 10], 10, 0.25, 1, 0, ON_CPU).sum(1).tolist() for _ in range(400)]  # two spans and a half
    assert {tuple(counts) for counts in draws} == {(2, 2), (3, 3)}
    assert sum(counts[0] for counts in draws) / 400 == pytest.approx(2.5, abs=0.1)
