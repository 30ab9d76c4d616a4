"""What text encoders in the line of BERT share: their tables of weights, and what their configurations call things."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from encoderlens.config import (
    AbsolutePositionsPart,
    AnyPart,
    AttentionPart,
    BlockPart,
    EmbeddingPart,
    EncoderConfig,
    HeadPart,
    LayerNormPart,
    MaskedLMPart,
    MLPPart,
    NextSentencePart,
    Part,
    PoolerPart,
    PostLNPart,
    PreClassifierPart,
    QuestionAnsweringPart,
    SequenceClassificationPart,
    TokenClassificationPart,
)
from encoderlens.errors import ConfigError
from encoderlens.families.family import ConfigReader, label_values
from encoderlens.weights import Row, block, linear, norm

IGNORED = ("*position_ids", "*embeddings.token_type_ids")
POOLED = frozenset(("next_sentence", "sequence_classification"))  # tasks whose heads read the pooler

# Tables


def embedding_rows(base: str) -> tuple[Row, ...]:
    """The table of the embeddings. Which rows apply depends on what a model has of them."""
    return (
        Row(f"{base}embeddings.word_embeddings.weight", "embed.embed.weight"),
        Row(f"{base}embeddings.position_embeddings.weight", "embed.pos_embed.weight", crop=True),
        Row(f"{base}embeddings.token_type_embeddings.weight", "embed.token_type_embed.weight"),
        *norm(f"{base}embeddings.LayerNorm", "embed.ln"),
    )


def block_rows(base: str, ln1: str = "attention.output.LayerNorm", ln2: str = "output.LayerNorm") -> tuple[Row, ...]:
    """The table of the blocks.

    Args:
        ln1, ln2: where the norms are, which pre-LN blocks keep elsewhere.
    """
    return block(
        f"{base}encoder.layer.{{l}}",
        q="attention.self.query",
        k="attention.self.key",
        v="attention.self.value",
        o="attention.output.dense",
        input="intermediate.dense",
        output="output.dense",
        ln1=ln1,
        ln2=ln2,
    )


def unembed_rows(decoder: str, bias: str) -> tuple[Row, ...]:
    """The table of an unembedding whose bias is stored twice."""
    return (
        Row(f"{decoder}.weight", "unembed.weight"),
        Row(f"{decoder}.bias", "unembed.bias", legacy=(bias,)),
        Row(bias, "unembed.bias", spare=True),
    )


# Heads that are trained on labels: their linear layers, and RoBERTa's classifier of two layers for sequences.
CLASSIFIER = linear("classifier", "classifier.dense")
LABELLED = {"token_classification": CLASSIFIER, "question_answering": linear("qa_outputs", "qa_head.dense")}
TWO_LAYERS = (*linear("classifier.dense", "pre_classifier.dense"), *linear("classifier.out_proj", "classifier.dense"))


def bert_heads(base: str) -> dict[str, tuple[Row, ...]]:
    """The tables of BERT's pooler and heads."""
    return {
        "pooler": linear(f"{base}pooler.dense", "pooler.dense"),
        "masked_lm": (
            *linear("cls.predictions.transform.dense", "mlm_head.dense"),
            *norm("cls.predictions.transform.LayerNorm", "mlm_head.ln"),
            *unembed_rows("cls.predictions.decoder", "cls.predictions.bias"),
        ),
        "next_sentence": linear("cls.seq_relationship", "nsp_head.dense"),
        "sequence_classification": CLASSIFIER,
        **LABELLED,
    }


def roberta_heads(base: str) -> dict[str, tuple[Row, ...]]:
    """The tables of RoBERTa's pooler and heads."""
    return {
        "pooler": linear(f"{base}pooler.dense", "pooler.dense"),
        "masked_lm": (
            *linear("lm_head.dense", "mlm_head.dense"),
            *norm("lm_head.layer_norm", "mlm_head.ln"),
            *unembed_rows("lm_head.decoder", "lm_head.bias"),
        ),
        "sequence_classification": TWO_LAYERS,
        **LABELLED,
    }


def bert_classes(name: str) -> dict[str, tuple[str, ...]]:
    """The Hugging Face classes with BERT's heads."""
    return {
        f"{name}Model": (),
        f"{name}ForPreTraining": ("masked_lm", "next_sentence"),
        f"{name}ForMaskedLM": ("masked_lm",),
        f"{name}ForNextSentencePrediction": ("next_sentence",),
        **labelled_classes(name),
    }


