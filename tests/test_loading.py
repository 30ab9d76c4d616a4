"""from_pretrained: every kind of checkpoint that should load does, bit by bit, and every other says what is wrong with it."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrizations, prune
from transformers import ErnieForMaskedLM

import encoderlens
from encoderlens import HookedEncoder, loading
from encoderlens.errors import (
    CheckpointNotFoundError,
    ConfigError,
    InputError,
    TaskError,
    TokenizerMissingError,
    UnknownArchitectureError,
    WeightsError,
)
from encoderlens.loading import tokenizer_named
from encoderlens.tensor_source import shard_names
from encoderlens.weights import CHUNK_BYTES
from tests.checkpoints import (
    BERT_CLASSES,
    BIN,
    FORMATS,
    SAFETENSORS,
    assert_same_parameters,
    assert_same_tensors,
    edit_config,
    edit_tensors,
    read_config,
    read_tensors,
    rename_tensors,
    save_tiny,
    write_tensors,
)
from tests.parity import assert_parity
from tests.sentences import write_encoder
from tests.tiny import TOKENIZER, tiny_batch, tiny_hf

WORDS = "embeddings__word_embeddings__weight"


def load(source: Any, **options: Any) -> HookedEncoder:
    if isinstance(source, Path | str):
        return HookedEncoder.from_pretrained(source, device="cpu", **options)
    return HookedEncoder.from_pretrained(hf_model=source, device="cpu", **options)


@pytest.fixture
def folder(saved: Callable, tmp_path: Path) -> Path:
    """A BertForPreTraining folder of one's own."""
    return shutil.copytree(saved("BertForPreTraining")[1], tmp_path / "checkpoint")


# What loads


@pytest.mark.parametrize("hf_class", BERT_CLASSES)
def test_a_folder_gives_what_the_model_in_memory_gives(hf_class: str, saved: Callable):
    hf_model, folder = saved(hf_class)
    from_folder, from_memory = load(folder), load(hf_model)
    assert_same_parameters(from_folder, from_memory)
    assert from_folder.cfg.original_architecture == hf_class
    assert torch.equal(from_folder.W_E, hf_model.get_input_embeddings().weight)
    assert not from_folder.training
    assert from_folder.cfg.model_name == str(folder)


def test_hf_model_is_copied(saved: Callable):
    hf_model = tiny_hf("BertModel")
    model = load(hf_model)
    with torch.no_grad():
        hf_model.embeddings.word_embeddings.weight.zero_()
    assert model.W_E.abs().sum() > 0


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("hf_class", ["BertForPreTraining", "BertModel"])
def test_every_format_is_bit_identical(kind: str, hf_class: str, saved: Callable, tmp_path: Path):
    hf_model, folder = saved(hf_class)
    shutil.copy(folder / "config.json", tmp_path)
    FORMATS[kind](read_tensors(folder), tmp_path)
    assert_same_parameters(load(tmp_path), load(hf_model))


def test_shards_written_by_transformers(tmp_path: Path):
    hf_model = tiny_hf("BertForPreTraining")
    hf_model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same_parameters(load(tmp_path), load(hf_model))


