"""RoBERTa (Liu et al. 2019), and what has its architecture under another name."""

from typing import Any

import encoderlens.families.bert_like as bert_like
from encoderlens.config import EncoderConfig, PaddedPositionsPart, PreClassifierPart
from encoderlens.families.family import ConfigReader, Family

BASE = "roberta."
COUNTED = "positions are counted from padding on"


def read_config(
    reader: ConfigReader, family: str, declared: tuple[str, ...], hf_class: str, parts: frozenset[str], **changes: Any
) -> EncoderConfig:
    """A configuration with RoBERTa's keys.

    Args:
        declared: the tasks of the class.
        changes: as for ``bert_like.read_config``.
    """
    dropout = bert_like.classifier_dropout(reader)
    heads = bert_like.read_heads(reader, declared, parts, "gelu", dropout, PreClassifierPart("tanh", dropout=dropout))
    return bert_like.read_config(
        reader,
        family,
        hf_class,
        parts,
        heads,
        positions=padded_positions(reader, reader.token("pad_token_id", COUNTED)),
        **changes,
    )


def padded_positions(reader: ConfigReader, pad: int) -> PaddedPositionsPart:
    """Positions counted from the padding token's id on, the rows up to it left out of ``n_ctx``."""
    return PaddedPositionsPart(reader.read("max_position_embeddings") - pad - 1, pad)


def write_config(cfg: EncoderConfig) -> dict[str, Any]:
    return bert_like.write_config(cfg) | bert_like.dropout_values(cfg) | padded_values(cfg)


def padded_values(cfg: EncoderConfig) -> dict[str, Any]:
    """The Hugging Face values of positions that are counted from the padding token's id on."""
    pad = cfg.positions.pad if isinstance(cfg.positions, PaddedPositionsPart) else 0
    return {"max_position_embeddings": (cfg.n_ctx or 0) + pad + 1, "pad_token_id": pad}


def family(name: str, model_type: str, class_prefix: str) -> Family:
    """A family with RoBERTa's architecture and keys, and classes of its own name."""
    classes = bert_like.roberta_classes(class_prefix)

    def read(reader: ConfigReader, hf_class: str, parts: frozenset[str]) -> EncoderConfig:
        return read_config(reader, model_type, classes[hf_class], hf_class, parts)

    return Family(
        name=name,
        model_type=model_type,
        classes=classes,
        base_prefix=BASE,
        encoder_rows=(*bert_like.embedding_rows(BASE), *bert_like.block_rows(BASE)),
        part_rows=bert_like.roberta_heads(BASE),
        ignored=bert_like.IGNORED,
        read_config=read,
        write_config=write_config,
        hf_arguments=bert_like.without_pooler,
        layer_norm="post-LN",
        positions="absolute, from padding",
    )


ROBERTA = family("RoBERTa", "roberta", "Roberta")
