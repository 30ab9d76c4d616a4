"""Tiny Hugging Face models: odd sizes, LayerNorm weights away from one, every bias non-zero."""

import re
from pathlib import Path
from typing import Any

import torch
import transformers

TOKENIZER = Path(__file__).parent / "data" / "tokenizer"
N_VOCAB = 188

# Three convolutions, stride 20, receptive field 28.
SPEECH: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 31,
    "conv_dim": (9, 7, 11),
    "conv_kernel": (8, 3, 2),
    "conv_stride": (5, 2, 2),
    "num_conv_pos_embeddings": 6,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 32,
    "classifier_proj_size": 17,
    "num_labels": 5,
}
# Of encoders with BERT's names, but for token types.
TEXT: dict[str, Any] = {
    "hidden_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "intermediate_size": 52,
    "vocab_size": N_VOCAB,
    "max_position_embeddings": 37,
    "num_labels": 3,
}
SPECIAL = {"pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2}  # of families whose own lie beyond a small vocabulary
# One entry a family, by model_type: sizes that no two axes share.
TINY: dict[str, dict[str, Any]] = {
    "bert": TEXT | {"type_vocab_size": 2},
    "roberta": TEXT | {"type_vocab_size": 1},
    "xlm-roberta": TEXT | {"type_vocab_size": 1},
    "camembert": TEXT | {"type_vocab_size": 1},
    "distilbert": {
        "dim": 40,
        "n_layers": 3,
        "n_heads": 5,
        "hidden_dim": 52,
        "vocab_size": N_VOCAB,
        "max_position_embeddings": 37,
        "num_labels": 3,
    },
    "electra": TEXT | {"type_vocab_size": 2, "embedding_size": 24},
    "albert": TEXT | {"type_vocab_size": 2, "embedding_size": 24},
    "mpnet": TEXT,
    "ernie": TEXT | {"type_vocab_size": 2, "use_task_id": True},
    "megatron-bert": TEXT | {"type_vocab_size": 2},
    "roberta-prelayernorm": TEXT | {"type_vocab_size": 1},
    "nomic_bert": TEXT | {"type_vocab_size": 2},
    "esm": TEXT
    | {
        "position_embedding_type": "rotary",
        "pad_token_id": 1,
        "token_dropout": True,
        "mask_token_id": 163,  # tiny_batch has one among real tokens, and one at padding
    },
    # A window that is shorter than the longest sequence, and leaves no padded query of the others without a key.
    "modernbert": TEXT | {"local_attention": 14, **SPECIAL},
    "eurobert": TEXT | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, **SPECIAL},
    "hubert": SPEECH,
    "wav2vec2": SPEECH | {"num_codevectors_per_group": 13, "codevector_dim": 8, "proj_codevector_dim": 6},
}

