"""The heads of speech models by themselves: CTC against torch and Hugging Face on drawn logits, and classes of clips."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2PhonemeCTCTokenizer, Wav2Vec2Processor

from encoderlens import HookedAudioEncoder
from encoderlens.audio.masks import mask_of_lengths
from encoderlens.components import AudioClassificationHead, CTCHead
from encoderlens.errors import InputError, TokenizerMissingError
from encoderlens.sequence import Sequence
from tests.parity import assert_parity
from tests.speech import ctc_tokenizer, tiny_speech, tokenizer_of
from tests.tiny import tiny_hf, tiny_waves

VOCAB, WIDTH = 32, 24
LENGTHS = (17, 9, 12)
# The second one ends in blanks, the third is a repetition.
LABELS = torch.tensor([[5, 6, 6, 7, 31, 1], [8, 9, 0, 0, 0, -100], [4, 4, 4, -100, -100, -100]])


def ctc(blank: int = 0, reduction: str = "sum", zero_infinity: bool = False, n_symbols: int = VOCAB) -> CTCHead:
    return CTCHead(n_symbols, blank, reduction, zero_infinity, dropout=0.0, d_model=WIDTH)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def padded(lengths: tuple[int, ...] = LENGTHS) -> Sequence:
    return Sequence(len(lengths), max(lengths), mask_of_lengths(lengths, max(lengths)).bool())


def each_alone(logits: torch.Tensor, labels: torch.Tensor, lengths: tuple[int, ...], blank: int = 0) -> torch.Tensor:
    """Torch's loss of each clip by itself, from nothing but its frames and labels."""
    losses = []
    for row, target, length in zip(logits, labels, lengths, strict=True):
        kept = target[(target != -100) & (target != blank)]
        log_probs = row[:length].double().log_softmax(-1)
        losses.append(F.ctc_loss(log_probs, kept, torch.tensor(length), torch.tensor(len(kept)), blank, "sum"))
    return torch.stack(losses)


# The loss


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_loss_is_torch_s_of_each_clip_alone(reduction: str, masked: bool) -> None:
    head, logits = ctc(reduction=reduction), drawn(3, 17, VOCAB)
    sequence, lengths = (padded(), LENGTHS) if masked else (Sequence(3, 17), (17, 17, 17))
    head.check_labels(LABELS, sequence)
    losses = each_alone(logits, LABELS, lengths)
    expected = losses.sum() if reduction == "sum" else (losses / torch.tensor([6, 2, 3])).mean()
    assert head.loss(logits.double(), LABELS, sequence) == pytest.approx(float(expected), rel=1e-12)
    assert_parity(head.loss(logits, LABELS, sequence), expected.float(), tolerance=1e-5)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("blank", [0, 3])
@pytest.mark.parametrize("zero_infinity", [True, False])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_loss_is_hugging_face_s(reduction: str, zero_infinity: bool, blank: int, masked: bool) -> None:
    theirs = tiny_hf(
        "HubertForCTC", ctc_loss_reduction=reduction, ctc_zero_infinity=zero_infinity, pad_token_id=blank, num_hidden_layers=1
    )
    logits = drawn(3, 17, VOCAB)
    theirs.lm_head.register_forward_hook(lambda *_: logits)
    samples = torch.tensor([28 + 20 * (length - 1) for length in LENGTHS])
    mask = (torch.arange(int(samples.max())) < samples[:, None]).long() if masked else None
    with torch.no_grad():
        expected = theirs(drawn(3, int(samples.max())), attention_mask=mask, labels=LABELS).loss
    loss = ctc(blank, reduction, zero_infinity).loss(logits, LABELS, padded() if masked else Sequence(3, 17))
    assert_parity(loss, expected, tolerance=1e-6)


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...], int]:
    """Logits, labels, lengths and a blank; the labels hold blanks and -100 anywhere."""
    lengths = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    blank, n_labels = draw(st.integers(0, 4)), draw(st.integers(0, 5))
    row = st.lists(st.sampled_from([-100, 0, 1, 2, 3, 4]), min_size=n_labels, max_size=n_labels)
    labels = torch.tensor([draw(row) for _ in lengths], dtype=torch.long).reshape(len(lengths), n_labels)
    return drawn(len(lengths), max(lengths), 5, seed=draw(st.integers(0, 99))), labels, lengths, blank


