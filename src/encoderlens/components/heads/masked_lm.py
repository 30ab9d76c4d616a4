"""The masked-LM head."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from encoderlens.components.heads.head import TextContext, TokenOutputs, check_class_ids, cross_entropy
from encoderlens.components.heads.modules import MLMTransform, Unembed
from encoderlens.components.norm import LayerNorm
from encoderlens.errors import InputError
from encoderlens.sequence import Sequence


class MaskedLMHead(TokenOutputs[TextContext]):
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

    def loss(self, logits: Tensor, labels: Tensor, sequence: Sequence) -> Tensor:
        return cross_entropy(logits, labels)

    def biases(self) -> dict[str, tuple[nn.Module, Tensor]]:
        dense, ln = self.transform.dense, self.transform.ln
        return {"head_b": (dense, dense.bias), "head_ln_b": (ln, ln.b), "b_U": (self.unembed, self.unembed.bias)}

    def score(self, resid: Tensor, sequence: Sequence, targets: Tensor) -> Tensor:
        rows, bias = self.unembed.weight[targets], self.unembed.bias[targets]
        return (self.transform(resid) * rows).sum(-1) + bias

    @property
    def n_outputs(self) -> int:
        return len(self.unembed.bias)

    def default_positions(self, batch: TextContext) -> Tensor:
        try:
            is_mask = batch.tokens == batch.mask_token_id
        except InputError as error:
            raise InputError("without a tokenizer's mask token, say where with position=") from error
        if batch.sequence.mask is not None:
            is_mask &= batch.sequence.mask
        wrong = (is_mask.sum(1) != 1).nonzero().flatten().tolist()
        if wrong:
            places = is_mask[wrong[0]].nonzero().flatten().tolist()
            found = f" (at {', '.join(map(str, places))})" if places else ""
            raise InputError(f"sequence {wrong[0]} has {len(places)} mask tokens{found}, not one: say where with position=")
        return is_mask.int().argmax(1)

    def check_input(self, batch: TextContext) -> None:
        without = (batch.tokens != batch.mask_token_id).all(dim=1).nonzero().flatten().tolist()
        if without:
            raise InputError(
                f"there is no mask token to predict in sequence {', '.join(map(str, without))}: put the tokenizer's mask "
                "token where a word is wanted"
            )

    def decode(self, logits: Tensor, batch: TextContext) -> list[list[str]]:
        is_mask = batch.tokens == batch.mask_token_id
        best = logits.argmax(-1)
        return [[batch.decode_ids([piece]) for piece in best[row][is_mask[row]].tolist()] for row in range(len(best))]

    def decode_one(self, prediction: list[str]) -> str | list[str]:
        return prediction[0] if len(prediction) == 1 else prediction
