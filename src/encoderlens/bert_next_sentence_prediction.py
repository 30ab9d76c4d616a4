"""BertNextSentencePrediction: a model's next-sentence head, called like a model of its own."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jaxtyping import Int
from torch import Tensor

from encoderlens.encoder import ReturnType
from encoderlens.hooked_encoder import HookedEncoder
from encoderlens.hooked_root_module import Hooks
from encoderlens.text_input import check_pairs, text_arguments


class BertNextSentencePrediction:
    """Runs a HookedEncoder with its next-sentence head. A list of two strings is one pair here.

    Args:
        model: a HookedEncoder that carries a next-sentence head.

    Raises:
        TaskError: if it carries none.
    """

    def __init__(self, model: HookedEncoder) -> None:
        with model.use_task("next_sentence"):
            self.model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def forward(
        self,
        input: Any = None,
        return_type: ReturnType | None = "logits",
        token_type_ids: Any = None,
        one_zero_attention_mask: Any = None,
        *,
        input_ids: Any = None,
        attention_mask: Any = None,
        labels: Any = None,
    ) -> Any:
        """Logits [batch 2], a verdict (``return_type="predictions"``), the loss, or None: ``model.next_sentence``."""
        named = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        return self.model.next_sentence(_pair(input), return_type, token_type_ids, one_zero_attention_mask, **named)

    def to_tokens(
        self, input: Any, move_to_device: bool = True, truncate: bool = True
    ) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
        """Tokens, token types and mask [batch pos] of a pair, or of a list of pairs."""
        return self.model.to_tokens(_pair(input), move_to_device, truncate)

    def run_with_cache(
        self,
        input: Any = None,
        return_type: ReturnType | None = "logits",
        token_type_ids: Any = None,
        *args: Any,
        input_ids: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        """As ``HookedEncoder.run_with_cache``, with this head."""
        pair = _checked_pair(input, token_type_ids, input_ids)
        with self.model.use_task("next_sentence"):
            return self.model.run_with_cache(pair, return_type, token_type_ids, *args, **kwargs)

    def run_with_hooks(
        self,
        input: Any = None,
        return_type: ReturnType | None = "logits",
        token_type_ids: Any = None,
        *args: Any,
        input_ids: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As ``HookedEncoder.run_with_hooks``, with this head."""
        pair = _checked_pair(input, token_type_ids, input_ids)
        with self.model.use_task("next_sentence"):
            return self.model.run_with_hooks(pair, return_type, token_type_ids, *args, **kwargs)

    @contextmanager
    def hooks(self, fwd_hooks: Hooks = (), bwd_hooks: Hooks = (), **kwargs: Any) -> "Iterator[BertNextSentencePrediction]":
        """As ``HookedEncoder.hooks``."""
        with self.model.hooks(fwd_hooks, bwd_hooks, **kwargs):
            yield self


def _checked_pair(input: Any, token_type_ids: Any, input_ids: Any) -> Any:
    """Texts, token ids, or a tokenizer's dictionary, of pairs.

    Raises:
        InputError: for anything else.
    """
    given = text_arguments(_pair(input), token_type_ids, input_ids=input_ids)
    check_pairs(given.input, given.types)
    return input if isinstance(input, Mapping) else given.input


def _pair(input: Any) -> Any:
    two_strings = isinstance(input, list) and len(input) == 2 and all(isinstance(text, str) for text in input)
    return tuple(input) if two_strings else input
