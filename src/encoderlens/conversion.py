"""Between checkpoints and models: configurations read, parameters filled, and the Hugging Face model given back."""

import logging
from collections.abc import Collection, Container, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from encoderlens import loading, state_dicts, weights
from encoderlens.components.effective import REMEDY, made_of_others, weight_made_of
from encoderlens.components.stand_ins import check_forward
from encoderlens.config import (
    AttentionPositionsPart,
    AudioClassificationPart,
    EncoderConfig,
    HeadPart,
    SequenceClassificationPart,
    TokenClassificationPart,
    fields_of,
)
from encoderlens.encoder import Encoder
from encoderlens.errors import ConfigError, WeightsError
from encoderlens.families import REGISTRY, transformer_lens
from encoderlens.families.family import Family
from encoderlens.given import described, dtype_name, fault_of, is_whole
from encoderlens.precision import same_numbers
from encoderlens.sentence_folder import sentence_rows
from encoderlens.tensor_source import MemorySource

log = logging.getLogger("encoderlens")

LABELLED = (SequenceClassificationPart, TokenClassificationPart, AudioClassificationPart)
CLASSIFIER = "classifier.dense.weight"  # the last layer of all of these
LENS_STATE = "the TransformerLens state dict"
EMBEDDING, UNEMBEDDING = "embed.embed.weight", "unembed.weight"  # one parameter where they are tied


def read_config(checkpoint: loading.Checkpoint, n_ctx: Any = None) -> EncoderConfig:
    """A checkpoint's configuration, with its positions cut to ``n_ctx`` if that is given; without a table of positions, it may
    also be longer than what the model was trained on.

    Raises:
        ConfigError: for what the family does not understand, other numbers of classes than the classifier has, or more
            positions than there are.
    """
    encoder = _understood(checkpoint)
    heads = tuple(
        replace(head, score_fn=checkpoint.score_fn) if isinstance(head, SequenceClassificationPart) else head
        for head in encoder.heads
    )
    encoder = replace(encoder, model_name=checkpoint.name, sentence=checkpoint.sentence, heads=heads)
    for head in heads:
        _check_names(checkpoint, head)
    if n_ctx is None:
        return encoder
    unbounded = isinstance(encoder.positions, AttentionPositionsPart)  # no table that could be too short
    if not is_whole(n_ctx) or encoder.n_ctx is None or n_ctx < 1 or (n_ctx > encoder.n_ctx and not unbounded):
        raise ConfigError(f"n_ctx={n_ctx!r}; the checkpoint has {encoder.n_ctx} positions, of which n_ctx keeps the first")
    return replace(encoder, positions=replace(encoder.positions, n_ctx=int(n_ctx)))


def _understood(checkpoint: loading.Checkpoint) -> EncoderConfig:
    """What the family makes of the configuration; errors of its parts say where it is."""
    try:
        return checkpoint.family.read_config(checkpoint.reader(), checkpoint.hf_class, checkpoint.parts)
    except ConfigError as error:
        if str(error).startswith(checkpoint.where):
            raise
        raise ConfigError(f"{checkpoint.where}: {error}") from error


def _check_names(checkpoint: loading.Checkpoint, head: HeadPart) -> None:
    """Refuse a classifier that has more classes, or fewer, than the configuration has names for."""
    if not isinstance(head, LABELLED):
        return
    row = next(row for row in checkpoint.family.part_rows[head.task] if row.target == CLASSIFIER)
    piece = weights.find(row, checkpoint.source.tensors, checkpoint.family.base_prefix)
    if piece is None:
        return
    stored = checkpoint.source.tensors[piece.name]
    if stored.shape[:1] != (len(head.labels),):
        raise ConfigError(
            f"{checkpoint.where}: id2label names {len(head.labels)} classes, and {piece.name} of {stored.origin} has shape "
            f"{list(stored.shape)}, a row for each class: give each a name in id2label"
        )


