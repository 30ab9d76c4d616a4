"""ModelConfig: the configuration of a model that is there, with what it is now."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from encoderlens.config.encoder_config import EncoderConfig
from encoderlens.errors import ConfigError

_FACTS: dict[str, Callable[[nn.Module], Any]] = {
    "device": lambda model: next(model.parameters()).device,
    "dtype": lambda model: next(model.parameters()).dtype,
    "n_params": lambda model: sum(parameter.numel() for parameter in model.parameters()),
}


class ModelConfig:
    """``model.cfg``: an EncoderConfig's properties, the device and dtype of the parameters, and the ``use_*`` flags.

    The flags choose which on-demand hook points a names filter of None includes; they are all that can be set. It does not
    keep the model alive: when the model is gone, and in a copy, device, dtype and size are those that it had last.

    Attributes:
        encoder: the frozen EncoderConfig.
        use_attn_result: include ``attn.hook_result``.
        use_split_qkv_input: include ``hook_q_input``, ``hook_k_input``, ``hook_v_input``.
        use_hook_mlp_in: include ``hook_mlp_in``.
    """

    FLAGS = ("use_attn_result", "use_split_qkv_input", "use_hook_mlp_in")

    encoder: EncoderConfig
    use_attn_result: bool
    use_split_qkv_input: bool
    use_hook_mlp_in: bool

    def __init__(self, encoder: EncoderConfig, model: nn.Module) -> None:
        self.__dict__["encoder"] = encoder
        self.__dict__.update(dict.fromkeys(self.FLAGS, False))
        self.bind(model)

    def bind(self, model: nn.Module) -> None:
        """Read device, dtype and size from this model from now on, and note them for when it is gone."""
        self.__dict__.update(_model=weakref.ref(model), _last={fact: read(model) for fact, read in _FACTS.items()})

    @property
    def device(self) -> torch.device:
        return self._read("device")

    @property
    def dtype(self) -> torch.dtype:
        return self._read("dtype")

    @property
    def n_params(self) -> int:
        """Parameters, tied ones counted once."""
        return self._read("n_params")

    def _read(self, fact: str) -> Any:
        model = self.__dict__["_model"]()
        return self.__dict__["_last"][fact] if model is None else _FACTS[fact](model)

    def __getstate__(self) -> dict[str, Any]:  # a copy keeps what the model is now, and not the model with its weights
        return self.__dict__ | {"_model": _no_model, "_last": {fact: self._read(fact) for fact in _FACTS}}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "encoder" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["encoder"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.FLAGS:
            raise ConfigError(f"cfg.{name} is read-only; what can be set is {', '.join(self.FLAGS)}")
        if not isinstance(value, bool):
            raise ConfigError(f"cfg.{name} is True or False, not {value!r}")
        self.__dict__[name] = value

    def __repr__(self) -> str:
        flags = ", ".join(f"{flag}={getattr(self, flag)}" for flag in self.FLAGS)
        return f"ModelConfig({self.encoder!r}, device={self.device}, dtype={self.dtype}, {flags})"


def _no_model() -> None:
    """What stands for the reference to the model in a copy."""
