"""Family: what one file in this folder declares about one model family."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from encoderlens.config import AudioEmbedPart, EncoderConfig
from encoderlens.config.fields import Positive, check_value, frozen
from encoderlens.errors import ConfigError, UnknownArchitectureError
from encoderlens.given import is_whole
from encoderlens.weights import Row, expand, find

# Keys of any Hugging Face configuration that say nothing about the numbers an encoder computes; a family whose positions or
# embeddings depend on a special token reads its id all the same.
HARMLESS = frozenset(
    ("_name_or_path", "architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "torchscript")
    + ("output_hidden_states", "output_attentions", "return_dict", "use_cache", "chunk_size_feed_forward")
    + ("finetuning_task", "gradient_checkpointing", "tokenizer_class", "language")
    + ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "mask_token_id", "unk_token_id")
    + ("id2label", "label2id", "num_labels", "problem_type")
    + ("sentence_transformers", "sbert_ce_default_activation_function")
    + ("auto_map",)  # code of the checkpoint's own, which is looked at before the rest
)
# What transformers before version 5 wrote into the configuration of any model, encoders included.
LEFT_OVER = frozenset(
    ("_attn_implementation_autoset", "_num_labels", "output_past", "use_bfloat16", "xla_device", "tf_legacy_loss")
    + ("do_sample", "early_stopping", "max_length", "min_length", "num_beams", "num_beam_groups", "num_return_sequences")
    + ("temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "diversity_penalty")
    + ("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "eos_token_ids", "decoder_start_token_id")
    + ("forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "remove_invalid_values")
    + ("exponential_decay_length_penalty", "output_scores", "return_dict_in_generate", "prefix", "task_specific_params")
    + ("tie_encoder_decoder", "cross_attention_hidden_size")
)


NOT_HEADS = frozenset(("pooler", "mask_embed", "contacts"))  # the parts of a checkpoint that are no heads
Chosen = TypeVar("Chosen")


class ConfigReader:
    """A Hugging Face configuration that keeps count of what was read of it.

    Args:
        values: the checkpoint's configuration, complete with its class's defaults.
        defaults: those defaults.
        where: the file or model that it comes from, for messages.
    """

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> None:
        self._values = values
        self._defaults = defaults
        self._where = where
        self._seen: set[str] = set(HARMLESS | LEFT_OVER)

    def read(self, key: str, default: Any = ...) -> Any:
        """A value that the family understands; a whole number as a float where the class has a float by default.

        Args:
            default: of a key that may be missing.

        Raises:
            ConfigError: for a key that may not, and for a value of another type than the class has by default.
        """
        self._seen.add(key)
        if key not in self._values and default is ...:
            raise ConfigError(f"{self._where} lacks {key}")
        value = frozen(self._values.get(key, default))
        usual = self._defaults.get(key)
        if type(usual) in (bool, int, float, str) and not (value is None and key.endswith("_token_id")):
            check_value(f"{self._where}: {key}", value, type(usual))
        return float(value) if is_whole(value) and isinstance(usual, float) else value

    def require(self, **expected: Any) -> None:
        """Values that nothing else is implemented for.

        Raises:
            ConfigError: for another value.
        """
        for key, value in expected.items():
            self._seen.add(key)
            if self._values.get(key, value) != value:
                raise self.refusal(key, repr(value))

    def refusal(self, key: str, known: str) -> ConfigError:
        """What to raise for a value that is not implemented, with what is."""
        return ConfigError(f"{self._where}: {key}={self._values[key]!r} is not implemented; only {known} is")

    def choose(self, key: str, choices: Mapping[str, Chosen]) -> Chosen:
        """What one of several values stands for.

        Raises:
            ConfigError: for a value that stands for nothing.
        """
        value = self.read(key)
        if value not in choices:
            raise ConfigError(f"{self._where}: {key}={value!r} is not implemented; {', '.join(map(repr, choices))} are")
        return choices[value]

    def token(self, key: str, reason: str) -> int:
        """The id of a special token.

        Raises:
            ConfigError: for none, with the reason why there must be one.
        """
        token = self.read(key)
        if not is_whole(token):
            raise ConfigError(f"{self._where}: {key} is {token!r}, and {reason}: add the id")
        return int(token)

    def theta(self, rotary: Any) -> float:
        """The base of a rotary embedding's frequencies, from its ``rope_parameters``, where nothing scales these.

        Raises:
            ConfigError: for scaled frequencies.
        """
        if not isinstance(rotary, Mapping) or not {"rope_theta", "rope_type"} <= rotary.keys():
            raise ConfigError(f"{self._where}: rope_parameters is {rotary!r}; it must hold a rope_type and a rope_theta")
        if rotary["rope_type"] != "default":
            raise ConfigError(f"{self._where}: rope_type={rotary['rope_type']!r} is not implemented; only 'default' is")
        others = sorted(rotary.keys() - {"rope_theta", "rope_type", "type"})
        if others:
            raise ConfigError(f"{self._where}: {', '.join(others)} in rope_parameters is not implemented; leave it out")
        theta = frozen(rotary["rope_theta"])
        check_value(f"{self._where}: rope_theta", theta, Positive)
        return float(theta)

    def ignore(self, *keys: str) -> None:
        """Keys that do not change what the encoder computes."""
        self._seen.update(keys)

    def width_and_heads(self, width: str = "hidden_size", heads: str = "num_attention_heads") -> tuple[int, int]:
        """The width of the stream and the number of heads, of which the first is a multiple.

        Args:
            width, heads: their keys.
        """
        d_model, n_heads = self.read(width), self.read(heads)
        if n_heads < 1 or d_model % n_heads:
            raise ConfigError(f"{width}={d_model} is not a multiple of {heads}={n_heads}")
        return d_model, n_heads

    def labels(self) -> tuple[str, ...]:
        """The class names, in the order of their ids.

        Raises:
            ConfigError: for ids with gaps, and for names that are none.
        """
        named = self.read("id2label")
        if not isinstance(named, Mapping) or not all(str(key).isdecimal() for key in named):
            raise ConfigError(f"{self._where}: id2label is {named!r}; it must give a name to each id")
        id2label = {int(key): label for key, label in named.items()}
        for label in id2label.values():
            check_value(f"{self._where}: a name in id2label", label, str | int | float)
        if sorted(id2label) != list(range(len(id2label))):
            raise ConfigError(f"{self._where}: id2label has ids {sorted(id2label)}; they must run from 0 without gaps")
        return tuple(str(id2label[key]) for key in range(len(id2label)))

    def finish(self) -> None:
        """Refuse what was neither read, required nor ignored, unless it is at its default, or empty and so asks for nothing.

        Raises:
            ConfigError: with the first such key.
        """
        self.require(pruned_heads={})
        for key, value in self._values.items():
            at_default = key in self._defaults and self._defaults[key] == value
            asks_nothing = key not in self._defaults and value in (None, {}, [])
            if key not in self._seen and not at_default and not asks_nothing:
                raise ConfigError(
                    f"{self._where}: {key}={value!r} is not understood. If it does not change the forward pass, remove it from "
                    "the configuration; if it does, this model is not supported"
                )


@dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
        name: what people call it.
        model_type: its ``model_type`` in Hugging Face configurations, and its key in the registry.
        classes: its Hugging Face classes, each with the tasks of its heads (the first is the default). The one without a
            task is the base model (the first of them), saved without the base prefix.
        base_prefix: what stands before the encoder's keys in checkpoints of classes with a head.
        encoder_rows: the table of embeddings and blocks.
        part_rows: the table of each part that a checkpoint may lack: of each task, of the pooler (``"pooler"``), of the
            vector that stands for masked frames (``"mask_embed"``), and of what predicts contacts (``"contacts"``).
        ignored: patterns of keys that hold nothing needed.
        kept: patterns of keys of parts that the class has and the model does not run; they are kept for the way back.
        read_config: reads a configuration, given the class and the parts that the weights hold.
        write_config: the Hugging Face configuration values of an EncoderConfig.
        hf_arguments: further constructor arguments of a Hugging Face class for a configuration.
        layer_norm, positions: for the table of supported models.
        modality: what it reads.
        pooled: the tasks whose heads read the pooler.
        old_names: what keys of the configuration are called now, by what they were called before transformers had the family.
        old_classes: what classes are called now, by what they were called then.
        own_code: its checkpoints came with code of their own before transformers had the family; that computes the same.
        bare: the tasks whose heads may have no tensor of their own in a checkpoint with tied embeddings.
        layer_key: what stands for ``{l}`` in the checkpoint's key of a layer with parameters of its own.
    """

    name: str
    model_type: str
    classes: Mapping[str, tuple[str, ...]]
    base_prefix: str
    encoder_rows: tuple[Row, ...]
    part_rows: Mapping[str, tuple[Row, ...]]
    ignored: tuple[str, ...]
    read_config: Callable[[ConfigReader, str, frozenset[str]], EncoderConfig]
    write_config: Callable[[EncoderConfig], dict[str, Any]]
    hf_arguments: Callable[[EncoderConfig], dict[str, Any]]
    layer_norm: str
    positions: str
    modality: Literal["text", "audio"] = "text"
    kept: tuple[str, ...] = ()
    pooled: frozenset[str] = frozenset()
    old_names: Mapping[str, str] = field(default_factory=dict)
    old_classes: Mapping[str, str] = field(default_factory=dict)
    own_code: bool = False
    bare: frozenset[str] = frozenset()
    layer_key: Callable[[EncoderConfig, int], str] = lambda cfg, layer: str(layer)

    @property
    def base_class(self) -> str:
        return next(name for name, tasks in self.classes.items() if not tasks)

    def renamed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration's values under the names of today, which stand where a key has both."""
        before = {self.old_names[key]: value for key, value in values.items() if key in self.old_names}
        return before | {key: value for key, value in values.items() if key not in self.old_names}

    def rows_of(self, cfg: EncoderConfig) -> list[Row]:
        """The table of a configuration, expanded over its layers and convolutions."""
        chosen = (*self.encoder_rows, *(row for part in parts_of(cfg) for row in self.part_rows[part]))
        layers = {layer: self.layer_key(cfg, layer) for layer in sorted(set(cfg.owners))}
        return expand(chosen, layers, 0 if cfg.frontend is None else len(cfg.frontend.channels))

    def n_known(self, names: Iterable[str] | Mapping[str, object]) -> int:
        """How many of the encoder's rows, of each layer's the first layer's, a checkpoint holds."""
        rows = expand(self.encoder_rows, {0: "0"}, n_convs=1)
        return sum(find(row, names, self.base_prefix) is not None for row in rows)

    def parts_in(self, names: Iterable[str] | Mapping[str, object]) -> frozenset[str]:
        """The parts of which a checkpoint holds any tensor."""
        return frozenset(
            part for part, rows in self.part_rows.items() if any(find(row, names, self.base_prefix) for row in rows)
        )

    def class_for(self, parts: frozenset[str], where: str) -> str:
        """The class of a checkpoint whose configuration names none, from the heads that it holds.

        Raises:
            UnknownArchitectureError: if several classes could be meant.
        """
        tasks = parts - NOT_HEADS
        if not tasks:
            return self.base_class
        fitting = [name for name, wanted in self.classes.items() if frozenset(wanted) == tasks]
        if len(fitting) != 1:
            raise UnknownArchitectureError(
                f"{where} names no architectures, and its weights fit several classes; add one of {', '.join(self.classes)}"
            )
        return fitting[0]


def label_values(labels: tuple[str, ...]) -> dict[str, Any]:
    """The Hugging Face configuration's values for class names."""
    return {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}


def parts_of(cfg: EncoderConfig) -> list[str]:
    """The keys of a configuration's parts in a family's tables."""
    pooler = [] if cfg.pooler is None else ["pooler"]
    masked = ["mask_embed"] if isinstance(cfg.embed, AudioEmbedPart) and cfg.embed.masks else []
    contacts = [] if cfg.contacts is None else ["contacts"]
    return [*pooler, *masked, *contacts, *(head.task for head in cfg.heads)]
