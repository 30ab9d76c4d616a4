"""DeBERTa v2 and v3 (He et al. 2021, 2023): BERT with disentangled attention, and in large ones a convolution."""

from typing import Any

import encoderlens.families.bert_like as bert_like
from encoderlens.config import (
    TERMS,
    AbsolutePositionsPart,
    AttentionPositionsPart,
    ContentAttentionPart,
    ConvFirstPostLNPart,
    ConvolutionPart,
    DisentangledAttentionPart,
    EmbeddingPart,
    EncoderConfig,
    HeadPart,
    MaskedLMPart,
    PostLNPart,
    PreClassifierPart,
    QuestionAnsweringPart,
    RelativeEmbeddingPart,
    SequenceClassificationPart,
    TokenClassificationPart,
)
from encoderlens.families.family import ConfigReader, Family
from encoderlens.weights import Row, block, linear, norm

BASE = "deberta."
LAYER = f"{BASE}encoder.layer.{{l}}"
ENCODER = (
    *bert_like.embedding_rows(BASE),
    Row(f"{BASE}embeddings.embed_proj.weight", "embed.projection.weight"),
    Row(f"{BASE}encoder.rel_embeddings.weight", "relative.weight"),
    *norm(f"{BASE}encoder.LayerNorm", "relative"),
    *block(
        LAYER,
        q="attention.self.query_proj",
        k="attention.self.key_proj",
        v="attention.self.value_proj",
        o="attention.output.dense",
        ln1="attention.output.LayerNorm",
        input="intermediate.dense",
        output="output.dense",
        ln2="output.LayerNorm",
    ),
    *linear(f"{LAYER}.attention.self.pos_key_proj", "blocks.{l}.attn.pos_k"),
    *linear(f"{LAYER}.attention.self.pos_query_proj", "blocks.{l}.attn.pos_q"),
    *linear(f"{BASE}encoder.conv.conv", "blocks.0.conv"),
    *norm(f"{BASE}encoder.conv.LayerNorm", "blocks.0.ln_conv"),
)
HEADS: dict[str, tuple[Row, ...]] = {
    "masked_lm": (  # twice: under the names of a legacy head, and of one that has no tensor for its decoder
        *linear("cls.predictions.transform.dense", "mlm_head.dense"),
        *norm("cls.predictions.transform.LayerNorm", "mlm_head.ln"),
        *bert_like.unembed_rows("cls.predictions.decoder", "cls.predictions.bias"),
        *linear("lm_predictions.lm_head.dense", "mlm_head.dense"),
        *norm("lm_predictions.lm_head.LayerNorm", "mlm_head.ln"),
        Row("lm_predictions.lm_head.bias", "unembed.bias"),
    ),
    "sequence_classification": (*linear("pooler.dense", "pre_classifier.dense"), *linear("classifier", "classifier.dense")),
    "token_classification": linear("classifier", "classifier.dense"),
    "question_answering": linear("qa_outputs", "qa_head.dense"),
}


