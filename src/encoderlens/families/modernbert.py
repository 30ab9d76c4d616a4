"""ModernBERT (Warner et al. 2024): pre-LN, rotary attention that is local in most layers, gated MLPs, few biases."""

from typing import Any

import encoderlens.families.bert_like as bert_like
from encoderlens.config import (
    AttentionPositionsPart,
    BareFirstPreLNPart,
    EmbeddingPart,
    EncoderConfig,
    GatedMLPPart,
    HeadPart,
    LayerNormPart,
    MaskedLMPart,
    PreClassifierPart,
    QuestionAnsweringPart,
    Reads,
    RotaryAttentionPart,
    SequenceClassificationPart,
    TokenClassificationPart,
)
from encoderlens.errors import ConfigError
from encoderlens.families.family import ConfigReader, Family
from encoderlens.weights import Row, block, fused, linear, norm

BASE = "model."
LAYER = f"{BASE}layers.{{l}}"
FULL, LOCAL = "full_attention", "sliding_attention"
POOLING: dict[str, Reads] = {"cls": "first", "mean": "mean"}
ENCODER = (
    Row(f"{BASE}embeddings.tok_embeddings.weight", "embed.embed.weight"),
    *norm(f"{BASE}embeddings.norm", "embed.ln"),
    *fused(f"{LAYER}.attn.Wqkv", "blocks.{l}.attn.q", "blocks.{l}.attn.k", "blocks.{l}.attn.v"),
    *fused(f"{LAYER}.mlp.Wi", "blocks.{l}.mlp.gate", "blocks.{l}.mlp.input"),
    *block(LAYER, ln1="attn_norm", o="attn.Wo", ln2="mlp_norm", output="mlp.Wo"),
    *norm(f"{BASE}final_norm", "ln_final"),
)
TRANSFORM = (*linear("head.dense", "pre_classifier.dense"), *norm("head.norm", "pre_classifier.ln"))
HEADS = {
    "masked_lm": (
        *linear("head.dense", "mlm_head.dense"),
        *norm("head.norm", "mlm_head.ln"),
        *linear("decoder", "unembed"),
    ),
    "sequence_classification": (*TRANSFORM, *linear("classifier", "classifier.dense")),
    "token_classification": (*TRANSFORM, *linear("classifier", "classifier.dense")),
    "question_answering": (*TRANSFORM, *linear("classifier", "qa_head.dense")),
}


