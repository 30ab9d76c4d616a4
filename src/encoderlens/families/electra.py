"""ELECTRA (Clark et al. 2020): BERT with narrow embeddings, a discriminator of replaced tokens, and its small generator."""

from typing import Any

import encoderlens.families.bert_like as bert_like
from encoderlens.config import EncoderConfig, PreClassifierPart, ReplacedTokenPart
from encoderlens.families.family import ConfigReader, Family
from encoderlens.weights import linear, norm

BASE = "electra."
HEADS = {
    "replaced_token_detection": (
        *linear("discriminator_predictions.dense", "pre_classifier.dense"),
        *linear("discriminator_predictions.dense_prediction", "rtd_head.dense"),
    ),
    "masked_lm": (
        *linear("generator_predictions.dense", "mlm_head.dense"),
        *norm("generator_predictions.LayerNorm", "mlm_head.ln"),
        *linear("generator_lm_head", "unembed"),
    ),
    "sequence_classification": bert_like.TWO_LAYERS,
    **bert_like.LABELLED,
}


def read_config(reader: ConfigReader, hf_class: str, parts: frozenset[str]) -> EncoderConfig:
    reader.ignore("summary_type", "summary_use_proj", "summary_activation", "summary_last_dropout")  # of multiple choice
    reader.ignore("generator_size")  # of pre-training
    dropout = bert_like.classifier_dropout(reader)
    transform = PreClassifierPart("gelu", dropout=dropout)
    discriminator = ReplacedTokenPart(PreClassifierPart(reader.read("hidden_act"), "every"))
    declared = ELECTRA.classes[hf_class]
    heads = bert_like.read_heads(reader, declared, parts, "gelu", dropout, transform, replaced_token_detection=discriminator)
    d_embed, d_model = reader.read("embedding_size"), reader.read("hidden_size")
    narrow = {"d_embed": None if d_embed == d_model else d_embed}
    return bert_like.read_config(reader, "electra", hf_class, parts, heads, narrow)


def write_config(cfg: EncoderConfig) -> dict[str, Any]:
    return bert_like.write_config(cfg) | bert_like.dropout_values(cfg) | {"embedding_size": cfg.d_embed}


ELECTRA = Family(
    name="ELECTRA",
    model_type="electra",
    classes={
        "ElectraModel": (),
        "ElectraForPreTraining": ("replaced_token_detection",),
        "ElectraForMaskedLM": ("masked_lm",),
        **bert_like.labelled_classes("Electra"),
    },
    base_prefix=BASE,
    encoder_rows=(
        *bert_like.embedding_rows(BASE),
        *linear(f"{BASE}embeddings_project", "embed.projection"),
        *bert_like.block_rows(BASE),
    ),
    part_rows=HEADS,
    ignored=bert_like.IGNORED,
    read_config=read_config,
    write_config=write_config,
    hf_arguments=lambda cfg: {},
    layer_norm="post-LN",
    positions="absolute",
)