def roberta_classes(name: str) -> dict[str, tuple[str, ...]]:
    """The Hugging Face classes with RoBERTa's heads."""
    return {f"{name}Model": (), f"{name}ForMaskedLM": ("masked_lm",), **labelled_classes(name)}


def labelled_classes(name: str) -> dict[str, tuple[str, ...]]:
    """The Hugging Face classes whose heads are trained on labels."""
    return {
        f"{name}ForSequenceClassification": ("sequence_classification",),
        f"{name}ForTokenClassification": ("token_classification",),
        f"{name}ForQuestionAnswering": ("question_answering",),
    }


# Configurations


def read_config(
    reader: ConfigReader,
    family: str,
    hf_class: str,
    parts: frozenset[str],
    heads: Iterable[HeadPart],
    embed: dict[str, Any] | None = None,
    **changes: Any,
) -> EncoderConfig:
    """A configuration, from the keys that these families share.

    Args:
        heads: all that the weights hold, the default first.
        embed: what differs in the embeddings, by the fields of EmbeddingPart.
        changes: what differs from BERT, by the fields of EncoderConfig.
    """
    reader.require(is_decoder=False, add_cross_attention=False, is_encoder_decoder=False, position_embedding_type="absolute")
    d_model, n_heads = reader.width_and_heads()
    dropout, n_layers = reader.read("hidden_dropout_prob"), reader.read("num_hidden_layers")
    padding = reader.read("pad_token_id", None)
    embedding = {"d_vocab": reader.read("vocab_size"), "dropout": dropout, "padding_idx": padding} | (embed or {})
    if "n_token_types" not in embedding:
        embedding["n_token_types"] = reader.read("type_vocab_size")
    common = EncoderConfig(
        family=family,
        original_architecture=hf_class,
        d_model=d_model,
        n_layers=n_layers,
        embed=EmbeddingPart(**embedding),
        positions=AbsolutePositionsPart(reader.read("max_position_embeddings")),
        attention=AttentionPart(n_heads, d_model // n_heads, reader.read("attention_probs_dropout_prob")),
        norm=LayerNormPart(reader.read("layer_norm_eps")),
        mlp=MLPPart(reader.read("intermediate_size"), reader.read("hidden_act")),
        block=PostLNPart(dropout),
        pooler=PoolerPart() if "pooler" in parts else None,
        heads=tuple(heads),
        initializer_range=reader.read("initializer_range"),
    )
    reader.finish()
    return replace(common, **changes)


def read_heads(
    reader: ConfigReader,
    declared: Iterable[str],
    parts: frozenset[str],
    act_fn: str,
    dropout: float,
    pre_classifier: PreClassifierPart | None = None,
    **others: HeadPart,
) -> tuple[HeadPart, ...]:
    """The heads that the weights hold: those of the class first.

    Args:
        declared: the tasks of the class.
        act_fn: of the masked-LM head.
        dropout: in front of classifiers.
        pre_classifier: what the classifier of sequences has in front of it; None for the pooler.
        others: heads of the family's own, by task.
    """
    labels = read_labels(reader, parts)
    available: dict[str, HeadPart] = {
        "masked_lm": MaskedLMPart(act_fn, reader.read("tie_word_embeddings", True)),
        "next_sentence": NextSentencePart(),
        "sequence_classification": SequenceClassificationPart(labels, reader.read("problem_type"), dropout, pre_classifier),
        "token_classification": TokenClassificationPart(labels, dropout),
        "question_answering": QuestionAnsweringPart(),
        **others,
    }
    return in_order(available, declared, parts)


def read_labels(reader: ConfigReader, parts: frozenset[str]) -> tuple[str, ...]:
    """The class names, if the weights hold a classifier."""
    return reader.labels() if parts & {"sequence_classification", "token_classification"} else ()


def in_order(available: Mapping[str, HeadPart], declared: Iterable[str], parts: frozenset[str]) -> tuple[HeadPart, ...]:
    """The heads that the weights hold: those of the class first."""
    return tuple(available[task] for task in dict.fromkeys((*declared, *available)) if task in parts)


def classifier_dropout(reader: ConfigReader) -> float:
    """The dropout in front of classifiers."""
    own, hidden = reader.read("classifier_dropout"), reader.read("hidden_dropout_prob")
    return hidden if own is None else own


def write_config(cfg: EncoderConfig, block: type[BlockPart] = PostLNPart) -> dict[str, Any]:
    """The Hugging Face values of the keys that these families share.

    Args:
        block: what their blocks are.

    Raises:
        ConfigError: for a model that the Hugging Face class cannot hold.
    """
    check_plain(cfg, block)
    return shared_values(cfg)


def shared_values(cfg: EncoderConfig) -> dict[str, Any]:
    """The Hugging Face values of the keys that these families share, of a model that was checked."""
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
    return values | padding_values(cfg) | head_values(cfg)


def padding_values(cfg: EncoderConfig) -> dict[str, Any]:
    """The Hugging Face value of the token whose row the embedding does not train."""
    return {"pad_token_id": cfg.embed.padding_idx if isinstance(cfg.embed, EmbeddingPart) else None}


def head_values(cfg: EncoderConfig) -> dict[str, Any]:
    """The Hugging Face values of what heads are like."""
    values: dict[str, Any] = {}
    for head in cfg.heads:
        if isinstance(head, MaskedLMPart):
            values["tie_word_embeddings"] = head.tied
        if isinstance(head, SequenceClassificationPart | TokenClassificationPart):
            values |= label_values(head.labels)
        if isinstance(head, SequenceClassificationPart):
            values["problem_type"] = head.problem_type
    return values


def pooling_values(cfg: EncoderConfig, head: SequenceClassificationPart, names: Mapping[str, str]) -> dict[str, Any]:
    """The Hugging Face value of what a classifier of sequences reads.

    Args:
        names: what Hugging Face's class can read, with what ``PreClassifierPart.reads`` calls it.
    """
    reads = expect(cfg, head.pre_classifier, PreClassifierPart).reads
    found = next((name for name, ours in names.items() if ours == reads), None)
    if found is None:
        raise ConfigError(f"Hugging Face's {cfg.original_architecture} has no classifier that reads {reads!r}")
    return {"classifier_pooling": found}


def dropout_values(cfg: EncoderConfig) -> dict[str, Any]:
    """The Hugging Face value of the dropout in front of classifiers, where it is not that of the stream."""
    for head in cfg.heads:
        if isinstance(head, SequenceClassificationPart | TokenClassificationPart) and head.dropout != cfg.embed.dropout:
            return {"classifier_dropout": head.dropout}
    return {}


def check_plain(cfg: EncoderConfig, block: type[BlockPart]) -> None:
    """Refuse blocks that these families' Hugging Face classes do not have.

    Raises:
        ConfigError: with what they have.
    """
    check_kinds(cfg, block, MLPPart)
    check_width(cfg)


def check_width(cfg: EncoderConfig) -> None:
    """Refuse heads that together are not as wide as the stream.

    Raises:
        ConfigError: with their sizes.
    """
    if cfg.n_heads * cfg.d_head != cfg.d_model:
        raise ConfigError(
            f"Hugging Face's {cfg.original_architecture} has n_heads * d_head = d_model, and this is {cfg.n_heads} * "
            f"{cfg.d_head} != {cfg.d_model}"
        )


def check_kinds(cfg: EncoderConfig, block: type[BlockPart], mlp: type[MLPPart]) -> None:
    """Refuse blocks, and MLPs in them, of other kinds than these.

    Raises:
        ConfigError: with what the Hugging Face class has.
    """
    if type(cfg.block) is not block or type(cfg.mlp) is not mlp:
        raise ConfigError(
            f"Hugging Face's {cfg.original_architecture} has {block.component} and {mlp.component}, and this model "
            f"{cfg.block.component} and {cfg.mlp.component}"
        )


def expect(cfg: EncoderConfig, part: Part | None, kind: type[AnyPart]) -> AnyPart:
    """A part of a configuration, which for its Hugging Face class must be of this kind.

    Raises:
        ConfigError: with what it is instead.
    """
    if type(part) is not kind:
        found = "none" if part is None else part.component
        raise ConfigError(f"Hugging Face's {cfg.original_architecture} has {kind.component}, and this model {found}")
    return part


def without_pooler(cfg: EncoderConfig) -> dict[str, Any]:
    """The constructor arguments of a base model that was saved without its pooler."""
    bare = cfg.original_architecture.endswith("Model") and cfg.pooler is None
    return {"add_pooling_layer": False} if bare else {}
