"""ALBERT (Lan et al. 2020): narrow embeddings, and layers that share their parameters."""

from typing import Any

import encoderlens.families.bert_like as bert_like
from encoderlens.config import (
    EncoderConfig,
    LayerSharing,
    PostLNPart,
    SentenceOrderPart,
    SequenceClassificationPart,
    TokenClassificationPart,
)
from encoderlens.families.family import ConfigReader, Family
from encoderlens.weights import block, linear, norm

BASE = "albert."
ENCODER = (
    *bert_like.embedding_rows(BASE),
    *linear(f"{BASE}encoder.embedding_hidden_mapping_in", "embed.projection"),
    *block(
        f"{BASE}encoder.albert_layer_groups.{{l}}",
        q="attention.query",
        k="attention.key",
        v="attention.value",
        o="attention.dense",
        ln1="attention.LayerNorm",
        input="ffn",
        output="ffn_output",
        ln2="full_layer_layer_norm",
    ),
)
HEADS = {
    "pooler": linear(f"{BASE}pooler", "pooler.dense"),
    "masked_lm": (
        *linear("predictions.dense", "mlm_head.dense"),
        *norm("predictions.LayerNorm", "mlm_head.ln"),
        *bert_like.unembed_rows("predictions.decoder", "predictions.bias"),
    ),
    "sentence_order": linear("sop_classifier.classifier", "sop_head.dense"),
    "sequence_classification": bert_like.CLASSIFIER,
    **bert_like.LABELLED,
}


def read_config(reader: ConfigReader, hf_class: str, parts: frozenset[str]) -> EncoderConfig:
    """Layers are counted as they run: ``inner_group_num`` of them for each of Hugging Face's."""
    reader.require(down_scale_factor=1, gap_size=0, net_structure_type=0, num_memory_blocks=0)  # of the first release
    steps, groups, inner = (reader.read(key) for key in ("num_hidden_layers", "num_hidden_groups", "inner_group_num"))
    dropout, act_fn = reader.read("classifier_dropout_prob"), reader.read("hidden_act")
    order = SentenceOrderPart(dropout)
    heads = bert_like.read_heads(reader, ALBERT.classes[hf_class], parts, act_fn, dropout, sentence_order=order)
    return bert_like.read_config(
        reader,
        "albert",
        hf_class,
        parts,
        heads,
        {"d_embed": reader.read("embedding_size")},
        n_layers=steps * inner,
        sharing=LayerSharing(steps, groups, inner),
        block=PostLNPart(reader.read("hidden_dropout_prob"), mlp_dropout=0.0),
    )


def write_config(cfg: EncoderConfig) -> dict[str, Any]:
    sharing = sharing_of(cfg)
    values = bert_like.write_config(cfg) | {
        "num_hidden_layers": sharing.steps,
        "num_hidden_groups": sharing.groups,
        "inner_group_num": sharing.inner,
        "embedding_size": cfg.d_embed,
    }
    for head in cfg.heads:
        if isinstance(head, SentenceOrderPart | SequenceClassificationPart | TokenClassificationPart):
            values["classifier_dropout_prob"] = head.dropout
    return values


def sharing_of(cfg: EncoderConfig) -> LayerSharing:
    """Which layers share parameters; for a configuration that does not say, none do."""
    return cfg.sharing or LayerSharing(cfg.n_layers, cfg.n_layers, 1)


def layer_key(cfg: EncoderConfig, layer: int) -> str:
    group, inner = sharing_of(cfg).place(layer)
    return f"{group}.albert_layers.{inner}"


ALBERT = Family(
    name="ALBERT",
    model_type="albert",
    classes={
        "AlbertModel": (),
        "AlbertForPreTraining": ("masked_lm", "sentence_order"),
        "AlbertForMaskedLM": ("masked_lm",),
        **bert_like.labelled_classes("Albert"),
    },
    base_prefix=BASE,
    encoder_rows=ENCODER,
    part_rows=HEADS,
    pooled=frozenset(("sentence_order", "sequence_classification")),
    ignored=bert_like.IGNORED,
    read_config=read_config,
    write_config=write_config,
    hf_arguments=bert_like.without_pooler,
    layer_norm="post-LN",
    positions="absolute",
    layer_key=layer_key,
)