@pytest.mark.parametrize("kind", ["safetensors", "bin", "old bin", "safetensors shards"])
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("wanted", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_stored_and_wanted_dtype_are_independent(
    kind: str, stored: torch.dtype, wanted: torch.dtype, saved: Callable, tmp_path: Path
):
    hf_model, folder = saved("BertForNextSentencePrediction")
    shutil.copy(folder / "config.json", tmp_path)
    FORMATS[kind]({name: tensor.to(stored) for name, tensor in read_tensors(folder).items()}, tmp_path)
    model = load(tmp_path, dtype=wanted)
    assert model.cfg.dtype == wanted
    for ours, theirs in [(model.W_E, "embeddings.word_embeddings"), (model.nsp_head.dense.weight, "cls.seq_relationship")]:
        expected = hf_model.get_parameter(("bert." if "cls" not in theirs else "") + theirs + ".weight")
        assert torch.equal(ours, expected.to(stored).to(wanted))


def test_weights_stay_when_the_file_is_saved_over(folder: Path):
    model = load(folder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    content = (folder / SAFETENSORS).read_bytes()
    (folder / SAFETENSORS).write_bytes(bytes(len(content)))
    (folder / SAFETENSORS).write_bytes(b"")
    assert_same_tensors(model.state_dict(), before)


@pytest.mark.parametrize("path", [str, Path], ids=["str", "Path"])
def test_a_folder_may_be_a_string_or_a_path(path: Callable, folder: Path):
    assert load(path(folder)).cfg.model_name == str(folder)


def test_home_is_understood(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load(f"~/{folder.name}").cfg.n_layers == 3


# Old and odd spellings


def _old_norms(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


@pytest.mark.parametrize(
    "rename", [_old_norms, lambda name: name.removeprefix("bert."), lambda name: _old_norms(name).removeprefix("bert.")]
)
def test_old_names(rename: Callable[[str], str], folder: Path, saved: Callable):
    rename_tensors(folder, rename)
    assert_same_parameters(load(folder), load(saved("BertForPreTraining")[0]))


@pytest.mark.parametrize("kind", ["safetensors", "bin shards"])
@pytest.mark.parametrize(
    ("prefix", "origins"),
    [
        ("_orig_mod.", r"_orig_mod\. of torch\.compile"),
        ("module.", r"module\. of DataParallel and DistributedDataParallel"),
        ("module._orig_mod.", r"_orig_mod\. of torch\.compile, module\. of DataParallel"),
    ],
)
def test_names_that_wrappers_have_added_to(
    prefix: str, origins: str, kind: str, folder: Path, saved: Callable, caplog: pytest.LogCaptureFixture
):
    tensors = read_tensors(folder)
    (folder / SAFETENSORS).unlink()
    FORMATS[kind]({f"{prefix}{name}": tensor for name, tensor in tensors.items()}, folder)
    assert_same_parameters(load(folder), load(saved("BertForPreTraining")[0]))
    (message,) = caplog.messages
    assert re.search(rf"{len(tensors)} names such as {re.escape(prefix)}\S+ hold {origins}.*, and are read without it", message)


def test_names_of_a_part_that_was_compiled(folder: Path, saved: Callable):
    rename_tensors(folder, lambda name: name.replace("bert.encoder.", "bert.encoder._orig_mod."))
    assert_same_parameters(load(folder), load(saved("BertForPreTraining")[0]))


def test_two_names_of_one_tensor(folder: Path):
    edit_tensors(folder, module__cls__predictions__bias=torch.zeros(188))
    with pytest.raises(WeightsError, match=r"holds both \S*cls\.predictions\.bias and \S*cls\.predictions\.bias, which"):
        load(folder)


def test_base_model_saved_with_the_prefix(folder_of: Callable, saved: Callable):
    folder = folder_of("BertModel")
    rename_tensors(folder, lambda name: f"bert.{name}")
    assert_same_parameters(load(folder), load(saved("BertModel")[0]))


def test_position_ids_are_ignored_by_name(folder: Path, saved: Callable):
    edit_tensors(folder, bert__embeddings__position_ids=torch.arange(37)[None])
    model = load(folder)
    assert model.load_report.ignored == ("bert.embeddings.position_ids",)
    assert model.load_report.loaded == len(read_tensors(folder)) - 1
    assert_same_parameters(model, load(saved("BertForPreTraining")[0]))


@pytest.mark.parametrize("present", ["decoder.weight", "decoder.bias", "both"])
def test_tied_decoder_may_be_there(present: str, folder: Path, saved: Callable):
    hf_model = saved("BertForPreTraining")[0]
    assert not any("decoder" in name for name in read_tensors(folder)), "transformers leaves out what is tied"
    copies = {
        "cls__predictions__decoder__weight": hf_model.bert.embeddings.word_embeddings.weight,
        "cls__predictions__decoder__bias": hf_model.cls.predictions.bias,
    }
    edit_tensors(folder, **{name: value for name, value in copies.items() if present == "both" or name.endswith(present[8:])})
    model = load(folder)
    assert model.unembed.weight is model.embed.embed.weight
    assert_same_parameters(model, load(hf_model))


def test_decoder_bias_alone(folder: Path, saved: Callable):
    bias = read_tensors(folder)["cls.predictions.bias"]
    edit_tensors(folder, cls__predictions__bias=None, cls__predictions__decoder__bias=bias)
    assert_same_parameters(load(folder), load(saved("BertForPreTraining")[0]))


@pytest.mark.parametrize("name", ["cls__predictions__decoder__weight", "cls__predictions__decoder__bias"])
def test_tied_but_different(name: str, folder: Path):
    shape = (188, 40) if name.endswith("weight") else (188,)
    edit_tensors(folder, **{name: torch.ones(shape)})
    with pytest.raises(WeightsError, match=r"model\.safetensors: cls\.predictions\.\S+ and \S+ are tied but differ"):
        load(folder)


def test_tied_but_different_names_the_remedy_and_the_remedy_works(folder: Path):
    decoder = torch.randn(188, 40)
    edit_tensors(folder, cls__predictions__decoder__weight=decoder)
    with pytest.raises(WeightsError, match=r"its config\.json must say tie_word_embeddings: false"):
        load(folder)
    edit_config(folder, tie_word_embeddings=False)
    model = load(folder)
    assert torch.equal(model.unembed.weight, decoder)
    assert not torch.equal(model.W_E, decoder)


@pytest.mark.parametrize("name", ["cls__predictions__bias", "cls__predictions__decoder__bias", "bert__pooler__dense__weight"])
def test_nan_is_refused_by_name(name: str, folder: Path):
    key = name.replace("__", ".")
    values = read_tensors(folder).get(key, torch.zeros(188)).clone()
    values[3] = torch.nan
    edit_tensors(folder, **{name: values})
    count = rf"{values.isnan().sum()} of {values.numel():,}"
    with pytest.raises(WeightsError, match=rf"safetensors: {re.escape(key)} holds NaN \({count} numbers\): it was damaged"):
        load(folder)


def test_nan_in_both_biases_is_nan_and_no_difference(folder: Path):
    damaged = torch.full((188,), torch.nan)
    edit_tensors(folder, cls__predictions__bias=damaged, cls__predictions__decoder__bias=damaged)
    with pytest.raises(WeightsError, match=r"cls\.predictions\.\S*bias holds NaN \(188 of 188 numbers\)"):
        load(folder)


def test_a_bias_may_rule_outputs_out(folder: Path):
    bias = read_tensors(folder)["cls.predictions.bias"]
    bias[7] = -torch.inf
    edit_tensors(folder, cls__predictions__bias=bias)
    logits = load(folder)(tiny_batch()["tokens"])
    assert (logits[..., 7] == -torch.inf).all()
    assert logits[..., :7].isfinite().all()


def test_untied_model_loads_both_and_gives_the_same_logits(tmp_path: Path):
    hf_model = save_tiny("BertForMaskedLM", tmp_path, tie_word_embeddings=False)
    model = load(tmp_path)
    assert model.unembed.weight is not model.embed.embed.weight
    assert torch.equal(model.unembed.weight, hf_model.cls.predictions.decoder.weight)
    assert torch.equal(model.embed.embed.weight, hf_model.bert.embeddings.word_embeddings.weight)
    assert torch.equal(model.unembed.bias, hf_model.cls.predictions.decoder.bias)
    assert list(model.load_report.spare) == ["cls.predictions.bias"], "Hugging Face's model keeps it, and reads decoder.bias"
    tokens = tiny_batch()["tokens"]
    theirs = hf_model(tokens).logits
    assert_parity(model(tokens), theirs)
    back = model.to_hf()
    assert back.config.tie_word_embeddings is False
    assert_parity(back(tokens).logits, theirs)


def test_untied_model_with_one_bias(tmp_path: Path):
    save_tiny("BertForMaskedLM", tmp_path, tie_word_embeddings=False)
    edit_tensors(tmp_path, cls__predictions__decoder__bias=None)
    assert torch.equal(load(tmp_path).unembed.bias, read_tensors(tmp_path)["cls.predictions.bias"])


@pytest.mark.parametrize("size", [193, 160], ids=["more", "fewer"])
@pytest.mark.parametrize("hf_class", ["RobertaForMaskedLM", "XLMRobertaForMaskedLM", "RobertaPreLayerNormForMaskedLM"])
def test_an_untied_bias_that_was_not_resized_is_not_read(hf_class: str, size: int, tmp_path: Path):
    """Hugging Face's class computes with the decoder's own, and keeps ``lm_head.bias`` as it was."""
    hf_model = tiny_hf(hf_class, tie_word_embeddings=False)
    hf_model.resize_token_embeddings(size)
    hf_model.save_pretrained(tmp_path)
    biases = [read_tensors(tmp_path)[name] for name in ("lm_head.bias", "lm_head.decoder.bias")]
    assert [len(bias) for bias in biases] == [188, size]
    tokens = tiny_batch(vocab=160)["tokens"]
    theirs = hf_model(tokens).logits
    for model in (load(tmp_path), load(hf_model)):
        assert model.load_report.ignored == ("lm_head.bias",)
        assert model.load_report.spare == {}
        assert_parity(model(tokens), theirs)
        assert_parity(model.to_hf()(tokens).logits, theirs)


def test_a_bias_that_was_not_resized_is_refused_where_it_is_all_there_is(tmp_path: Path):
    hf_model = tiny_hf("RobertaForMaskedLM", tie_word_embeddings=False)
    hf_model.resize_token_embeddings(193)
    hf_model.save_pretrained(tmp_path)
    edit_tensors(tmp_path, lm_head__decoder__bias=None)
    with pytest.raises(WeightsError, match=r"lm_head\.bias has shape \[188\], the configuration calls for \[193\]"):
        load(tmp_path)


def test_a_table_of_task_types_that_the_configuration_leaves_out(tmp_path: Path):
    """As in Hugging Face, nothing adds it."""
    save_tiny("ErnieForMaskedLM", tmp_path)
    edit_config(tmp_path, use_task_id=False)
    model = load(tmp_path)
    assert model.load_report.ignored == ("ernie.embeddings.task_type_embeddings.weight",)
    tokens = tiny_batch()["tokens"]
    assert_parity(model(tokens), ErnieForMaskedLM.from_pretrained(tmp_path).eval()(tokens).logits)


# Weights that hold no numbers of their own


def quantised() -> Any:
    """What bitsandbytes makes of a linear layer, simulated: codes of eight bits, and a scale for each row."""
    hf_model = tiny_hf("BertForMaskedLM")
    layer = hf_model.bert.encoder.layer[1].intermediate.dense
    layer.weight = torch.nn.Parameter((layer.weight * 50).to(torch.int8), requires_grad=False)
    layer.register_buffer("SCB", torch.ones(52))
    return hf_model


UNREADABLE: dict[str, tuple[Callable[[], Any], str]] = {
    "int8": (quantised, r"layer\.1\.intermediate\.dense\.weight has dtype torch\.int8; .* they were made from, or dequantise"),
    "float8": (
        lambda: tiny_hf("BertForMaskedLM").to(torch.float8_e5m2),
        r"has dtype torch\.float8_e5m2; weights are floating-point numbers of 16 bits or more\. If they are quantised, take",
    ),
    "meta": (
        lambda: tiny_hf("BertForMaskedLM").to("meta"),
        r"bert\.embeddings\.\S+ is on the meta device, which holds no numbers; give a tensor that holds them",
    ),
}


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("task", [None, "encoder"])
def test_a_model_in_memory_whose_weights_cannot_be_read(kind: str, task: str | None):
    make, message = UNREADABLE[kind]
    with pytest.raises(WeightsError, match=rf"BertForMaskedLM: .*{message}"):
        load(make(), task=task)


@pytest.mark.filterwarnings("ignore")  # torch is about to drop it
def test_a_model_in_memory_that_torch_quantised():
    hf_model = torch.ao.quantization.quantize_dynamic(tiny_hf("BertForMaskedLM"), {torch.nn.Linear})
    with pytest.raises(
        WeightsError, match=r"BertForMaskedLM: .* is a \w+, not a tensor\. If the model is quantised, take the one"
    ):
        load(hf_model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor.to_sparse(), r"is a sparse tensor; give a dense one: tensor\.to_dense\(\)"),
        (lambda tensor: tensor.to_sparse_csr(), "is a sparse tensor"),
        (lambda tensor: tensor.to("meta"), "is on the meta device, which holds no numbers"),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), r"has dtype torch\.float8_e4m3fn"),
        (lambda tensor: tensor.to(torch.complex64), r"has dtype torch\.complex64"),
    ],
    ids=["sparse", "sparse rows", "meta", "float8", "complex"],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_a_bin_file_whose_tensors_cannot_be_read(change: Callable, message: str, folder: Path):
    tensors = read_tensors(folder)
    (folder / SAFETENSORS).unlink()
    name = "bert.encoder.layer.1.output.dense.weight"
    torch.save(tensors | {name: change(tensors[name])}, folder / BIN)
    with pytest.raises(WeightsError, match=rf"pytorch_model\.bin: bert\.encoder\.layer\.1\.output\.dense\.weight {message}"):
        load(folder)


# Classes and heads


@pytest.mark.parametrize(
    ("hf_class", "inferred"),
    [
        ("BertModel", "BertModel"),
        ("BertForPreTraining", "BertForPreTraining"),
        ("BertForMaskedLM", "BertForMaskedLM"),
        ("BertForNextSentencePrediction", "BertForNextSentencePrediction"),
        ("BertForQuestionAnswering", "BertForQuestionAnswering"),
    ],
)
@pytest.mark.parametrize("architectures", [None, []], ids=["null", "empty"])
def test_class_is_inferred_from_the_weights(hf_class: str, inferred: str, architectures: Any, folder_of: Callable):
    folder = folder_of(hf_class)
    edit_config(folder, architectures=architectures)
    assert load(folder).cfg.original_architecture == inferred


@pytest.mark.parametrize("hf_class", ["BertForSequenceClassification", "BertForTokenClassification"])
def test_class_that_cannot_be_inferred_is_asked_for(hf_class: str, folder_of: Callable, saved: Callable):
    folder = folder_of(hf_class)
    config = read_config(folder)
    del config["architectures"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnknownArchitectureError, match=r"config\.json names no architectures, .* add one of BertModel, .*"):
        load(folder)
    if hf_class == "BertForTokenClassification":
        model = load(folder, task="token_classification")
        assert_same_parameters(model, load(saved(hf_class)[0]))


def test_classifier_of_an_undeclared_kind_is_asked_for(folder_of: Callable, saved: Callable):
    folder = folder_of("BertForSequenceClassification")
    edit_config(folder, architectures=["BertModel"])
    with pytest.raises(UnknownArchitectureError, match=r"classifier\.weight can belong to a .* or a .* head; name the class"):
        load(folder)
    model = load(folder, task="sequence_classification")
    assert list(model.heads) == ["sequence_classification"]
    assert_same_parameters(model, load(saved("BertForSequenceClassification")[0]))


def test_a_checkpoint_carries_every_head_that_it_holds(folder: Path, saved: Callable):
    edit_config(folder, architectures=["BertForMaskedLM"])
    model = load(folder)
    assert list(model.heads) == ["masked_lm", "next_sentence"]
    assert model.task == "masked_lm"
    assert model.cfg.original_architecture == "BertForMaskedLM"
    hf_model, batch = saved("BertForPreTraining")[0], tiny_batch()
    theirs = hf_model(batch["tokens"], token_type_ids=batch["types"]).seq_relationship_logits
    ours = model.next_sentence(batch["tokens"], token_type_ids=batch["types"])
    assert_parity(ours, theirs)


@pytest.mark.parametrize(
    ("hf_class", "task"),
    [
        ("BertModel", None),
        ("BertForPreTraining", "masked_lm"),
        ("BertForMaskedLM", "masked_lm"),
        ("BertForNextSentencePrediction", "next_sentence"),
        ("BertForSequenceClassification", "sequence_classification"),
        ("BertForTokenClassification", "token_classification"),
        ("BertForQuestionAnswering", "question_answering"),
    ],
)
def test_default_task(hf_class: str, task: str | None, saved: Callable):
    assert load(saved(hf_class)[1]).task == task


def test_task_chooses_the_default_head(folder: Path):
    assert load(folder, task="next_sentence").task == "next_sentence"


@pytest.mark.parametrize(
    ("hf_class", "task", "message"),
    [
        (
            "BertForPreTraining",
            "question_answering",
            "no 'question_answering' head: it has masked_lm, next_sentence; task='enc",
        ),
        ("BertForSequenceClassification", "token_classification", "no 'token_classification' head: it has sequence_classific"),
        ("BertModel", "masked_lm", "no 'masked_lm' head: it has no head; task='encoder' loads just the encoder"),
        ("BertForMaskedLM", "masked-lm", "no 'masked-lm' head: it has masked_lm; .*; did you mean 'masked_lm'"),
        ("BertModel", "encodr", "no 'encodr' head: it has no head; .*; did you mean 'encoder'"),
    ],
)
def test_task_without_its_head(hf_class: str, task: str, message: str, saved: Callable):
    with pytest.raises(TaskError, match=message):
        load(saved(hf_class)[1], task=task)


@pytest.mark.parametrize("task", [5, ["masked_lm"], True], ids=repr)
@pytest.mark.usefixtures("unchecked")
def test_what_is_no_task(task: Any, bert: HookedEncoder):
    with pytest.raises(TaskError, match=r"task=.*; it is the name of a head, or 'encoder' for just the encoder"):
        HookedEncoder.from_pretrained("some-lab/no-such-model", task=task)
    with pytest.raises(TaskError, match=r"the model has no .* head; its heads: masked_lm, next_sentence$"):
        bert.task = task
    assert bert.task == "masked_lm"


def test_encoder_of_a_class_that_is_not_supported(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    hf_model = save_tiny("BertForMultipleChoice", tmp_path)
    with pytest.raises(UnknownArchitectureError, match=r"declares BertForMultipleChoice, which is not supported.*") as caught:
        load(tmp_path)
    for expected in (*BERT_CLASSES, "task='encoder' loads just its encoder", str(tmp_path / "config.json")):
        assert expected in str(caught.value)
    with caplog.at_level(logging.WARNING, "encoderlens"):
        model = load(tmp_path, task="encoder")
    assert model.load_report.left == ("classifier.bias", "classifier.weight")
    assert "left out, as task='encoder' asks: classifier.bias, classifier.weight" in caplog.text
    assert model.heads == {}
    batch = tiny_batch()
    theirs = hf_model.bert(batch["tokens"], token_type_ids=batch["types"]).last_hidden_state
    ours = model(batch["tokens"], token_type_ids=batch["types"])
    assert_parity(ours, theirs)
    assert torch.equal(model.pooler.dense.weight, hf_model.bert.pooler.dense.weight)


def test_encoder_of_a_supported_class(saved: Callable, caplog: pytest.LogCaptureFixture):
    model = load(saved("BertForMaskedLM")[1], task="encoder")
    assert model.task is None
    assert model.cfg.original_architecture == "BertModel"
    assert all(name.startswith("cls.predictions.") for name in model.load_report.left)
    assert len(model.load_report.left) == 5


def test_nothing_is_logged_when_nothing_is_left(saved: Callable, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "encoderlens"):
        model = load(saved("BertModel")[1], task="encoder")
    assert model.load_report.left == ()
    assert caplog.text == ""


# Weights that do not fit


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (
            {"bert__encoder__layer__1__output__dense__bias": None},
            r"lacks 1 tensors .*: bert\.encoder\.layer\.1\.output\.dense\.b",
        ),
        (
            {"bert__encoder__layer__3__output__dense__bias": torch.ones(40)},
            r"no part of the model takes: bert\.encoder\.layer\.3",
        ),
        (
            {"bert__pooler__dens__weight": torch.ones(1)},
            r"takes: bert\.pooler\.dens\.weight; did you mean 'bert\.pooler\.dense",
        ),
        ({f"bert__{WORDS}": torch.ones(188, 41)}, r"word_embeddings\.weight has shape \[188, 41\], .* calls for \[188, 40\]"),
        ({f"bert__{WORDS}": torch.ones(188, 40, dtype=torch.int64)}, r"word_embeddings\.weight has dtype torch\.int64"),
        ({"cls__seq_relationship__bias": None}, r"lacks 1 tensors .*: cls\.seq_relationship\.bias"),
    ],
)
def test_tensors_that_do_not_fit(edits: dict[str, Tensor | None], message: str, folder: Path):
    edit_tensors(folder, **edits)
    with pytest.raises(WeightsError, match=rf"model\.safetensors.*{message}"):
        load(folder)


