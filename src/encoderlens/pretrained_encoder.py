"""PretrainedEncoder: making hooked encoders from configurations, checkpoints and Hugging Face models, and giving these back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encoderlens import conversion, loading, state_dicts
from encoderlens.activation_cache import ActivationCache
from encoderlens.config import EncoderConfig
from encoderlens.config_from_dict import ModelRequest
from encoderlens.encoder import Encoder
from encoderlens.errors import ConfigError, InputError
from encoderlens.slices import Slice


class PretrainedEncoder(Encoder):
    """What the hooked text and audio encoders share around a run: how they are made, cached and given back."""

    def __init__(
        self,
        request: ModelRequest,
        move_to_device: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        init_weights: bool,
    ) -> None:
        wanted = loading.device_named(device or request.device) if move_to_device else torch.device("cpu")
        super().__init__(request.encoder, wanted, _float_dtype(dtype or request.dtype))
        for flag, value in request.flags.items():
            setattr(self.cfg, flag, value)
        if init_weights:
            self.initialise(request.seed)

    @classmethod
    def _open(
        cls,
        model_name: str | Path | None,
        checkpoint_index: int | None,
        checkpoint_value: int | None,
        hf_model: Any,
        revision: str | None,
        task: str | None,
    ) -> loading.Checkpoint:
        """The checkpoint that ``from_pretrained`` was asked for."""
        if checkpoint_index is not None or checkpoint_value is not None:
            raise ConfigError(
                "checkpoint_index and checkpoint_value have no meaning for encoders: name a training step by revision="
            )
        name = None if model_name is None else str(model_name)
        return loading.open_checkpoint(name, hf_model=hf_model, revision=revision, task=task)

    def run_with_cache(self, *model_args: Any, pos_slice: Any = None, logits_at: Any = None, **kwargs: Any) -> tuple[Any, Any]:
        """As ``HookedRootModule.run_with_cache``; the cache is an ActivationCache unless ``return_cache_object`` is False.

        Raises:
            InputError: for ``pos_slice`` with ``logits_at``, which give the head's hook points positions of their own.
        """
        if pos_slice is not None and logits_at is not None:
            raise InputError("pos_slice and logits_at do not go together: the head would be sliced along the chosen positions")
        at = {} if logits_at is None else {"logits_at": logits_at}
        return super().run_with_cache(*model_args, pos_slice=pos_slice, **at, **kwargs)

    def cache_object(self, cache: dict[str, Tensor], has_batch_dim: bool, pos_slice: Slice) -> ActivationCache:
        tokens, sequence = self.run_state.tokens, self.run_state.sequence
        mask = None if sequence is None else sequence.mask
        tokens, mask = (
            None if beside is None else pos_slice.apply(beside if has_batch_dim else beside[0], -1) for beside in (tokens, mask)
        )
        positions = None if sequence is None or pos_slice.selects_all else pos_slice.indices(sequence.pos)
        times = None if sequence is None else self.position_times(sequence.pos)
        times = None if times is None else torch.atleast_1d(pos_slice.apply(times))
        return ActivationCache(cache, self, has_batch_dim, tokens, mask, positions, times)

    def position_times(self, n_positions: int) -> Tensor | None:
        """The time of each position in seconds, of models that read waveforms."""
        return None

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As in ``torch.nn.Module``, and further:

        - a state dict of TransformerLens, or one that torch.compile or DataParallel has added to the names of, is recognised;
        - what modules share (tied embeddings, ALBERT's layers) stays one parameter, also with ``assign``, and may be there
          under one of its names only.

        Args:
            state_dict: tensors by name.
            strict: refuse names that are missing or left over.
            assign: take the tensors themselves, rather than their values.

        Raises:
            WeightsError: before anything is loaded, for different tensors in the place of one, and for TransformerLens' tensors
                that do not fit.
            RuntimeError: torch's own, for names or shapes that do not fit.
        """
        shared = state_dicts.shared_names(self)
        loaded = super().load_state_dict(conversion.own_state(self, state_dict), strict, assign)
        if assign:
            state_dicts.join(self, shared)
            self.cfg.bind(self)
        return loaded

    def to_hf(self) -> Any:
        """The Hugging Face model of the class that was loaded, with this model's weights (a copy), dtype and device.

        Parametrised and pruned layers give the weights that they compute with.

        Weights for which that class has no place (the pooler of a BertForMaskedLM) are named in a log warning, and so are an
        embedding and an unembedding that have come to differ, which are not tied in the result.

        Raises:
            WeightsError: for weights that are gone, and for different ones where the configuration calls for one.
        """
        return conversion.to_hf(self)


def plain_request(cfg: Any) -> ModelRequest:
    """A request for a model of this configuration, everything else at its default.

    Raises:
        ConfigError: for anything but an EncoderConfig.
    """
    if not isinstance(cfg, EncoderConfig):
        raise ConfigError(
            f"cfg is an EncoderConfig or a dictionary, not {type(cfg).__name__}; from_pretrained loads a checkpoint"
        )
    return ModelRequest(cfg, None, torch.float32, None, None, {})


def _float_dtype(dtype: torch.dtype) -> torch.dtype:
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigError(f"dtype={dtype!r}; a model's dtype is torch.float32, float16, bfloat16 or float64")
    return dtype
