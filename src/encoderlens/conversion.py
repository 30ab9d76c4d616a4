"""Between checkpoints and models: configurations read, parameters filled, and the Hugging Face model given back."""

import logging
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from encoderlens import loading, weights
from encoderlens.config import AttentionPositionsPart, EncoderConfig, SequenceClassificationPart
from encoderlens.encoder import Encoder
from encoderlens.errors import ConfigError, WeightsError
from encoderlens.families import REGISTRY, transformer_lens
from encoderlens.given import is_whole
from encoderlens.sentence_folder import sentence_rows
from encoderlens.tensor_source import MemorySource

log = logging.getLogger("encoderlens")


def read_config(checkpoint: loading.Checkpoint, n_ctx: Any = None) -> EncoderConfig:
    """A checkpoint's configuration, with its positions cut to ``n_ctx`` if that is given; without a table of positions, it may
    also be longer than what the model was trained on.

    Raises:
        ConfigError: for what the family does not understand, or more positions than there are.
    """
    encoder = checkpoint.family.read_config(checkpoint.reader(), checkpoint.hf_class, checkpoint.parts)
    heads = tuple(
        replace(head, score_fn=checkpoint.score_fn) if isinstance(head, SequenceClassificationPart) else head
        for head in encoder.heads
    )
    encoder = replace(encoder, model_name=checkpoint.name, sentence=checkpoint.sentence, heads=heads)
    if n_ctx is None:
        return encoder
    unbounded = isinstance(encoder.positions, AttentionPositionsPart)  # no table that could be too short
    if not is_whole(n_ctx) or encoder.n_ctx is None or n_ctx < 1 or (n_ctx > encoder.n_ctx and not unbounded):
        raise ConfigError(f"n_ctx={n_ctx!r}; the checkpoint has {encoder.n_ctx} positions, of which n_ctx keeps the first")
    return replace(encoder, positions=replace(encoder.positions, n_ctx=int(n_ctx)))


def fill(model: Encoder, checkpoint: loading.Checkpoint) -> None:
    """Fill a model's parameters from its checkpoint, and set its task.

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
    source = MemorySource(state_dict, "the TransformerLens state dict")
    n_convs = 0 if encoder.frontend is None else len(encoder.frontend.channels)
    rows = transformer_lens.rows(encoder.modality, encoder.n_layers, n_convs)
    model.load_report = weights.apply(rows, source, model, sizes=_axis_sizes(encoder), ignored=transformer_lens.IGNORED)


def transformer_lens_defaults(state_dict: dict[str, Tensor]) -> dict[str, Any]:
    """What a TransformerLens configuration means where it is silent: its eps, and embeddings tied if they are equal."""
    embed, unembed = state_dict.get("embed.embed.W_E"), state_dict.get("unembed.W_U")
    tied = embed is not None and unembed is not None and torch.equal(embed, unembed.mT)
    return {"eps": transformer_lens.EPS, "tie_word_embeddings": tied}


def hf_base_model(model: Encoder) -> Any:
    """The base model of the Hugging Face family, of which every parameter is the model's own."""
    import transformers

    encoder, family = model.cfg.encoder, REGISTRY[model.cfg.family]
    config = _hf_config(model)
    parameters = weights.tensors_of(model)
    rows = [row for row in weights.present(family.rows_of(encoder), model) if row.source.startswith(family.base_prefix)]
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

    encoder, family = model.cfg.encoder, REGISTRY[model.cfg.family]
    config = _hf_config(model)
    hf_class = getattr(transformers, encoder.original_architecture)
    hf_model = hf_class(config, **family.hf_arguments(encoder)).to(model.cfg.dtype)
    tensors = weights.invert(family.rows_of(encoder), model, _axis_sizes(encoder)) | dict(model.load_report.spare)
    if encoder.original_architecture == family.base_class:
        tensors = {name.removeprefix(family.base_prefix): tensor for name, tensor in tensors.items()}
    names = hf_model.state_dict()
    placed = {tensor.data_ptr() for name, tensor in tensors.items() if name in names}  # some have two names, for two classes
    lacking = [name for name, tensor in tensors.items() if name not in names and tensor.data_ptr() not in placed]
    if lacking:
        log.warning("%s has no place for %s; they are not in the result", hf_class.__name__, ", ".join(lacking))
    absent = [name for name in names if name not in tensors]
    if absent:
        log.warning("%s has %s, which this model lacks; it is initialised at random", hf_class.__name__, ", ".join(absent))
    hf_model.load_state_dict(names | {name: tensor for name, tensor in tensors.items() if name in names})
    return hf_model.to(model.cfg.device).eval()


def _hf_config(model: Encoder) -> Any:
    """The Hugging Face configuration: as it was loaded, with what the model is now."""
    encoder, family = model.cfg.encoder, REGISTRY[model.cfg.family]
    values = model.hf_config | family.write_config(encoder) | {"architectures": [encoder.original_architecture]}
    values["dtype"] = str(model.cfg.dtype).removeprefix("torch.")
    return loading.hf_config(family.model_type, values)


def _axis_sizes(encoder: EncoderConfig) -> dict[str, int]:
    return {"head": encoder.n_heads, "kv_head": encoder.n_kv_heads, "d_head": encoder.d_head}