@pytest.mark.parametrize(
    ("hf_class", "start", "key"),
    [
        ("BertForMaskedLM", "cls.", r"cls\.predictions\.transform\.dense\.weight"),
        ("BertForNextSentencePrediction", "cls.", r"cls\.seq_relationship\.weight"),
        ("BertForSequenceClassification", "classifier.", r"classifier\.weight"),
        ("BertForTokenClassification", "classifier.", r"classifier\.weight"),
        ("BertForQuestionAnswering", "qa_outputs.", r"qa_outputs\.weight"),
        ("BertForNextSentencePrediction", "bert.pooler", r"bert\.pooler\.dense\.weight"),
        ("BertForSequenceClassification", "bert.pooler", r"bert\.pooler\.dense\.weight"),
    ],
)
def test_declared_head_without_weights(hf_class: str, start: str, key: str, folder_of: Callable):
    folder = folder_of(hf_class)
    write_tensors(folder, {name: tensor for name, tensor in read_tensors(folder).items() if not name.startswith(start)})
    with pytest.raises(WeightsError, match=rf"config\.json .*head.*\({key}, …\) are missing"):
        load(folder)


@pytest.mark.parametrize(
    ("hf_class", "stray", "head"),
    [
        ("BertForMaskedLM", ("cls.seq_relationship.weight", "cls.seq_relationship.bias"), "next_sentence"),
        ("BertModel", ("cls.predictions.bias",), "masked_lm"),
    ],
)
def test_leftovers_of_a_head_that_nobody_asked_for(
    hf_class: str, stray: tuple[str, ...], head: str, folder_of: Callable, caplog: pytest.LogCaptureFixture
):
    folder, whole = folder_of(hf_class), tiny_hf("BertForPreTraining").state_dict()
    write_tensors(folder, read_tensors(folder) | {name: whole[name] for name in stray})
    model = HookedEncoder.from_pretrained(folder, device="cpu")
    assert head not in model.heads
    assert f"left out, as the {head} head is not whole: {', '.join(sorted(stray))}" in caplog.text
    assert set(stray) <= set(model.load_report.ignored)
    with pytest.raises(WeightsError, match=r"weights of the pooler that it reads .* are missing|lacks 4 tensors"):
        HookedEncoder.from_pretrained(folder, device="cpu", task=head)  # asked for, it must be whole


