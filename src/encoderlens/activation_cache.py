"""ActivationCache: the activations of one run, by hook name or by short name and layer."""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor

from encoderlens.errors import HookNameError
from encoderlens.names import act_name, did_you_mean


class ActivationCache(Mapping[str, Tensor]):
    """A mapping from hook names to tensors.

    Keys are full names, short names with a layer (``cache["q", 0]``, ``cache["scale", 0, "ln1"]``, ``cache["q0"]``), and
    negative layers count from the last.

    Attributes:
        cache_dict: the tensors by full hook name; gradients under ``<name>_grad``.
        model: the model that ran.
        has_batch_dim: whether tensors still have their batch axis.
        tokens: the token ids of the run [batch pos], None for a run from a residual stream.
        mask: True at real positions [batch pos]; None when every position is real.
    """

    def __init__(
        self,
        cache_dict: dict[str, Tensor],
        model: Any,
        has_batch_dim: bool = True,
        tokens: Int[Tensor, "batch pos"] | None = None,
        mask: Bool[Tensor, "batch pos"] | None = None,
    ) -> None:
        self.cache_dict = cache_dict
        self.model = model
        self.has_batch_dim = has_batch_dim
        self.tokens = tokens
        self.mask = mask

    def full_name(self, key: Any) -> str:
        """The hook name that a key stands for."""
        if isinstance(key, str):
            return key if key in self.cache_dict else act_name(key)
        if not isinstance(key, tuple) or not key or not isinstance(key[0], str):
            raise HookNameError(f"a cache's key is a hook name, or a tuple (short name, layer), not {key!r}")
        name, *rest = key
        if rest and isinstance(rest[0], int) and rest[0] < 0:
            rest[0] += self.model.cfg.n_layers
        return act_name(name, *rest)

    def __getitem__(self, key: Any) -> Tensor:
        """The tensor of a key.

        Raises:
            HookNameError: for a name outside the grammar, or one that this cache does not hold.
        """
        name = self.full_name(key)
        if name not in self.cache_dict:
            raise HookNameError(f"the cache holds no {name!r}{did_you_mean(name, self.cache_dict)}")
        return self.cache_dict[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.cache_dict)

    def __len__(self) -> int:
        return len(self.cache_dict)

    def __repr__(self) -> str:
        return f"ActivationCache with {len(self)} activations: {', '.join(list(self)[:5])}{', …' if len(self) > 5 else ''}"
