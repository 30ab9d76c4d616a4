"""Checkpoints that say BERT and come with code of their own, as jina-embeddings-v2 does for ALiBi positions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from encoderlens import HookedEncoder
from encoderlens.errors import ConfigError, UnknownArchitectureError, WeightsError
from tests.checkpoints import edit_config, read_config, read_tensors, write_tensors
from tests.sentences import write_encoder
from tests.tiny import TEXT

CODE = "jinaai/jina-bert-implementation--"
# What the published configuration has beside BERT's; written down from memory of the file.
OWN: dict[str, Any] = {
    "_name_or_path": "jinaai/jina-bert-implementation",
    "architectures": ["JinaBertForMaskedLM"],
    "attn_implementation": "torch",
    "auto_map": {
        "AutoConfig": f"{CODE}configuration_bert.JinaBertConfig",
        "AutoModel": f"{CODE}modeling_bert.JinaBertModel",
        "AutoModelForMaskedLM": f"{CODE}modeling_bert.JinaBertForMaskedLM",
    },
    "emb_pooler": "mean",
    "feed_forward_type": "geglu",
    "model_max_length": 8192,
    "position_embedding_type": "alibi",
}
NO_MAP = {key: value for key, value in OWN.items() if key != "auto_map"}
ALIBI = {"position_embedding_type": "alibi"}
every_task = pytest.mark.parametrize("task", [None, "encoder"])


@pytest.fixture
def bert(folder_of: Callable[[str], Path]) -> Path:
    """A folder of plain BERT, whose weights would fit."""
    return folder_of("BertModel")


def refused(folder: Path, error: type[Exception], message: str, task: str | None = None) -> None:
    with pytest.raises(error, match=message):
        HookedEncoder.from_pretrained(folder, device="cpu", task=task)


def write_gated(folder: Path, with_positions: bool) -> None:
    """The weights as that code saves them: a gated MLP with a norm of its own, and no table of positions unless asked for."""
    kept: dict[str, Tensor] = {}
    for name, tensor in read_tensors(folder).items():
        if ("position_embeddings" not in name or with_positions) and "intermediate" not in name:
            kept[name.replace(".output.dense", ".mlp.wo") if ".attention." not in name else name] = tensor
    width = TEXT["intermediate_size"]
    for layer in range(TEXT["num_hidden_layers"]):
        kept[f"encoder.layer.{layer}.mlp.gated_layers.weight"] = torch.randn(2 * width, TEXT["hidden_size"])
    write_tensors(folder, kept)


@every_task
def test_as_it_is_published(task: str | None, bert: Path) -> None:
    edit_config(bert, **OWN)
    write_gated(bert, with_positions=False)
    refused(bert, UnknownArchitectureError, r"config\.json: auto_map=.*JinaBertModel.* is code of .* is never run", task)


@every_task
@pytest.mark.parametrize("key", ["auto_map", "emb_pooler", "feed_forward_type", "model_max_length", "position_embedding_type"])
def test_one_sign_of_it_is_enough_though_the_weights_fit(key: str, task: str | None, bert: Path) -> None:
    edit_config(bert, **{key: OWN[key]})
    refused(bert, ConfigError, rf"config\.json: {key}=.* is not (understood|implemented)", task)


def test_without_its_code(bert: Path) -> None:
    edit_config(bert, **NO_MAP)
    refused(bert, UnknownArchitectureError, "declares JinaBertForMaskedLM, which is not supported")
    refused(bert, ConfigError, "position_embedding_type='alibi' is not implemented; only 'absolute' is", "encoder")


@every_task
@pytest.mark.parametrize("with_positions", [False, True], ids=["no positions", "positions"])
def test_weights_of_a_gated_mlp_under_a_plain_configuration(with_positions: bool, task: str | None, bert: Path) -> None:
    write_gated(bert, with_positions)
    refused(bert, WeightsError, r"model\.safetensors lacks \d+ tensors that its configuration calls for: ", task)


@every_task
@pytest.mark.parametrize("values", [OWN, ALIBI], ids=["as published", "positions alone"])
def test_inside_a_sentence_encoder(values: dict[str, Any], task: str | None, tmp_path: Path) -> None:
    write_encoder(tmp_path)
    edit_config(tmp_path, **values)
    refused(
        tmp_path, ConfigError, r"config\.json: (auto_map=.* is not understood|position_embedding_type='alibi' is not)", task
    )


def test_families_that_transformers_took_over_from_such_code_load(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("NomicBertForMaskedLM")
    edit_config(folder, auto_map={"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"})
    assert HookedEncoder.from_pretrained(folder, device="cpu").task == "masked_lm"


class BertModel(transformers.BertModel):
    """Code of one's own under a name that is known."""


class Detached(transformers.BertPreTrainedModel):
    """A head of one's own on transformers' encoder."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.bert = transformers.BertModel(config)
        self.post_init()


@pytest.mark.parametrize("own", [BertModel, Detached])
def test_a_model_in_memory_of_a_class_of_one_s_own(own: type, bert: Path) -> None:
    hf_model = own(transformers.BertConfig.from_dict(read_config(bert)))
    with pytest.raises(UnknownArchitectureError, match=rf"test_code_of_its_own\.{own.__name__}, which is no class of transfor"):
        HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu")
    model = HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu", task="encoder")
    assert torch.equal(model.W_E, hf_model.get_input_embeddings().weight)