def test_damaged_weights_are_named_with_their_folder(folder: Path):
    path = folder / SAFETENSORS
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(WeightsError, match=rf"{path} is truncated: .* download or copy it again"):
        load(folder)


# Folders and names that are no checkpoint


def test_folder_without_config(folder: Path):
    (folder / "config.json").unlink()
    with pytest.raises(
        CheckpointNotFoundError, match=r"checkpoint has no config\.json: it is not a Hugging Face checkpoint folder"
    ):
        load(folder)


def test_folder_without_weights(folder: Path):
    (folder / SAFETENSORS).unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"checkpoint holds no weights: expected one of model\.safetensors, "):
        load(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("encoderlens/nope", "there is no embedded checkpoint 'encoderlens/nope'.*; embedded: "),
        ("./nowhere", "there is no folder './nowhere'"),
        ("/nowhere/at/all", "there is no folder '/nowhere/at/all'"),
        ("~/nowhere", "there is no folder '~/nowhere'"),
        ("a/b/c", "there is no folder 'a/b/c'"),
        ("not a name!", "'not a name!' is neither a folder nor a hub id that can be read"),
        (
            "org/not-in-the-cache",
            "'org/not-in-the-cache' is not a folder, .*check the name, allow a download once, or give a local folder",
        ),
    ],
)
def test_names_that_lead_nowhere(name: str, message: str):
    with pytest.raises(CheckpointNotFoundError, match=message):
        load(name)


