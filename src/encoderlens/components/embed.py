"""Embeddings: word pieces, positions and token types, summed and normalised."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from encoderlens.components.effective import effective
from encoderlens.components.linear import Component, Linear, WeightView
from encoderlens.components.norm import ScaledNorm
from encoderlens.components.residual import Norm, Projection, Step, Write
from encoderlens.errors import InputError
from encoderlens.hook_points import HookPoint
from encoderlens.sequence import Sequence
from encoderlens.shapes import Stream


class TokenEmbedding(Component):
    """A row of the table for each id.

    Args:
        padding_idx: the row that the embedding does not train: that of the padding token; None for none. An unembedding that
            shares the table trains it all the same.
    """

    W_E = WeightView("weight")

    def __init__(self, d_vocab: int, d_embed: int, padding_idx: int | None) -> None:
        super().__init__()
        self.padding_idx = padding_idx
        self.weight = nn.Parameter(torch.empty(d_vocab, d_embed))

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_embed"]:
        return F.embedding(tokens, self.weight, self.padding_idx)


class TokenTypeEmbedding(Component):
    """A row of the table for each segment id; without ids, every position is of type 0."""

    W_token_type = WeightView("weight")

    def __init__(self, n_token_types: int, d_embed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_token_types, d_embed))

    def forward(
        self, token_type_ids: Int[Tensor, "batch pos"] | None, sequence: Sequence
    ) -> Float[Tensor, "batch pos d_embed"]:
        if token_type_ids is None:
            return self.weight[0].expand(sequence.batch, sequence.pos, -1)
        return F.embedding(token_type_ids, self.weight)


class TaskTypeEmbedding(Component):
    """One row of the table for every position: that of the task (Sun et al. 2020).

    Attributes:
        task_type: the number of the task; 0 as in Hugging Face, unless set.
    """

    W_task_type = WeightView("weight")

    def __init__(self, n_task_types: int, d_embed: int) -> None:
        super().__init__()
        self.task_type = 0
        self.weight = nn.Parameter(torch.empty(n_task_types, d_embed))

    def forward(self, sequence: Sequence) -> Float[Tensor, "batch pos d_embed"]:
        return self.weight[self.task_type].expand(sequence.batch, sequence.pos, -1)


class AbsolutePositions(Component):
    """A learned vector for each position, counted from 0 at the first, padding included."""

    W_pos = WeightView("weight")

    def __init__(self, n_ctx: int, d_embed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_ctx, d_embed))

    def forward(self, tokens: Int[Tensor, "batch pos"] | None, sequence: Sequence) -> Float[Tensor, "batch pos d_embed"]:
        return sequence.position_rows(self.weight)


class PaddedPositions(Component):
    """A learned vector for each position, counted from the first token that is not padding (Liu et al. 2019).

    Row ``pad`` of the table is that of padding, which is not trained, and those before it are never read; ``W_pos`` is without
    them.

    Args:
        pad: the id of the padding token.
    """

    W_pos = WeightView("weight", skip="skipped")

    def __init__(self, n_ctx: int, pad: int, d_embed: int) -> None:
        super().__init__()
        self.pad, self.skipped = pad, pad + 1
        self.weight = nn.Parameter(torch.empty(n_ctx + self.skipped, d_embed))

    def forward(self, tokens: Int[Tensor, "batch pos"] | None, sequence: Sequence) -> Float[Tensor, "batch pos d_embed"]:
        if tokens is None:  # then every position counts, as in Hugging Face
            return sequence.position_rows(self.weight[self.skipped :])
        real = tokens != self.pad
        return F.embedding(self.pad + real.cumsum(1) * real, self.weight, self.pad)


Positions = AbsolutePositions | PaddedPositions


class Embed(nn.Module):
    """``LN(embed + token_type_embed + pos_embed)``, then dropout in training; some of these may be missing.

    Factorised embeddings have a width of their own, and a linear layer behind the norm (Lan et al. 2020) or in front of it.

    Args:
        padding_idx: the row of the padding token; None for none.
        n_token_types, n_task_types: rows of these tables; 0 for none.
        normed: whether there is a norm.
        zeroes_padding: whether what leaves is zero at padding.
        projected: whether there is a linear layer from ``d_embed`` to ``d_model``.
        projects_first: whether it stands in front of the norm, and has no bias.
        pos_embed: None where positions enter in attention only.
    """

    def __init__(
        self,
        d_vocab: int,
        padding_idx: int | None,
        n_token_types: int,
        n_task_types: int,
        d_embed: int,
        projected: bool,
        normed: bool,
        zeroes_padding: bool,
        projects_first: bool,
        dropout: float,
        d_model: int,
        pos_embed: Positions | None,
        norm: Callable[..., ScaledNorm],
    ) -> None:
        super().__init__()
        self.dropout, self.zeroes_padding, self.projects_first = dropout, zeroes_padding, projects_first
        axes = "batch pos d_embed" if projected else "batch pos d_model"
        self.embed = TokenEmbedding(d_vocab, d_embed, padding_idx)
        self.pos_embed = pos_embed
        self.token_type_embed = TokenTypeEmbedding(n_token_types, d_embed) if n_token_types else None
        self.task_type_embed = TaskTypeEmbedding(n_task_types, d_embed) if n_task_types else None
        self.hook_embed = HookPoint(axes)
        if self.token_type_embed is not None:
            self.hook_token_type_embed = HookPoint(axes)
        if self.task_type_embed is not None:
            self.hook_task_type_embed = HookPoint(axes)
        if self.pos_embed is not None:
            self.hook_pos_embed = HookPoint(axes)
        width = (d_model, "d_model") if projects_first else (d_embed, axes.split()[-1])
        self.ln = norm(*width) if normed else None
        self.projection = Linear(d_embed, d_model, bias=not projects_first) if projected else None

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"] | None,
        token_type_ids: Int[Tensor, "batch pos"] | None = None,
        sequence: Sequence | None = None,
        vectors: Float[Tensor, "batch pos d_embed"] | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The first residual stream. Token types are 0 if they are left out. Without a sequence, every position is real.

        Args:
            tokens: ids; None for a run from ``vectors``.
            vectors: in place of the embeddings of tokens.

        Raises:
            InputError: without either.
        """
        start = vectors if tokens is None else tokens
        if start is None:
            raise InputError("the embeddings need tokens, or vectors in place of their embeddings")
        sequence = Sequence.of(start) if sequence is None else sequence
        total = self.hook_embed(start if tokens is None else self.words(tokens, sequence))
        if self.token_type_embed is not None:
            total = total + self.hook_token_type_embed(self.token_type_embed(token_type_ids, sequence))
        if self.task_type_embed is not None:
            total = total + self.hook_task_type_embed(self.task_type_embed(sequence))
        if self.pos_embed is not None:
            total = total + self.hook_pos_embed(self.pos_embed(tokens, sequence))
        if self.projects_first:
            return self._settled(self._projected(total), sequence)
        return self._projected(self._settled(total, sequence))

    def _settled(self, total: Stream, sequence: Sequence) -> Stream:
        normed = total if self.ln is None else self.ln(total)
        return F.dropout(sequence.zeroed(normed) if self.zeroes_padding else normed, self.dropout, self.training)

    def _projected(self, x: Float[Tensor, "batch pos d_embed"]) -> Float[Tensor, "batch pos d_model"]:
        return x if self.projection is None else self.projection(x)

    def words(self, tokens: Int[Tensor, "batch pos"], sequence: Sequence) -> Float[Tensor, "batch pos d_embed"]:
        """What stands for the tokens themselves."""
        return self.embed(tokens)

    @property
    def shared(self) -> dict[str, nn.Parameter]:
        """What heads may share with it."""
        return {"embedding": self.embed.weight}

    @property
    def residual_path(self) -> list[Step]:
        """The residual path up to block 0."""
        steps: list[Step] = [Write(self.hook_embed)]
        if self.pos_embed is not None:
            steps.append(Write(self.hook_pos_embed))
        if self.token_type_embed is not None:
            steps.append(Write(self.hook_token_type_embed))
        if self.task_type_embed is not None:
            steps.append(Write(self.hook_task_type_embed))
        norms = [] if self.ln is None else [Norm(self.ln)]
        projections = [] if self.projection is None else [Projection(self.projection)]
        return [*steps, *projections, *norms] if self.projects_first else [*steps, *norms, *projections]

    def to_stream(self, table: Float[Tensor, "row d_embed"]) -> Float[Tensor, "row d_model"]:
        """Rows of a table as the stream gets them but for the norm: the rows themselves, or through the projection."""
        return table if self.projection is None else table @ effective(self.projection).mT


class TokenDropoutEmbed(Embed):
    """Embeddings that treat mask tokens as if token dropout had taken them out (Rives et al. 2021).

    Theirs are zero, and all others are multiplied by ``(1 - 0.15 * 0.8) / (1 - n_mask / n)``, for n_mask mask tokens and n real
    positions: in training, 0.15 * 0.8 of the tokens are masked. A mask token at padding counts, as in Hugging Face.

    Args:
        mask: the id of the mask token.
    """

    MASKED_IN_TRAINING = 0.15 * 0.8

    def __init__(self, mask: int, **embeddings: Any) -> None:
        super().__init__(**embeddings)
        self.mask = mask

    def words(self, tokens: Int[Tensor, "batch pos"], sequence: Sequence) -> Float[Tensor, "batch pos d_embed"]:
        masked = tokens == self.mask
        n = sequence.pos if sequence.mask is None else sequence.mask.sum(1)
        words = self.embed(tokens).masked_fill(masked.unsqueeze(-1), 0.0)
        share = masked.sum(1).to(torch.promote_types(words.dtype, torch.float32)) / n
        return (words * ((1 - self.MASKED_IN_TRAINING) / (1 - share))[:, None, None]).to(words.dtype)
