"""Tokenizers of folders: SentencePiece models, files that cannot be read, classes that nobody knows, and tokenizers by name."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers

import encoderlens
from encoderlens import HookedEncoder
from encoderlens.errors import CheckpointNotFoundError, ConfigError, TokenizerMissingError
from tests.checkpoints import save_tiny
from tests.sentences import TEXTS
from tests.tiny import TOKENIZER, tiny_batch

TEXT = TEXTS[0]
# Of each class that reads SentencePiece models: its file, the tokenizer_config.json beside it, and its special pieces.
BRACKETS = {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
SENTENCEPIECE: dict[str, tuple[str, dict[str, Any] | None, dict[str, Any]]] = {
    "DebertaV2ForMaskedLM": (
        "spm.model",
        {"do_lower_case": False, "vocab_type": "spm"},
        {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, **BRACKETS},
    ),
    "XLMRobertaForMaskedLM": ("sentencepiece.bpe.model", None, {}),
    "CamembertForMaskedLM": ("sentencepiece.bpe.model", {"model_max_length": 37}, {}),
    "AlbertForMaskedLM": (
        "spiece.model",
        None,
        {"pad_id": 0, "bos_id": 2, "eos_id": 3, "unk_id": 1, **BRACKETS, "pad_piece": "<pad>", "unk_piece": "<unk>"}
        | {"user_defined_symbols": ["[MASK]"]},
    ),
}


@lru_cache
def trained(hf_class: str) -> bytes:
    """A SentencePiece model, trained on a few sentences."""
    written = io.BytesIO()
    options = {"vocab_size": 45, "hard_vocab_limit": False, "minloglevel": 2, **SENTENCEPIECE[hf_class][2]}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXTS * 5), model_writer=written, **options)
    return written.getvalue()


def write_sentencepiece(folder: Path, hf_class: str) -> None:
    name, config, _ = SENTENCEPIECE[hf_class]
    (folder / name).write_bytes(trained(hf_class))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("hf_class", SENTENCEPIECE)
def test_a_sentencepiece_model_as_it_is_published(hf_class: str, folder_of: Callable[[str], Path]) -> None:
    folder = folder_of(hf_class)
    write_sentencepiece(folder, hf_class)
    model = HookedEncoder.from_pretrained(folder, device="cpu")
    pieces = sentencepiece.SentencePieceProcessor(model_proto=trained(hf_class)).encode(TEXT, out_type=str)
    assert model.to_str_tokens(TEXT)[1:-1] == pieces
    assert torch.equal(model(TEXT), model(model.to_tokens(TEXT)[0]))


# What is not installed is made impossible to import, in a process of its own, before anything else is imported.
UNINSTALLED = """
import sys
for module in ("sentencepiece", "google.protobuf", "tiktoken"):
    sys.modules[module] = None
import json, logging, torch
from encoderlens import HookedEncoder
from encoderlens.errors import TokenizerMissingError
logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.WARNING)
for folder in sys.argv[1:]:
    model = HookedEncoder.from_pretrained(folder, device="cpu")
    assert model(torch.tensor([[5, 6, 7]])).isfinite().all()
    try:
        model("the doctor")
    except TokenizerMissingError as error:
        print(json.dumps(str(error)))
