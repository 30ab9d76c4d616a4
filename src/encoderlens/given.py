"""What a caller gives: whole numbers, tensors and text, checked before anything reads them, and made one's own."""

from collections.abc import Collection, Mapping
from typing import Any, TypeGuard

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.parameter import is_lazy

from encoderlens.errors import EncoderLensError, InputError
from encoderlens.names import did_you_mean

Whole = int | np.integer


def is_whole(value: object) -> TypeGuard[int | np.integer]:
    """Whether a value is a whole number, of Python or of numpy. True and False are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def plain(value: Any) -> Any:
    """A tensor or an array as Python numbers, and what can be counted through as a list; anything else as it is."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.tolist()
    return [plain(entry) for entry in value] if isinstance(value, list | tuple | range) else value


def as_tensor(value: Any, what: str) -> Tensor:
    """A tensor, or an array of any strides, byte order and flags, as a tensor.

    Args:
        what: what it is, for messages.

    Raises:
        InputError: for anything else, for tensors whose numbers cannot be read one by one, and for arrays of what no tensor
            can hold.
    """
    if isinstance(value, Tensor):
        fault = fault_of(value)
        if fault:
            raise InputError(f"{what} {fault}")
        return value
    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
        raise InputError(f"{what} is {described(value)}; give a tensor or an array of numbers")
    try:
        return torch.from_numpy(np.array(value, value.dtype.newbyteorder("="), order="C"))
    except TypeError:
        raise InputError(f"{what} is {described(value)}; give one of a dtype that tensors have") from None


def fault_of(value: Tensor) -> str:
    """Why the numbers of a tensor cannot be read one by one, and the remedy; empty if they can."""
    if is_lazy(value):
        return "is not initialised: run the model once"
    if value.is_nested:
        return "is a nested tensor; give one padded to the longest, and a mask of what is real"
    if value.layout != torch.strided:
        return "is a sparse tensor; give a dense one: tensor.to_dense()"
    if value.is_quantized:
        return "is a quantised tensor; give plain numbers: tensor.dequantize()"
    if value.is_meta:
        return "is on the meta device, which holds no numbers; give a tensor that holds them"
    return ""


def as_rows(value: Any, what: str, padded: str) -> Any:
    """Lists of numbers, or of arrays, as one array; anything else as it is.

    Args:
        what: what it is, for messages.
        padded: the call that makes rows of one length.

    Raises:
        InputError: for rows of several lengths.
    """
    if not isinstance(value, list | tuple):
        return value
    try:
        return np.array(value)
    except ValueError:
        raise InputError(f"{what} has rows of several lengths; pad them: {padded}") from None


def as_integers(value: Any, what: str) -> Int[Tensor, "..."]:
    """Whole numbers of any dtype as an int64 tensor, which shares nothing with what was given.

    Raises:
        InputError: for anything but a tensor or an array of whole numbers, and for numbers beyond int64.
    """
    given = as_tensor(value, what)
    if not holds_integers(given):
        raise InputError(f"{what} holds whole numbers, not {dtype_name(given)}")
    whole = given.detach().to(torch.int64, copy=True)
    if given.dtype == torch.uint64 and bool((whole < 0).any()):
        raise InputError(f"{what} holds numbers beyond {torch.iinfo(torch.int64).max}; give numbers that an int64 holds")
    return whole


def as_indices(value: Any, what: str, wrong: str) -> Int[Tensor, "..."]:
    """As ``as_integers``, also of a whole number, and of lists of some.

    Args:
        wrong: the message for anything else.

    Raises:
        InputError: with this message; as ``as_integers`` for tensors that cannot be read.
    """
    given = value
    if not isinstance(given, Tensor | np.ndarray):
        try:
            given = torch.as_tensor(plain(given))
        except (TypeError, ValueError, RuntimeError):  # of words, of lists of several lengths, of numbers beyond int64
            raise InputError(wrong) from None
    given = as_tensor(given, what)
    if not holds_integers(given):
        raise InputError(wrong)
    return as_integers(given, what)


def as_booleans(value: Any, what: str, ones: str = "1 (or True) and 0") -> Bool[Tensor, "..."]:
    """Ones and zeros, or booleans, as a boolean tensor, which shares nothing with what was given.

    Args:
        ones: what they are, for messages.

    Raises:
        InputError: for other numbers, and for anything but a tensor or an array.
    """
    given = as_tensor(value, what).detach()
    real = given.to(torch.bool, copy=True)
    if holds_integers(given):
        given = given.to(torch.int64)  # small unsigned numbers are not compared in torch
    if given.dtype != torch.bool and not torch.equal(real.to(given.dtype), given):
        raise InputError(f"{what} holds {ones}, and nothing else")
    return real


def holds_integers(value: Tensor) -> bool:
    """Whether a tensor's numbers are whole, by their dtype."""
    return not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)


def dtype_name(value: Tensor | np.ndarray | torch.dtype) -> str:
    """The name of a dtype, or of that of a tensor or an array: ``"float16"``."""
    dtype = value if isinstance(value, torch.dtype) else value.dtype
    return str(dtype).removeprefix("torch.")


def check_once(*given: str) -> None:
    """Refuse something that is given more than once.

    Args:
        given: the names that it goes by, of those that were given.

    Raises:
        InputError: for more than one.
    """
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} are both given; give one of them")


def check_keys(given: Mapping[Any, Any], known: Collection[str]) -> None:
    """Refuse an input by names of Hugging Face that holds other names, or none of them.

    Raises:
        InputError: with the names.
    """
    for name in given:
        if name not in known:
            raise InputError(
                f"the dictionary has {name!r}, which the model does not read; it reads {', '.join(known)}"
                f"{did_you_mean(name, known)}"
            )


def check_text(text: str, what: str, error: type[EncoderLensError] = InputError) -> None:
    """Refuse text that holds half a character, which no tokenizer reads and no file keeps.

    Args:
        what: what it is, for the message.
        error: what to raise.

    Raises:
        EncoderLensError: of that class, with the place of a surrogate that stands alone.
    """
    try:
        text.encode()
    except UnicodeEncodeError as found:
        raise error(
            f"{what} has half a character, the lone surrogate {text[found.start]!r}, at place {found.start}: it was cut, or "
            "decoded from bytes that are not UTF-8. Read it again as UTF-8, or take the surrogate out"
        ) from None


def described(value: Any) -> str:
    """What a value is, for messages."""
    if isinstance(value, Tensor | np.ndarray):
        return f"a {type(value).__name__} of shape {list(value.shape)} and dtype {dtype_name(value)}"
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