def test_no_name_at_all():
    with pytest.raises(CheckpointNotFoundError, match="give a model: a folder, a hub id, an embedded name, or hf_model="):
        HookedEncoder.from_pretrained(device="cpu")


def test_a_file_is_no_folder(folder: Path):
    with pytest.raises(CheckpointNotFoundError, match=r"model\.safetensors is a file; give the folder of the checkpoint"):
        load(folder / SAFETENSORS)


def test_embedded_names_are_the_folders_of_the_package(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loading, "files", lambda package: tmp_path)
    assert loading.embedded_names() == []
    shutil.copytree(folder, tmp_path / "checkpoints" / "small")
    (tmp_path / "checkpoints" / "no-checkpoint").mkdir()
    assert loading.embedded_names() == ["encoderlens/small"]
    assert load("encoderlens/small").cfg.model_name == "encoderlens/small"
    with pytest.raises(CheckpointNotFoundError, match=r"did you mean 'encoderlens/small'.*; embedded: encoderlens/small"):
        load("encoderlens/smal")


def test_not_a_hugging_face_model():
    with pytest.raises(
        ConfigError, match=r"hf_model is a model of transformers, alone or in a SentenceTransformer, .*, not Linear"
    ):
        HookedEncoder.from_pretrained(hf_model=torch.nn.Linear(2, 2))
    with pytest.raises(ConfigError, match=r"not DataParallel: give the model inside it .*\.module"):
        HookedEncoder.from_pretrained(hf_model=torch.nn.DataParallel(tiny_hf("BertModel")))


@pytest.mark.parametrize("way", ["pruned", "parametrised", "a part wrapped"])
def test_hugging_face_model_whose_weights_are_made_of_others(way: str):
    hf_model = tiny_hf("BertForPreTraining")
    layer = hf_model.bert.encoder.layer[1].attention.self.query
    if way == "pruned":
        prune.l1_unstructured(layer, "weight", 0.3)
    elif way == "parametrised":
        parametrizations.orthogonal(layer)
    else:
        hf_model.bert.encoder.layer[1].attention = torch.nn.DataParallel(hf_model.bert.encoder.layer[1].attention)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(1.5)
    model = load(hf_model)
    tokens = tiny_batch()["tokens"]
    assert_parity(model(tokens), hf_model(tokens).prediction_logits)


def test_hugging_face_model_of_an_unsupported_class():
    with pytest.raises(
        UnknownArchitectureError, match="BertForMultipleChoice declares BertForMultipleChoice, which is not sup"
    ):
        load(tiny_hf("BertForMultipleChoice"))


# Configurations that are not understood


@pytest.mark.parametrize("content", ["{", "", "\u00e9", "[1]", '"bert"'])
def test_config_that_is_no_json_object(content: str, folder: Path):
    (folder / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"config\.json is not (valid JSON|a JSON object)"):
        load(folder)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (
            {"model_type": "perceiver"},
            UnknownArchitectureError,
            "has model_type 'perceiver', which is not supported; supported: ",
        ),
        ({"model_type": "gpt2"}, UnknownArchitectureError, "has model_type 'gpt2', which is not supported; supported: .*bert"),
        ({"model_type": None}, UnknownArchitectureError, "lacks model_type; add it: one of .*bert"),
        ({"model_type": "brt"}, UnknownArchitectureError, "model_type 'brt', which is not supported; did you mean 'bert'"),
        ({"model_type": ["bert"]}, UnknownArchitectureError, r"has model_type \['bert'\], which is not supported; supported: "),
        ({"model_type": 5}, UnknownArchitectureError, "has model_type 5, which is not supported; supported: "),
        (
            {"architectures": "BertForMaskedLM"},
            ConfigError,
            "architectures is 'BertForMaskedLM'; it must be a list of names of",
        ),
        ({"architectures": [1]}, ConfigError, r"architectures is \[1\]; it must be a list of names of classes"),
        ({"architectures": 0}, ConfigError, "architectures is 0; it must be a list of names of classes"),
        ({"architectures": ["BertForMasked"]}, UnknownArchitectureError, "not supported; did you mean 'BertForMaskedLM'"),
        ({"architectures": ["BertLMHeadModel"]}, UnknownArchitectureError, "declares BertLMHeadModel, which is not supported"),
        ({"position_embedding_type": "relative_key"}, ConfigError, "position_embedding_type='relative_key' is not implemented"),
        ({"is_decoder": True}, ConfigError, "is_decoder=True is not implemented; only False is"),
        ({"add_cross_attention": True}, ConfigError, "add_cross_attention=True is not implemented"),
        ({"pruned_heads": {"0": [1]}}, ConfigError, r"pruned_heads=\{'0': \[1\]\} is not implemented"),
        ({"foo_bar": 1}, ConfigError, "foo_bar=1 is not understood. If it does not change the forward pass, remove it"),
        ({"quantization_config": {"bits": 8}}, ConfigError, r"quantization_config=.* is not understood: .*\.dequantize\(\)"),
        ({"hidden_dropout_prob": 2.0}, ConfigError, r"config\.json: dropout is 2\.0; it must be a number from 0 to 1"),
        ({"layer_norm_eps": -1.0}, ConfigError, r"config\.json: eps is -1\.0; it must be a number, not below zero"),
        ({"auto_map": {"AutoModel": "code.Model"}}, ConfigError, "auto_map=.* is not understood"),
        ({"hidden_act": "gelo"}, ConfigError, "unknown activation 'gelo'; did you mean 'gelu'"),
        ({"hidden_size": 41}, ConfigError, "hidden_size=41 is not a multiple of num_attention_heads=5"),
        ({"num_attention_heads": 0}, ConfigError, "hidden_size=40 is not a multiple of num_attention_heads=0"),
        ({"hidden_size": "40"}, ConfigError, "is not a BERT configuration: .*'hidden_size'.* expected int, got str"),
        ({"num_hidden_layers": 0}, ConfigError, "n_layers is 0; it must be a positive whole number"),
        ({"id2label": {"zero": "a"}}, ConfigError, "is not a BERT configuration: .*'zero'"),
    ],
)
def test_configurations_that_are_refused(values: dict[str, Any], error: type[ConfigError], message: str, folder: Path):
    edit_config(folder, **values)
    with pytest.raises(error, match=message):
        load(folder)