# What else a family can be asked for, by model_type: other sizes, activations and eps, and its own options.
SILU = {"tie_word_embeddings": False, "hidden_act": "silu", "layer_norm_eps": 1e-3, "num_hidden_layers": 2}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "bert": {
        "one token type, relu": {"type_vocab_size": 1, "hidden_act": "relu", "layer_norm_eps": 1e-5, "num_hidden_layers": 2},
        "three token types, gelu_new": {
            "type_vocab_size": 3,
            "hidden_act": "gelu_new",
            "hidden_size": 42,
            "num_attention_heads": 7,
        },
        "untied, silu, one head": {
            "tie_word_embeddings": False,
            "hidden_act": "silu",
            "num_attention_heads": 1,
            "intermediate_size": 19,
            "layer_norm_eps": 1e-3,
        },
    },
    "roberta": {"untied, silu": SILU, "another padding token, two token types": {"pad_token_id": 4, "type_vocab_size": 2}},
    "xlm-roberta": {"untied, silu": SILU},
    "camembert": {"untied, silu": SILU},
    "distilbert": {
        "sinusoidal": {"sinusoidal_pos_embds": True},
        "untied, relu": {"tie_word_embeddings": False, "activation": "relu", "n_layers": 2},
    },
    "electra": {"untied, silu": SILU, "embeddings as wide as the stream": {"embedding_size": 40}},
    "albert": {
        "untied, silu": SILU,
        "two groups": {"num_hidden_layers": 5, "num_hidden_groups": 2},
        "two inner layers": {"num_hidden_layers": 2, "inner_group_num": 2},
        "two groups of two inner layers, wide embeddings": {
            "num_hidden_layers": 3,
            "num_hidden_groups": 2,
            "inner_group_num": 2,
            "embedding_size": 40,
        },
    },
    "mpnet": {"untied, silu": SILU, "far apart": {"max_position_embeddings": 300}},
    "ernie": {"untied, silu": SILU, "no task types": {"use_task_id": False}},
    "nomic_bert": {
        "untied, gelu, other frequencies": {
            "tie_word_embeddings": False,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-3,
            "num_hidden_layers": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 137.0},
        },
        "one token type, heads of another width": {"type_vocab_size": 1, "head_dim": 6},
    },
    "esm": {
        "untied, no token dropout, no mask token": {
            "tie_word_embeddings": False,
            "token_dropout": False,
            "mask_token_id": None,
            "layer_norm_eps": 1e-3,
            "num_hidden_layers": 2,
        },
        "absolute": {"position_embedding_type": "absolute"},
        "absolute, a norm in front, another padding token": {
            "position_embedding_type": "absolute",
            "emb_layer_norm_before": True,
            "pad_token_id": 4,
        },
        "rotary, a norm in front": {"emb_layer_norm_before": True},
        "rotary, no norm in front, by name": {"emb_layer_norm_before": False},
    },
    "megatron-bert": {"untied, silu": SILU},
    "roberta-prelayernorm": {"untied, silu": SILU},
    "modernbert": {
        "every bias, untied, silu": {
            **dict.fromkeys(["norm_bias", "attention_bias", "mlp_bias", "classifier_bias"], True),
            "tie_word_embeddings": False,
            "hidden_activation": "silu",
            "classifier_activation": "gelu_new",
            "norm_eps": 1e-3,
        },
        "no bias at all, sparse prediction": {"decoder_bias": False, "sparse_prediction": True},
        "other layers are local, other frequencies": {
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {"full_attention": {"rope_theta": 500.0}, "sliding_attention": {"rope_theta": 30.0}},
            "local_attention": 2,
        },
        "an odd window": {"local_attention": 5},
        "another global layer, a narrow window": {"num_hidden_layers": 4, "local_attention": 4},
        "no layer is local": {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2},
        "every layer is local": {"num_hidden_layers": 2, "layer_types": ["sliding_attention"] * 2},
    },
    "eurobert": {
        "every bias, tied, gelu": {
            **dict.fromkeys(["attention_bias", "mlp_bias", "tie_word_embeddings"], True),
            "hidden_act": "gelu",
            "rms_norm_eps": 1e-3,
            "num_hidden_layers": 2,
        },
        "one head of keys and values, tied, other frequencies": {
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_theta": 70.0},
        },
        "keys and values for every head": {"num_key_value_heads": None, "head_dim": None},
    },
}
TWO_OUTPUTS = ("ForQuestionAnswering", "AlbertForPreTraining")  # of which Hugging Face makes as many as there are labels


def tiny_hf(hf_class: str, seed: int = 0, **overrides: Any) -> Any:
    """A tiny model of a Hugging Face class in eval mode, attention "eager", trained-like random weights."""
    cls = getattr(transformers, hf_class)
    model_type = cls.config_class.model_type
    two_labels = {"num_labels": 2} if hf_class.endswith(TWO_OUTPUTS) else {}
    config = cls.config_class(**(TINY[model_type] | two_labels | overrides))
    config._attn_implementation = "eager"
    model = cls(config).eval()
    generator, stored = torch.Generator().manual_seed(seed), model.state_dict()
    with torch.no_grad():
        for name, values in (*model.named_parameters(), *model.named_buffers()):
            if name in stored and values.is_floating_point():
                values.copy_(_trained_like(name, torch.randn(values.shape, generator=generator)))
    return model


GAINS = re.compile(r"(norm|ln)\.weight$|weight\.original0$", re.IGNORECASE)


def _trained_like(name: str, noise: torch.Tensor) -> torch.Tensor:
    """What a parameter, or a running statistic, of this name could look like."""
    if name.endswith("running_var"):
        return 1 + 0.5 * noise.abs()
    if GAINS.search(name):
        return 1 + 0.3 * noise
    return noise * (0.25 if noise.ndim > 1 else 0.3)


def tiny_batch(vocab: int = N_VOCAB, n_types: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """Tokens, types and mask [3 11]; two of the three sequences are padded. Types are 0 for a model without any."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocab, (3, 11), generator=generator)
    types = torch.randint(0, max(n_types, 1), (3, 11), generator=generator)
    mask = torch.ones(3, 11, dtype=torch.long)
    mask[1, 7:] = 0
    mask[2, 4:] = 0
    return {"tokens": tokens, "types": types, "mask": mask}


def tiny_waves(*lengths: int, seed: int = 0) -> list[torch.Tensor]:
    """Noise with a slow swell, as clips of these many samples."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(n, generator=generator) * (0.1 + 0.05 * torch.linspace(0, 9, n).sin()) for n in lengths or (700, 401, 533)
    ]