"""


def test_without_the_packages_the_model_loads_and_says_what_to_install(saved: Callable, tmp_path: Path) -> None:
    folders = []
    for hf_class in SENTENCEPIECE:
        folders.append(tmp_path / hf_class)
        save_tiny(hf_class, folders[-1])
        write_sentencepiece(folders[-1], hf_class)
    source = str(Path(encoderlens.__file__).parents[1])
    command = [sys.executable, "-c", UNINSTALLED, *map(str, folders)]
    done = subprocess.run(command, env={"PYTHONPATH": source, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(folders)
    for folder, (name, _, _) in zip(folders, SENTENCEPIECE.values(), strict=True):
        assert (
            f"no tokenizer, so no text input: the tokenizer files in {folder} cannot be read: {name} is read by sentencepiece "
            "and protobuf, and sentencepiece and protobuf cannot be imported: pip install 'encoderlens[sentencepiece]', or add "
            "a tokenizer.json"
        ) in done.stderr
    assert "tiktoken" not in done.stderr


# Files that cannot be read

WORDS = json.loads((TOKENIZER / "tokenizer.json").read_text())["model"]["vocab"]
SETTINGS = json.loads((TOKENIZER / "tokenizer_config.json").read_text())
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
UNKNOWN = {"tokenizer_class": "SparkleTokenizer"}
OWN_CODE = UNKNOWN | {"auto_map": {"AutoTokenizer": ["some-lab/code--tokenizing.SparkleTokenizer", None]}}
LIST = "\n".join(WORDS)
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no JSON": (
        {"tokenizer.json": "{"},
        r"JSONDecodeError: .* Download them again \(after a git clone: git lfs pull\), or",
    ),
    "a pointer": ({"tokenizer.json": POINTER}, r"Download them again \(after a git clone: git lfs pull\)"),
    "an empty object": ({"tokenizer.json": {}}, "KeyError: "),
    "settings that are no JSON": ({"vocab.txt": LIST, "tokenizer_config.json": "{"}, "JSONDecodeError"),
    "settings that are a list": ({"vocab.txt": LIST, "tokenizer_config.json": []}, "AttributeError"),
    "bytes": ({"vocab.txt": bytes(range(256))}, "Error while initializing WordPiece"),
    "an empty list": ({"vocab.txt": ""}, r"BertTokenizer finds no vocabulary there, only its special tokens\. Add the file"),
    "an unknown class": (
        {"vocab.txt": LIST, "tokenizer_config.json": UNKNOWN},
        r"its class 'SparkleTokenizer' is none that transformers has\. Add a tokenizer\.json",
    ),
    "a class that is a number": ({"vocab.txt": LIST, "tokenizer_config.json": {"tokenizer_class": 5}}, "its class 5 is none"),
    "code of its own": ({"vocab.txt": LIST, "tokenizer_config.json": OWN_CODE}, "its class 'SparkleTokenizer' is none"),
    "no SentencePiece model": (
        {"spm.model": b"no model", "tokenizer_config.json": {"tokenizer_class": "DebertaV2Tokenizer"}},
        r"spm\.model is no SentencePiece model, or not one of its class\. Download",
    ),
}


def write(folder: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        if isinstance(content, dict | list):
            content = json.dumps(content)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_read_is_left_out_with_the_remedy(
    case: str, folder_of: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder, (files, reason) = folder_of("BertForMaskedLM"), BROKEN[case]
    write(folder, files)
    with caplog.at_level(logging.WARNING, "encoderlens"):
        model = HookedEncoder.from_pretrained(folder, device="cpu")
    (record,) = caplog.records
    with pytest.raises(ConfigError, match=reason) as caught:
        HookedEncoder(model.cfg.encoder, tokenizer=folder, device="cpu")
    assert record.getMessage() == (
        f"no tokenizer, so no text input: {caught.value}; or give one (tokenizer=, of a speech model processor=)"
    )
    assert str(caught.value).startswith(f"the tokenizer files in {folder} cannot be read: ")
    assert model(tiny_batch()["tokens"]).isfinite().all()
    with pytest.raises(TokenizerMissingError, match=r"that could be read \(the log says why, if there were any\)"):
        model(TEXT)


@pytest.mark.parametrize("named", [UNKNOWN, OWN_CODE], ids=["unknown", "code of its own"])
def test_with_a_tokenizer_json_the_class_does_not_matter(
    named: dict[str, Any], folder_of: Callable[[str], Path], tokenizer: Any
) -> None:
    folder = folder_of("BertForMaskedLM")
    whole = (TOKENIZER / "tokenizer.json").read_text()
    write(folder, {"tokenizer.json": whole, "tokenizer_config.json": SETTINGS | named})
    model = HookedEncoder.from_pretrained(folder, device="cpu")
    assert model.to_tokens(TEXT)[0].tolist() == [tokenizer(TEXT)["input_ids"]]


# Tokenizers by name


@pytest.mark.parametrize("named", [TOKENIZER, str(TOKENIZER)], ids=["path", "text"])
def test_a_tokenizer_by_its_name(named: Path | str, saved: Callable, tokenizer: Any) -> None:
    hf_model, _ = saved("BertForMaskedLM")
    loaded = HookedEncoder.from_pretrained(hf_model=hf_model, tokenizer=named, device="cpu")
    made = HookedEncoder(loaded.cfg.encoder, tokenizer=named, device="cpu")
    assigned = HookedEncoder(loaded.cfg.encoder, device="cpu")
    assigned.tokenizer = named
    for model in (loaded, made, assigned):
        assert model.to_tokens(TEXT)[0].tolist() == [tokenizer(TEXT)["input_ids"]]


@pytest.mark.parametrize(
    "given", [5, ["a"], {"a": 1}, True, print, transformers.AutoTokenizer, "the tokenizers package's"], ids=repr
)
def test_what_is_no_tokenizer(given: Any, bert: HookedEncoder) -> None:
    before = bert.tokenizer
    given = before.backend_tokenizer if given == "the tokenizers package's" else given
    with pytest.raises(ConfigError, match=r"tokenizer is (an?|the class) \w+; give a Hugging Face tokenizer"):
        bert.tokenizer = given
    assert bert.tokenizer is before


def test_a_name_that_leads_to_no_tokenizer(bert: HookedEncoder, tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"has no tokenizer files \(tokenizer\.json, "):
        bert.tokenizer = tmp_path
    with pytest.raises(CheckpointNotFoundError, match="'some-lab/nothing' is not a folder"):
        HookedEncoder.from_pretrained("some-lab/no-model", tokenizer="some-lab/nothing")