@pytest.mark.parametrize("ids", [["0", "2"], ["1", "2"]])
def test_labels_with_gaps(ids: list[str], folder_of: Callable):
    folder = folder_of("BertForTokenClassification")
    edit_config(folder, id2label=dict.fromkeys(ids, "x"))
    with pytest.raises(ConfigError, match=r"id2label has ids \[\d, 2\]; they must run from 0 without gaps"):
        load(folder)


@pytest.mark.parametrize("hf_class", ["BertForSequenceClassification", "BertForTokenClassification"])
@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "c", "d"]], ids=["too few", "too many"])
def test_labels_of_another_number_than_the_classifier_has(hf_class: str, names: list[str], folder_of: Callable):
    folder = folder_of(hf_class)
    edit_config(folder, id2label=dict(enumerate(names)))
    message = (
        rf"config\.json: id2label names {len(names)} classes, and classifier\.weight of .*model\.safetensors has shape "
        r"\[3, 40\], a row for each class"
    )
    with pytest.raises(ConfigError, match=message):
        load(folder)


@pytest.mark.parametrize("label", [None, ["a"], True], ids=repr)
def test_labels_that_are_no_names(label: Any):
    hf_model = tiny_hf("BertForTokenClassification")
    hf_model.config.id2label = {0: "a", 1: label, 2: "c"}
    with pytest.raises(ConfigError, match=r"BertForTokenClassification: a name in id2label is .*; it must be a text or a"):
        load(hf_model)
    hf_model.config.id2label = ["a", "b", "c"]
    with pytest.raises(ConfigError, match=r"BertForTokenClassification: id2label is .*; it must give a name to each id"):
        load(hf_model)


def test_two_classes_of_one_name(folder_of: Callable):
    folder = folder_of("BertForTokenClassification")
    edit_config(folder, id2label={"0": "O", "1": "B", "2": "O"})
    model = load(folder)
    head, tokens = model.heads["token_classification"], tiny_batch()["tokens"]
    with pytest.raises(
        InputError, match="2 classes of the token_classification head are called 'O'; give the index of one: 0, 2"
    ):
        head.output_index("O", None)
    assert [head.output_index(target, None) for target in ("B", 0, 2)] == [1, 0, 2]
    best = model(tokens).argmax(-1)
    assert model(tokens, "predictions") == [[("O", "B", "O")[index] for index in row] for row in best.tolist()]


def test_labels_come_in_the_order_of_their_ids(folder_of: Callable):
    folder = folder_of("BertForTokenClassification")
    edit_config(folder, id2label={"2": "c", "0": "a", "1": "b"})
    assert load(folder).heads["token_classification"].labels == ("a", "b", "c")


@pytest.mark.parametrize(
    "values",
    [
        {"position_embedding_type": "absolute", "gradient_checkpointing": False, "use_cache": True},
        {"torch_dtype": "float16", "transformers_version": "4.6.0", "_name_or_path": "elsewhere", "finetuning_task": "mnli"},
        {"directionality": "bidi", "pooler_fc_size": 768, "pooler_num_fc_layers": 3, "pooler_type": "first_token_transform"},
        {
            "output_past": True,
            "pruned_heads": {},
            "num_beams": 1,
            "do_sample": False,
            "eos_token_ids": 0,
            "use_bfloat16": False,
        },
        {"_attn_implementation_autoset": True, "task_specific_params": None, "prefix": None, "bad_words_ids": None},
    ],
)
def test_keys_of_older_transformers_do_no_harm(values: dict[str, Any], folder: Path, saved: Callable):
    edit_config(folder, **values)
    assert_same_parameters(load(folder), load(saved("BertForPreTraining")[0]))


@pytest.mark.parametrize("option", ["checkpoint_index", "checkpoint_value"])
def test_checkpoint_index_points_to_revision(option: str, saved: Callable):
    with pytest.raises(ConfigError, match="no meaning for encoders: name a training step by revision="):
        load(saved("BertModel")[1], **{option: 3})


# Options


def test_context_can_be_cut(saved: Callable):
    folder = saved("BertForPreTraining")[1]
    full, short = load(folder), load(folder, n_ctx=12)
    assert short.cfg.n_ctx == 12
    assert torch.equal(short.W_pos, full.W_pos[:12])
    batch = tiny_batch()
    assert torch.equal(short(batch["tokens"]), full(batch["tokens"]))
    with pytest.raises(InputError, match="12"):
        short(torch.zeros(1, 13, dtype=torch.long))
    back = short.to_hf()
    assert back.config.max_position_embeddings == 12
    assert torch.equal(back.bert.embeddings.position_embeddings.weight, full.W_pos[:12])
    theirs = back(batch["tokens"]).prediction_logits
    assert_parity(short(batch["tokens"]), theirs)