def fill(model: Encoder, checkpoint: loading.Checkpoint, crop: bool = False) -> None:
    """Fill a model's parameters from its checkpoint, and set its task.

    Args:
        crop: the model has fewer positions than the checkpoint, as ``n_ctx`` asks.

    Raises:
        WeightsError: see ``weights.apply``.
    """
    encoder, family = model.cfg.encoder, checkpoint.family
    own = [] if encoder.sentence is None else sentence_rows(encoder.sentence)
    try:
        model.load_report = weights.apply(
            [*family.rows_of(encoder), *own],
            checkpoint.source,
            model,
            sizes=_axis_sizes(encoder),
            base_prefix=family.base_prefix,
            ignored=(*family.ignored, *checkpoint.dropped),
            kept=family.kept,
            tied=encoder.tie_word_embeddings,
            leave=checkpoint.leave,
            crop=crop,
        )
    except WeightsError as error:
        raise WeightsError(f"{error}{loading.whose(checkpoint.family, checkpoint.source, checkpoint.where)}") from error
    if model.load_report.left:
        log.warning("%s: left out, as task='encoder' asks: %s", checkpoint.where, ", ".join(model.load_report.left))
    model.task = checkpoint.task
    model.hf_config = checkpoint.config


def fill_from_transformer_lens(model: Encoder, state_dict: dict[str, Tensor]) -> None:
    """Fill a model's parameters from a TransformerLens state dict.

    Raises:
        WeightsError: see ``weights.apply``.
    """
    encoder = model.cfg.encoder
    source = MemorySource(state_dict, LENS_STATE)
    model.load_report = weights.apply(
        _lens_rows(encoder), source, model, sizes=_axis_sizes(encoder), ignored=transformer_lens.IGNORED
    )


