"""RoBERTa-PreLayerNorm (Ott et al. 2019, fairseq): RoBERTa with the norms in front of the sublayers."""

from typing import Any

import encoderlens.families.bert_like as bert_like
import encoderlens.families.roberta as roberta
from encoderlens.config import EncoderConfig, PreLNPart
from encoderlens.families.family import ConfigReader, Family
from encoderlens.weights import norm

BASE = "roberta_prelayernorm."
ENCODER = (
    *bert_like.embedding_rows(BASE),
    *bert_like.block_rows(BASE, ln1="attention.LayerNorm", ln2="intermediate.LayerNorm"),
    *norm(f"{BASE}LayerNorm", "ln_final"),
)


def read_config(reader: ConfigReader, hf_class: str, parts: frozenset[str]) -> EncoderConfig:
    declared, block = ROBERTA_PRELAYERNORM.classes[hf_class], PreLNPart(reader.read("hidden_dropout_prob"))
    return roberta.read_config(reader, "roberta-prelayernorm", declared, hf_class, parts, block=block)


def write_config(cfg: EncoderConfig) -> dict[str, Any]:
    return bert_like.write_config(cfg, PreLNPart) | bert_like.dropout_values(cfg) | roberta.padded_values(cfg)


ROBERTA_PRELAYERNORM = Family(
    name="RoBERTa-PreLayerNorm",
    model_type="roberta-prelayernorm",
    classes=bert_like.roberta_classes("RobertaPreLayerNorm"),
    base_prefix=BASE,
    encoder_rows=ENCODER,
    part_rows=bert_like.roberta_heads(BASE),
    ignored=bert_like.IGNORED,
    read_config=read_config,
    write_config=write_config,
    hf_arguments=bert_like.without_pooler,
    layer_norm="pre-LN",
    positions="absolute, from padding",
)
