"""Configurations as they are published, with every key that they have beside sizes: read, and not refused.

Written down from memory of the files; the weights are not here.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from encoderlens import HookedEncoder
from encoderlens.config import EncoderConfig
from tests.parity import assert_parity

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 20, "vocab_size": 90}
COMMON = {"attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "initializer_range": 0.02}
ROBERTA = {
    **COMMON,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 514,
    "pad_token_id": 1,
    "type_vocab_size": 1,
}
BERT = {**COMMON, "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "pad_token_id": 0, "type_vocab_size": 2}
ELECTRA = {
    **BERT,
    "embedding_size": 12,
    "summary_activation": "gelu",
    "summary_last_dropout": 0.1,
    "summary_type": "first",
    "summary_use_proj": True,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "roberta-base": {**SIZES, **ROBERTA, "architectures": ["RobertaForMaskedLM"], "model_type": "roberta"},
    "xlm-roberta-base": {
        **SIZES,
        **ROBERTA,
        "architectures": ["XLMRobertaForMaskedLM"],
        "model_type": "xlm-roberta",
        "output_past": True,
    },
    "camembert-base": {**SIZES, **ROBERTA, "architectures": ["CamembertForMaskedLM"], "model_type": "camembert"},
    "distilbert-base-uncased": {
        "activation": "gelu",
        "architectures": ["DistilBertForMaskedLM"],
        "attention_dropout": 0.1,
        "dim": 24,
        "dropout": 0.1,
        "hidden_dim": 20,
        "initializer_range": 0.02,
        "max_position_embeddings": 512,
        "model_type": "distilbert",
        "n_heads": 4,
        "n_layers": 2,
        "pad_token_id": 0,
        "qa_dropout": 0.1,
        "seq_classif_dropout": 0.2,
        "sinusoidal_pos_embds": False,
        "tie_weights_": True,
        "vocab_size": 90,
    },
    "electra-small-discriminator": {**SIZES, **ELECTRA, "architectures": ["ElectraForPreTraining"], "model_type": "electra"},
    "electra-small-generator, a later one": {
        **SIZES,
        **ELECTRA,
        "architectures": ["ElectraForMaskedLM"],
        "generator_size": "0.25",
        "model_type": "electra",
        "position_embedding_type": "absolute",
    },
    "albert-base-v2": {
        **SIZES,
        **BERT,
        "architectures": ["AlbertForMaskedLM"],
        "attention_probs_dropout_prob": 0,
        "bos_token_id": 2,
        "classifier_dropout_prob": 0.1,
        "down_scale_factor": 1,
        "embedding_size": 12,
        "eos_token_id": 3,
        "gap_size": 0,
        "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0,
        "inner_group_num": 1,
        "layers_to_keep": [],
        "model_type": "albert",
        "net_structure_type": 0,
        "num_hidden_groups": 1,
        "num_memory_blocks": 0,
    },
    "mpnet-base": {
        **SIZES,
        **COMMON,
        "architectures": ["MPNetForMaskedLM"],
        "bos_token_id": 0,
        "eos_token_id": 2,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 514,
        "model_type": "mpnet",
        "pad_token_id": 1,
        "relative_attention_num_buckets": 32,
    },
    "ernie-3.0": {
        **SIZES,
        **BERT,
        "architectures": ["ErnieForMaskedLM"],
        "enable_recompute": False,
        "fuse": False,
        "model_type": "ernie",
        "task_type_vocab_size": 3,
        "use_task_id": True,
    },
    "megatron-bert": {
        **SIZES,
        **BERT,
        "architectures": ["MegatronBertForMaskedLM"],
        "model_type": "megatron-bert",
        "position_embedding_type": "absolute",
        "tokenizer_type": None,
    },
    "efficient_mlm": {
        **SIZES,
        **ROBERTA,
        "architectures": ["RobertaPreLayerNormForMaskedLM"],
        "classifier_dropout": None,
        "model_type": "roberta-prelayernorm",
        "use_cache": True,
    },
    "deberta-v3-base": {
        **SIZES,
        **COMMON,
        "architectures": ["DebertaV2ForMaskedLM"],
        "layer_norm_eps": 1e-7,
        "max_position_embeddings": 512,
        "max_relative_positions": -1,
        "model_type": "deberta-v2",
        "norm_rel_ebd": "layer_norm",
        "pooler_dropout": 0,
        "pooler_hidden_act": "gelu",
        "pooler_hidden_size": 24,
        "pos_att_type": "p2c|c2p",
        "position_biased_input": False,
        "position_buckets": 256,
        "relative_attention": True,
        "share_att_key": True,
        "type_vocab_size": 0,
    },
    "ModernBERT-base": {
        **{key: SIZES[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")},
        "architectures": ["ModernBertForMaskedLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 81,
        "classifier_activation": "gelu",
        "classifier_bias": False,
        "classifier_dropout": 0.0,
        "classifier_pooling": "mean",
        "cls_token_id": 81,
        "decoder_bias": True,
        "deterministic_flash_attn": False,
        "embedding_dropout": 0.0,
        "eos_token_id": 82,
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 160000.0,
        "gradient_checkpointing": False,
        "hidden_activation": "gelu",
        "initializer_cutoff_factor": 2.0,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-05,
        "local_attention": 128,
        "local_rope_theta": 10000.0,
        "mask_token_id": 84,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "mlp_dropout": 0.0,
        "model_type": "modernbert",
        "norm_bias": False,
        "norm_eps": 1e-05,
        "pad_token_id": 83,
        "position_embedding_type": "absolute",
        "sep_token_id": 82,
        "vocab_size": 90,
    },
    "esm2_t6_8M_UR50D": {
        **SIZES,
        "architectures": ["EsmForMaskedLM"],
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout": None,
        "emb_layer_norm_before": False,
        "esmfold_config": None,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "is_folding_model": False,
        "layer_norm_eps": 1e-05,
        "mask_token_id": 32,
        "max_position_embeddings": 1026,
        "model_type": "esm",
        "pad_token_id": 1,
        "position_embedding_type": "rotary",
        "token_dropout": True,
        "use_cache": True,
        "vocab_list": None,
    },
    "EuroBERT-210m": {
        **SIZES,
        "architectures": ["EuroBertForMaskedLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token": "<|begin_of_text|>",
        "bos_token_id": 80,
        "clf_pooling": "late",
        "eos_token": "<|end_of_text|>",
        "eos_token_id": 81,
        "head_dim": 6,
        "hidden_act": "silu",
        "hidden_dropout": 0.0,
        "initializer_range": 0.02,
        "mask_token": "<|mask|>",
        "mask_token_id": 82,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "model_type": "eurobert",
        "num_key_value_heads": 4,
        "pad_token": "<|end_of_text|>",
        "pad_token_id": 81,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 250000,
        "tie_word_embeddings": False,
        "use_cache": False,
    },
}
LEFT_BY_TRANSFORMERS_4 = {"torch_dtype": "float32", "transformers_version": "4.41.0", "_name_or_path": "somewhere"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configuration(name: str, tmp_path: Path) -> None:
    """Weights as its class saves them, beside the file as it is published."""
    values = PUBLISHED[name] | LEFT_BY_TRANSFORMERS_4
    config = transformers.CONFIG_MAPPING[values["model_type"]].from_dict(values)
    hf_model = getattr(transformers, values["architectures"][0])(config).eval()
    hf_model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(values))
    model = HookedEncoder.from_pretrained(tmp_path, device="cpu")
    assert isinstance(model.cfg.encoder, EncoderConfig)
    tokens = torch.arange(5, 15)[None]
    with torch.no_grad():
        theirs = hf_model(tokens, attention_mask=torch.ones_like(tokens)).logits
        ours = model(tokens, "logits").reshape(theirs.shape)
    assert_parity(ours, theirs)
