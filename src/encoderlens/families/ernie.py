"""ERNIE (Sun et al. 2019, 2020): BERT with an embedding for the task.

Every position has the same task type, as it has in Hugging Face unless ``task_type_ids`` are given: 0, or what
``model.embed.task_type_embed.task_type`` is set to.
"""

from typing import Any

import encoderlens.families.bert_like as bert_like
from encoderlens.config import EmbeddingPart, EncoderConfig
from encoderlens.families.family import ConfigReader, Family
from encoderlens.weights import Row

BASE = "ernie."
TASK_TYPES = Row(f"{BASE}embeddings.task_type_embeddings.weight", "embed.task_type_embed.weight")


def read_config(reader: ConfigReader, hf_class: str, parts: frozenset[str]) -> EncoderConfig:
    reader.ignore("enable_recompute", "fuse")
    reader.require(pool_act="tanh", task_id=0)
    n_task_types = reader.read("task_type_vocab_size") if reader.read("use_task_id") else 0
    act_fn, dropout = reader.read("hidden_act"), bert_like.classifier_dropout(reader)
    heads = bert_like.read_heads(reader, ERNIE.classes[hf_class], parts, act_fn, dropout)
    return bert_like.read_config(reader, "ernie", hf_class, parts, heads, {"n_task_types": n_task_types})


def write_config(cfg: EncoderConfig) -> dict[str, Any]:
    n_task_types = cfg.embed.n_task_types if isinstance(cfg.embed, EmbeddingPart) else 0
    size = {"task_type_vocab_size": n_task_types} if n_task_types else {}
    task_types = {"use_task_id": n_task_types > 0} | size
    return bert_like.write_config(cfg) | bert_like.dropout_values(cfg) | task_types


ERNIE = Family(
    name="ERNIE",
    model_type="ernie",
    classes=bert_like.bert_classes("Ernie"),
    base_prefix=BASE,
    encoder_rows=(*bert_like.embedding_rows(BASE), TASK_TYPES, *bert_like.block_rows(BASE)),
    part_rows=bert_like.bert_heads(BASE),
    pooled=bert_like.POOLED,
    ignored=(*bert_like.IGNORED, "*embeddings.task_type_embeddings.weight"),  # which nothing adds without use_task_id
    read_config=read_config,
    write_config=write_config,
    hf_arguments=bert_like.without_pooler,
    layer_norm="post-LN",
    positions="absolute",
)
