"""Sentence encoders: folders that sentence-transformers itself saves from tiny models, and texts of uneven length for them."""

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer

from encoderlens import HookedEncoder
from tests.tiny import TOKENIZER, tiny_hf

TEXTS = [
    "the doctor walked to the hospital",
    "no",
    "he said that the nurse could not have been there before, but she was",
    "paris is the capital of france.",
]
LONG = "all work and no play " * 20


def save_transformer(folder: Path, hf_class: str = "BertModel", padding_side: str = "right", **overrides: Any) -> Any:
    """A tiny Hugging Face model and the small tokenizer."""
    hf_model = tiny_hf(hf_class, **overrides)
    hf_model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TOKENIZER, padding_side=padding_side).save_pretrained(folder)
    return hf_model


def save_encoder(transformer: Path, folder: Path, *modules: Any, **options: Any) -> Any:
    """What sentence-transformers makes of a transformer's folder and some modules, with trained-like random weights, saved."""
    from sentence_transformers import SentenceTransformer

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in modules:
            for name, parameter in module.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(1 + 0.3 * noise if name == "norm.weight" else 0.3 * noise)
    encoder = SentenceTransformer(modules=[opened(transformer), *modules], device="cpu", **options).eval()
    encoder.save(str(folder), create_model_card=False)
    return encoder


def write_encoder(folder: Path, transformer: str = "", **settings: Any) -> None:
    """The files of a sentence encoder, as they are on the hub: a mean, a dense layer, and a norm without a file.

    Args:
        transformer: the transformer's own folder, if it has one.
        settings: of the whole, such as prompts.
    """
    save_transformer(folder / transformer)
    kinds = {transformer: "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense", "3_Normalize": "Normalize"}
    entries = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds.items())
    ]
    dense = {"in_features": 40, "out_features": 9, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
    files: dict[str, Any] = {
        "modules.json": entries,
        "config_sentence_transformers.json": settings,
        f"{transformer}/sentence_bert_config.json": {"max_seq_length": 12, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": 40, "pooling_mode_mean_tokens": True},
        "2_Dense/config.json": dense,
    }
    for name, values in files.items():
        path = folder / name.removeprefix("/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(values))
    generator = torch.Generator().manual_seed(0)
    weights = {"linear.weight": torch.randn(9, 40, generator=generator), "linear.bias": torch.randn(9, generator=generator)}
    save_file(weights, folder / "2_Dense" / "model.safetensors", metadata={"format": "pt"})


@lru_cache
def opened(transformer: Path) -> Any:
    """A transformer's folder as the first module of sentence-transformers."""
    from sentence_transformers.sentence_transformer.modules import Transformer

    return Transformer(str(transformer))


def encoded(reference: Any, texts: Iterable[str] = TEXTS, **options: Any) -> Tensor:
    return torch.from_numpy(reference.encode(list(texts), **options))


def load(folder: Path, **options: Any) -> HookedEncoder:
    return HookedEncoder.from_pretrained(folder, device="cpu", **options)


def edit_json(path: Path, *without: str, **values: Any) -> None:
    kept = {key: value for key, value in json.loads(path.read_text()).items() if key not in without}
    path.write_text(json.dumps(kept | values))


def edit_modules(folder: Path, change: Any) -> None:
    """Write another list of modules, which a function makes of the present one."""
    path = folder / "modules.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
