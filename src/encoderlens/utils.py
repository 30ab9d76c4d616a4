"""Small helpers under the names that TransformerLens users know."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from encoderlens.devices import default_device as get_device
from encoderlens.errors import InputError
from encoderlens.factored_matrix import FactoredMatrix
from encoderlens.hooked_encoder import HookedEncoder
from encoderlens.names import act_name as get_act_name
from encoderlens.not_on_encoders import NOT_IN_UTILS
from encoderlens.slices import Slice as Slice
from encoderlens.slices import SliceInput as SliceInput


def to_numpy(tensor: Tensor | np.ndarray | list | tuple | float | int | bool) -> np.ndarray:
    """Anything numeric as a numpy array, detached and on the CPU; bfloat16 becomes float32."""
    if not isinstance(tensor, Tensor):
        return np.asarray(tensor)
    values = tensor.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def transpose(tensor: Float[Tensor, "... a b"]) -> Float[Tensor, "... b a"]:
    """The tensor with its last two axes swapped."""
    return tensor.transpose(-1, -2)


def get_corner(tensor: Tensor | FactoredMatrix, n: int = 3) -> Tensor:
    """The first ``n`` entries along every axis; of a FactoredMatrix, along the two of the matrix."""
    if isinstance(tensor, FactoredMatrix):
        return tensor.get_corner(n)
    return tensor[tuple(slice(n) for _ in range(tensor.ndim))]


def remove_batch_dim(tensor: Float[Tensor, "1 ..."]) -> Float[Tensor, "..."]:
    """The tensor without its first axis, if that has one entry; otherwise as it is."""
    return tensor.squeeze(0) if tensor.ndim and tensor.shape[0] == 1 else tensor


def is_square(x: Tensor) -> bool:
    """Whether a tensor is a square matrix."""
    return x.ndim == 2 and x.shape[0] == x.shape[1]


def is_lower_triangular(x: Tensor) -> bool:
    """Whether a tensor is a square matrix with zeros above its diagonal."""
    return is_square(x) and torch.equal(x, x.tril())


def filter_dict_by_prefix(dictionary: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The entries whose key starts with ``prefix`` and a dot, without that part of the key."""
    prefix = prefix if prefix.endswith(".") else f"{prefix}."
    return {key.removeprefix(prefix): value for key, value in dictionary.items() if key.startswith(prefix)}


def repeat_along_head_dimension(
    tensor: Float[Tensor, "batch pos d_model"], n_heads: int, clone_tensor: bool = True
) -> Float[Tensor, "batch pos head d_model"]:
    """The stream once for every head.

    Args:
        clone_tensor: copy it, so that heads can be edited in place; False gives a view.
    """
    repeated = tensor.unsqueeze(-2).expand(*tensor.shape[:-1], n_heads, tensor.shape[-1])
    return repeated.clone() if clone_tensor else repeated


def lm_cross_entropy_loss(
    logits: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    per_token: bool = False,
) -> Float[Tensor, "..."]:
    """The next-token loss of a causal language model: logits at each position against the token after it.

    An encoder does not predict the next token. Its masked-LM loss is ``model(tokens, return_type="loss", labels=labels)``.

    Args:
        attention_mask: 1 at real positions; a pair with padding is left out.
        per_token: return [batch pos-1] rather than the mean.
    """
    log_probs = logits[:, :-1].log_softmax(-1)
    losses = -log_probs.gather(-1, tokens[:, 1:, None])[..., 0]
    if attention_mask is None:
        return losses if per_token else losses.mean()
    both_real = (attention_mask[:, :-1] * attention_mask[:, 1:]).to(losses.dtype)
    losses = losses * both_real
    return losses if per_token else losses.sum() / both_real.sum()


def lm_accuracy(
    logits: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    per_token: bool = False,
) -> Tensor:
    """The share of positions at which the best logit is that of the next token; ``per_token`` says which [batch pos-1]."""
    correct = logits[:, :-1].argmax(-1) == tokens[:, 1:]
    return correct if per_token else correct.float().mean()


def composition_scores(
    left: FactoredMatrix, right: FactoredMatrix, broadcast_dims: bool = True
) -> Float[Tensor, "*leading_dims"]:
    """How much of what ``left`` writes ``right`` reads: ``|left @ right| / (|left| |right|)``, Frobenius norms (Elhage et al.
    2021, "A Mathematical Framework for Transformer Circuits").

    Between blocks of a post-LN encoder stand LayerNorms, which these scores leave out.

    Args:
        left, right: matrices with inner dimensions that fit, possibly with leading dimensions.
        broadcast_dims: compare every matrix of ``left`` with every one of ``right``.

    Returns:
        Scores [left's leading dimensions, right's leading dimensions]; without ``broadcast_dims``, one for each pair.
    """
    if left.rdim != right.ldim:
        raise InputError(
            f"composition_scores: left has shape {list(left.shape)} and right {list(right.shape)}; "
            "the last axis of left must be as long as the second last of right"
        )
    if broadcast_dims:
        for _ in range(right.ndim - 2):
            left = left.unsqueeze(left.ndim - 2)
        for _ in range(left.ndim - right.ndim):
            right = right.unsqueeze(0)
    return (left @ right).norm() / (left.norm() * right.norm())


def test_prompt(
    prompt: str,
    answer: str | list[str],
    model: HookedEncoder,
    print_details: bool = True,  # noqa: PT028
    top_k: int = 10,  # noqa: PT028
) -> list[int]:
    """Fill the one mask of a prompt, and say which rank an answer has among all tokens, 0 for the best.

    Args:
        prompt: a text with one mask token in it.
        answer: a string that is one token, or several.
        model: a model with a masked-LM head and a tokenizer.
        print_details: print the best ``top_k`` tokens with their probabilities, and the ranks.

    Returns:
        The rank of each answer.

    Raises:
        InputError: for a prompt without a mask or with several, or an answer that is not one token.
    """
    answers = [answer] if isinstance(answer, str) else answer
    ids = [model.to_single_token(word) for word in answers]
    masks = (model.to_tokens(prompt)[0][0] == model.tokenizer.mask_token_id).nonzero().flatten().tolist()
    if len(masks) != 1:
        raise InputError(f"test_prompt takes a prompt with one mask token, not {len(masks)}")
    with torch.no_grad(), model.use_task("masked_lm"):
        logits = model(prompt, return_type="logits", logits_at=masks[0])[0, 0]
    ranks = [int((logits > logits[token]).sum()) for token in ids]
    if print_details:
        from rich.console import Console  # here, as importing the package loads neither

        from encoderlens.analysis import fill_mask

        Console().print(fill_mask(model, prompt, top_k))
        for word, token, rank in zip(answers, ids, ranks, strict=True):
            probability = logits.float().softmax(-1)[token].item()
            print(f"{word!r}: rank {rank}, probability {probability:.2%}")
    return ranks


test_prompt.__test__ = False  # type: ignore[attr-defined]  # pytest would take it for a test


def __getattr__(name: str) -> Any:
    """For a helper of TransformerLens that means nothing for an encoder, what to use instead."""
    if name in NOT_IN_UTILS:
        raise AttributeError(f"encoderlens.utils has no {name}: {NOT_IN_UTILS[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Slice",
    "SliceInput",
    "composition_scores",
    "filter_dict_by_prefix",
    "get_act_name",
    "get_corner",
    "get_device",
    "is_lower_triangular",
    "is_square",
    "lm_accuracy",
    "lm_cross_entropy_loss",
    "remove_batch_dim",
    "repeat_along_head_dimension",
    "test_prompt",
    "to_numpy",
    "transpose",
]
