"""The masked-LM head."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from encoderlens.components.heads.head import Head, TextContext, check_class_ids, checked_index, cross_entropy
from encoderlens.components.heads.modules import MLMTransform, Unembed
from encoderlens.components.norm import LayerNorm
from encoderlens.errors import InputError, TokenizerMissingError
from encoderlens.sequence import Sequence


class MaskedLMHead(Head):
    """Logits over word pieces at every position [batch pos d_vocab]; predictions are the best piece for each mask."""

    task = "masked_lm"
    per_position = True

    def __init__(self, act_fn: str, tied: bool, d_model: int, norm: Callable[[], LayerNorm], embedding: nn.Parameter) -> None:
        weight = embedding if tied else nn.Parameter(torch.empty_like(embedding))
        self.transform, self.unembed = MLMTransform(d_model, act_fn, norm), Unembed(weight)
        super().__init__(mlm_head=self.transform, unembed=self.unembed)

    def forward(self, resid: Tensor, sequence: Sequence) -> Tensor:
        return self.unembed(self.transform(resid))

    def check_labels(self, labels: Tensor, sequence: Sequence) -> None:
        check_class_ids(labels, (sequence.batch, sequence.pos), len(self.unembed.bias))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits, labels)

    def biases(self) -> dict[str, tuple[nn.Module, Tensor]]:
        dense, ln = self.transform.dense, self.transform.ln
        return {"head_b": (dense, dense.bias), "head_ln_b": (ln, ln.b), "b_U": (self.unembed, self.unembed.bias)}

    def score(self, resid: Tensor, sequence: Sequence, targets: Tensor) -> Tensor:
        rows, bias = self.unembed.weight[targets], self.unembed.bias[targets]
        return (self.transform(resid) * rows).sum(-1) + bias

    def output_name(self, index: int, tokenizer: Any) -> str:
        name = None if tokenizer is None else tokenizer.convert_ids_to_tokens(index)
        return str(index) if name is None else name  # a vocabulary may be padded beyond its tokenizer's

    def output_index(self, target: Any, tokenizer: Any) -> int:
        if not isinstance(target, str):
            return checked_index(target, len(self.unembed.bias), "token id")
        if tokenizer is None:
            raise TokenizerMissingError(f"the target {target!r} is a word, and this model has no tokenizer: give a token id")
        ids = [tokenizer.convert_tokens_to_ids(target)]  # as it is: also "##ing", which is not how a text begins
        if ids[0] in (None, tokenizer.unk_token_id) and target != tokenizer.unk_token:
            ids = tokenizer.encode(target, add_special_tokens=False)
            if not ids or tokenizer.unk_token_id in ids:
                raise InputError(f"the tokenizer has no token for the target {target!r}; give another, or a token id")
        if len(ids) != 1:
            pieces = ", ".join(tokenizer.convert_ids_to_tokens(ids))
            raise InputError(f"the target {target!r} is no single token: the tokenizer makes {pieces} of it; give one of these")
        return ids[0]

    def default_positions(self, text: TextContext) -> Tensor:
        try:
            is_mask = text.tokens == text.mask_token_id
        except InputError as error:
            raise InputError("without a tokenizer's mask token, say where with position=") from error
        if text.sequence.mask is not None:
            is_mask &= text.sequence.mask
        wrong = (is_mask.sum(1) != 1).nonzero().flatten().tolist()
        if wrong:
            places = is_mask[wrong[0]].nonzero().flatten().tolist()
            found = f" (at {', '.join(map(str, places))})" if places else ""
            raise InputError(f"sequence {wrong[0]} has {len(places)} mask tokens{found}, not one: say where with position=")
        return is_mask.int().argmax(1)

    def check_text(self, text: TextContext) -> None:
        without = (text.tokens != text.mask_token_id).all(dim=1).nonzero().flatten().tolist()
        if without:
            raise InputError(
                f"there is no mask token to predict in sequence {', '.join(map(str, without))}: put the tokenizer's mask "
                "token where a word is wanted"
            )

    def decode(self, logits: Tensor, text: TextContext) -> list[list[str]]:
        is_mask = text.tokens == text.mask_token_id
        best = logits.argmax(-1)
        return [[text.decode_ids([piece]) for piece in best[row][is_mask[row]].tolist()] for row in range(len(best))]

    def decode_one(self, prediction: list[str]) -> str | list[str]:
        return prediction[0] if len(prediction) == 1 else prediction
