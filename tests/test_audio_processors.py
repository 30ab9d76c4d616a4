"""What a folder says of how clips are prepared and symbols written: read, used, replaced, and refused where it does not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor, WhisperFeatureExtractor

from encoderlens import HookedAudioEncoder
from encoderlens.audio.processor import Processing
from encoderlens.errors import CheckpointNotFoundError, ConfigError, TokenizerMissingError
from tests.checkpoints import save_tiny
from tests.parity import assert_changed, assert_parity
from tests.speech import AMIABLE, LAYOUTS, ctc_tokenizer, processor, snippets, speech
from tests.tiny import TOKENIZER, tiny_hf

# As they lay on the hub before files named their class.
OLD = {"do_normalize": True, "feature_size": 1, "padding_side": "right", "padding_value": 0.0, "sampling_rate": 16000}


def load(folder: Path, **options: Any) -> HookedAudioEncoder:
    return HookedAudioEncoder.from_pretrained(folder, device="cpu", **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A CTC checkpoint without anything beside configuration and weights."""
    save_tiny("Wav2Vec2ForCTC", tmp_path)
    return tmp_path


def write_extractor(folder: Path, **values: Any) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(OLD | values))


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("normalizes", [True, False])
def test_what_the_files_say_is_done(masks: bool, normalizes: bool, folder: Path) -> None:
    write_extractor(folder, return_attention_mask=masks, do_normalize=normalizes, padding_value=0.25)
    model = load(folder)
    assert model.processing == Processing(16_000, normalizes, masks, 0.25)
    batch = model.prepare(snippets())
    arrays = [clip.numpy() for clip in snippets()]
    theirs = model.processor(arrays, sampling_rate=16_000, padding=True, return_tensors="pt")
    assert_parity(batch.waves, theirs["input_values"], tolerance=1e-6)
    assert ("attention_mask" in theirs) is masks
    assert batch.sequence.lengths == ([34, 19, 1] if masks else [34, 34, 34])


def test_the_sampling_rate_of_the_files_is_the_models(folder: Path) -> None:
    write_extractor(folder, sampling_rate=8000)
    model = load(folder)
    assert model.timing.rate == 8000
    assert model.frame_times(2).tolist() == [14 / 8000, 34 / 8000]
    clip = torch.from_numpy(speech(AMIABLE)[4000:8000])
    assert model(clip).shape[1] == model.frame_lengths(2000)
    assert model(clip, sampling_rate=8000).shape[1] == model.frame_lengths(4000)


def test_a_tokenizer_beside_the_feature_extractor_makes_transcripts(folder: Path) -> None:
    write_extractor(folder, return_attention_mask=False)
    ctc_tokenizer().save_pretrained(folder)
    model = load(folder)
    assert isinstance(model.processor, Wav2Vec2Processor)
    clip = torch.from_numpy(speech(AMIABLE)[4000:8000])
    ids = model(clip, return_type="logits").argmax(-1)
    assert model(clip, return_type="predictions") == ctc_tokenizer().batch_decode(ids)[0]
    assert model.tokenizer.get_vocab() == ctc_tokenizer().get_vocab()


@pytest.mark.parametrize("saved", ["processor", "feature extractor and tokenizer", "tokenizer", "vocabulary"])
def test_each_way_of_saving_a_processor(saved: str, folder: Path) -> None:
    whole = processor(masks=True)
    if saved == "processor":
        whole.save_pretrained(folder)
        assert not (folder / "preprocessor_config.json").exists()
    elif saved != "vocabulary":
        whole.tokenizer.save_pretrained(folder)
        if saved != "tokenizer":
            whole.feature_extractor.save_pretrained(folder)
    else:
        whole.tokenizer.save_vocabulary(str(folder))
    model = load(folder)
    assert model.processing.masks is (saved in ("processor", "feature extractor and tokenizer"))
    assert model.tokenizer.convert_tokens_to_ids(["E", "|"]) == [5, 4]
    assert isinstance(model(snippets()[0], return_type="predictions"), str)


