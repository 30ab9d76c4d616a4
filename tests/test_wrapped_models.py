"""Models in memory inside other objects: sentence encoders, cross-encoders, pipelines."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import pipeline

from encoderlens import HookedAudioEncoder, HookedEncoder
from encoderlens.errors import ConfigError
from tests.checkpoints import assert_same_parameters
from tests.parity import assert_parity
from tests.sentences import TEXTS, encoded, load, opened, save_encoder, save_transformer
from tests.speech import DISPOSED, processor, speech
from tests.tiny import tiny_hf


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transformer")
    save_transformer(folder)
    return folder


def in_memory(hf_model: Any, **options: Any) -> HookedEncoder:
    return HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu", **options)


def test_a_sentence_transformer(transformer: Path, tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling

    modules = [Pooling(40, "mean"), Dense(40, 9), Normalize()]
    prompts = {"prompts": {"query": "what is: "}, "default_prompt_name": "query"}
    encoder = save_encoder(transformer, tmp_path, *modules, **prompts)
    model, from_folder = in_memory(encoder), load(tmp_path)
    assert model.cfg.sentence == from_folder.cfg.sentence
    assert model.prompt == "what is: "
    assert model.tokenizer is encoder.tokenizer
    assert_same_parameters(model, from_folder)
    assert_parity(model(TEXTS), encoded(encoder))
    with torch.no_grad():
        encoder[2].linear.weight.mul_(-1)
    assert_parity(in_memory(encoder)(TEXTS), encoded(encoder))
    assert in_memory(encoder, task="encoder").sentence_embedding is None


def test_modules_that_are_not_implemented_are_refused_by_name(transformer: Path, tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    encoder = save_encoder(transformer, tmp_path, Pooling(40, "mean"))
    encoder.append(torch.nn.Softmax(-1))
    with pytest.raises(ConfigError, match=r"the module torch\.nn\.modules\.activation\.Softmax is not implemented"):
        in_memory(encoder)


@pytest.mark.parametrize("activation", [torch.nn.Sigmoid(), torch.nn.Identity()])
def test_a_cross_encoder(activation: torch.nn.Module, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    save_transformer(tmp_path, "BertForSequenceClassification", num_labels=1)
    reference = CrossEncoder(str(tmp_path), device="cpu", activation_fn=activation)
    model = in_memory(reference)
    pairs = [("where is paris?", "in france"), ("no", "he said that she was not there")]
    assert_parity(torch.tensor(model(pairs, "predictions")), torch.from_numpy(reference.predict(pairs)))


def test_a_pipeline_for_text(transformer: Path) -> None:
    tokenizer = opened(transformer).tokenizer
    fill = pipeline("fill-mask", tiny_hf("BertForMaskedLM"), tokenizer=tokenizer, device="cpu")
    model = in_memory(fill)
    text = "the [MASK] walked"
    assert model.tokenizer is tokenizer
    assert model(text, "predictions") == fill(text, top_k=1)[0]["token_str"]
    other = transformers.AutoTokenizer.from_pretrained(transformer)
    assert in_memory(fill, tokenizer=other).tokenizer is other


def test_a_pipeline_for_speech() -> None:
    parts = processor(masks=False)
    recognise = pipeline(
        "automatic-speech-recognition",
        tiny_hf("HubertForCTC"),
        tokenizer=parts.tokenizer,
        feature_extractor=parts.feature_extractor,
        device="cpu",
    )
    model = HookedAudioEncoder.from_pretrained(hf_model=recognise, device="cpu")
    assert model.processor.feature_extractor is parts.feature_extractor
    assert model.tokenizer is parts.tokenizer
    clip = speech(DISPOSED)[8000:8700]
    assert model(clip, return_type="predictions") == recognise(clip)["text"]
    with pytest.raises(ConfigError, match="is a model that reads audio: use HookedAudioEncoder"):
        in_memory(recognise)
