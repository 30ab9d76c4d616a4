"""The masked-LM head."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from encoderlens.components.effective import effective, effective_bias
from encoderlens.components.heads.head import TextContext, TokenOutputs, check_class_ids, cross_entropy
from encoderlens.components.heads.modules import Biases, MLMTransform, Unembed
from encoderlens.components.norm import ScaledNorm
from encoderlens.components.stand_ins import check_unhooked
from encoderlens.errors import InputError
from encoderlens.sequence import Sequence


class MaskedLMHead(TokenOutputs[TextContext]):
    """Logits over word pieces at every position [batch pos d_vocab]; predictions are the best piece for each mask.

    Args:
        act_fn: of the transform in front of the unembedding; None for no transform.
        tied: whether the unembedding is the embedding.
        bias, unembed_bias: whether the transform's dense layer, and the unembedding, have a bias.
    """

    task = "masked_lm"
    per_position = True

    def __init__(
        self,
        act_fn: str | None,
        tied: bool,
        bias: bool,
        unembed_bias: bool,
        d_model: int,
        norm: Callable[..., ScaledNorm],
        embedding: nn.Parameter,
    ) -> None:
        weight = embedding if tied else nn.Parameter(torch.empty_like(embedding))
        self.unembed = Unembed(weight, d_model, unembed_bias)
        self.transform = None if act_fn is None else MLMTransform(d_model, weight.shape[1], act_fn, bias, norm)
        transform = {} if self.transform is None else {"mlm_head": self.transform}
        super().__init__(**transform, unembed=self.unembed)

    def forward(self, resid: Tensor, sequence: Sequence) -> Tensor:
        return self.unembed(self._transformed(resid))

    def _transformed(self, resid: Tensor) -> Tensor:
        return resid if self.transform is None else self.transform(resid)

    def check_labels(self, labels: Tensor, sequence: Sequence) -> None:
        check_class_ids(labels, (sequence.batch, sequence.pos), self.n_outputs)

    def loss(self, logits: Tensor, labels: Tensor, sequence: Sequence) -> Tensor:
        return cross_entropy(logits, labels)

    def all_biases(self) -> Biases:
        unembed: Biases = {"b_U": (self.unembed, "bias")}
        if self.transform is None:
            return unembed
        return {"head_b": (self.transform.dense, "bias"), "head_ln_b": (self.transform.ln, "b"), **unembed}

    def score(self, resid: Tensor, sequence: Sequence, targets: Tensor) -> Tensor:
        check_unhooked(self.unembed, "unembed")
        bias = effective_bias(self.unembed)
        scores = (self._transformed(resid) * effective(self.unembed)[targets]).sum(-1)
        return scores if bias is None else scores + bias[targets]

    @property
    def n_outputs(self) -> int:
        return len(self.unembed.weight)

    @property
    def W_U(self) -> Tensor:
        """The unembedding from the stream [d_model d_vocab]: of factorised embeddings, through the transform's dense layer."""
        W_U = self.unembed.W_U
        return W_U if self.transform is None or len(W_U) == len(self.transform.W) else self.transform.W @ W_U

    def default_positions(self, batch: TextContext) -> Tensor:
        try:
            is_mask = batch.masks
        except InputError as error:
            raise InputError("without a tokenizer's mask token, say where with position=") from error
        wrong = (is_mask.sum(1) != 1).nonzero().flatten().tolist()
        if wrong:
            places = is_mask[wrong[0]].nonzero().flatten().tolist()
            found = f" (at {', '.join(map(str, places))})" if places else ""
            advice = "" if places else f"{batch.mask_advice(wrong[0])}, or "
            raise InputError(
                f"sequence {wrong[0]} has {len(places)} mask tokens{found}, not one: {advice}say where with position="
            )
        return is_mask.int().argmax(1)

    def check_input(self, batch: TextContext) -> None:
        without = (~batch.masks.any(dim=1)).nonzero().flatten().tolist()
        if without:
            raise InputError(
                f"there is no mask token to predict in sequence {', '.join(map(str, without))}: {batch.mask_advice(without[0])}"
            )

    def decode(self, logits: Tensor, batch: TextContext) -> list[list[str]]:
        is_mask, best = batch.masks, logits.argmax(-1)
        return [[batch.decode_ids([piece]) for piece in best[row][is_mask[row]].tolist()] for row in range(len(best))]

    def decode_one(self, prediction: list[str]) -> str | list[str]:
        return prediction[0] if len(prediction) == 1 else prediction