@settings(max_examples=100, deadline=None)
@given(batches())
def test_labels_that_fit_have_a_finite_loss_and_others_are_refused(
    drawn_batch: tuple[torch.Tensor, torch.Tensor, tuple[int, ...], int],
) -> None:
    logits, labels, lengths, blank = drawn_batch
    head, sequence = ctc(blank, n_symbols=5), padded(lengths)
    losses = each_alone(logits, labels, lengths, blank)
    if losses.isfinite().all():
        head.check_labels(labels, sequence)
        assert head.loss(logits.double(), labels, sequence) == pytest.approx(float(losses.sum()), rel=1e-9, abs=1e-9)
    else:
        row = int((~losses.isfinite()).nonzero()[0])
        with pytest.raises(InputError, match=f"the labels of clip {row} need .* frames .*, and it has {lengths[row]}$"):
            head.check_labels(labels, sequence)
    lenient = ctc(blank, zero_infinity=True, n_symbols=5)
    lenient.check_labels(labels, sequence)
    finite = losses[losses.isfinite()].sum()
    assert lenient.loss(logits.double(), labels, sequence) == pytest.approx(float(finite), rel=1e-9, abs=1e-9)


def test_the_loss_of_two_frames_by_hand() -> None:
    logits = drawn(1, 2, VOCAB).double()
    (first, second) = logits[0].softmax(-1)
    chance = first[7] * second[7] + first[7] * second[0] + first[0] * second[7]  # AA, A-, -A
    assert ctc().loss(logits, torch.tensor([[7]]), Sequence(1, 2)) == pytest.approx(float(-chance.log()), rel=1e-12)
    nothing = ctc().loss(logits, torch.tensor([[-100, 0]]), Sequence(1, 2))
    assert nothing == pytest.approx(float(-(first[0] * second[0]).log()), rel=1e-12)


def test_padding_is_neither_read_nor_trained() -> None:
    logits = drawn(3, 17, VOCAB)
    changed = logits.clone()
    mask = padded().real
    changed[~mask] = 50 * drawn(int((~mask).sum()), VOCAB, seed=1)
    changed.requires_grad_()
    loss = ctc().loss(changed, LABELS, padded())
    assert_parity(loss, ctc().loss(logits, LABELS, padded()), tolerance=1e-6)
    (gradient,) = torch.autograd.grad(loss, changed)
    assert not gradient[~mask].any()
    assert gradient[mask].any(-1).all()


@pytest.mark.parametrize("real", [[0, 1, 4, 5, 6, 9], [4, 5, 6, 7, 8, 9], [0, 1, 2, 3, 4, 5]])
def test_real_frames_are_read_wherever_they_stand(real: list[int]) -> None:
    logits, labels = drawn(2, 10, VOCAB), torch.tensor([[5, 6, 6], [7, 8, -100]])
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[1] = False
    mask[1, real] = True
    losses = each_alone(torch.stack([logits[0], F.pad(logits[1, real], (0, 0, 0, 4))]), labels, (10, 6))
    assert_parity(ctc().loss(logits, labels, Sequence(2, 10, mask)), losses.sum().float())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_labels_of_every_whole_number_type(dtype: torch.dtype) -> None:
    logits, labels, sequence = drawn(2, 300, VOCAB), torch.tensor([[5, 6, 7], [8, 8, 0]]), Sequence(2, 300)
    ctc().check_labels(labels.to(dtype), sequence)
    assert torch.equal(ctc().loss(logits, labels.to(dtype), sequence), ctc().loss(logits, labels, sequence))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loss_of_half_precision_logits_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits = drawn(3, 17, VOCAB).to(dtype)
    loss = ctc().loss(logits, LABELS, padded())
    assert loss.dtype == torch.float32
    assert torch.equal(loss, ctc().loss(logits.float(), LABELS, padded()))
    assert loss.isfinite()
    far = torch.full((1, 400, VOCAB), -60000.0, dtype=dtype)
    far[..., 0] = 0
    once_in_400_frames = -float(far[0, 0, 5]) - math.log(400)
    assert ctc().loss(far, torch.tensor([[5]]), Sequence(1, 400)) == pytest.approx(once_in_400_frames, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_model_has_a_finite_loss(dtype: torch.dtype) -> None:
    model = HookedAudioEncoder.from_pretrained(hf_model=tiny_hf("HubertForCTC"), device="cpu", dtype=dtype)
    loss = model(tiny_waves(700, 501), return_type="loss", labels=LABELS[:2])
    assert loss.dtype == torch.float32
    reference = HookedAudioEncoder.from_pretrained(hf_model=tiny_hf("HubertForCTC"), device="cpu")
    assert_parity(loss, reference(tiny_waves(700, 501), return_type="loss", labels=LABELS[:2]), tolerance=0.05)


# Labels that are refused


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS.float(), r"symbol ids \[3 target\], -100 after the end of each, not float32 \[3, 6\]"),
        (LABELS > 0, r"not bool \[3, 6\]"),
        (LABELS[0], r"not int64 \[6\]"),
        (LABELS[None], r"not int64 \[1, 3, 6\]"),
        (LABELS[:2], r"symbol ids \[3 target\].*, not int64 \[2, 6\]"),
        (LABELS.clamp_min(0) + 1, r"there is no symbol 32: ids run from 0 to 31, and -100 is left out"),
        (LABELS.clamp_min(-1), "there is no symbol -1: "),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ctc().check_labels(labels, padded())


