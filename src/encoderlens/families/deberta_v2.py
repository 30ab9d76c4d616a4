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


# Keys that Hugging Face's configuration does not have of its own, and what its model takes their absence for.
UNSAID: dict[str, Any] = {
    "share_att_key": False,
    "position_buckets": -1,
    "norm_rel_ebd": "none",
    "conv_kernel_size": 0,
    "conv_groups": 1,
    "conv_act": "tanh",
    "cls_dropout": None,
}


def read_config(reader: ConfigReader, hf_class: str, parts: frozenset[str]) -> EncoderConfig:
    d_model, n_heads = reader.width_and_heads()
    d_embed, dropout, n_ctx = (
        reader.read("embedding_size", d_model),
        reader.read("hidden_dropout_prob"),
        reader.read("max_position_embeddings"),
    )
    reader.require(attention_head_size=d_model // n_heads, pooler_hidden_size=d_model)
    relative, conv, shares = _relative(reader, n_ctx, dropout), _convolution(reader, dropout), _flag(reader, "share_att_key")
    scores = ContentAttentionPart(
        n_heads, d_model // n_heads, reader.read("attention_probs_dropout_prob"), terms=_terms(reader)
    )
    absolute = _flag(reader, "position_biased_input")
    return bert_like.read_config(
        reader,
        "deberta-v2",
        hf_class,
        parts,
        _heads(reader, hf_class, parts, dropout),
        {"zeroes_padding": True, "projects_first": True, "d_embed": None if d_embed == d_model else d_embed},
        positions=AbsolutePositionsPart(n_ctx)
        if absolute
        else AttentionPositionsPart(n_ctx, "relative" if relative else "none"),
        attention=DisentangledAttentionPart(**vars(scores), shares=shares) if relative else scores,
        relative=relative,
        block=ConvFirstPostLNPart(dropout, conv=conv) if conv else PostLNPart(dropout),
    )


def _relative(reader: ConfigReader, n_ctx: int, dropout: float) -> RelativeEmbeddingPart | None:
    named = _read(reader, "norm_rel_ebd")
    norms = {name.strip() for name in named.lower().split("|")} if isinstance(named, str) else {named}
    if not norms <= {"none", "layer_norm"}:
        raise reader.refusal("norm_rel_ebd", "'none' or 'layer_norm'")
    eps = reader.read("layer_norm_eps") if "layer_norm" in norms else None
    max_distance, n_buckets = _count(reader, "max_relative_positions"), _count(reader, "position_buckets")
    part = RelativeEmbeddingPart(max_distance or n_ctx, n_buckets, eps, dropout)
    return part if _flag(reader, "relative_attention") else None


def _convolution(reader: ConfigReader, dropout: float) -> ConvolutionPart | None:
    kernel, groups, act_fn = _count(reader, "conv_kernel_size"), _read(reader, "conv_groups"), _read(reader, "conv_act")
    return None if kernel is None else ConvolutionPart(kernel, groups, act_fn, dropout)


def _terms(reader: ConfigReader) -> tuple[str, ...]:
    terms = tuple(reader.read("pos_att_type") or ())
    if not set(terms) <= set(TERMS):
        raise reader.refusal("pos_att_type", " and ".join(map(repr, TERMS)))
    return tuple(dict.fromkeys(terms))


def _heads(reader: ConfigReader, hf_class: str, parts: frozenset[str], dropout: float) -> tuple[HeadPart, ...]:
    legacy, tied = _flag(reader, "legacy"), _flag(reader, "tie_word_embeddings")
    own, problem_type = _read(reader, "cls_dropout"), reader.read("problem_type")
    labels = bert_like.read_labels(reader, parts)
    if problem_type is None and len(labels) > 1:
        problem_type = "single_label_classification"  # in other families, it depends on the labels
    pooler = PreClassifierPart(reader.read("pooler_hidden_act"), dropout=reader.read("pooler_dropout"))
    available: dict[str, HeadPart] = {
        "masked_lm": MaskedLMPart(reader.read("hidden_act"), tied or not legacy),  # only a legacy head has a decoder to untie
        "sequence_classification": SequenceClassificationPart(labels, problem_type, dropout if own is None else own, pooler),
        "token_classification": TokenClassificationPart(labels, dropout),
        "question_answering": QuestionAnsweringPart(),
    }
    return bert_like.in_order(available, DEBERTA_V2.classes[hf_class], parts)


def _read(reader: ConfigReader, key: str) -> Any:
    return reader.read(key, UNSAID[key]) if key in UNSAID else reader.read(key)


def _count(reader: ConfigReader, key: str) -> int | None:
    """A positive number; None for what stands for none."""
    value = _read(reader, key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise reader.refusal(key, "a whole number")
    return value if value > 0 else None


def _flag(reader: ConfigReader, key: str) -> bool:
    value = _read(reader, key)
    if not isinstance(value, bool):
        raise reader.refusal(key, "True or False")
    return value


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
        values["position_buckets"] = cfg.relative.n_buckets or UNSAID["position_buckets"]
        values["norm_rel_ebd"] = "none" if cfg.relative.norm_eps is None else "layer_norm"
        if cfg.relative.max_distance != cfg.n_ctx:  # which is what its absence means
            values["max_relative_positions"] = cfg.relative.max_distance
    if conv is not None:
        values |= {"conv_kernel_size": conv.kernel, "conv_groups": conv.groups, "conv_act": conv.act_fn}
    if cfg.factorised:
        values["embedding_size"] = cfg.d_embed
    for head in cfg.heads:
        if isinstance(head, SequenceClassificationPart) and head.pre_classifier is not None:
            values |= {"pooler_hidden_act": head.pre_classifier.act_fn, "pooler_dropout": head.pre_classifier.dropout}
            values["cls_dropout"] = None if head.dropout == cfg.embed.dropout else head.dropout
            if head.problem_type == "single_label_classification":  # as it is read where nothing is said
                del values["problem_type"]
    return {key: value for key, value in values.items() if key not in UNSAID or value != UNSAID[key]}


DEBERTA_V2 = Family(
    name="DeBERTa v2, v3",
    model_type="deberta-v2",
    classes=bert_like.roberta_classes("DebertaV2"),
    base_prefix=BASE,
    encoder_rows=ENCODER,
    part_rows=HEADS,
    # Checkpoints hold positions that nothing adds, copies of tables, and an enhanced mask decoder that no class has.
    ignored=(*bert_like.IGNORED, "*embeddings.position_embeddings.weight", "*embeddings._weight", "mask_predictions.*"),
    kept=("*encoder.LayerNorm.*",),  # over vectors of relative positions: the class can have it without these
    read_config=read_config,
    write_config=write_config,
    hf_arguments=lambda cfg: {},
    layer_norm="post-LN",
    positions="relative, disentangled; absolute",
)