@pytest.mark.parametrize("hf_class", ["BertModel", "RobertaModel", "EsmModel"])
def test_a_table_of_positions_that_is_longer_than_its_configuration_says(hf_class: str, tmp_path: Path):
    """Only ``n_ctx`` may leave out positions, and the error says which one would."""
    hf_model = save_tiny(hf_class, tmp_path, position_embedding_type="absolute")
    rows = hf_model.config.max_position_embeddings
    skipped = rows - load(hf_model).cfg.n_ctx
    edit_config(tmp_path, max_position_embeddings=20 + skipped)
    message = (
        rf"model\.safetensors: embeddings\.position_embeddings\.weight has shape \[{rows}, 40\], the configuration calls for "
        rf"\[{20 + skipped}, 40\] .* or keep the first positions with n_ctx=20$"
    )
    with pytest.raises(WeightsError, match=message):
        load(tmp_path)
    for n_ctx in (20, 7):
        short = load(tmp_path, n_ctx=n_ctx)
        assert torch.equal(short.W_pos, load(hf_model).W_pos[:n_ctx])


@pytest.mark.parametrize("n_ctx", [0, 38, -1])
def test_context_cannot_grow(n_ctx: int, saved: Callable):
    with pytest.raises(ConfigError, match=rf"n_ctx={n_ctx}; the checkpoint has 37 positions"):
        load(saved("BertModel")[1], n_ctx=n_ctx)


@pytest.mark.parametrize("options", [{"dtype": torch.float16}, {"torch_dtype": torch.float16}], ids=["dtype", "torch_dtype"])
def test_dtype_has_two_names(options: dict[str, torch.dtype], saved: Callable):
    model = load(saved("BertModel")[1], **options)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    assert torch.get_default_dtype() == torch.float32


def test_dtype_that_is_no_float(saved: Callable):
    with pytest.raises(
        ConfigError, match=r"dtype=torch\.int8; a model's dtype is torch\.float32, float16, bfloat16 or float64"
    ):
        load(saved("BertModel")[1], dtype=torch.int8)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")], ids=["str", "device"])
def test_device(device: Any, saved: Callable):
    model = HookedEncoder.from_pretrained(saved("BertModel")[1], device=device)
    assert model.cfg.device == torch.device("cpu")


def test_model_that_is_not_moved_stays_on_the_cpu(saved: Callable):
    hf_model, folder = saved("BertModel")
    model = HookedEncoder.from_pretrained(folder, device="meta", move_to_device=False)
    assert model.cfg.device == torch.device("cpu")
    assert_same_parameters(model, load(hf_model))


def test_unknown_options_are_refused(saved: Callable):
    with pytest.raises(TypeError, match="did you mean 'fold_ln'"):
        load(saved("BertModel")[1], fold_nl=True)


# Tokenizers


def test_folder_without_tokenizer_takes_tokens_only(folder: Path):
    model = load(folder)
    assert model.tokenizer is None
    assert model(tiny_batch()["tokens"]).shape == (3, 11, 188)
    with pytest.raises(TokenizerMissingError, match=r"tokenizer\.json.*vocab\.txt"):
        model("the doctor")


def test_folder_with_tokenizer_takes_text(folder: Path):
    shutil.copytree(TOKENIZER, folder, dirs_exist_ok=True)
    model = load(folder)
    tokens, types, mask = model.to_tokens("the doctor")
    assert torch.equal(model("the doctor"), model(tokens, "logits", types, mask))


def test_folder_with_nothing_but_a_word_list(folder: Path, tokenizer: Any):
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word, _ in words))
    assert torch.equal(load(folder).to_tokens("the doctor")[0], load(folder, tokenizer=tokenizer).to_tokens("the doctor")[0])


def test_tokenizer_that_is_given_comes_first(folder: Path, tokenizer: Any):
    shutil.copytree(TOKENIZER, folder, dirs_exist_ok=True)
    assert load(folder, tokenizer=tokenizer).tokenizer is tokenizer


def test_tokenizer_of_the_name_beside_a_model_in_memory(folder: Path, saved: Callable):
    shutil.copytree(TOKENIZER, folder, dirs_exist_ok=True)
    model = HookedEncoder.from_pretrained(str(folder), hf_model=saved("BertForPreTraining")[0], device="cpu")
    assert model.to_tokens("the doctor")[0].shape[0] == 1
    assert model.cfg.model_name == str(folder)


def test_tokenizer_named_without_files(folder: Path):
    with pytest.raises(CheckpointNotFoundError, match=r"has no tokenizer files \(tokenizer\.json, vocab\.txt"):
        tokenizer_named(str(folder))


# The hub's cache, offline, and memory: both need a process of their own