@pytest.mark.parametrize(
    ("symbols", "needed"), [([5, 6, 7], 3), ([5, 5], 3), ([5, 5, 5, 6, 6], 8), ([5, 0, 5], 3), ([5, -100, 5], 3), ([5, 0], 1)]
)
def test_a_symbol_that_follows_itself_needs_a_frame_more(symbols: list[int], needed: int) -> None:
    labels = torch.tensor([[5] + [-100] * (len(symbols) - 1), symbols])
    ctc().check_labels(labels, padded((9, needed)))
    if needed > 1:
        with pytest.raises(InputError, match=rf"clip 1 need {needed} frames \(a symbol .*\), and it has {needed - 1}$"):
            ctc().check_labels(labels, padded((9, needed - 1)))
        lenient, logits = ctc(zero_infinity=True), drawn(2, 9, VOCAB)
        lenient.check_labels(labels, padded((9, needed - 1)))
        alone = ctc().loss(logits[:1], labels[:1], Sequence(1, 9))
        assert_parity(lenient.loss(logits, labels, padded((9, needed - 1))), alone)


def test_a_model_refuses_labels_before_anything_runs() -> None:
    model, ran = tiny_speech(), []
    with model.hooks([("hook_full_embed", lambda tensor, hook: ran.append(hook.name))]):
        for labels in (torch.tensor([[5.0]]), torch.tensor([[32]]), torch.full((1, 99), 5)):
            with pytest.raises(InputError):
                model(tiny_waves(500)[0], return_type="loss", labels=labels)
        assert ran == []
        model(tiny_waves(500)[0], return_type="loss", labels=torch.tensor([[5]]))
        assert ran == ["hook_full_embed"]


# Predictions


@pytest.fixture(scope="module")
def model() -> HookedAudioEncoder:
    return tiny_speech()


def decoded(model: HookedAudioEncoder, ids: list[list[int]], mask: torch.Tensor | None = None) -> list[str]:
    """What the CTC head of a model reads in frames whose best symbols are these."""
    rows = torch.tensor(ids)
    frames = torch.zeros(*rows.shape, WIDTH)
    batch = model.prepare(frames if mask is None else (frames, mask))
    logits = 9 * F.one_hot(rows, VOCAB) + drawn(*rows.shape, VOCAB)
    return model.heads["ctc"].decode(logits, batch)


@pytest.mark.parametrize(
    ("symbols", "text"),
    [
        ("H H - I I", "HI"),
        ("- H - - I -", "HI"),
        ("A L L", "AL"),
        ("A L - L", "ALL"),
        ("A L L - L L", "ALL"),
        ("- - -", ""),
        ("-", ""),
        ("O | - | N", "O  N"),
        ("O | | N", "O N"),
        ("| O N |", "ON"),
        ("I ' M", "I'M"),
    ],
)
def test_collapsing(model: HookedAudioEncoder, symbols: str, text: str) -> None:
    ids = ctc_tokenizer().convert_tokens_to_ids(symbols.replace("-", "<pad>").split())
    assert decoded(model, [ids]) == [text]


SYMBOL = st.sampled_from([0, 0, 0, 4, 4, 5, 7, 7, 31, 1, 2, 3, 27])


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12).flatmap(lambda n: st.lists(st.lists(SYMBOL, min_size=n, max_size=n), min_size=1, max_size=3)))
def test_transcripts_are_those_of_transformers_tokenizer(model: HookedAudioEncoder, ids: list[list[int]]) -> None:
    assert decoded(model, ids) == ctc_tokenizer().batch_decode(ids)