def lens_state(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A TransformerLens state dict without the names of wrappers.

    Raises:
        WeightsError: for two names of one tensor.
    """
    return {name: state_dict[stored] for name, stored in state_dicts.without_wrappers(state_dict, LENS_STATE).items()}


def transformer_lens_fields(cfg: Any, state_dict: dict[str, Tensor]) -> dict[str, Any]:
    """The fields of a TransformerLens configuration; where it is silent, its eps, and what the state dict says: which heads
    there are, and whether there is a pooler. Only a dictionary says whether the embeddings are tied; a configuration object
    always has that field, and its class never read it.

    Raises:
        ConfigError: for what is no configuration.
    """
    embed, unembed = state_dict.get("embed.embed.W_E"), state_dict.get("unembed.W_U")
    tied = embed is not None and unembed is not None and same_numbers(embed, unembed.mT)
    heads, pooler = transformer_lens.parts_in(state_dict)
    known = {"eps": transformer_lens.EPS, "heads": heads, "pooler": pooler}
    known["tie_word_embeddings"] = tied
    given = {name: value for name, value in fields_of(cfg).items() if value is not None}
    if not isinstance(cfg, Mapping):
        given.pop("tie_word_embeddings", None)
    return known | given


def own_state(model: Encoder, state_dict: Any) -> dict[str, Any]:
    """A state dict under a model's own names: without those of wrappers, TransformerLens' tensors under our names and in our
    layout, and what modules share under each of its names.

    Raises:
        WeightsError: for what is no state dict, or has no name of this model; for tensors without
            numbers; for several tensors in the place of one, and for tensors of TransformerLens that are
            misshapen, or whose place is made of others.
    """
    own = model.state_dict().keys()
    _check_state(state_dict, own)
    names = state_dicts.without_wrappers(state_dict, "the state dict", known=own)
    state = {name: state_dict[stored] for name, stored in names.items()}
    foreign = {name: value for name, value in state.items() if name not in own and isinstance(value, Tensor)}
    encoder, source = model.cfg.encoder, MemorySource(foreign, LENS_STATE)
    found = weights.translated(_lens_rows(encoder), source, model, _axis_sizes(encoder))
    if found:
        state = {name: value for name, value in state.items() if not weights.matches(name, transformer_lens.IGNORED)}
    for target, (key, tensor) in found.items():
        if target not in own:
            raise WeightsError(f"{key} cannot be loaded: {target} is parametrised or pruned; {REMEDY}")
        if target in state:
            raise WeightsError(f"the state dict holds both {target} and {key}, which are one tensor; leave one of them out")
        state[target] = tensor
        del state[key]
    _check_names_of(model, state, own)
    return state_dicts.completed(state, state_dicts.shared_names(model))


def _check_state(state_dict: Any, own: Container[str]) -> None:
    """Refuse what is no mapping from names to tensors with numbers.

    Raises:
        WeightsError: with what it is.
    """
    if not isinstance(state_dict, Mapping) or not all(isinstance(name, str) for name in state_dict):
        raise WeightsError(
            f"load_state_dict takes a dictionary of names and tensors, as state_dict() gives, not {described(state_dict)}"
            f"{' with other keys than names' if isinstance(state_dict, Mapping) else ''}"
        )
    for name, value in state_dict.items():
        if isinstance(value, Tensor) and fault_of(value):
            raise WeightsError(f"the state dict: {name} {fault_of(value)}")
        if name in own and not isinstance(value, Tensor):
            raise WeightsError(f"the state dict: {name} is {described(value)}, not a tensor")


def _check_names_of(model: Encoder, state: Mapping[str, Any], own: Collection[str]) -> None:
    """Refuse names of the same weights that load_state_dict does not read, which strict=False would pass over.

    Raises:
        WeightsError: with how they are loaded.
    """
    encoder, left = model.cfg.encoder, [name for name in state if name not in own]
    family, loads = REGISTRY[encoder.family], f"{type(model).__name__}.from_"
    hugging_face = {piece.name for row in family.rows_of(encoder) for piece in row.spellings}
    hugging_face |= {name.removeprefix(family.base_prefix) for name in hugging_face}
    theirs = [name for name in left if name in hugging_face]
    if len(theirs) > len(state) - len(left):
        raise WeightsError(
            f"{weights.few(theirs)} are names of Hugging Face: load them into a model of transformers, and that with "
            f"{loads}pretrained(hf_model=…)"
        )
    known = {*own, *(row.source for row in _lens_rows(encoder))}
    prefixed = [name for name in left if name.partition(".")[2] in known]
    if prefixed:
        raise WeightsError(
            f"{weights.few(prefixed)} are names of this model's weights behind {prefixed[0].partition('.')[0]!r}: take it off "
            f"(name.partition('.')[2]). {loads}transformer_lens_state_dict makes a new model of TransformerLens' state dict"
        )
    if state and len(left) == len(state):
        raise WeightsError(f"the state dict has no name of this model: it has {weights.few(left)}")


def hf_base_model(model: Encoder) -> Any:
    """The base model of the Hugging Face family, of which every parameter is the model's own.

    Raises:
        WeightsError: for weights that are made of others, and so are no parameters.
    """
    import transformers

    encoder, family = _encoder_now(model), REGISTRY[model.cfg.family]
    config = _hf_config(model, encoder)
    parameters = weights.tensors_of(model)
    rows = [row for row in weights.present(family.rows_of(encoder), model) if row.source.startswith(family.base_prefix)]
    _check_stored(model, [row.target for row in rows])
    own = {row.source.removeprefix(family.base_prefix): parameters[row.target] for row in rows}
    own |= {name.removeprefix(family.base_prefix): tensor for name, tensor in model.load_report.spare.items()}
    with torch.device("meta"):
        hf_model = getattr(transformers, family.base_class)(config)
    names = hf_model.state_dict()
    for name in names:
        if name not in own:  # the vector for masked frames, or a counter of batches
            own[name] = torch.zeros(names[name].shape, dtype=names[name].dtype, device=model.cfg.device)
    frozen = [tensor for tensor in own.values() if not tensor.requires_grad]
    hf_model.load_state_dict({name: own[name] for name in names}, assign=True)
    for tensor in frozen:  # assigning has thawed them
        tensor.requires_grad_(False)
    return hf_model.eval()


def to_hf(model: Encoder) -> Any:
    """See ``PretrainedEncoder.to_hf``."""
    import transformers

    encoder, family = _encoder_now(model), REGISTRY[model.cfg.family]
    config = _hf_config(model, encoder)
    hf_class = getattr(transformers, encoder.original_architecture)
    hf_model = hf_class(config, **family.hf_arguments(encoder)).to(model.cfg.dtype)
    tensors = weights.invert(family.rows_of(encoder), model, _axis_sizes(encoder)) | dict(model.load_report.spare)
    if encoder.original_architecture == family.base_class:
        tensors = {name.removeprefix(family.base_prefix): tensor for name, tensor in tensors.items()}
    names = hf_model.state_dict()
    if encoder is not model.cfg.encoder:
        _check_untied(family, encoder, names)
    placed = {tensor.data_ptr() for name, tensor in tensors.items() if name in names}  # some have two names, for two classes
    lacking = [name for name, tensor in tensors.items() if name not in names and tensor.data_ptr() not in placed]
    if lacking:
        log.warning("%s has no place for %s; they are not in the result", hf_class.__name__, ", ".join(lacking))
    absent = [name for name in names if name not in tensors]
    if absent:
        log.warning("%s has %s, which this model lacks; it is initialised at random", hf_class.__name__, ", ".join(absent))
    hf_model.load_state_dict(names | {name: tensor for name, tensor in tensors.items() if name in names})
    return hf_model.to(model.cfg.device).eval()


def _encoder_now(model: Encoder) -> EncoderConfig:
    """A model's configuration, with the unembedding apart from the embedding where it has become so.

    Raises:
        WeightsError: for a weight that the configuration calls for and that is gone, and for weights that it calls one and that
            differ.
    """
    if model.cfg.device.type == "meta":
        raise WeightsError(
            "the model is on the meta device, which holds no numbers to give back: load weights into one on another device"
        )
    encoder, tensors = model.cfg.encoder, weights.tensors_of(model)
    gone = [name for group in model.weight_names for name in group if name not in tensors]
    if gone:
        raise WeightsError(
            f"the model has no {weights.few(gone)} any more: put a layer of the kind that it was made with back in place"
        )
    _check_layers(model)
    for group in model.weight_names:
        unequal = state_dicts.first_unequal(group, tensors)
        if unequal is None:
            continue
        names = " and ".join(unequal)
        if group != (EMBEDDING, UNEMBEDDING):
            raise WeightsError(
                f"{names} are one parameter in {encoder.original_architecture}, and differ here: make them one again, or give "
                "them the same values"
            )
        log.warning("%s differ, and are given back untied (tie_word_embeddings=False)", names)
        encoder = encoder.untied()
    return encoder


def _check_layers(model: Encoder) -> None:
    """Refuse what stands in for a layer and computes with more than the tensors that a checkpoint has for it.

    Raises:
        WeightsError: for a module with a forward function of its own, or parameters of its own.
    """
    known = {name for group in model.weight_names for name in group}
    owners = {name.rpartition(".")[0] for name in known} - {""}
    running = {path for owner in owners for path in _ancestors(owner)}
    for name, module in model.named_modules(remove_duplicate=False):
        if state_dicts.unwrapped(name) in running and not state_dicts.is_wrapper(module):
            check_forward(module, name)
    for name in map(state_dicts.unwrapped, weights.tensors_of(model)):
        if not {name, weight_made_of(name)} & known and owners.intersection(_ancestors(name)):
            raise WeightsError(
                f"{name} is no weight of this family, and a checkpoint has no place for it: merge it into the layer's weight, "
                "or make it a parametrization (torch.nn.utils.parametrize.register_parametrization)"
            )


def _ancestors(name: str) -> list[str]:
    """The name, and those of everything around it."""
    parts = name.split(".")
    return [".".join(parts[: index + 1]) for index in range(len(parts))]


def _check_untied(family: Family, encoder: EncoderConfig, names: Mapping[str, Tensor]) -> None:
    """Refuse a Hugging Face class with a masked-LM head that has no unembedding of its own."""
    rows = [row for row in family.part_rows["masked_lm"] if row.source in names]
    if rows and UNEMBEDDING not in [row.target for row in rows]:
        raise WeightsError(
            f"{EMBEDDING} and {UNEMBEDDING} differ, and this {encoder.original_architecture} has one tensor for both: give "
            "them the same values"
        )


def _check_stored(model: Encoder, names: list[str]) -> None:
    computed = [name for name in map(state_dicts.unwrapped, made_of_others(model)) if name in names]
    if computed:
        raise WeightsError(
            f"{weights.few(computed)}: parametrised or pruned, and so no parameter that two models could share. Take to_hf(), "
            f"which is a copy, or {REMEDY}"
        )


def _lens_rows(encoder: EncoderConfig) -> list[weights.Row]:
    n_convs = 0 if encoder.frontend is None else len(encoder.frontend.channels)
    return transformer_lens.rows(encoder.modality, encoder.n_layers, n_convs)


def _hf_config(model: Encoder, encoder: EncoderConfig) -> Any:
    """The Hugging Face configuration: as it was loaded, with what the model is now."""
    family = REGISTRY[encoder.family]
    values = model.hf_config | family.write_config(encoder) | {"architectures": [encoder.original_architecture]}
    values["dtype"] = dtype_name(model.cfg.dtype)
    return loading.hf_config(family.model_type, values)


def _axis_sizes(encoder: EncoderConfig) -> dict[str, int]:
    heads = {"head": encoder.n_heads, "kv_head": encoder.n_kv_heads, "d_head": encoder.d_head}
    return heads if encoder.n_ctx is None else heads | {"pos": encoder.n_ctx}
