"""Cross-encoders, against sentence-transformers: the new folders that it saves, and the two older spellings of a score."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from encoderlens import HookedEncoder
from encoderlens.analysis import direct_logit_attribution, logit_lens
from encoderlens.errors import ConfigError
from tests.checkpoints import edit_config
from tests.parity import assert_complete, assert_parity
from tests.sentences import load, save_transformer

PAIRS = [("where is paris?", "in france"), ("no", "he said that she was not there"), ("the doctor", "walked to the hospital.")]
ACTIVATIONS = {
    "torch.nn.modules.activation.Sigmoid": torch.sigmoid,
    "torch.nn.modules.linear.Identity": lambda logits: logits,
    "torch.nn.modules.activation.Tanh": torch.tanh,
}


@pytest.fixture(scope="module", params=[1, 3], ids=["one label", "three labels"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A cross-encoder of the library, and the folder that it saves."""
    from sentence_transformers import CrossEncoder

    transformer, folder = tmp_path_factory.mktemp("transformer"), tmp_path_factory.mktemp("cross-encoder")
    save_transformer(transformer, "BertForSequenceClassification", num_labels=request.param)
    reference = CrossEncoder(str(transformer), device="cpu")
    reference.save_pretrained(str(folder), create_model_card=False)
    return reference, folder


def predicted(reference: Any, pairs: list[tuple[str, str]] = PAIRS) -> Tensor:
    return torch.from_numpy(reference.predict(pairs))


def test_predictions_are_the_library_s(saved: tuple[Any, Path]) -> None:
    reference, folder = saved
    model = load(folder)
    assert model.task == "sequence_classification"
    assert model.sentence_embedding is None
    tokens, types, mask = model.to_tokens(PAIRS)
    with torch.no_grad():
        logits = model(PAIRS)
        assert_parity(logits, reference[0].model(tokens, token_type_ids=types, attention_mask=mask).logits)
    predictions, theirs = model(PAIRS, "predictions"), predicted(reference)
    if logits.shape[1] == 1:
        assert_parity(torch.tensor(predictions), theirs)
        assert_parity(logits.squeeze(1).sigmoid(), theirs)
        assert_parity(torch.tensor(model(PAIRS[0], "predictions")), theirs[0])
    else:
        assert_parity(logits, theirs)
        assert predictions == [f"LABEL_{best}" for best in theirs.argmax(1).tolist()]


def older(folder: Path, **values: Any) -> Any:
    """What earlier versions of the library save: no settings and no modules, but these values in the configuration."""
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        (folder / name).unlink()
    edit_config(folder, **values)
    from sentence_transformers import CrossEncoder

    return CrossEncoder(str(folder), device="cpu")


SPELLINGS: dict[str, Callable[[str], dict[str, Any]]] = {
    "version 4": lambda name: {"sentence_transformers": {"activation_fn": name, "version": "4.1.0"}},
    "before version 4": lambda name: {"sbert_ce_default_activation_function": name},
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("saved", [1], indirect=True)
def test_older_spellings(spelling: str, activation: str, saved: tuple[Any, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(saved[1], tmp_path / "folder")
    reference, model = older(folder, **SPELLINGS[spelling](activation)), load(folder)
    predictions = torch.tensor(model(PAIRS, "predictions"))
    assert_parity(predictions, predicted(reference))
    assert_parity(predictions, ACTIVATIONS[activation](model(PAIRS).squeeze(1)).detach())


@pytest.mark.parametrize("saved", [1], indirect=True)
def test_an_activation_of_the_settings(saved: tuple[Any, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(saved[1], tmp_path / "folder")
    settings = folder / "config_sentence_transformers.json"
    values = json.loads(settings.read_text())
    settings.write_text(json.dumps(values | {"activation_fn": "torch.nn.modules.linear.Identity"}))
    model = load(folder)
    assert model(PAIRS, "predictions") == model(PAIRS).squeeze(1).tolist()
    settings.write_text(json.dumps(values | {"activation_fn": "torch.nn.modules.activation.Softplus"}))
    with pytest.raises(ConfigError, match=r"the activation function torch.*Softplus is not implemented; Tanh, Identity"):
        load(folder)


@pytest.mark.parametrize("saved", [1], indirect=True)
def test_a_plain_regression_is_no_score(saved: tuple[Any, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(saved[1], tmp_path / "folder")
    older(folder)
    model = load(folder)
    assert model(PAIRS, "predictions") == model(PAIRS).squeeze(1).tolist()


def test_lens_and_attribution(saved: tuple[Any, Path]) -> None:
    model: HookedEncoder = load(saved[1])
    rows = direct_logit_attribution(model, PAIRS, "LABEL_0")
    assert_complete(rows)
    assert_parity(rows.total, model(PAIRS)[:, 0].detach())
    lens = logit_lens(model, PAIRS)
    theirs = predicted(saved[0])
    if theirs.ndim == 1:
        assert_parity(lens.values[-1, :, 0], theirs)  # scores, as the library gives them
    else:
        assert_parity(lens.values[-1, :, 0], theirs.softmax(-1).amax(-1))