def test_only_real_frames_are_read(model: HookedAudioEncoder) -> None:
    ids = torch.tensor([[7, 7, 0, 5, 5, 6], [7, 0, 5, 8, 8, 8], [7, 5, 7, 5, 7, 5]])
    mask = mask_of_lengths((6, 3, 1), 6)
    assert decoded(model, ids.tolist(), mask) == ["AET", "AE", "A"]
    mask[2] = torch.tensor([0, 0, 1, 0, 1, 1])  # A, A, E: equal symbols come together
    assert decoded(model, ids.tolist(), mask) == ["AET", "AE", "AE"]


def test_a_model_s_predictions_are_transformers_of_its_logits() -> None:
    model = tiny_speech(layout="layer norm, pre-LN")
    waves = tiny_waves(900, 700, 431)
    logits = model(waves, return_type="logits")
    lengths = model.frame_lengths([900, 700, 431]).tolist()
    best = [row[:length].argmax(-1).tolist() for row, length in zip(logits, lengths, strict=True)]
    expected = [ctc_tokenizer().decode(ids) for ids in best]
    assert model(waves, return_type="predictions") == expected
    assert all(expected)
    assert model(waves[0], return_type="predictions") == ctc_tokenizer().decode(
        model(waves[0], return_type="logits")[0].argmax(-1)
    )


def test_a_text_tokenizer_decodes_too(tokenizer: Any) -> None:
    model = tiny_speech()
    model.processor = Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), tokenizer)
    a, e, comma = tokenizer.convert_tokens_to_ids(["a", "e", ","])
    assert decoded(model, [[a, a, 0, a, comma, 0, e], [0] * 7]) == [tokenizer.decode([a, a, comma, e]), ""]
    assert decoded(model, [[a, a, 0, a, comma, 0, e]]) == ["a a, e"]


def test_a_tokenizer_of_phonemes_merges_nothing_more(tmp_path: Path) -> None:
    symbols = ["<pad>", "<s>", "</s>", "<unk>", "h", "ə", "l", "oʊ"]
    phonemes = tokenizer_of(symbols, tmp_path, Wav2Vec2PhonemeCTCTokenizer, do_phonemize=False)
    model = tiny_speech()
    model.processor = Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), phonemes)
    path = [4, 4, 5, 0, 6, 0, 6, 7, 7, 0]
    assert decoded(model, [path, [0] * 10]) == ["h ə l l oʊ", ""]
    assert decoded(model, [path]) == phonemes.batch_decode([path])


def test_predictions_without_a_tokenizer_are_refused_before_anything_runs() -> None:
    model = tiny_speech()
    model.processor = Wav2Vec2FeatureExtractor()
    ran: list[str] = []
    with model.hooks([("hook_full_embed", lambda tensor, hook: ran.append(hook.name))]):
        with pytest.raises(
            TokenizerMissingError, match=r"a transcript needs a tokenizer.*set model\.processor to a Wav2Vec2Proc"
        ):
            model(tiny_waves(500), return_type="predictions")
        assert ran == []
        assert model(tiny_waves(500), return_type="logits").shape == (1, 24, VOCAB)


# The names of logits


@pytest.mark.parametrize(
    ("target", "index"), [("A", 7), ("|", 4), (" ", 4), ("<pad>", 0), ("<unk>", 3), ("'", 27), (0, 0), (31, 31)]
)
def test_symbols_are_targets_by_name_and_id(target: Any, index: int) -> None:
    assert ctc().output_index(target, ctc_tokenizer()) == index
    assert ctc().output_index(ctc().output_name(index, ctc_tokenizer()), ctc_tokenizer()) == index


@pytest.mark.parametrize("target", ["a", "É", "", "[CLS]", "ÉÉ"])
def test_a_target_that_is_no_symbol_is_refused(target: str) -> None:
    with pytest.raises(InputError, match=r"the tokenizer has no token for the target '.*'; give another, or a token id"):
        ctc().output_index(target, ctc_tokenizer())


