"""BERT (Devlin et al. 2019)."""

from typing import Any

from encoderlens.config import (
    AbsolutePositionsPart,
    AttentionPart,
    EmbeddingPart,
    EncoderConfig,
    HeadPart,
    LayerNormPart,
    MaskedLMPart,
    MLPPart,
    NextSentencePart,
    PoolerPart,
    PostLNPart,
    QuestionAnsweringPart,
    SequenceClassificationPart,
    TokenClassificationPart,
)
from encoderlens.errors import ConfigError
from encoderlens.families.family import ConfigReader, Family, label_values
from encoderlens.weights import Row, linear, norm

LAYER = "bert.encoder.layer.{l}"

ENCODER = (
    Row("bert.embeddings.word_embeddings.weight", "embed.embed.weight"),
    Row("bert.embeddings.position_embeddings.weight", "embed.pos_embed.weight", crop=True),
    Row("bert.embeddings.token_type_embeddings.weight", "embed.token_type_embed.weight"),
    *norm("bert.embeddings.LayerNorm", "embed.ln"),
    *linear(f"{LAYER}.attention.self.query", "blocks.{l}.attn.q"),
    *linear(f"{LAYER}.attention.self.key", "blocks.{l}.attn.k"),
    *linear(f"{LAYER}.attention.self.value", "blocks.{l}.attn.v"),
    *linear(f"{LAYER}.attention.output.dense", "blocks.{l}.attn.o"),
    *norm(f"{LAYER}.attention.output.LayerNorm", "blocks.{l}.ln1"),
    *linear(f"{LAYER}.intermediate.dense", "blocks.{l}.mlp.input"),
    *linear(f"{LAYER}.output.dense", "blocks.{l}.mlp.output"),
    *norm(f"{LAYER}.output.LayerNorm", "blocks.{l}.ln2"),
)

HEADS = {
    "pooler": linear("bert.pooler.dense", "pooler.dense"),
    "masked_lm": (
        *linear("cls.predictions.transform.dense", "mlm_head.dense"),
        *norm("cls.predictions.transform.LayerNorm", "mlm_head.ln"),
        Row("cls.predictions.decoder.weight", "unembed.weight"),
        Row("cls.predictions.decoder.bias", "unembed.bias", legacy=("cls.predictions.bias",)),
        Row("cls.predictions.bias", "unembed.bias", spare=True),
    ),
    "next_sentence": linear("cls.seq_relationship", "nsp_head.dense"),
    "sequence_classification": linear("classifier", "classifier.dense"),
    "token_classification": linear("classifier", "classifier.dense"),
    "question_answering": linear("qa_outputs", "qa_head.dense"),
}


def read_config(reader: ConfigReader, hf_class: str, parts: frozenset[str]) -> EncoderConfig:
    reader.require(is_decoder=False, add_cross_attention=False, is_encoder_decoder=False, position_embedding_type="absolute")
    reader.ignore("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers")
    reader.ignore("pooler_size_per_head", "pooler_type")
    d_model, n_heads = reader.width_and_heads()
    dropout = reader.read("hidden_dropout_prob")
    act_fn = reader.read("hidden_act")
    cfg = EncoderConfig(
        family="bert",
        original_architecture=hf_class,
        d_model=d_model,
        n_layers=reader.read("num_hidden_layers"),
        embed=EmbeddingPart(reader.read("vocab_size"), reader.read("type_vocab_size"), dropout),
        positions=AbsolutePositionsPart(reader.read("max_position_embeddings")),
        attention=AttentionPart(n_heads, d_model // n_heads, reader.read("attention_probs_dropout_prob")),
        norm=LayerNormPart(reader.read("layer_norm_eps")),
        mlp=MLPPart(reader.read("intermediate_size"), act_fn),
        block=PostLNPart(dropout),
        pooler=PoolerPart() if "pooler" in parts else None,
        heads=_heads(reader, hf_class, parts, act_fn, dropout),
        initializer_range=reader.read("initializer_range"),
    )
    reader.finish()
    return cfg


def _heads(
    reader: ConfigReader, hf_class: str, parts: frozenset[str], act_fn: str, hidden_dropout: float
) -> tuple[HeadPart, ...]:
    tied, classifier_dropout = reader.read("tie_word_embeddings"), reader.read("classifier_dropout")
    dropout = hidden_dropout if classifier_dropout is None else classifier_dropout
    labels = reader.labels() if parts & {"sequence_classification", "token_classification"} else ()
    available: dict[str, HeadPart] = {
        "masked_lm": MaskedLMPart(act_fn, tied),
        "next_sentence": NextSentencePart(),
        "sequence_classification": SequenceClassificationPart(labels, reader.read("problem_type"), dropout),
        "token_classification": TokenClassificationPart(labels, dropout),
        "question_answering": QuestionAnsweringPart(),
    }
    declared = BERT.classes[hf_class]
    ordered = (*declared, *(task for task in available if task not in declared))
    return tuple(available[task] for task in ordered if task in parts)


def write_config(cfg: EncoderConfig) -> dict[str, Any]:
    if type(cfg.block) is not PostLNPart or type(cfg.mlp) is not MLPPart:
        raise ConfigError(
            f"Hugging Face's BERT has PostLNBlock and MLP, and this model {cfg.block.component} and {cfg.mlp.component}"
        )
    if cfg.n_heads * cfg.d_head != cfg.d_model:
        raise ConfigError(
            f"Hugging Face's BERT has n_heads * d_head = d_model, and this is {cfg.n_heads} * {cfg.d_head} != {cfg.d_model}"
        )
    values: dict[str, Any] = {
        "hidden_size": cfg.d_model,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "intermediate_size": cfg.d_mlp,
        "hidden_act": cfg.act_fn,
        "vocab_size": cfg.d_vocab,
        "type_vocab_size": cfg.n_token_types,
        "max_position_embeddings": cfg.n_ctx,
        "layer_norm_eps": cfg.eps,
        "hidden_dropout_prob": cfg.embed.dropout,
        "attention_probs_dropout_prob": cfg.attention.dropout,
        "initializer_range": cfg.initializer_range,
    }
    for head in cfg.heads:
        if isinstance(head, MaskedLMPart):
            values["tie_word_embeddings"] = head.tied
        if isinstance(head, SequenceClassificationPart | TokenClassificationPart):
            values |= label_values(head.labels)
            if head.dropout != cfg.embed.dropout:
                values["classifier_dropout"] = head.dropout
        if isinstance(head, SequenceClassificationPart):
            values["problem_type"] = head.problem_type
    return values


def hf_arguments(cfg: EncoderConfig) -> dict[str, Any]:
    bare = cfg.original_architecture == "BertModel" and cfg.pooler is None
    return {"add_pooling_layer": False} if bare else {}


BERT = Family(
    name="BERT",
    model_type="bert",
    classes={
        "BertModel": (),
        "BertForPreTraining": ("masked_lm", "next_sentence"),
        "BertForMaskedLM": ("masked_lm",),
        "BertForNextSentencePrediction": ("next_sentence",),
        "BertForSequenceClassification": ("sequence_classification",),
        "BertForTokenClassification": ("token_classification",),
        "BertForQuestionAnswering": ("question_answering",),
    },
    base_prefix="bert.",
    encoder_rows=ENCODER,
    part_rows=HEADS,
    ignored=("*position_ids", "*embeddings.token_type_ids"),
    read_config=read_config,
    write_config=write_config,
    hf_arguments=hf_arguments,
    layer_norm="post-LN",
    positions="absolute",
)
