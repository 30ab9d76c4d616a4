"""What is asked of a tokenizer, in one place: its calls change its state, so that threads take turns."""

import json
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

_LOCKS: WeakKeyDictionary[Any, Lock] = WeakKeyDictionary()
_MAKING = Lock()


def tokenized(tokenizer: Any, texts: list[Any], **options: Any) -> Any:
    """What a Hugging Face tokenizer makes of some texts, or pairs of texts.

    A fast tokenizer keeps padding and truncation as a state, which each call sets anew: another thread's would pad or cut these
    texts. Models with one tokenizer share its lock.
    """
    columns = [list(column) for column in zip(*texts, strict=True)] if isinstance(texts[0], tuple) else [texts]
    with _lock_of(tokenizer):
        return tokenizer(*columns, verbose=False, **options)


def pieces_of(tokenizer: Any, text: str) -> list[str]:
    """The tokens of a text as they are, without special ones."""
    with _lock_of(tokenizer):
        return tokenizer.tokenize(text)


def _lock_of(tokenizer: Any) -> Lock:
    with _MAKING:
        return _LOCKS.setdefault(tokenizer, Lock())


def special_ids(tokenizer: Any) -> set[int]:
    """Tokens that are no part of a text. The unknown token stands for one that is, unless it has another role too."""
    others = [token for role, token in tokenizer.special_tokens_map.items() if role != "unk_token"]
    return set(tokenizer.all_special_ids) - ({tokenizer.unk_token_id} - set(tokenizer.convert_tokens_to_ids(others)))


def same_tokenizer(one: Any, other: Any) -> bool:
    """Whether two Hugging Face tokenizers make the same tokens of any text, but for padding and cutting."""
    return one is other or _contents(one) == _contents(other)


def _contents(tokenizer: Any) -> Any:
    """All that a fast tokenizer's tokens depend on; of a slow one, its class and vocabulary."""
    if not tokenizer.is_fast:
        return type(tokenizer), tokenizer.get_vocab(), tokenizer.special_tokens_map
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    return {name: value for name, value in stored.items() if name not in ("padding", "truncation")}
