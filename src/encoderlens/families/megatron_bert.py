"""Megatron-BERT (Shoeybi et al. 2019): BERT with the norms in front of the sublayers, and none on the embeddings."""

from typing import Any

import encoderlens.families.bert_like as bert_like
from encoderlens.config import EncoderConfig, PreLNPart
from encoderlens.families.family import ConfigReader, Family
from encoderlens.weights import norm

BASE = "bert."
ENCODER = (
    *bert_like.embedding_rows(BASE),
    *bert_like.block_rows(BASE, ln1="attention.ln", ln2="ln"),
    *norm(f"{BASE}encoder.ln", "ln_final"),
)


def read_config(reader: ConfigReader, hf_class: str, parts: frozenset[str]) -> EncoderConfig:
    dropout, declared = reader.read("hidden_dropout_prob"), MEGATRON_BERT.classes[hf_class]
    heads = bert_like.read_heads(reader, declared, parts, reader.read("hidden_act"), dropout)
    bare, block = {"normed": False}, PreLNPart(dropout)
    return bert_like.read_config(reader, "megatron-bert", hf_class, parts, heads, bare, block=block)


def write_config(cfg: EncoderConfig) -> dict[str, Any]:
    return bert_like.write_config(cfg, PreLNPart)


MEGATRON_BERT = Family(
    name="Megatron-BERT",
    model_type="megatron-bert",
    classes=bert_like.bert_classes("MegatronBert"),
    base_prefix=BASE,
    encoder_rows=ENCODER,
    part_rows=bert_like.bert_heads(BASE),
    pooled=bert_like.POOLED,
    ignored=bert_like.IGNORED,
    read_config=read_config,
    write_config=write_config,
    hf_arguments=bert_like.without_pooler,
    layer_norm="pre-LN",
    positions="absolute",
)
