"""EuroBERT (Boizard et al. 2025): pre-LN with RMSNorm, rotary attention whose heads may share keys and values, gated MLPs."""

from typing import Any

import encoderlens.families.bert_like as bert_like
from encoderlens.config import (
    AttentionPositionsPart,
    EmbeddingPart,
    EncoderConfig,
    GatedMLPPart,
    MaskedLMPart,
    PreClassifierPart,
    PreLNPart,
    Reads,
    RMSNormPart,
    RotaryAttentionPart,
    SequenceClassificationPart,
    TokenClassificationPart,
)
from encoderlens.errors import ConfigError
from encoderlens.families.family import ConfigReader, Family
from encoderlens.weights import Row, block, linear, norm

BASE = "model."
POOLING: dict[str, Reads] = {"bos": "first", "mean": "mean", "late": "every"}
ENCODER = (
    Row(f"{BASE}embed_tokens.weight", "embed.embed.weight"),
    *block(
        f"{BASE}layers.{{l}}",
        ln1="input_layernorm",
        q="self_attn.q_proj",
        k="self_attn.k_proj",
        v="self_attn.v_proj",
        o="self_attn.o_proj",
        ln2="post_attention_layernorm",
        gate="mlp.gate_proj",
        input="mlp.up_proj",
        output="mlp.down_proj",
    ),
    *norm(f"{BASE}norm", "ln_final"),
)
HEADS = {
    "masked_lm": linear("lm_head", "unembed"),
    "sequence_classification": (*linear("dense", "pre_classifier.dense"), *linear("classifier", "classifier.dense")),
    "token_classification": linear("classifier", "classifier.dense"),
}


def read_config(reader: ConfigReader, hf_class: str, parts: frozenset[str]) -> EncoderConfig:
    reader.ignore("bos_token", "eos_token", "pad_token", "mask_token", "pretraining_tp")
    reader.require(is_decoder=False, add_cross_attention=False, is_causal=False, hidden_dropout=0.0)
    bias, pooling = reader.read("mlp_bias"), reader.choose("classifier_pooling", POOLING)
    labels = bert_like.read_labels(reader, parts)
    available = {
        "masked_lm": MaskedLMPart(None, reader.read("tie_word_embeddings"), unembed_bias=bias),
        "sequence_classification": SequenceClassificationPart(
            labels, reader.read("problem_type"), pre_classifier=PreClassifierPart("gelu", pooling)
        ),
        "token_classification": TokenClassificationPart(labels),
    }
    cfg = EncoderConfig(
        family="eurobert",
        original_architecture=hf_class,
        d_model=reader.read("hidden_size"),
        n_layers=reader.read("num_hidden_layers"),
        embed=EmbeddingPart(reader.read("vocab_size"), 0, normed=False, padding_idx=reader.read("pad_token_id")),
        positions=AttentionPositionsPart(reader.read("max_position_embeddings"), "rotary"),
        attention=RotaryAttentionPart(
            reader.read("num_attention_heads"),
            reader.read("head_dim"),
            reader.read("attention_dropout"),
            reader.read("num_key_value_heads"),
            reader.read("attention_bias"),
            theta=(reader.theta(reader.read("rope_parameters")),),
        ),
        norm=RMSNormPart(reader.read("rms_norm_eps")),
        mlp=GatedMLPPart(reader.read("intermediate_size"), reader.read("hidden_act"), bias=bias),
        block=PreLNPart(),
        heads=bert_like.in_order(available, EUROBERT.classes[hf_class], parts),
        initializer_range=reader.read("initializer_range"),
    )
    reader.finish()
    return cfg


def write_config(cfg: EncoderConfig) -> dict[str, Any]:
    bert_like.expect(cfg, cfg.block, PreLNPart)
    norm, mlp = bert_like.expect(cfg, cfg.norm, RMSNormPart), bert_like.expect(cfg, cfg.mlp, GatedMLPPart)
    attention = bert_like.expect(cfg, cfg.attention, RotaryAttentionPart)
    if len(attention.theta) != 1 or attention.window != (None,):
        raise ConfigError(f"Hugging Face's {cfg.original_architecture} has one theta for all layers, and no window")
    values: dict[str, Any] = {
        "hidden_size": cfg.d_model,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_kv_heads,
        "head_dim": cfg.d_head,
        "intermediate_size": cfg.d_mlp,
        "hidden_act": cfg.act_fn,
        "vocab_size": cfg.d_vocab,
        "max_position_embeddings": cfg.n_ctx,
        "rms_norm_eps": norm.eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": attention.theta[0]},
        "attention_bias": attention.bias,
        "attention_dropout": attention.dropout,
        "mlp_bias": mlp.bias,
        "initializer_range": cfg.initializer_range,
    }
    for head in cfg.heads:
        if isinstance(head, SequenceClassificationPart):
            values |= bert_like.pooling_values(cfg, head, POOLING)
    return values | bert_like.padding_values(cfg) | bert_like.head_values(cfg)


EUROBERT = Family(
    name="EuroBERT",
    model_type="eurobert",
    classes={
        "EuroBertModel": (),
        "EuroBertForMaskedLM": ("masked_lm",),
        "EuroBertForSequenceClassification": ("sequence_classification",),
        "EuroBertForTokenClassification": ("token_classification",),
    },
    base_prefix=BASE,
    encoder_rows=ENCODER,
    part_rows=HEADS,
    ignored=(),
    read_config=read_config,
    write_config=write_config,
    old_names={"clf_pooling": "classifier_pooling"},
    hf_arguments=lambda cfg: {},
    layer_norm="pre-LN",
    positions="rotary",
    own_code=True,
    bare=frozenset(("masked_lm",)),
)
