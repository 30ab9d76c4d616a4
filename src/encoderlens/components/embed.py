"""Embeddings: word pieces, positions and token types, summed and normalised."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from encoderlens.components.linear import Component, WeightView
from encoderlens.components.norm import LayerNorm
from encoderlens.components.residual import Norm, Step, Write
from encoderlens.hook_points import HookPoint
from encoderlens.sequence import Sequence


class TokenEmbedding(Component):
    """A row of the table for each id."""

    W_E = WeightView("weight")

    def __init__(self, d_vocab: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_vocab, d_model))

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        return F.embedding(tokens, self.weight)


class TokenTypeEmbedding(Component):
    """A row of the table for each segment id; without ids, every position is of type 0."""

    W_token_type = WeightView("weight")

    def __init__(self, n_token_types: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_token_types, d_model))

    def forward(
        self, token_type_ids: Int[Tensor, "batch pos"] | None, sequence: Sequence
    ) -> Float[Tensor, "batch pos d_model"]:
        if token_type_ids is None:
            return self.weight[0].expand(sequence.batch, sequence.pos, -1)
        return F.embedding(token_type_ids, self.weight)


class AbsolutePositions(Component):
    """A learned vector for each position."""

    W_pos = WeightView("weight")

    def __init__(self, n_ctx: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_ctx, d_model))

    def forward(self, sequence: Sequence) -> Float[Tensor, "batch pos d_model"]:
        return sequence.position_rows(self.weight)


class Embed(nn.Module):
    """``LN(embed + token_type_embed + pos_embed)``, then dropout in training."""

    def __init__(
        self,
        d_vocab: int,
        n_token_types: int,
        dropout: float,
        d_model: int,
        pos_embed: AbsolutePositions,
        norm: Callable[[], LayerNorm],
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.embed = TokenEmbedding(d_vocab, d_model)
        self.pos_embed = pos_embed
        self.token_type_embed = TokenTypeEmbedding(n_token_types, d_model)
        self.hook_embed = HookPoint("batch pos d_model")
        self.hook_token_type_embed = HookPoint("batch pos d_model")
        self.hook_pos_embed = HookPoint("batch pos d_model")
        self.ln = norm()

    def forward(
        self, tokens: Int[Tensor, "batch pos"], token_type_ids: Int[Tensor, "batch pos"] | None, sequence: Sequence
    ) -> Float[Tensor, "batch pos d_model"]:
        words = self.hook_embed(self.embed(tokens))
        types = self.hook_token_type_embed(self.token_type_embed(token_type_ids, sequence))
        positions = self.hook_pos_embed(self.pos_embed(sequence))
        return F.dropout(self.ln(words + types + positions), self.dropout, self.training)

    @property
    def shared(self) -> dict[str, nn.Parameter]:
        """What heads may share with it."""
        return {"embedding": self.embed.weight}

    @property
    def residual_path(self) -> list[Step]:
        """The residual path up to block 0."""
        return [Write(self.hook_embed), Write(self.hook_pos_embed), Write(self.hook_token_type_embed), Norm(self.ln)]