def read_config(reader: ConfigReader, hf_class: str, parts: frozenset[str]) -> EncoderConfig:
    """Hugging Face's configuration has turned old spellings (``global_attn_every_n_layers``, ``local_rope_theta``) into new
    ones. ``sparse_prediction`` leaves out logits that the loss does not read, and so changes no loss.
    """
    reader.ignore("global_attn_every_n_layers", "sparse_prediction", "deterministic_flash_attn", "repad_logits_with_grad")
    reader.ignore("initializer_cutoff_factor", "layer_norm_eps")  # of no class
    if reader.read("position_embedding_type", "absolute") not in ("absolute", "sans_pos"):  # both say that there is no table
        raise reader.refusal("position_embedding_type", "'absolute' or 'sans_pos'")
    reader.require(is_decoder=False, add_cross_attention=False, is_causal=False, causal_mask=False)
    reader.require(sparse_pred_ignore_index=-100)
    d_model, n_heads = reader.width_and_heads()
    cfg = EncoderConfig(
        family="modernbert",
        original_architecture=hf_class,
        d_model=d_model,
        n_layers=reader.read("num_hidden_layers"),
        embed=EmbeddingPart(
            reader.read("vocab_size"), 0, reader.read("embedding_dropout"), padding_idx=reader.read("pad_token_id")
        ),
        positions=AttentionPositionsPart(reader.read("max_position_embeddings"), "rotary"),
        attention=read_attention(reader, n_heads, d_model // n_heads),
        norm=LayerNormPart(reader.read("norm_eps"), reader.read("norm_bias")),
        mlp=GatedMLPPart(
            reader.read("intermediate_size"),
            reader.read("hidden_activation"),
            reader.read("mlp_dropout"),
            reader.read("mlp_bias"),
        ),
        block=BareFirstPreLNPart(reader.read("attention_dropout"), mlp_dropout=0.0),
        heads=read_heads(reader, MODERNBERT.classes[hf_class], parts),
        initializer_range=reader.read("initializer_range"),
    )
    reader.finish()
    return cfg


def read_attention(reader: ConfigReader, n_heads: int, d_head: int) -> RotaryAttentionPart:
    """Local attention sees half of ``local_attention`` to either side, and has a theta of its own."""
    kinds, reach, rotary = reader.read("layer_types"), reader.read("local_attention") // 2, reader.read("rope_parameters")
    known = {FULL: None, LOCAL: reach}
    for kind in kinds:
        if kind not in known:
            raise ConfigError(f"an entry of layer_types is {kind!r}, which is not implemented; {FULL!r} and {LOCAL!r} are")
    theta = {kind: reader.theta(rotary[kind]) for kind in set(kinds)}
    return RotaryAttentionPart(
        n_heads,
        d_head,
        reader.read("attention_dropout"),
        bias=reader.read("attention_bias"),
        theta=tuple(theta[kind] for kind in kinds),
        window=tuple(known[kind] for kind in kinds),
    )


def read_heads(reader: ConfigReader, declared: tuple[str, ...], parts: frozenset[str]) -> tuple[HeadPart, ...]:
    """The heads, of which all have the same transform in front."""
    act_fn, bias, dropout = (reader.read(f"classifier_{key}") for key in ("activation", "bias", "dropout"))
    pooled = PreClassifierPart(act_fn, reader.choose("classifier_pooling", POOLING), normed=True, bias=bias)
    every = PreClassifierPart(act_fn, "every", normed=True, bias=bias)
    labels = bert_like.read_labels(reader, parts)
    available = {
        "masked_lm": MaskedLMPart(act_fn, reader.read("tie_word_embeddings"), bias, reader.read("decoder_bias")),
        "sequence_classification": SequenceClassificationPart(labels, reader.read("problem_type"), dropout, pooled),
        "token_classification": TokenClassificationPart(labels, dropout, every),
        "question_answering": QuestionAnsweringPart(dropout, every),
    }
    return bert_like.in_order(available, declared, parts)


def write_config(cfg: EncoderConfig) -> dict[str, Any]:
    bert_like.expect(cfg, cfg.block, BareFirstPreLNPart)
    bert_like.check_width(cfg)
    norm = bert_like.expect(cfg, cfg.norm, LayerNormPart)
    mlp = bert_like.expect(cfg, cfg.mlp, GatedMLPPart)
    values: dict[str, Any] = {
        "hidden_size": cfg.d_model,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "intermediate_size": cfg.d_mlp,
        "hidden_activation": cfg.act_fn,
        "vocab_size": cfg.d_vocab,
        "max_position_embeddings": cfg.n_ctx,
        "norm_eps": norm.eps,
        "norm_bias": norm.bias,
        "mlp_bias": mlp.bias,
        "mlp_dropout": mlp.dropout,
        "embedding_dropout": cfg.embed.dropout,
        "initializer_range": cfg.initializer_range,
    }
    for head in cfg.heads:
        if isinstance(head, MaskedLMPart):
            values |= {"classifier_activation": head.act_fn, "classifier_bias": head.bias, "decoder_bias": head.unembed_bias}
        if isinstance(head, SequenceClassificationPart | TokenClassificationPart | QuestionAnsweringPart):
            transform = bert_like.expect(cfg, head.pre_classifier, PreClassifierPart)
            values |= {"classifier_activation": transform.act_fn, "classifier_bias": transform.bias}
            values["classifier_dropout"] = head.dropout
        if isinstance(head, SequenceClassificationPart):
            values |= bert_like.pooling_values(cfg, head, POOLING)
    return values | attention_values(cfg) | bert_like.padding_values(cfg) | bert_like.head_values(cfg)


def attention_values(cfg: EncoderConfig) -> dict[str, Any]:
    attention = bert_like.expect(cfg, cfg.attention, RotaryAttentionPart)
    layers = [attention.at(layer).arguments() for layer in range(cfg.n_layers)]
    kinds = [FULL if layer["window"] is None else LOCAL for layer in layers]
    alike = {(kind, layer["theta"], layer["window"]) for kind, layer in zip(kinds, layers, strict=True)}
    if len(alike) > len(set(kinds)):
        raise ConfigError(f"Hugging Face's {cfg.original_architecture} has one theta and one window for all its local layers")
    reach = next((window for _, _, window in alike if window is not None), None)
    window = {} if reach is None else {"local_attention": 2 * reach}
    return window | {
        "layer_types": kinds,
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta, _ in alike},
        "attention_bias": attention.bias,
        "attention_dropout": attention.dropout,
    }


MODERNBERT = Family(
    name="ModernBERT",
    model_type="modernbert",
    classes=bert_like.roberta_classes("ModernBert"),
    base_prefix=BASE,
    encoder_rows=ENCODER,
    part_rows=HEADS,
    ignored=(),
    read_config=read_config,
    write_config=write_config,
    hf_arguments=lambda cfg: {},
    layer_norm="pre-LN",
    positions="rotary; local in most layers",
)