def read_config(reader: ConfigReader, hf_class: str, parts: frozenset[str]) -> EncoderConfig:
    d_model, n_heads = reader.width_and_heads()
    reader.require(attention_head_size=d_model // n_heads, pooler_hidden_size=d_model)
    dropout, n_ctx, relative = reader.read("hidden_dropout_prob"), reader.read("max_position_embeddings"), _relative(reader)
    d_embed, conv = reader.read("embedding_size", d_model), _convolution(reader, dropout)
    scores = (n_heads, d_model // n_heads, reader.read("attention_probs_dropout_prob"))
    terms, shares = _terms(reader), _flag(reader, "share_att_key", False)
    if _flag(reader, "position_biased_input"):
        positions = AbsolutePositionsPart(n_ctx)
    else:
        positions = AttentionPositionsPart(n_ctx, "none" if relative is None else "relative")
    return bert_like.read_config(
        reader,
        "deberta-v2",
        hf_class,
        parts,
        _heads(reader, hf_class, parts, dropout),
        {"zeroes_padding": True, "projects_first": True, "d_embed": None if d_embed == d_model else d_embed},
        positions=positions,
        attention=ContentAttentionPart(*scores, terms=terms)
        if relative is None
        else DisentangledAttentionPart(*scores, terms=terms, shares=shares),
        relative=relative,
        block=PostLNPart(dropout) if conv is None else ConvFirstPostLNPart(dropout, conv=conv),
    )


def _relative(reader: ConfigReader) -> RelativeEmbeddingPart | None:
    norms = [name.strip() for name in str(reader.read("norm_rel_ebd", "none")).lower().split("|")]
    if not set(norms) <= {"none", "layer_norm"}:
        raise reader.refusal("norm_rel_ebd", "'none' or 'layer_norm'")
    max_distance, n_buckets = _count(reader, "max_relative_positions"), _count(reader, "position_buckets")
    if not _flag(reader, "relative_attention"):
        return None
    return RelativeEmbeddingPart(
        reader.read("max_position_embeddings") if max_distance is None else max_distance,
        n_buckets,
        reader.read("layer_norm_eps") if "layer_norm" in norms else None,
        reader.read("hidden_dropout_prob"),
    )


def _convolution(reader: ConfigReader, dropout: float) -> ConvolutionPart | None:
    kernel = _count(reader, "conv_kernel_size")
    groups, act_fn = reader.read("conv_groups", 1), reader.read("conv_act", "tanh")
    return None if kernel is None else ConvolutionPart(kernel, groups, act_fn, dropout)


def _terms(reader: ConfigReader) -> tuple[str, ...]:
    terms = tuple(reader.read("pos_att_type") or ())
    if not set(terms) <= set(TERMS):
        raise reader.refusal("pos_att_type", " and ".join(map(repr, TERMS)))
    return tuple(dict.fromkeys(terms))


def _count(reader: ConfigReader, key: str) -> int | None:
    """A positive number; None for what stands for none, or is missing."""
    value = reader.read(key, -1)
    if not isinstance(value, int) or isinstance(value, bool):
        raise reader.refusal(key, "a whole number")
    return value if value > 0 else None


def _flag(reader: ConfigReader, key: str, default: Any = ...) -> bool:
    value = reader.read(key, default)
    if not isinstance(value, bool):
        raise reader.refusal(key, "True or False")
    return value


def _heads(reader: ConfigReader, hf_class: str, parts: frozenset[str], dropout: float) -> tuple[HeadPart, ...]:
    legacy = _flag(reader, "legacy")
    tied = reader.read("tie_word_embeddings") or not legacy  # only a legacy head can have a decoder of its own
    own, problem_type = reader.read("cls_dropout", None), reader.read("problem_type")
    labels = reader.labels() if parts & {"sequence_classification", "token_classification"} else ()
    if problem_type is None and len(labels) > 1:
        problem_type = "single_label_classification"  # no matter of what kind the labels are, as it is in others
    pooler = PreClassifierPart(reader.read("pooler_hidden_act"), dropout=reader.read("pooler_dropout"))
    available: dict[str, HeadPart] = {
        "masked_lm": MaskedLMPart(reader.read("hidden_act"), tied),
        "sequence_classification": SequenceClassificationPart(labels, problem_type, dropout if own is None else own, pooler),
        "token_classification": TokenClassificationPart(labels, dropout),
        "question_answering": QuestionAnsweringPart(),
    }
    return bert_like.in_order(available, DEBERTA_V2.classes[hf_class], parts)


def write_config(cfg: EncoderConfig) -> dict[str, Any]:
    conv = cfg.block.conv if isinstance(cfg.block, ConvFirstPostLNPart) else None
    values = bert_like.write_config(cfg, PostLNPart if conv is None else ConvFirstPostLNPart)
    values["position_biased_input"] = isinstance(cfg.positions, AbsolutePositionsPart)
    values["relative_attention"] = cfg.relative is not None
    if isinstance(cfg.attention, ContentAttentionPart) and cfg.attention.terms:
        values["pos_att_type"] = list(cfg.attention.terms)
    if isinstance(cfg.attention, DisentangledAttentionPart):
        values["share_att_key"] = cfg.attention.shares
    if isinstance(cfg.relative, RelativeEmbeddingPart):
        values |= _relative_values(cfg.relative, cfg.n_ctx)
    if conv is not None:
        values |= {"conv_kernel_size": conv.kernel, "conv_groups": conv.groups, "conv_act": conv.act_fn}
    if isinstance(cfg.embed, EmbeddingPart) and cfg.embed.d_embed is not None:
        values["embedding_size"] = cfg.embed.d_embed
    if values.get("problem_type") == "single_label_classification":
        del values["problem_type"]  # so it is read where nothing is said
    return values | _head_values(cfg)


def _relative_values(part: RelativeEmbeddingPart, n_ctx: int | None) -> dict[str, Any]:
    values: dict[str, Any] = {} if part.max_distance == n_ctx else {"max_relative_positions": part.max_distance}
    values |= {} if part.n_buckets is None else {"position_buckets": part.n_buckets}
    return values | ({} if part.norm_eps is None else {"norm_rel_ebd": "layer_norm"})


def _head_values(cfg: EncoderConfig) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for head in cfg.heads:
        if isinstance(head, SequenceClassificationPart) and head.pre_classifier is not None:
            pooler = head.pre_classifier
            values |= {"pooler_hidden_act": pooler.act_fn, "pooler_dropout": pooler.dropout}
            values |= {} if head.dropout == cfg.embed.dropout else {"cls_dropout": head.dropout}
    return values


DEBERTA_V2 = Family(
    name="DeBERTa v2, v3",
    model_type="deberta-v2",
    classes=bert_like.roberta_classes("DebertaV2"),
    base_prefix=BASE,
    encoder_rows=ENCODER,
    part_rows=HEADS,
    # Checkpoints of v2 and v3 hold positions that nothing adds, and an enhanced mask decoder that no class has.
    ignored=(*bert_like.IGNORED, "*embeddings.position_embeddings.weight", "mask_predictions.*"),
    kept=("*encoder.LayerNorm.*",),  # of relative positions, which the class has without them too
    read_config=read_config,
    write_config=write_config,
    hf_arguments=lambda cfg: {},
    layer_norm="post-LN",
    positions="relative, disentangled; absolute",
)
