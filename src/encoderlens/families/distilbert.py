"""DistilBERT (Sanh et al. 2019): BERT without token types or a pooler, its positions learned or sinusoidal."""

from typing import Any

import encoderlens.families.bert_like as bert_like
from encoderlens.config import (
    AbsolutePositionsPart,
    AttentionPart,
    EmbeddingPart,
    EncoderConfig,
    LayerNormPart,
    MaskedLMPart,
    MLPPart,
    PostLNPart,
    PreClassifierPart,
    QuestionAnsweringPart,
    SequenceClassificationPart,
    TokenClassificationPart,
)
from encoderlens.families.family import ConfigReader, Family
from encoderlens.weights import Row, block, linear, norm

BASE = "distilbert."
ENCODER = (
    *bert_like.embedding_rows(BASE),
    *block(
        f"{BASE}transformer.layer.{{l}}",
        q="attention.q_lin",
        k="attention.k_lin",
        v="attention.v_lin",
        o="attention.out_lin",
        ln1="sa_layer_norm",
        input="ffn.lin1",
        output="ffn.lin2",
        ln2="output_layer_norm",
    ),
)
HEADS: dict[str, tuple[Row, ...]] = {
    "masked_lm": (
        *linear("vocab_transform", "mlm_head.dense"),
        *norm("vocab_layer_norm", "mlm_head.ln"),
        *linear("vocab_projector", "unembed"),
    ),
    "sequence_classification": (*linear("pre_classifier", "pre_classifier.dense"), *linear("classifier", "classifier.dense")),
    "token_classification": linear("classifier", "classifier.dense"),
    "question_answering": linear("qa_outputs", "qa_head.dense"),
}


def read_config(reader: ConfigReader, hf_class: str, parts: frozenset[str]) -> EncoderConfig:
    """Sinusoidal positions are stored as a table like any other, so ``sinusoidal_pos_embds`` only says how it was made."""
    reader.ignore("sinusoidal_pos_embds", "tie_weights_")  # the latter of old configurations
    reader.require(is_decoder=False, add_cross_attention=False)
    (d_model, n_heads), act_fn = reader.width_and_heads("dim", "n_heads"), reader.read("activation")
    dropout, label_dropout = reader.read("dropout"), reader.read("seq_classif_dropout")
    labels = bert_like.read_labels(reader, parts)
    available = {
        "masked_lm": MaskedLMPart(act_fn, reader.read("tie_word_embeddings")),
        "sequence_classification": SequenceClassificationPart(
            labels, reader.read("problem_type"), label_dropout, PreClassifierPart("relu")
        ),
        "token_classification": TokenClassificationPart(labels, dropout),
        "question_answering": QuestionAnsweringPart(reader.read("qa_dropout")),
    }
    cfg = EncoderConfig(
        family="distilbert",
        original_architecture=hf_class,
        d_model=d_model,
        n_layers=reader.read("n_layers"),
        embed=EmbeddingPart(reader.read("vocab_size"), 0, dropout, padding_idx=reader.read("pad_token_id")),
        positions=AbsolutePositionsPart(reader.read("max_position_embeddings")),
        attention=AttentionPart(n_heads, d_model // n_heads, reader.read("attention_dropout")),
        norm=LayerNormPart(1e-12),
        mlp=MLPPart(reader.read("hidden_dim"), act_fn),
        block=PostLNPart(0.0, mlp_dropout=dropout),
        heads=bert_like.in_order(available, DISTILBERT.classes[hf_class], parts),
        initializer_range=reader.read("initializer_range"),
    )
    reader.finish()
    return cfg


def write_config(cfg: EncoderConfig) -> dict[str, Any]:
    bert_like.check_plain(cfg, PostLNPart)
    values: dict[str, Any] = {
        "dim": cfg.d_model,
        "n_layers": cfg.n_layers,
        "n_heads": cfg.n_heads,
        "hidden_dim": cfg.d_mlp,
        "activation": cfg.act_fn,
        "vocab_size": cfg.d_vocab,
        "max_position_embeddings": cfg.n_ctx,
        "dropout": cfg.embed.dropout,
        "attention_dropout": cfg.attention.dropout,
        "initializer_range": cfg.initializer_range,
    }
    for head in cfg.heads:
        if isinstance(head, SequenceClassificationPart):
            values["seq_classif_dropout"] = head.dropout
        if isinstance(head, QuestionAnsweringPart):
            values["qa_dropout"] = head.dropout
    return values | bert_like.padding_values(cfg) | bert_like.head_values(cfg)


DISTILBERT = Family(
    name="DistilBERT",
    model_type="distilbert",
    classes=bert_like.roberta_classes("DistilBert"),
    base_prefix=BASE,
    encoder_rows=ENCODER,
    part_rows=HEADS,
    ignored=bert_like.IGNORED,
    read_config=read_config,
    write_config=write_config,
    hf_arguments=lambda cfg: {},
    layer_norm="post-LN",
    positions="absolute",
)
