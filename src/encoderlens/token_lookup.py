"""TokenLookup: from strings to token ids and back, and to directions of the residual stream."""

from abc import abstractmethod
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from encoderlens.errors import InputError
from encoderlens.given import Whole, as_indices, is_whole, plain
from encoderlens.names import check_word
from encoderlens.pretrained_encoder import PretrainedEncoder
from encoderlens.text_input import require_tokenizer


class TokenLookup(PretrainedEncoder):
    """What of a text encoder looks tokens up."""

    @abstractmethod
    def to_tokens(self, input: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, token types and mask [batch pos] of a text."""

    @property
    @abstractmethod
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """The unembedding."""

    def to_string(self, tokens: Any) -> Any:
        """The text of token ids: one string for [pos] or a single id, a list of strings for [batch pos].

        Raises:
            TokenizerMissingError: without a tokenizer.
            InputError: for anything but token ids of this model.
        """
        tokenizer = require_tokenizer(self.tokenizer, "to_string")
        ids = self._ids(tokens)
        if ids.ndim == 2:
            return [tokenizer.decode(row) for row in ids.tolist()]
        return tokenizer.decode(torch.atleast_1d(ids).tolist())

    def to_single_token(self, string: str) -> int:
        """The id of a string that is one token, special tokens aside: a piece of the vocabulary as it is written there
        (``"##ing"``, ``"[MASK]"``), or a text of one token.

        Raises:
            TokenizerMissingError: without a tokenizer.
            InputError: for a string of several tokens, or of none.
        """
        tokenizer = require_tokenizer(self.tokenizer, "to_single_token")
        if not isinstance(string, str):
            raise InputError(f"to_single_token takes a string, not {type(string).__name__}")
        vocabulary = tokenizer.get_vocab()
        if string in vocabulary:
            return vocabulary[string]
        ids = tokenizer(string, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            pieces = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(ids))) or "none"
            raise InputError(f"{string!r} is {len(ids)} tokens ({pieces}), not one")
        return ids[0]

    def to_single_str_token(self, int_token: Whole) -> str:
        """The string of one token id.

        Raises:
            TokenizerMissingError: without a tokenizer.
            InputError: for anything but a token id of this model.
        """
        tokenizer = require_tokenizer(self.tokenizer, "to_single_str_token")
        ids = self._ids(int_token)
        if ids.ndim:
            raise InputError(f"to_single_str_token takes one id, not a tensor of shape {list(ids.shape)}")
        return tokenizer.convert_ids_to_tokens(int(ids))

    def get_token_position(
        self,
        single_token: str | Whole,
        input: Any,
        mode: Literal["first", "last"] = "first",
    ) -> int:
        """Where a token stands in a text, or in token ids [pos] or [1 pos], counted with the special tokens.

        Args:
            single_token: a string that is one token, or a token id.
            input: the text or the ids.
            mode: which one, if it stands there several times.

        Raises:
            InputError: if it does not stand there, or for several texts.
        """
        check_word("mode", mode, ("first", "last"))
        is_ids = isinstance(input, Tensor | np.ndarray)
        tokens = self._ids(input) if is_ids else self.to_tokens(input)[0]
        if tokens.ndim == 2 and len(tokens) != 1:
            raise InputError(f"get_token_position takes one text, not {len(tokens)}")
        wanted = self.to_single_token(single_token) if isinstance(single_token, str) else single_token
        places = (tokens.flatten() == int(self._ids(wanted))).nonzero().flatten().tolist()
        if not places:
            raise InputError(f"the token {single_token!r} does not stand in the input")
        return places[0] if mode == "first" else places[-1]

    def tokens_to_residual_directions(self, tokens: Any) -> Float[Tensor, "*tokens d_model"]:
        """The columns of the unembedding for some tokens: what ``cache.logit_attrs`` would project on, if the masked-LM head
        had no transform and norm in front of the unembedding. On BERT-like heads, prefer ``logit_attrs``, which goes through
        both.

        Args:
            tokens: a string that is one token, a list of these, a token id, or ids of any shape.

        Raises:
            TaskError: for a model without a masked-LM head.
        """
        if isinstance(tokens, str):
            return self.W_U[:, self.to_single_token(tokens)]
        if isinstance(tokens, list) and all(isinstance(token, str) for token in tokens):
            ids = torch.tensor([self.to_single_token(token) for token in tokens])
        else:
            ids = self._ids(tokens)
        return self.W_U.T[ids.to(self.W_U.device)]

    def _ids(self, tokens: Any) -> Tensor:
        wrong = "token ids are a whole number, or an integer tensor, array or list"
        ids = torch.tensor(int(tokens)) if is_whole(tokens) else as_indices(plain(tokens), "tokens", wrong)
        if ids.ndim > 2:
            raise InputError(f"token ids have shape {list(ids.shape)}; give one id, [pos] or [batch pos]")
        low, high = (int(value) for value in torch.aminmax(ids)) if ids.numel() else (0, 0)
        if low < 0 or high >= self.cfg.d_vocab:
            raise InputError(f"token ids run from {low} to {high}; this model's lie in 0 .. {self.cfg.d_vocab - 1}")
        return ids
