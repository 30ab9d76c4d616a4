"""Tiny Hugging Face models: odd sizes, LayerNorm weights away from one, every bias non-zero."""

from pathlib import Path
from typing import Any

import torch
import transformers

TOKENIZER = Path(__file__).parent / "data" / "tokenizer"
N_VOCAB = 188

# One entry a family, by model_type: sizes that no two axes share.
TINY: dict[str, dict[str, Any]] = {
    "bert": {
        "hidden_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 5,
        "intermediate_size": 52,
        "vocab_size": N_VOCAB,
        "max_position_embeddings": 37,
        "type_vocab_size": 2,
        "num_labels": 3,
    }
}


def tiny_hf(hf_class: str, seed: int = 0, **overrides: Any) -> Any:
    """A tiny model of a Hugging Face class in eval mode, attention "eager", trained-like random weights."""
    cls = getattr(transformers, hf_class)
    model_type = cls.config_class.model_type
    two_labels = {"num_labels": 2} if hf_class.endswith("ForQuestionAnswering") else {}  # start and end
    config = cls.config_class(**(TINY[model_type] | two_labels | overrides))
    config._attn_implementation = "eager"
    model = cls(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * 0.25)
            elif "LayerNorm.weight" in name:
                parameter.copy_(1 + 0.3 * noise)
            else:
                parameter.copy_(0.3 * noise)
    return model


def tiny_batch(vocab: int = N_VOCAB, n_types: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """Tokens, types and mask [3 11]; two of the three sequences are padded."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocab, (3, 11), generator=generator)
    types = torch.randint(0, n_types, (3, 11), generator=generator)
    mask = torch.ones(3, 11, dtype=torch.long)
    mask[1, 7:] = 0
    mask[2, 4:] = 0
    return {"tokens": tokens, "types": types, "mask": mask}
