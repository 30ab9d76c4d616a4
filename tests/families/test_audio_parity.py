"""Every class and layout of every audio family against Hugging Face: streams, attention, logits, losses, gradients, padding."""

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Wav2Vec2FeatureExtractor

from encoderlens import HookedAudioEncoder
from encoderlens.errors import InputError
from encoderlens.families import REGISTRY
from tests.parity import assert_changed, assert_gradient_parity, assert_parity, gradients, gradients_under_hf_names
from tests.speech import AMIABLE, CLASSES, CLUBS, DISPOSED, HUBERT_LAYOUTS, LAID_OUT, LAYOUTS, layouts_of, snippets, speech
from tests.tiny import tiny_hf

# What processors do: (padding is masked, clips are normalised). The first two are those of real checkpoints.
POLICIES = {
    "masked, normalised": (True, True),
    "normalised": (False, True),
    "masked": (True, False),
    "nothing": (False, False),
}
BASES = [family.base_class for family in REGISTRY.values() if family.modality == "audio"]


def cases(policies: Iterable[str]) -> list[tuple[str, str, str]]:
    """Base models under each policy; the others under that of checkpoints of their layout."""
    found = []
    for hf_class, layout in LAID_OUT:
        layer_norms = layouts_of(hf_class)[layout].get("feat_extract_norm") == "layer"
        own = "masked, normalised" if layer_norms else "normalised"
        found += [(hf_class, layout, policy) for policy in (policies if hf_class in BASES else [own])]
    return found


WITH_CTC = [name for name in CLASSES if name.endswith("ForCTC")]
SPOKEN = torch.tensor([[5, 9, 9, 17], [30, 2, -100, -100], [7, -100, -100, -100]])  # labels of the snippets


class Case:
    """A Hugging Face model, ours, and a processor that prepares clips for both."""

    def __init__(self, hf_class: str, layout: str, policy: str = "masked, normalised") -> None:
        self.hf_model, self.model = twins(hf_class, layout)
        self.masks, normalizes = POLICIES[policy]
        self.extractor = Wav2Vec2FeatureExtractor(do_normalize=normalizes, return_attention_mask=self.masks)
        self.model.processor = self.extractor

    def inputs(self, clips: Iterable[Tensor]) -> dict[str, Tensor]:
        arrays = [clip.detach().numpy() for clip in clips]
        return dict(self.extractor(arrays, sampling_rate=16_000, padding=True, return_tensors="pt"))

    @property
    def real(self) -> Tensor:
        """1 at the frames that padding leaves; 1 everywhere where padding is not masked."""
        lengths = self.model.frame_lengths([len(clip) for clip in snippets()])
        n_frames = int(lengths.max())
        return (torch.arange(n_frames) < (lengths[:, None] if self.masks else n_frames)).expand(len(lengths), -1)

    @property
    def final(self) -> str:
        """The hook point of the stream that leaves the last block."""
        return self.model.stream_point(self.model.cfg.n_layers).name


@cache
def twins(hf_class: str, layout: str) -> tuple[Any, HookedAudioEncoder]:
    hf_model = tiny_hf(hf_class, seed=len(layout), **layouts_of(hf_class)[layout])
    return hf_model, HookedAudioEncoder.from_pretrained(hf_model=hf_model, device="cpu")


@pytest.fixture(params=cases(POLICIES), ids=lambda param: ", ".join(param))
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    made = Case(*request.param)
    yield made
    made.model.zero_grad()
    made.hf_model.zero_grad()


@pytest.mark.parametrize("hf_class", CLASSES)
def test_the_snippets_go_down_to_one_frame(hf_class: str) -> None:
    model = Case(hf_class, "group norm, post-LN").model
    assert model.frame_lengths([len(clip) for clip in snippets()]).tolist() == [34, 19, 1]


@torch.no_grad()
def test_forward(case: Case) -> None:
    model, inputs, real = case.model, case.inputs(snippets()), case.real
    theirs = case.hf_model.base_model(**inputs, output_hidden_states=True, output_attentions=True)
    out, cache = model.run_with_cache(snippets(), return_type="logits" if model.task else "hidden")
    assert_parity(model(snippets()), theirs.last_hidden_state, real)
    assert_parity(model(**inputs), theirs.last_hidden_state, real)  # what the feature extractor made, read as it is
    streams = [*(cache["resid_pre", layer] for layer in range(model.cfg.n_layers)), cache[case.final]]
    for ours, expected in zip(streams, theirs.hidden_states, strict=True):
        assert_parity(ours, expected, real)
    for layer, expected in enumerate(theirs.attentions):
        assert_parity(cache["pattern", layer].transpose(1, 2), expected.transpose(1, 2), real)
    if model.task is None:
        assert_parity(out, theirs.last_hidden_state, real)
        return
    expected = case.hf_model(**inputs).logits
    real = real if model.heads[model.task].per_position else None
    assert_parity(out, expected, real)
    assert_parity(model(snippets(), return_type="logits"), expected, real)


