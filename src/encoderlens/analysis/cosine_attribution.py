"""Direct attribution of a cosine: what each part of two texts adds to the similarity of their embeddings."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from encoderlens.analysis.examples import Examples
from encoderlens.analysis.result import COMPONENT, EXAMPLE, AdditiveResult
from encoderlens.batch import Batch
from encoderlens.components.freezing import freeze
from encoderlens.components.heads import SentenceEmbedding
from encoderlens.encoder import Encoder
from encoderlens.errors import InputError, TaskError
from encoderlens.given import Whole
from encoderlens.linearised import direct_rows, require_eval, torch_hooks
from encoderlens.precision import lengths_of
from encoderlens.run_state import RunState

SECOND = "component of the second"
CHUNK = 64  # numbers of an embedding whose gradients are in memory at a time


@dataclass(frozen=True, eq=False)
class CosineAttribution(AdditiveResult):
    """Rows of the first text's components that add up to the cosine with the second text.

    Attributes:
        second: the text, or texts, that the first were compared with.
    """

    second: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"Direct attribution of the cosine with {self.second[0] if len(set(self.second)) == 1 else 'another text'}"


@dataclass(frozen=True, eq=False)
class TokenPairs(AdditiveResult):
    """A row for each token of the first text and a column for each of the second: all of them add up to the cosine.

    ``total`` is what each token of the second text adds by itself.

    Attributes:
        cosine: the cosine of the two embeddings.
    """

    cosine: float

    @property
    def title(self) -> str:
        return f"Tokens of two texts in their cosine of {self.cosine:.4g}"


@torch.inference_mode(False)  # which gradients need
def cosine_attribution(
    model: Encoder, first: Any, second: Any, neurons: bool = False, *, batch_size: Whole = 32
) -> CosineAttribution:
    """What each head and MLP, each embedding and each bias of the first text adds to the cosine with the second.

    The second text's embedding is held fixed, and so are the first one's: norm scales, the gains of activation functions behind
    the pooling, what a maximum picks, and the length of the vector. What is left is linear, so a row is write x gradient along
    the stream, and rows add up to the cosine. What acts through later components, or only by way of a scale, is not seen here.
    Exchange the texts for the rows of the other one.

    Args:
        model: a sentence encoder in eval mode.
        first, second: two texts; or two lists of as many.
        neurons: a row a neuron, rather than a row an MLP.
        batch_size: how many run at a time.

    Returns:
        Values [component], for lists [component example].

    Raises:
        TaskError: for a model that is no sentence encoder.
        InputError: for lists of different lengths.
        AnalysisError: for a model in training mode.
    """
    embedding = _embedding_of(model)
    require_eval(model)
    examples, others = (Examples.of(model, texts, batch_size) for texts in (first, second))
    if len(examples) != len(others):
        raise InputError(f"there are {len(examples)} first texts and {len(others)} second ones; give as many of both")
    parts = []
    for (_, batch), (_, other) in zip(
        examples.batches("cosine attribution"), others.batches("cosine attribution"), strict=True
    ):
        unit = _unit(model, other)
        parts.append(direct_rows(model, embedding, lambda b=batch, u=unit: _cosine(model, b, u), ("H", "N")[: 1 + neurons]))
    components = max((part.labels for part in parts), key=len)  # with hooks, a batch may have one row more than another
    values = torch.cat([part.completed(components).values for part in parts], 1)
    total = torch.cat([part.total for part in parts])
    labels = {COMPONENT: components} | ({} if examples.single else {EXAMPLE: examples.labels})
    return CosineAttribution(
        values=values[:, 0] if examples.single else values,
        axes=tuple(labels),
        labels=labels,
        total=total[0] if examples.single else total,
        second=others.labels,
    )


@torch.inference_mode(False)
def token_pairs(model: Encoder, first: Any, second: Any) -> TokenPairs:
    """How much each pair of tokens, one of each text, adds to the cosine of the two embeddings.

    An embedding is a sum over the positions of the final stream, and of the biases behind it ("bias"), with everything that is
    not linear behind the stream held fixed; the cosine of two sums is the sum over pairs of products. A token stands for all
    that is in the stream at its position, which attention has filled from the whole text.

    Args:
        model: a sentence encoder in eval mode.
        first, second: a text each.

    Returns:
        Values [component second]: the first text's tokens, and the second's.

    Raises:
        TaskError, AnalysisError: as ``cosine_attribution``.
        InputError: for lists of texts.
    """
    embedding = _embedding_of(model)
    require_eval(model)
    sides = [_by_position(model, embedding, text) for text in (first, second)]
    (left, left_labels), (right, right_labels) = sides
    values = left @ right.mT
    return TokenPairs(
        values=values,
        axes=(COMPONENT, SECOND),
        labels={COMPONENT: left_labels, SECOND: right_labels},
        total=left.sum(0) @ right.mT,
        cosine=float(values.sum()),
    )


def _embedding_of(model: Encoder) -> SentenceEmbedding:
    if model.sentence_embedding is None:
        raise TaskError(f"{model.cfg.model_name} is no sentence encoder, so its texts have no embeddings to compare")
    return model.sentence_embedding


def _unit(model: Encoder, batch: Batch) -> Float[Tensor, "batch d_sentence"]:
    """The embeddings, at a length of one."""
    with torch.no_grad():
        vectors = model(batch, return_type="embedding")
        return (vectors / lengths_of(vectors)).to(vectors.dtype)


def _cosine(model: Encoder, batch: Batch, other: Float[Tensor, "batch d_sentence"]) -> Float[Tensor, " batch"]:
    """The cosines, the length of the embeddings held fixed."""
    vectors = model(batch, return_type="embedding")
    return ((vectors / lengths_of(vectors.detach())).to(vectors.dtype) * other).sum(-1)


def _by_position(
    model: Encoder, embedding: SentenceEmbedding, text: Any
) -> tuple[Float[Tensor, "row d_sentence"], tuple[str, ...]]:
    """What the stream at each position adds to the embedding at a length of one, and what biases add; with labels."""
    batch = model.prepare(text)
    if not batch.single:
        raise InputError("token_pairs takes one text on each side, not lists")
    state = model.run_state
    with torch.enable_grad(), freeze(embedding.modules.values(), ("ln", "gain")):
        with _cut_in_front(embedding.pooling, state) as streams, state.silenced("bwd"):
            vector = model(batch, return_type="embedding")[0]
        (stream,) = streams
        every = torch.eye(len(vector), dtype=vector.dtype, device=vector.device)
        columns = [_products(vector, stream, some) for some in every.split(CHUNK)]
    with torch.no_grad():
        rows = torch.cat(columns, 1)
        rows = (torch.cat([rows, (vector - rows.sum(0))[None]]) / lengths_of(vector)).to(vector.dtype)
    return rows, (*batch.position_labels, "bias")


@contextmanager
def _cut_in_front(module: nn.Module, state: RunState) -> Iterator[list[Tensor]]:
    """Context in which what a module reads is a leaf, where gradients end, in the runs that this thread starts from here; and
    all that it has read.
    """
    leaves: list[Tensor] = []

    def cut(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        leaves.append(inputs[0].detach().requires_grad_())
        return (leaves[-1], *inputs[1:])

    with torch_hooks([module], state, cut, before=True):
        yield leaves


def _products(
    vector: Float[Tensor, " d_sentence"], stream: Float[Tensor, "1 pos d_model"], directions: Float[Tensor, "some d_sentence"]
) -> Float[Tensor, "pos some"]:
    """The stream at each position times the gradient of the vector along each direction; zeros if a hook has put a constant in
    its place.
    """
    gradients = None
    if vector.requires_grad:
        (gradients,) = torch.autograd.grad(
            vector, stream, directions, retain_graph=True, is_grads_batched=True, allow_unused=True
        )
    if gradients is None:
        return stream.new_zeros(stream.shape[1], len(directions))
    return torch.einsum("spd,pd->ps", gradients[:, 0], stream[0])