@pytest.mark.parametrize("options", [{}, {"unk_token": None}])
def test_a_target_that_a_tokenizer_without_an_unknown_symbol_lacks_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    characters = tokenizer_of(["<pad>", "|", "a", "tʃ"], tmp_path, **options)
    phonemes = tokenizer_of(["<pad>", "|", "a", "tʃ"], tmp_path, Wav2Vec2PhonemeCTCTokenizer, **options)
    assert [ctc().output_index("tʃ", tokenizer) for tokenizer in (characters, phonemes)] == [3, 3]
    for target in ("c", "ac", ""):
        with pytest.raises(InputError, match=f"the tokenizer has no token for the target '{target}'"):
            ctc().output_index(target, characters)
        with pytest.raises(InputError, match=f"the tokenizer has no phoneme '{target}'"):
            ctc().output_index(target, phonemes)


@pytest.mark.parametrize("kind", [Wav2Vec2CTCTokenizer, Wav2Vec2PhonemeCTCTokenizer])
def test_a_symbol_that_only_the_model_has_is_unknown_or_refused(tmp_path: Path, kind: Any) -> None:
    model, path = tiny_speech(), [[2, 30, 3]]
    model.processor = Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), tokenizer_of(["<pad>", "|", "a", "b"], tmp_path, kind))
    assert [text.replace(" ", "") for text in decoded(model, path)] == ["a<unk>b"]
    nameless = tokenizer_of(["<pad>", "|", "a", "b"], tmp_path, kind, unk_token=None)
    model.processor = Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), nameless)
    with pytest.raises(InputError, match=r"predicts symbol 30, and its tokenizer has no name for it \(it has \d symbols"):
        decoded(model, path)


@pytest.mark.parametrize("target", [32, -1, 7.0, True, None])
def test_a_target_that_is_no_id_is_refused(target: Any) -> None:
    with pytest.raises(InputError, match="is no token id of this head: a number from 0 to 31, or a name"):
        ctc().output_index(target, ctc_tokenizer())


def test_a_target_of_several_symbols_is_refused_with_what_they_are() -> None:
    with pytest.raises(InputError, match="the target 'OF' is no single token: the tokenizer makes O, F of it"):
        ctc().output_index("OF", ctc_tokenizer())


def test_a_symbol_that_only_the_tokenizer_has_is_refused() -> None:
    head = ctc(n_symbols=31)
    assert head.output_index("Q", ctc_tokenizer()) == 30
    with pytest.raises(InputError, match="the target 31 is no token id of this head: a number from 0 to 30"):
        head.output_index("Z", ctc_tokenizer())


def test_targets_without_a_tokenizer() -> None:
    assert ctc().output_index(7, None) == 7
    assert ctc().output_name(7, None) == "7"
    with pytest.raises(TokenizerMissingError, match="the target 'A' is a word, and this model has no tokenizer"):
        ctc().output_index("A", None)


# What analyses ask of the head


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities(dtype: torch.dtype) -> None:
    resid = drawn(2, 6, WIDTH).to(dtype)
    head: Any = tiny_speech().heads["ctc"]
    head.ctc_head.to(dtype)
    with torch.no_grad():
        probabilities = head.probabilities(resid, Sequence(2, 6))
        assert probabilities.shape == (2, 6, VOCAB)
        assert probabilities.dtype == torch.float32
        assert torch.equal(probabilities, head.forward(resid, Sequence(2, 6)).float().softmax(-1))
        assert_parity(probabilities.sum(-1), torch.ones(2, 6), tolerance=1e-6)
        chosen = head.probabilities(resid, Sequence(2, 6), torch.tensor([[5, 0], [1, 1]]))
    rows = torch.stack([probabilities[0, [5, 0]], probabilities[1, [1, 1]]])
    assert_parity(chosen, rows, tolerance=1e-6 if dtype == torch.float32 else 1e-2)


def test_logits_at_some_frames_are_those_of_all(model: HookedAudioEncoder) -> None:
    waves = tiny_waves(500, 500)
    with torch.no_grad():
        logits = model(waves, return_type="logits")
        assert_parity(model(waves, return_type="logits", logits_at=[3, -1]), logits[:, [3, -1]])


def test_the_head_around_a_stream_is_the_head(model: HookedAudioEncoder) -> None:
    head, resid = model.heads["ctc"], drawn(2, 6, WIDTH)
    targets = torch.randint(VOCAB, (2, 6), generator=torch.Generator().manual_seed(1))
    linear = head.linearise(resid, Sequence(2, 6), targets)
    W, b = model.ctc_head.W, model.ctc_head.b
    assert_parity(linear.direction, W.mT[targets])
    assert_parity(linear.constant, b[targets])
    with pytest.raises(InputError, match="the ctc head has logits for every position: say which with position="):
        head.default_positions(model.prepare(tiny_waves(500)))