def _run(script: str, *arguments: str, **environment: str) -> Any:
    env = os.environ | {"PYTHONPATH": str(Path(encoderlens.__file__).parents[1]), "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run([sys.executable, "-c", script, *arguments], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


REPO = "some-lab/tiny-bert"
OLD, NEW = "0" * 40, "1" * 40
HUB_CASES = {
    "main": (REPO, None),
    "tag": (REPO, "step-0"),
    "commit": (REPO, OLD),
    "no such repository": ("some-lab/other-bert", None),
    "no such revision": (REPO, "step-9"),
}
HUB_SCRIPT = """
import json, sys
from encoderlens import HookedEncoder, loading
from encoderlens.errors import CheckpointNotFoundError
from encoderlens.loading import tokenizer_named
results = {}
for case, (name, revision) in json.loads(sys.argv[1]).items():
    try:
        model = HookedEncoder.from_pretrained(name, revision=revision, device="cpu")
        tokens = model.to_tokens("the doctor")[0].shape[1] if model.tokenizer else 0
        results[case] = {"name": model.cfg.model_name, "sum": model.W_E.double().sum().item(), "tokens": tokens}
    except CheckpointNotFoundError as error:
        results[case] = {"error": str(error)}
results["tokenizer"] = tokenizer_named("some-lab/just-a-tokenizer").vocab_size
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """What W_E sums to in both revisions of a cached repository, and what loading from that cache gave.

    The old revision is in shards and has no tokenizer; the new one is one file and has one.
    """
    home = tmp_path_factory.mktemp("hub")
    repo = home / "hub" / f"models--{REPO.replace('/', '--')}"
    sums = {}
    for seed, commit in enumerate((OLD, NEW)):
        hf_model = tiny_hf("BertForMaskedLM", seed)
        hf_model.save_pretrained(repo / "snapshots" / commit, max_shard_size="60KB" if commit == OLD else "1GB")
        sums[commit] = hf_model.get_input_embeddings().weight.double().sum().item()
    assert len(list((repo / "snapshots" / OLD).glob("model-*.safetensors"))) > 2
    shutil.copytree(TOKENIZER, repo / "snapshots" / NEW, dirs_exist_ok=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(NEW)
    (repo / "refs" / "step-0").write_text(OLD)
    words = home / "hub" / "models--some-lab--just-a-tokenizer"
    shutil.copytree(TOKENIZER, words / "snapshots" / NEW)
    (words / "refs").mkdir()
    (words / "refs" / "main").write_text(NEW)
    environment = {"HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_OFFLINE": "1"}
    return sums, _run(HUB_SCRIPT, json.dumps(HUB_CASES), **environment)


@pytest.mark.parametrize(
    ("case", "commit", "has_tokenizer"), [("main", NEW, True), ("tag", OLD, False), ("commit", OLD, False)]
)
def test_hub_id_from_the_cache(case: str, commit: str, has_tokenizer: bool, hub: tuple[dict, dict]):
    sums, results = hub
    assert results[case]["name"] == REPO
    assert results[case]["sum"] == sums[commit]
    assert (results[case]["tokens"] > 2) == has_tokenizer


def test_hub_id_of_a_tokenizer_needs_no_model(hub: tuple[dict, dict]):
    assert hub[1]["tokenizer"] == 188


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("no such repository", ["'some-lab/other-bert' is not a folder", "not found in the hub cache", "give a local folder"]),
        ("no such revision", [f"'{REPO}' is not a folder", "at revision 'step-9'", "check the name and the revision"]),
    ],
)
def test_hub_id_that_is_not_cached(case: str, expected: list[str], hub: tuple[dict, dict]):
    for part in expected:
        assert part in hub[1][case]["error"]


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """A repository to be filled, that hf_hub_download fetches from file by file; and the names that were fetched."""
    there, here, fetched = tmp_path / "remote", tmp_path / "cache", []
    here.mkdir()

    def hf_hub_download(repo: str, name: str, **options: Any) -> str:
        if not (there / name).is_file():
            raise huggingface_hub.errors.LocalEntryNotFoundError(name)
        fetched.append(name)
        (here / name).parent.mkdir(exist_ok=True)
        return shutil.copy(there / name, here / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    return there, fetched


def test_all_that_a_model_needs_is_fetched_and_no_more(remote: tuple[Path, list[str]]):
    there, fetched = remote
    hf_model = tiny_hf("BertForMaskedLM")
    hf_model.save_pretrained(there, max_shard_size="60KB")
    shutil.copytree(TOKENIZER, there, dirs_exist_ok=True)
    FORMATS["bin"](hf_model.state_dict(), there)
    (there / "README.md").write_text("a card")
    assert_same_parameters(load(REPO), load(hf_model))
    shards = [path.name for path in there.glob("model-*.safetensors")]
    assert len(shards) > 2
    tokenizer = ["tokenizer.json", "tokenizer_config.json"]
    assert set(fetched) == {"config.json", "model.safetensors.index.json", *shards, *tokenizer}


def test_tokenizer_alone_fetches_no_weights(remote: tuple[Path, list[str]], saved: Callable):
    there, fetched = remote
    hf_model = save_tiny("BertForMaskedLM", there)
    shutil.copytree(TOKENIZER, there, dirs_exist_ok=True)
    model = HookedEncoder.from_pretrained(REPO, hf_model=hf_model, device="cpu")
    assert model.tokenizer is not None
    assert set(fetched) == {"config.json", "tokenizer.json", "tokenizer_config.json"}


@pytest.mark.parametrize("transformer", ["", "0_Transformer"])
def test_every_module_of_a_sentence_encoder_is_fetched(transformer: str, remote: tuple[Path, list[str]]):
    there, fetched = remote
    write_encoder(there, transformer, prompts={"query": "what is: "}, default_prompt_name="query")
    (there / "README.md").write_text("a card")
    model, local = load(REPO), load(there)
    assert_same_parameters(model, local)
    assert torch.equal(model("the doctor"), local("the doctor"))
    assert model.prompt == "what is: "
    assert model.max_tokens == 12
    assert set(fetched) == {str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()} - {"README.md"}
    assert loading.modality_of(REPO) == "text"


def test_shards_of_a_module_are_fetched(remote: tuple[Path, list[str]]):
    there, fetched = remote
    write_encoder(there)
    dense = there / "2_Dense"
    weights = read_tensors(dense)
    (dense / SAFETENSORS).unlink()
    FORMATS["bin shards"](weights, dense)
    assert_same_parameters(load(REPO), load(there))
    shards = shard_names(dense / f"{BIN}.index.json")
    assert {name for name in fetched if name.startswith(f"2_Dense/{BIN[:-4]}-")} == {f"2_Dense/{shard}" for shard in shards}


def test_a_cross_encoder_s_settings_are_fetched(remote: tuple[Path, list[str]]):
    there, fetched = remote
    save_tiny("BertForSequenceClassification", there, num_labels=1)
    (there / "modules.json").write_text(
        '[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]'
    )
    name = "config_sentence_transformers.json"
    (there / name).write_text('{"activation_fn": "torch.nn.modules.activation.Sigmoid"}')
    model = load(REPO)
    tokens = tiny_batch()["tokens"]
    assert model(tokens, "predictions") == model(tokens).sigmoid().squeeze(1).tolist()
    assert set(fetched) == {"config.json", SAFETENSORS, "modules.json", name}


MEMORY_SCRIPT = """
import gc, json, sys
import torch
from encoderlens import HookedEncoder, loading

def resident(kind):
    with open("/proc/self/status") as status:
        return int(dict(line.split(":", 1) for line in status)[kind].split()[0]) * 1024

def measure(dtype):
    gc.collect()
    before = resident("VmRSS")
    model = HookedEncoder.from_pretrained(sys.argv[2], device="cpu", dtype=dtype)
    return sum(parameter.nbytes for parameter in model.parameters()), resident("VmHWM") - before

torch.set_num_threads(1)
HookedEncoder.from_pretrained(sys.argv[1], device="cpu")  # imports all that loading imports
print(json.dumps([measure(torch.float16), measure(torch.float32)]))  # the smaller peak first: peaks only grow
"""


def test_loading_needs_little_more_memory_than_the_weights(saved: Callable, tmp_path: Path):
    """Slack: 8 MB for configuration objects and the allocator, ``CHUNK_BYTES`` more for the rows that are being converted.

    A fixed mmap threshold makes malloc give back what the first measurement frees.
    """
    size = {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048, "num_hidden_layers": 4}
    save_tiny("BertModel", tmp_path, **size, vocab_size=4000)
    folders = str(saved("BertModel")[1]), str(tmp_path)
    (half, half_peak), (single, single_peak) = _run(MEMORY_SCRIPT, *folders, MALLOC_MMAP_THRESHOLD_="1000000")
    assert single == 2 * half > 50e6
    assert single_peak < 1.2 * single + 8e6
    assert half_peak < 1.2 * half + 8e6 + CHUNK_BYTES
