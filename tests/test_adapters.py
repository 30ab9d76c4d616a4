"""Folders of PEFT adapters, against peft itself and against a merge by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from encoderlens import HookedEncoder, adapters, loading
from encoderlens.errors import CheckpointNotFoundError, ConfigError, WeightsError
from tests.checkpoints import assert_same_parameters
from tests.parity import assert_parity
from tests.sentences import save_transformer
from tests.tiny import tiny_batch

# peft reads a property that this version of transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

QUERY = "bert.encoder.layer.1.attention.self.query"
SETTINGS = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "target_modules": [QUERY], "lora_dropout": 0.0, "bias": "none"}
OF_MASKED_LM = {"base_model_class": "BertForMaskedLM", "parent_library": "transformers.models.bert.modeling_bert"}


def load(source: Path, **options: Any) -> HookedEncoder:
    return HookedEncoder.from_pretrained(source, device="cpu", **options)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BertForPreTraining, pooler included, with its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    save_transformer(folder, "BertForPreTraining")
    return folder


@pytest.fixture
def write(base: Path, tmp_path: Path) -> Callable[..., tuple[Path, dict[str, Tensor]]]:
    """Writes the folder of an adapter of one query matrix by hand, as peft documents it; gives its tensors too."""

    def make(**settings: Any) -> tuple[Path, dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        config = SETTINGS | {"base_model_name_or_path": str(base), "auto_mapping": OF_MASKED_LM} | settings
        there = {name: value for name, value in config.items() if value is not ...}
        (tmp_path / "adapter_config.json").write_text(json.dumps(there))
        shapes = {"lora_A": (4, 40), "lora_B": (40, 4)}
        tensors = {
            f"base_model.model.{QUERY}.{name}.weight": torch.randn(shape, generator=generator) for name, shape in shapes.items()
        }
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        return tmp_path, tensors

    return make


def test_an_adapter_is_merged_into_its_model(base: Path, write: Callable[..., tuple[Path, dict[str, Tensor]]]) -> None:
    folder, tensors = write()
    down, up = tensors.values()
    expected = transformers.AutoModelForMaskedLM.from_pretrained(base)
    with torch.no_grad():
        expected.get_submodule(QUERY).weight.add_(6 / 4 * up @ down)
    model = load(folder)
    tokens = tiny_batch()["tokens"]
    with torch.no_grad():
        assert_parity(model(tokens), expected(tokens).logits)
    assert model.to_tokens("the doctor")[0].shape[1] > 2
    assert model.cfg.model_name == str(folder)
    assert loading.modality_of(str(folder)) == "text"
    assert load(folder, task="encoder").task is None


def test_a_classifier_comes_with_its_adapter(base: Path, tmp_path: Path) -> None:
    """Of more classes than its model's configuration says; the same from the folder and from memory."""
    import peft

    hf_model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], init_lora_weights=False)
    wrapped = peft.get_peft_model(hf_model, config).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "classifier" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    wrapped.save_pretrained(str(tmp_path))
    from_memory = HookedEncoder.from_pretrained(hf_model=wrapped, device="cpu")
    tokens = tiny_batch()["tokens"]
    with torch.no_grad():
        expected = wrapped(tokens).logits
        assert expected.shape == (3, 3)
        assert_parity(from_memory(tokens), expected)
        from_folder = load(tmp_path)
        assert_parity(from_folder(tokens), expected)
    assert_same_parameters(from_folder, from_memory)
    assert from_folder.task == "sequence_classification"


def test_without_peft_the_error_says_how_to_get_it(
    write: Callable[..., tuple[Path, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = write()
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"holds a PEFT adapter for .*, not a whole model, .*'encoderlens\[peft\]'"):
        load(folder)


def test_weights_that_neither_folder_holds_are_not_drawn_at_random(
    write: Callable[..., tuple[Path, dict[str, Tensor]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    without_pooler = tmp_path_factory.mktemp("masked-lm")
    save_transformer(without_pooler, "BertForMaskedLM")
    settings = {"base_model_name_or_path": str(without_pooler), "auto_mapping": None, "task_type": "SEQ_CLS"}
    folder, tensors = write(**settings)
    head = {"weight": torch.randn(3, 40), "bias": torch.randn(3)}
    classifier = {f"base_model.model.classifier.{name}": value for name, value in head.items()}
    save_file(tensors | classifier, folder / "adapter_model.safetensors")
    with pytest.raises(WeightsError, match=r"the weights of the pooler that it reads .* are missing"):
        load(folder)


def test_an_adapter_is_fetched_from_the_hub(
    write: Callable[..., tuple[Path, Any]], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the model that it names, and no whole weights beside it."""
    asked: list[tuple[str, str]] = []

    def hf_hub_download(repo: str, name: str, **options: Any) -> str:
        asked.append((repo, name))
        path = {"some-lab/adapter": folder, "some-lab/base": base}[repo] / name
        if not path.is_file():
            raise huggingface_hub.errors.LocalEntryNotFoundError(name)
        return str(path)

    folder, _ = write(base_model_name_or_path="some-lab/base")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    model = HookedEncoder.from_pretrained("some-lab/adapter", device="cpu")
    assert model.cfg.model_name == "some-lab/adapter"
    assert {("some-lab/adapter", "adapter_model.safetensors"), ("some-lab/base", "model.safetensors")} <= set(asked)


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no model": ({"base_model_name_or_path": None}, ConfigError, "does not name the model that it changes"),
    "a model that is gone": (
        {"base_model_name_or_path": "./gone"},
        CheckpointNotFoundError,
        r"holds an adapter for \./gone: there is no folder '\./gone'",
    ),
    "a decoder": (
        {"auto_mapping": None, "task_type": "CAUSAL_LM"},
        ConfigError,
        "task_type='CAUSAL_LM' is unknown; it is one of None, 'FEATURE_EXTRACTION'",
    ),
    "a kind that peft does not know": ({"peft_type": "LORAX"}, ConfigError, "peft cannot merge this adapter"),
    "vectors in front of the input": (
        dict.fromkeys(SETTINGS, ...) | {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2},
        ConfigError,
        "PROMPT_TUNING puts vectors in front of the input",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_merged_is_refused(case: str, write: Callable[..., tuple[Path, Any]]) -> None:
    settings, error, message = REFUSED[case]
    folder, _ = write(**settings)
    with pytest.raises(error, match=message):
        load(folder)


def test_a_folder_without_the_weights_of_its_adapter(write: Callable[..., tuple[Path, Any]]) -> None:
    folder, _ = write()
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"holds no weights of its adapter: expected adapter_model\.safetensors"):
        load(folder)