# The convolutions of every real checkpoint, narrow: stride 320, receptive field 400.
GEOMETRY: dict[str, Any] = {
    "conv_dim": (8,) * 7,
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
    "conv_stride": (5, 2, 2, 2, 2, 2, 2),
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 8,
}


@torch.no_grad()
@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("hf_class", BASES)
def test_whole_clips_through_convolutions_like_those_of_real_checkpoints(hf_class: str, norm: str) -> None:
    hf_model = tiny_hf(hf_class, feat_extract_norm=norm, do_stable_layer_norm=norm == "layer", **GEOMETRY)
    model = HookedAudioEncoder.from_pretrained(hf_model=hf_model, device="cpu")
    arrays = [speech(path) for path in (DISPOSED, AMIABLE, CLUBS)]
    clips = [torch.from_numpy(array) for array in arrays]
    lengths = model.frame_lengths([len(clip) for clip in clips]).tolist()
    theirs = hf_model(**model.processor(arrays, sampling_rate=16_000, padding=True, return_tensors="pt")).last_hidden_state
    real = model.prepare(clips).sequence.real
    assert real.sum(1).tolist() == (lengths if norm == "layer" else [max(lengths)] * 3)
    assert_parity(model(clips), theirs, real)
    alone = model(clips, padding="independent")
    for row, array in enumerate(arrays):
        inputs = model.processor(array, sampling_rate=16_000, return_tensors="pt")
        assert_parity(alone[row : row + 1, : lengths[row]], hf_model(**inputs).last_hidden_state)


# Losses and gradients


def processed(clips: list[Tensor], extractor: Any) -> Tensor:
    """What the processor makes of clips, in operations that gradients pass."""
    longest, rows = max(map(len, clips)), []
    for clip in clips:
        row = clip if extractor.return_attention_mask else F.pad(clip, (0, longest - len(clip)))
        if extractor.do_normalize:
            row = (row - row.mean()) / (row.var(correction=0) + 1e-7).sqrt()
        rows.append(F.pad(row, (0, longest - len(row))))
    return torch.stack(rows)


def test_loss_and_gradients_of_parameters_and_waveforms(case: Case) -> None:
    hf_model, model = case.hf_model, case.model
    mine, other = ([clip.clone().requires_grad_() for clip in snippets()] for _ in range(2))
    inputs = case.inputs(other)
    by_hand = processed(other, case.extractor)
    assert_parity(by_hand.detach(), inputs["input_values"])
    inputs["input_values"] = by_hand
    if model.task is None:
        ours = model(mine)[case.real].square().mean()
        theirs = hf_model.base_model(**inputs).last_hidden_state[case.real].square().mean()
    else:
        labels = {"ctc": SPOKEN, "sequence_classification": torch.tensor([4, 0, 2])}[model.task]
        ours = model(mine, return_type="loss", labels=labels)
        theirs = hf_model(**inputs, labels=labels).loss
    assert_parity(ours, theirs)
    ours.backward()
    theirs.backward()
    assert_gradient_parity(gradients_under_hf_names(model, hf_model), gradients(hf_model))
    assert_gradient_parity(*({str(row): clip.grad for row, clip in enumerate(clips)} for clips in (mine, other)))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("hf_class", WITH_CTC)
def test_the_ctc_loss_in_each_reduction_and_with_each_padding_of_labels(hf_class: str, reduction: str) -> None:
    hf_model = tiny_hf(hf_class, ctc_loss_reduction=reduction, pad_token_id=3)
    model = HookedAudioEncoder.from_pretrained(hf_model=hf_model, device="cpu")
    arrays = [clip.numpy() for clip in snippets()]
    inputs = model.processor(arrays, sampling_rate=16_000, padding=True, return_tensors="pt")
    by_hundred, by_blank = (
        model(snippets(), return_type="loss", labels=SPOKEN.masked_fill(SPOKEN == -100, pad)) for pad in (-100, 3)
    )
    assert torch.equal(by_hundred, by_blank)
    assert_parity(by_hundred, hf_model(**inputs, labels=SPOKEN).loss)
    one = model(snippets()[0], return_type="loss", labels=SPOKEN[:1])
    alone = hf_model(**model.processor(arrays[0], sampling_rate=16_000, return_tensors="pt"), labels=SPOKEN[:1])
    assert_parity(one, alone.loss)