def test_a_folder_without_files_gets_what_its_layout_was_trained_with(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert load(folder).processing == Processing(16_000, True, False, 0.0)
    other = tmp_path_factory.mktemp("layer_norm")
    save_tiny("Wav2Vec2ForCTC", other, feat_extract_norm="layer")
    assert load(other).processing == Processing(16_000, True, True, 0.0)
    with pytest.raises(TokenizerMissingError, match=r"its folder held no tokenizer files \(vocab\.json\); add them"):
        load(folder)(snippets()[0], return_type="predictions")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_in_memory_gets_what_its_layout_was_trained_with(layout: str) -> None:
    hf_model = tiny_hf("HubertForCTC", **LAYOUTS[layout])
    model = HookedAudioEncoder.from_pretrained(hf_model=hf_model, device="cpu")
    masks = LAYOUTS[layout].get("feat_extract_norm") == "layer"
    assert model.processing == Processing(16_000, True, masks, 0.0)
    assert model.tokenizer is None


def test_a_model_in_memory_takes_the_processor_of_the_name_given_with_it(tmp_path: Path) -> None:
    processor(masks=True).save_pretrained(tmp_path)
    hf_model = tiny_hf("HubertForCTC")
    model = HookedAudioEncoder.from_pretrained(tmp_path, hf_model=hf_model, device="cpu")
    assert model.processing.masks
    assert model.tokenizer.get_vocab() == ctc_tokenizer().get_vocab()
    assert model.cfg.model_name == str(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match=r"there is no folder '\./nowhere'"):
        HookedAudioEncoder.from_pretrained("./nowhere", hf_model=hf_model, device="cpu")


# Another one


def test_a_processor_that_is_given_is_used_instead(folder: Path) -> None:
    write_extractor(folder, sampling_rate=8000)
    (folder / "vocab.json").write_text("{")
    given = processor(masks=True)
    model = load(folder, processor=given)
    assert model.processor is given
    assert model.processing == Processing(16_000, True, True, 0.0)
    assert model.tokenizer is given.tokenizer


def test_a_processor_can_be_replaced(folder: Path) -> None:
    model = load(folder)
    before = model(snippets())
    model.processor = processor(masks=True)
    assert model.tokenizer is not None
    assert_changed(model(snippets())[1, :19], before[1, :19], 0.05)
    model.processor = Wav2Vec2FeatureExtractor(sampling_rate=8000, return_attention_mask=False)
    assert model.tokenizer is None
    assert model.timing.rate == 8000
    assert torch.equal(model(snippets(), sampling_rate=8000), before)


WRONG = [
    (WhisperFeatureExtractor, "not WhisperFeatureExtractor"),
    (ctc_tokenizer, "not Wav2Vec2CTCTokenizer"),
    (lambda: Wav2Vec2Processor(WhisperFeatureExtractor(), ctc_tokenizer()), "not WhisperFeatureExtractor"),
    (lambda: "facebook/hubert-base-ls960", "not str"),
    (lambda: Wav2Vec2FeatureExtractor(padding_side="left"), "pads on the left, or gives several features"),
    (lambda: Wav2Vec2FeatureExtractor(feature_size=2), "pads on the left, or gives several features"),
]


@pytest.mark.parametrize(("made", "message"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_a_processor_of_another_kind_is_refused(made: Any, message: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load(folder, processor=made())
    model = load(folder, processor=processor(masks=True))
    with pytest.raises(ConfigError, match=message):
        model.processor = made()
    assert model.processing.masks
    assert model.tokenizer is model.processor.tokenizer


def test_files_of_another_kind_are_refused(folder: Path) -> None:
    WhisperFeatureExtractor().save_pretrained(folder)
    with pytest.raises(ConfigError, match="not WhisperFeatureExtractor"):
        load(folder)
    ctc_tokenizer().save_pretrained(folder)
    with pytest.raises(ConfigError, match="not WhisperFeatureExtractor"):
        load(folder)


def test_an_extractor_that_cannot_be_read_is_named(folder: Path) -> None:
    write_extractor(folder)
    (folder / "preprocessor_config.json").write_text('{"do_norm')
    with pytest.raises(ConfigError, match=rf"the processor files in {folder} cannot be read: "):
        load(folder)


def test_a_tokenizer_that_cannot_be_read_is_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_extractor(folder)
    ctc_tokenizer().save_pretrained(folder)
    (folder / "vocab.json").write_text('{"A')
    model = load(folder)
    assert f"no tokenizer, so no text input: the tokenizer files in {folder} cannot be read: JSONDecodeError" in caplog.text
    assert model(snippets()[0], return_type="logits").isfinite().all()
    with pytest.raises(TokenizerMissingError, match="Files that could not be read are named in the log"):
        model(snippets()[0], return_type="predictions")


def test_a_tokenizer_of_another_kind_is_used_as_it_is(folder: Path) -> None:
    write_extractor(folder)
    words = AutoTokenizer.from_pretrained(TOKENIZER)
    words.save_pretrained(folder)
    model = load(folder)
    ids = model(snippets()[0], return_type="logits").argmax(-1)[0].unique_consecutive()
    assert model(snippets()[0], return_type="predictions") == words.decode(ids[ids != 0])
