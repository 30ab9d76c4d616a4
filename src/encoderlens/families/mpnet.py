"""MPNet (Song et al. 2020): RoBERTa without token types, and with a relative bias that all layers share."""

from typing import Any

import encoderlens.families.bert_like as bert_like
import encoderlens.families.roberta as roberta
from encoderlens.config import EncoderConfig, PreClassifierPart, RelativeBiasAttentionPart, RelativeBiasPart
from encoderlens.families.family import ConfigReader, Family
from encoderlens.weights import Row, block

BASE = "mpnet."
PAD = 1  # Hugging Face counts positions from this token, and trains no row of it, whatever the configuration calls padding
ENCODER = (
    *bert_like.embedding_rows(BASE),
    Row(f"{BASE}encoder.relative_attention_bias.weight", "relative.weight"),
    *block(
        f"{BASE}encoder.layer.{{l}}",
        q="attention.attn.q",
        k="attention.attn.k",
        v="attention.attn.v",
        o="attention.attn.o",
        ln1="attention.LayerNorm",
        input="intermediate.dense",
        output="output.dense",
        ln2="output.LayerNorm",
    ),
)


def read_config(reader: ConfigReader, hf_class: str, parts: frozenset[str]) -> EncoderConfig:
    reader.require(relative_attention_num_buckets=RelativeBiasPart.n_buckets)  # so many are hard-coded in Hugging Face's class
    dropout = reader.read("hidden_dropout_prob")
    transform = PreClassifierPart("tanh", dropout=dropout)
    heads = bert_like.read_heads(reader, MPNET.classes[hf_class], parts, "gelu", dropout, transform)
    d_model, n_heads = reader.width_and_heads()
    return bert_like.read_config(
        reader,
        "mpnet",
        hf_class,
        parts,
        heads,
        {"n_token_types": 0, "padding_idx": PAD},
        positions=roberta.padded_positions(reader, PAD),
        attention=RelativeBiasAttentionPart(n_heads, d_model // n_heads, reader.read("attention_probs_dropout_prob")),
        relative=RelativeBiasPart(n_heads),
    )


def write_config(cfg: EncoderConfig) -> dict[str, Any]:
    values = bert_like.write_config(cfg) | {"max_position_embeddings": (cfg.n_ctx or 0) + PAD + 1}
    return {key: value for key, value in values.items() if key not in ("type_vocab_size", "pad_token_id")}


MPNET = Family(
    name="MPNet",
    model_type="mpnet",
    classes=bert_like.roberta_classes("MPNet"),
    base_prefix=BASE,
    encoder_rows=ENCODER,
    part_rows=bert_like.roberta_heads(BASE),
    ignored=bert_like.IGNORED,
    read_config=read_config,
    write_config=write_config,
    hf_arguments=bert_like.without_pooler,
    layer_norm="post-LN",
    positions="absolute, from padding; relative bias",
)
