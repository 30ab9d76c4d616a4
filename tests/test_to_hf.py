"""to_hf: back to the Hugging Face class that was loaded, bit by bit, naming what that class has no place for."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from encoderlens import EncoderConfig, HookedEncoder
from encoderlens.config import PoolerPart, SequenceClassificationPart
from encoderlens.errors import ConfigError
from tests.checkpoints import BERT_CLASSES, assert_same_parameters, assert_same_tensors, edit_config, read_tensors, save_tiny
from tests.parity import assert_parity
from tests.tiny import TOKENIZER, tiny_batch, tiny_hf


def load(folder: Path, **options: Any) -> HookedEncoder:
    return HookedEncoder.from_pretrained(folder, device="cpu", **options)


@pytest.mark.parametrize("hf_class", BERT_CLASSES)
def test_folder_to_model_to_folder_to_model(hf_class: str, tmp_path: Path):
    hf_model = save_tiny(hf_class, tmp_path / "first")
    model = load(tmp_path / "first")
    back = model.to_hf()
    assert type(back) is type(hf_model)
    assert not back.training
    assert_same_tensors(back.state_dict(), hf_model.state_dict())
    back.save_pretrained(tmp_path / "second")
    assert_same_tensors(read_tensors(tmp_path / "second"), read_tensors(tmp_path / "first"))
    again = load(tmp_path / "second")
    assert_same_parameters(again, model)
    for name in ("original_architecture", "n_ctx", "heads", "act_fn", "eps"):
        assert getattr(again.cfg, name) == getattr(model.cfg, name)


def test_base_model_without_pooler(tmp_path: Path):
    config = tiny_hf("BertModel").config
    hf_model = transformers.BertModel(config, add_pooling_layer=False).eval()
    hf_model.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert not hasattr(model, "pooler")
    back = model.to_hf()
    assert back.pooler is None
    assert_same_tensors(back.state_dict(), hf_model.state_dict())


def test_weights_without_a_place_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    hf_model = save_tiny("BertForPreTraining", tmp_path)
    edit_config(tmp_path, architectures=["BertForMaskedLM"])
    with caplog.at_level(logging.WARNING, "encoderlens"):
        back = load(tmp_path).to_hf()
    assert type(back).__name__ == "BertForMaskedLM"
    (message,) = caplog.messages
    assert message.startswith("BertForMaskedLM has no place for bert.pooler.dense.weight, bert.pooler.dense.bias, ")
    assert "cls.seq_relationship.weight, cls.seq_relationship.bias; they are not in the result" in message
    theirs = hf_model.state_dict()
    assert_same_tensors(back.state_dict(), {name: theirs[name] for name in back.state_dict()})


def test_nothing_is_said_when_everything_has_a_place(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    save_tiny("BertForPreTraining", tmp_path)
    with caplog.at_level(logging.DEBUG, "encoderlens"):
        load(tmp_path).to_hf()
    assert caplog.messages == []


def test_it_is_a_copy(tmp_path: Path):
    save_tiny("BertForMaskedLM", tmp_path)
    model = load(tmp_path)
    back = model.to_hf()
    with torch.no_grad():
        back.bert.embeddings.word_embeddings.weight.zero_()
    assert model.W_E.abs().sum() > 0
    assert back.cls.predictions.decoder.weight is back.bert.embeddings.word_embeddings.weight


def test_edits_go_along(tmp_path: Path):
    save_tiny("BertForMaskedLM", tmp_path)
    model = load(tmp_path)
    with torch.no_grad():
        model.blocks[1].attn.W_O[2] = 0
    tokens = tiny_batch()["tokens"]
    theirs = model.to_hf()(tokens).logits
    assert_parity(model(tokens), theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_the_models(dtype: torch.dtype, tmp_path: Path):
    save_tiny("BertModel", tmp_path / "first")
    model = load(tmp_path / "first", dtype=dtype)
    back = model.to_hf()
    assert {tensor.dtype for tensor in back.state_dict().values()} == {dtype}
    assert back.config.dtype == dtype
    back.save_pretrained(tmp_path / "second")
    assert_same_parameters(load(tmp_path / "second", dtype=dtype), model)


def test_a_model_made_here_goes_too():
    tokens = torch.arange(6)[None]
    small = {"d_model": 24, "d_head": 8, "n_layers": 2, "n_ctx": 9, "d_vocab": 31, "seed": 3, "device": "cpu"}
    model = HookedEncoder(small).eval()
    back = model.to_hf()
    assert type(back).__name__ == "BertForPreTraining"
    assert_parity(back(tokens).prediction_logits, model(tokens))


def test_a_model_made_here_trains_the_rows_that_it_says_and_its_sizes_may_come_from_numpy(unchecked: None):
    sizes = {"d_model": 24, "d_head": 8, "n_layers": 2, "n_ctx": 9, "d_vocab": 31}
    model = HookedEncoder({name: np.int64(size) for name, size in sizes.items()} | {"device": "cpu"})
    back = model.to_hf()
    assert back.get_input_embeddings().padding_idx is None
    assert '"hidden_size": 24' in back.config.to_json_string()
    cfg = model.cfg.encoder
    padded = HookedEncoder(replace(cfg, embed=replace(cfg.embed, padding_idx=5)), device="cpu").to_hf()
    assert padded.get_input_embeddings().padding_idx == 5
    with pytest.raises(ConfigError, match=r"padding_idx .pad_token_id. is 31; it is None, or one of the 31 tokens"):
        replace(cfg, embed=replace(cfg.embed, padding_idx=31))


def test_classifier_made_here_keeps_its_labels_and_its_problem():
    made = HookedEncoder({"d_model": 24, "d_head": 8, "n_layers": 2, "n_ctx": 9, "d_vocab": 31, "device": "cpu"}).cfg.encoder
    head = SequenceClassificationPart(("no", "yes"), problem_type="multi_label_classification", dropout=0.3)
    cfg = EncoderConfig(
        **{name: getattr(made, name) for name in ("family", "d_model", "n_layers", "embed", "positions", "attention")},
        **{name: getattr(made, name) for name in ("norm", "mlp", "block")},
        original_architecture="BertForSequenceClassification",
        pooler=PoolerPart(),
        heads=(head,),
    )
    model = HookedEncoder(cfg, device="cpu")
    again = HookedEncoder.from_pretrained(hf_model=model.to_hf(), device="cpu")
    assert again.cfg.encoder.heads == (head,)
    assert_same_parameters(again, model)


def test_configuration_of_the_checkpoint_is_kept(tmp_path: Path):
    save_tiny(
        "BertForTokenClassification", tmp_path, num_labels=2, id2label={0: "x", 1: "y"}, classifier_dropout=0.4, pad_token_id=3
    )
    config = load(tmp_path).to_hf().config
    assert config.id2label == {0: "x", 1: "y"}
    assert config.label2id == {"x": 0, "y": 1}
    assert (config.classifier_dropout, config.pad_token_id) == (0.4, 3)
    assert config.architectures == ["BertForTokenClassification"]


def test_tokenizer_and_model_save_side_by_side(tmp_path: Path, bert: HookedEncoder):
    bert.to_hf().save_pretrained(tmp_path)
    bert.tokenizer.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert torch.equal(again("the doctor walked"), bert("the doctor walked"))
    assert TOKENIZER.is_dir()
