"""NomicBERT (Nussbaum et al. 2024): BERT with rotary attention, gated MLPs, and no biases in either."""

from typing import Any

import encoderlens.families.bert_like as bert_like
from encoderlens.config import (
    AttentionPositionsPart,
    EmbeddingPart,
    EncoderConfig,
    GatedMLPPart,
    LayerNormPart,
    PoolerPart,
    PostLNPart,
    RotaryAttentionPart,
)
from encoderlens.errors import ConfigError
from encoderlens.families.family import ConfigReader, Family
from encoderlens.weights import Piece, block, linear, norm, respelt

BASE = "nomic_bert."
# Of the code that came with the first checkpoints.
OLD_KEYS = {
    BASE: "bert.",
    "layers": "encoder.layers",
    "embeddings.LayerNorm": "emb_ln",
    **{f"self_attn.{name}_proj": Piece("attn.Wqkv", index, 3) for index, name in enumerate("qkv")},
    "self_attn.o_proj": "attn.out_proj",
    "post_attention_layernorm": "norm1",
    "up_proj": "fc11",
    "gate_proj": "fc12",
    "down_proj": "fc2",
    "post_mlp_layernorm": "norm2",
}
OLD_NAMES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
    "rotary_emb_base": "rope_theta",
    "resid_pdrop": "hidden_dropout_prob",
    "attn_pdrop": "attention_probs_dropout_prob",
}
# What that code could also be asked for, and what it never computed with.
OLD_CHOICES: dict[str, Any] = {
    **dict.fromkeys(("causal", "prenorm", "parallel_block", "parallel_block_tied_norm", "use_rms_norm"), False),
    **dict.fromkeys(("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias", "rotary_emb_interleaved"), False),
    **dict.fromkeys(("rotary_emb_scale_base", "rotary_scaling_factor"), None),
    **{"activation_function": "swiglu", "rotary_emb_fraction": 1.0},
    **{"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
}
IDLE = (
    *("dense_seq_output", "embd_pdrop", "export_model_type", "fused_bias_fc", "fused_dropout_add_ln", "max_trained_positions"),
    *("pad_vocab_size_multiple", "reorder_and_upcast_attn", "use_flash_attn", "use_xentropy"),
    *("summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj"),
)
ENCODER = (
    *bert_like.embedding_rows(BASE),
    *block(
        f"{BASE}layers.{{l}}",
        q="self_attn.q_proj",
        k="self_attn.k_proj",
        v="self_attn.v_proj",
        o="self_attn.o_proj",
        ln1="post_attention_layernorm",
        gate="mlp.gate_proj",
        input="mlp.up_proj",
        output="mlp.down_proj",
        ln2="post_mlp_layernorm",
    ),
)
HEADS = {
    "pooler": linear(f"{BASE}pooler.dense", "pooler.dense"),
    "masked_lm": (
        *linear("cls.predictions.transform.dense", "mlm_head.dense"),
        *norm("cls.predictions.transform.layer_norm", "mlm_head.ln"),
        *bert_like.unembed_rows("cls.predictions.decoder", "cls.predictions.bias"),
    ),
    "sequence_classification": linear("classifier", "classifier.dense"),
    "token_classification": linear("classifier", "classifier.dense"),
}


def read_config(reader: ConfigReader, hf_class: str, parts: frozenset[str]) -> EncoderConfig:
    reader.require(**OLD_CHOICES)
    reader.ignore(*OLD_NAMES, *IDLE)
    dropout, act_fn = reader.read("hidden_dropout_prob"), reader.read("hidden_act")
    label_dropout = bert_like.classifier_dropout(reader)
    cfg = EncoderConfig(
        family="nomic_bert",
        original_architecture=hf_class,
        d_model=reader.read("hidden_size"),
        n_layers=reader.read("num_hidden_layers"),
        embed=EmbeddingPart(
            reader.read("vocab_size"), reader.read("type_vocab_size"), dropout, padding_idx=reader.read("pad_token_id")
        ),
        positions=AttentionPositionsPart(reader.read("max_position_embeddings"), "rotary"),
        attention=RotaryAttentionPart(
            reader.read("num_attention_heads"),
            reader.read("head_dim"),
            reader.read("attention_probs_dropout_prob"),
            bias=False,
            theta=(reader.theta(reader.read("rope_parameters")),),
        ),
        norm=LayerNormPart(reader.read("layer_norm_eps")),
        mlp=GatedMLPPart(reader.read("intermediate_size"), act_fn, bias=False),
        block=PostLNPart(dropout),
        pooler=PoolerPart() if "pooler" in parts else None,
        heads=bert_like.read_heads(reader, NOMIC_BERT.classes[hf_class], parts, act_fn, label_dropout),
        initializer_range=reader.read("initializer_range"),
    )
    reader.finish()
    return cfg


def write_config(cfg: EncoderConfig) -> dict[str, Any]:
    bert_like.check_kinds(cfg, PostLNPart, GatedMLPPart)
    if not isinstance(cfg.attention, RotaryAttentionPart) or len(set(cfg.attention.theta)) != 1:
        raise ConfigError(f"Hugging Face's {cfg.original_architecture} has rotary attention with one theta for all layers")
    rotary = {"rope_type": "default", "rope_theta": cfg.attention.theta[0]}
    values = bert_like.shared_values(cfg) | bert_like.dropout_values(cfg)
    if cfg.tie_word_embeddings:
        values.pop("tie_word_embeddings", None)  # the class knows it, and has no key for it
    return values | {"head_dim": cfg.d_head, "rope_parameters": rotary}


def hf_arguments(cfg: EncoderConfig) -> dict[str, Any]:
    """The base class has a pooler if it is asked for one."""
    bare = cfg.original_architecture == NOMIC_BERT.base_class
    return {"add_pooling_layer": cfg.pooler is not None} if bare else {}


NOMIC_BERT = Family(
    name="NomicBERT",
    model_type="nomic_bert",
    classes={
        "NomicBertModel": (),
        "NomicBertForMaskedLM": ("masked_lm",),
        "NomicBertForSequenceClassification": ("sequence_classification",),
        "NomicBertForTokenClassification": ("token_classification",),
    },
    base_prefix=BASE,
    encoder_rows=respelt(ENCODER, OLD_KEYS),
    part_rows=HEADS,
    pooled=frozenset(("sequence_classification",)),
    ignored=bert_like.IGNORED,
    read_config=read_config,
    write_config=write_config,
    hf_arguments=hf_arguments,
    layer_norm="post-LN",
    positions="rotary",
    old_names=OLD_NAMES,
    own_code=True,
    old_classes={"NomicBertForPreTraining": "NomicBertForMaskedLM"},
)
