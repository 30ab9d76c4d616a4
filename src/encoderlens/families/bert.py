"""BERT (Devlin et al. 2019)."""

from typing import Any

import encoderlens.families.bert_like as bert_like
from encoderlens.config import EncoderConfig
from encoderlens.families.family import ConfigReader, Family

BASE = "bert."


def read_config(reader: ConfigReader, hf_class: str, parts: frozenset[str]) -> EncoderConfig:
    reader.ignore("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers")
    reader.ignore("pooler_size_per_head", "pooler_type")
    heads = bert_like.read_heads(
        reader, BERT.classes[hf_class], parts, reader.read("hidden_act"), bert_like.classifier_dropout(reader)
    )
    return bert_like.read_config(reader, "bert", hf_class, parts, heads)


def write_config(cfg: EncoderConfig) -> dict[str, Any]:
    return bert_like.write_config(cfg) | bert_like.dropout_values(cfg)


BERT = Family(
    name="BERT",
    model_type="bert",
    classes=bert_like.bert_classes("Bert"),
    base_prefix=BASE,
    encoder_rows=(*bert_like.embedding_rows(BASE), *bert_like.block_rows(BASE)),
    part_rows=bert_like.bert_heads(BASE),
    pooled=bert_like.POOLED,
    ignored=bert_like.IGNORED,
    read_config=read_config,
    write_config=write_config,
    hf_arguments=bert_like.without_pooler,
    layer_norm="post-LN",
    positions="absolute",
)