def test_biases(model: HookedAudioEncoder) -> None:
    assert [*model.heads["ctc"].biases()] == ["head_b"]
    module, bias = model.heads["ctc"].biases()["head_b"]
    assert bias is model.ctc_head.dense.bias
    assert_parity(module(torch.zeros(1, WIDTH)), bias[None])


# Classification of clips


def classifier(seed: int = 0) -> AudioClassificationHead:
    head = AudioClassificationHead(("yes", "no", "maybe"), 5, None, WIDTH)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in head.modules.values():
            for parameter in module.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return head


def test_logits_come_from_the_mean_over_real_frames_only() -> None:
    head, resid, sequence = classifier(), drawn(3, 17, WIDTH), padded()
    logits = head.forward(resid, sequence)
    rows = []
    for row, length in zip(resid, LENGTHS, strict=True):
        projected = row[:length] @ head.projector.W + head.projector.b
        rows.append(projected.mean(0) @ head.classifier.W + head.classifier.b)
    assert_parity(logits, torch.stack(rows))
    alone = [head.forward(row[None, :length], Sequence(1, length)) for row, length in zip(resid, LENGTHS, strict=True)]
    assert_parity(logits, torch.cat(alone))
    resid[~sequence.real] = torch.nan
    assert torch.equal(head.forward(resid, sequence), logits)


def test_a_clip_is_classified_as_hugging_face_does_under_its_mask() -> None:
    theirs = tiny_hf("HubertForSequenceClassification", feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True)
    model = HookedAudioEncoder.from_pretrained(hf_model=theirs, device="cpu")
    waves, labels = tiny_waves(900, 700, 431), torch.tensor([4, 0, 2])
    inputs = model.processor([wave.numpy() for wave in waves], sampling_rate=16_000, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**inputs, labels=labels)
        assert_parity(model(waves, return_type="logits"), expected.logits)
        assert_parity(model(waves, return_type="loss", labels=labels), expected.loss)
        best = [f"LABEL_{index}" for index in expected.logits.argmax(-1).tolist()]
        assert model(waves, return_type="predictions") == best
        assert model(waves[0], return_type="predictions") == best[0]


def test_classes_are_targets_by_name_and_index() -> None:
    head = classifier()
    assert [head.output_index(name, None) for name in ("yes", "no", "maybe", 0, 2)] == [0, 1, 2, 0, 2]
    assert [head.output_name(index, None) for index in range(3)] == ["yes", "no", "maybe"]
    with pytest.raises(InputError, match=r"has no 'mayb'.*'maybe'.*; it has 'yes', 'no', 'maybe'"):
        head.output_index("mayb", None)
    with pytest.raises(InputError, match="the target 3 is no class of this head: a number from 0 to 2, or a name"):
        head.output_index(3, None)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1]), r"labels have shape \[2\]; class labels for this input have shape \[3\]"),
        (torch.tensor([[0], [1], [2]]), r"labels have shape \[3, 1\]"),
        (torch.tensor([0, 1, 3]), r"labels run from 0 to 3; they lie in 0 \.\. 2"),
        (torch.tensor([0.0, 1.0, 2.0]), r"labels are class ids \(whole numbers\), not float32"),
        (torch.tensor([-100, -100, -100]), "every label is -100"),
    ],
)
def test_class_labels_that_do_not_fit_are_refused(labels: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        classifier().check_labels(labels, padded())


def test_the_loss_of_classes_leaves_out_what_is_minus_100() -> None:
    head, logits, labels = classifier(), drawn(3, 3), torch.tensor([2, -100, 0])
    head.check_labels(labels, padded())
    log_probs = logits.log_softmax(-1)
    assert_parity(head.loss(logits, labels, padded()), -(log_probs[0, 2] + log_probs[2, 0]) / 2)


def test_biases_of_both_layers() -> None:
    head = classifier()
    biases = head.biases()
    assert [*biases] == ["projector_b", "head_b"]
    for (module, bias), width in zip(biases.values(), (WIDTH, 5), strict=True):
        assert_parity(module(torch.zeros(1, width)), bias[None])
