"""PretrainedEncoder: making hooked encoders from configurations, checkpoints and Hugging Face models, and giving these back."""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from encoderlens import conversion, loading, state_dicts
from encoderlens.activation_cache import ActivationCache
from encoderlens.config_from_dict import ModelRequest
from encoderlens.devices import device_named
from encoderlens.encoder import Encoder
from encoderlens.errors import ConfigError, InputError
from encoderlens.hub import Hub
from encoderlens.precision import model_dtype
from encoderlens.run_state import Run
from encoderlens.sequence import Sequence
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
        wanted = place_of(request.device if device is None else device, move_to_device, empty=not init_weights)
        super().__init__(request.encoder, wanted, dtype_of(dtype, request.dtype))
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
        hub: Hub,
        task: str | None,
    ) -> loading.Checkpoint:
        """The checkpoint that ``from_pretrained`` was asked for."""
        if checkpoint_index is not None or checkpoint_value is not None:
            raise ConfigError(
                "checkpoint_index and checkpoint_value have no meaning for encoders: name a training step by revision="
            )
        name = None if model_name is None else str(model_name)
        return loading.open_checkpoint(name, hf_model=hf_model, hub=hub, task=task)

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
        """The activations of the run that has just ended, with the batch that it read."""
        run = cast(Run, self.run_state.last)
        sequence = cast(Sequence, run.sequence)

        def beside(tensor: Tensor | None) -> Tensor | None:
            if tensor is None:
                return None
            return pos_slice.apply(tensor if has_batch_dim else tensor[0], -1).clone()

        positions = None if pos_slice.selects_all else pos_slice.indices(sequence.pos)
        times = self.position_times(sequence.pos)
        if times is not None:
            times = torch.atleast_1d(pos_slice.apply(times))
        mask = beside(sequence.mask)
        return ActivationCache(cache, self, has_batch_dim, beside(run.tokens), mask, positions, times)

    def position_times(self, n_positions: int) -> Tensor | None:
        """The time of each position in seconds, of models that read waveforms."""
        return None

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As in ``torch.nn.Module``, and further:

        - a state dict of TransformerLens, or one that torch.compile or DataParallel has added to the names of, is recognised;
        - what modules share (tied embeddings, ALBERT's layers) stays one parameter, also with ``assign``, and may be there
          under one of its names only.

        Args:
            state_dict: tensors by name.
            strict: refuse names that are missing or left over.
            assign: take the tensors themselves, rather than their values.

        Raises:
            WeightsError: before anything is loaded, for what is no state dict; for names of Hugging Face, or
                with something in front, and where no name is this model's, also without ``strict``; for
                tensors without numbers, different tensors in the place of one, and TransformerLens'
                tensors that do not fit.
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


def place_of(device: Any, move_to_device: bool, empty: bool = False) -> torch.device:
    """Where a new model's parameters are: on the device that is asked for, or on the CPU if it shall not move.

    Args:
        empty: the parameters need not hold numbers, so that torch's "meta" device will do.

    Raises:
        DeviceError: for a device that is not there.
    """
    return device_named(device, empty=empty) if move_to_device else torch.device("cpu")


def dtype_of(*asked: Any) -> torch.dtype:
    """The first dtype that is given, float32 without one.

    Raises:
        ConfigError: for a dtype that no model computes in.
    """
    return model_dtype(next((dtype for dtype in asked if dtype is not None), torch.float32))