@pytest.mark.parametrize("hf_class", WITH_CTC)
def test_labels_too_long_for_a_clip_count_nothing_or_are_refused(hf_class: str) -> None:
    too_long = torch.tensor([[5, 9, 9, 17], [30, 2, -100, -100], [7, 8, -100, -100]])  # one frame has no place for two
    found = {}
    for zero_infinity in (True, False):
        hf_model = tiny_hf(hf_class, feat_extract_norm="layer", ctc_zero_infinity=zero_infinity)
        model = HookedAudioEncoder.from_pretrained(hf_model=hf_model, device="cpu")
        inputs = model.processor([clip.numpy() for clip in snippets()], sampling_rate=16_000, padding=True, return_tensors="pt")
        found[zero_infinity] = model, hf_model(**inputs, labels=too_long).loss
    model, expected = found[True]
    ours = model(snippets(), return_type="loss", labels=too_long)
    assert_parity(ours, expected)
    ours.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    model, expected = found[False]
    assert expected == torch.inf
    with pytest.raises(InputError, match=r"the labels of clip 2 need 2 frames .*, and it has 1"):
        model(snippets(), return_type="loss", labels=too_long)


# Padding


@torch.no_grad()
@pytest.mark.parametrize(("hf_class", "layout", "policy"), cases(list(POLICIES)[:2]))
def test_independent_padding_gives_each_clip_what_it_gets_alone(hf_class: str, layout: str, policy: str) -> None:
    case = Case(hf_class, layout, policy)
    model = case.model
    out, cache = model.run_with_cache(snippets(), return_type="logits" if model.task else "hidden", padding="independent")
    hidden = model(snippets(), padding="independent")
    streams = [*(cache["resid_pre", layer] for layer in range(model.cfg.n_layers)), cache[case.final]]
    for row, clip in enumerate(snippets()):
        inputs = case.inputs([clip])
        theirs = case.hf_model.base_model(**inputs, output_hidden_states=True, output_attentions=True)
        n_frames = theirs.last_hidden_state.shape[1]
        for ours, expected in zip((hidden, *streams), (theirs.last_hidden_state, *theirs.hidden_states), strict=True):
            assert_parity(ours[row : row + 1, :n_frames], expected)
        for layer, expected in enumerate(theirs.attentions):
            assert_parity(cache["pattern", layer][row : row + 1, :, :n_frames, :n_frames], expected)
        if model.task is not None:
            ours = out[row : row + 1, :n_frames] if model.heads[model.task].per_position else out[row : row + 1]
            assert_parity(ours, case.hf_model(**inputs).logits)


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS | HUBERT_LAYOUTS)
def test_padding_in_a_batch_reaches_real_frames_just_where_a_norm_over_time_or_no_mask_lets_it(layout: str) -> None:
    """Real frames of the shorter clips: alike to a millionth under layer norms and a mask, and otherwise far apart."""
    for policy, (masked, _) in list(POLICIES.items())[:2]:
        case = Case("HubertModel", layout, policy)
        lengths = case.model.frame_lengths([len(clip) for clip in snippets()])
        shorter = torch.arange(int(lengths.max())) < torch.where(lengths < lengths.max(), lengths, 0)[:, None]
        together, alone = (case.model(snippets(), padding=padding)[shorter] for padding in ("batch", "independent"))
        over_time = case.model.frontend_part.norm == "group" or "batch norm" in layout
        if over_time or not masked:
            assert_changed(together, alone, 0.05)
        else:
            assert_parity(together, alone)
        longest = lengths == lengths.max()
        assert_parity(case.model(snippets())[longest], case.model(snippets(), padding="independent")[longest])


# Frames that are masked


@torch.no_grad()
@pytest.mark.parametrize("policy", list(POLICIES)[:2])
@pytest.mark.parametrize(("hf_class", "layout"), [(name, layout) for name, layout in LAID_OUT if name in BASES])
def test_masked_frames(hf_class: str, layout: str, policy: str) -> None:
    case = Case(hf_class, layout, policy)
    generator = torch.Generator().manual_seed(1)
    masked = torch.rand(case.real.shape, generator=generator) < 0.4  # padded frames among them
    theirs = case.hf_model.base_model(**case.inputs(snippets()), mask_time_indices=masked).last_hidden_state
    assert_parity(case.model(snippets(), mask_time_indices=masked), theirs, case.real)
    assert_parity(case.model(snippets(), mask_time_indices=masked.int().numpy()), theirs, case.real)
    assert_changed(case.model(snippets())[case.real], theirs[case.real], 0.05)
