"""Attribution of a cosine, against replays that pin what it holds fixed, and against sums written out by hand."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from encoderlens import HookedEncoder
from encoderlens.analysis import cosine_attribution, token_pairs
from encoderlens.components.activations import Activation
from encoderlens.components.heads import sentence_embedding
from encoderlens.components.heads.sentence_embedding import POOLING_MODES
from encoderlens.config import (
    SentenceDensePart,
    SentenceEmbeddingPart,
    SentenceLayerNormPart,
    SentenceNormalizePart,
    SentencePoolingPart,
)
from encoderlens.errors import AnalysisError, InputError, TaskError
from tests.additive import additive_batch, direct_losses, run, sentence_model
from tests.parity import CHANGE, assert_changed, assert_complete, assert_parity, largest_of
from tests.sentences import LONG, TEXTS
from tests.tiny import N_VOCAB, TOKENIZER, tiny_hf

NORMALIZE = SentenceNormalizePart("normalize")


def part(modes: str | tuple[str, ...] = "mean", *layers: Any) -> SentenceEmbeddingPart:
    return SentenceEmbeddingPart(SentencePoolingPart((modes,) if isinstance(modes, str) else modes), layers)


def dense(d_in: int, d_out: int, *options: Any) -> SentenceDensePart:
    return SentenceDensePart("dense", d_in, d_out, *options)


PARTS = {mode: part(mode) for mode in POOLING_MODES} | {
    "all modes, dense": part(POOLING_MODES, dense(84, 9)),
    "dense, normalize": part("mean", dense(14, 9), NORMALIZE),
    "dense without a bias": part("cls", dense(14, 9, "gelu", False)),
    "residual": part("max", dense(14, 14, "tanh", True, True), NORMALIZE),
    "residual of another width": part("weightedmean", dense(14, 9, "relu", True, True)),
    "norm": part("mean", SentenceLayerNormPart("norm", 14), NORMALIZE),
    "many": part("mean", dense(14, 9), NORMALIZE, dense(9, 7, "silu"), SentenceLayerNormPart("norm", 7), NORMALIZE),
}
every_part = pytest.mark.parametrize("name", PARTS)
every_kind = pytest.mark.parametrize(
    ("name", "block", "mlp"), [(name, "post", "plain") for name in PARTS] + [("many", "pre", "gated"), ("max", "pre", "plain")]
)


def sides(model: HookedEncoder) -> tuple[Any, Any]:
    """Three pairs of sequences of uneven length, ready to run."""
    batches = (additive_batch(seed) for seed in (0, 1))
    first, second = (model.prepare(batch["tokens"], batch["types"], batch["mask"]) for batch in batches)
    return first, second


def alone() -> tuple[Tensor, Tensor]:
    """The tokens of two sequences."""
    return additive_batch(0)["tokens"][0], additive_batch(1)["tokens"][1, :7]


def units(model: HookedEncoder, batch: Any) -> Tensor:
    return nn.functional.normalize(model(batch, "embedding").detach(), dim=-1)


def cosines(model: HookedEncoder, first: Any, second: Any) -> Tensor:
    return (units(model, first) * units(model, second)).sum(-1)


# Rows add up


def assert_adds_up(rows: Any, model: HookedEncoder, first: Any, second: Any, tolerance: float) -> None:
    assert_complete(rows, tolerance)
    assert_parity(rows.total, cosines(model, first, second), tolerance=tolerance)
    assert rows.axes == ("component", "example")
    assert "hooks" not in rows.labels["component"]


@every_kind
def test_rows_add_up_to_the_cosine_in_single_precision(name: str, block: str, mlp: str) -> None:
    model = sentence_model(PARTS[name], block, mlp)
    first, second = sides(model)
    assert_adds_up(cosine_attribution(model, first, second), model, first, second, 1e-5)


@pytest.mark.parametrize("hf_class", ["RobertaPreLayerNormModel", "AlbertModel", "MPNetModel"])
def test_rows_of_other_families_add_up(hf_class: str) -> None:
    source = HookedEncoder.from_pretrained(hf_model=tiny_hf(hf_class), device="cpu")
    cfg = replace(source.cfg.encoder, sentence=part("mean", NORMALIZE))
    model = HookedEncoder(cfg, device="cpu").eval()
    model.load_state_dict(source.state_dict())
    tokens = torch.randint(5, N_VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))
    rows = cosine_attribution(model, tokens[0], tokens[1], neurons=True)
    assert_complete(rows)
    assert_complete(token_pairs(model, tokens[0], tokens[1]))
    assert_parity(rows.total, cosines(model, tokens[0], tokens[1])[0])


# What a row is


@contextmanager
def pinned(model: HookedEncoder, first: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tensor]:
    """Context in which gains of activation functions behind the pooling, and what a maximum picks, are those of these sequences
    (once or several times over); with the lengths of their embeddings.
    """
    gains: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        gains[module] = (output / inputs[0]).detach()

    def multiply(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return inputs[0] * gains[module].repeat(len(output) // 3, 1)

    def pick(resid: Tensor, sequence: Any) -> Tensor:
        return resid.gather(1, picks.repeat(len(resid) // 3, 1, 1)).squeeze(1)

    activations = [module for module in model.sentence.modules() if isinstance(module, Activation)]
    with ExitStack() as noting:
        for activation in activations:
            noting.callback(activation.register_forward_hook(note).remove)
        lengths = model(first, "embedding").detach().norm(dim=-1, keepdim=True)
    stream = model(first, "hidden").detach()
    if first.sequence.mask is not None:
        stream = stream.masked_fill(~first.sequence.mask.unsqueeze(-1), -torch.inf)
    picks = stream.argmax(1, keepdim=True)
    with ExitStack() as pinning, monkeypatch.context() as patch:
        for activation in activations:
            pinning.callback(activation.register_forward_hook(multiply).remove)
        patch.setitem(sentence_embedding._POOLS, "max", pick)
        yield lengths


@every_kind
def test_rows_add_up_and_each_is_what_the_cosine_loses_without_the_write(
    name: str, block: str, mlp: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that is held fixed pinned by a replay, one write, or one bias, is taken out."""
    model = sentence_model(PARTS[name], block, mlp, torch.float64)
    first, second = sides(model)
    unit = units(model, second)
    results = [cosine_attribution(model, first, second, neurons) for neurons in (False, True)]
    for result in results:
        assert_adds_up(result, model, first, second, 1e-11)
    rows = dict(row for result in results for row in zip(result.labels["component"], result.values, strict=True))
    with pinned(model, first, monkeypatch) as lengths:

        def score(model: Any, batch: dict[str, Tensor]) -> Tensor:
            vectors, times = run(model, batch, "embedding"), len(batch["mask"]) // 3
            return (vectors / lengths.repeat(times, 1) * unit.repeat(times, 1)).sum(-1)

        losses = direct_losses(model, additive_batch(0), score)
    assert losses.keys() - rows.keys() == {"0_attn_out", "1_attn_out"}, "which the rows of heads and of b_O stand for"
    largest = max(map(largest_of, rows.values()))
    for label, values in rows.items():
        assert_parity(values, losses[label], None, 1e-11, largest)


@pytest.mark.parametrize("layers", [(), (NORMALIZE,)])
def test_the_length_of_the_vector_makes_no_difference(layers: Any) -> None:
    model = sentence_model(part("mean", *layers), dtype=torch.float64)
    first, second = sides(model)
    rows = cosine_attribution(model, first, second)
    with model.hooks([("sentence.pooling.hook_out", lambda pooled, hook: 2 * pooled)]):
        doubled = cosine_attribution(model, first, second)
    assert_parity(doubled.total, rows.total, tolerance=1e-12)
    assert doubled.labels["component"] == (*rows.labels["component"], "hooks")
    nothing = torch.zeros_like(rows.values[:1])  # what the hook adds
    assert_parity(doubled.values, torch.cat([rows.values, nothing]), tolerance=1e-12)


# Hooks


def test_an_edit_of_a_head_is_in_the_rows() -> None:
    model = sentence_model(part("mean", dense(14, 9), NORMALIZE), dtype=torch.float64)
    first, second = sides(model)
    plain = cosine_attribution(model, first, second)

    def knock_out(z: Tensor, hook: Any) -> None:
        z[:, :, 1] = 0

    with model.hooks([("blocks.1.attn.hook_z", knock_out)]):
        rows = cosine_attribution(model, first, second)
        assert_parity(rows.total, cosines(model, first, second), tolerance=1e-11)
    assert_complete(rows, 1e-11)
    assert rows.labels == plain.labels
    assert rows.values[rows.labels["component"].index("L1H1")].abs().max() == 0
    assert_changed(rows.total, plain.total)


@pytest.mark.parametrize(
    "name", ["sentence.pooling.hook_out", "sentence.dense.hook_pre", "sentence.normalize.hook_out", "blocks.0.hook_resid_pre"]
)
def test_what_hooks_add_has_a_row_of_its_own(name: str) -> None:
    model = sentence_model(part("mean", dense(14, 14), NORMALIZE), dtype=torch.float64)
    first, second = sides(model)
    with model.hooks([(name, lambda tensor, hook: tensor + torch.linspace(-1, 2, 14, dtype=torch.float64))]):
        rows = cosine_attribution(model, first, second)
        assert_parity(rows.total, cosines(model, first, second), tolerance=1e-11)
        pairs = token_pairs(model, *alone())
        assert_parity(torch.tensor(pairs.cosine, dtype=torch.float64), cosines(model, *alone())[0], tolerance=1e-11)
    assert_complete(rows, 1e-11)
    assert rows.values[rows.labels["component"].index("hooks")].abs().min() > CHANGE * largest_of(rows.values)
    assert_complete(pairs, 1e-11)


# Data sets


@lru_cache
def reader(name: str = "many") -> HookedEncoder:
    """A model that reads text."""
    model = sentence_model(PARTS[name], dtype=torch.float64, d_vocab=N_VOCAB, n_ctx=37)
    model.tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    return model


OTHERS = [TEXTS[3], TEXTS[0], LONG, "she"]


@pytest.mark.parametrize(("batch_size", "neurons"), [(1, False), (3, True), (32, False)])
def test_a_data_set_gives_what_its_pairs_give_one_by_one(batch_size: int, neurons: bool) -> None:
    model = reader()
    together = cosine_attribution(model, TEXTS, OTHERS, neurons, batch_size=batch_size)
    assert together.labels["example"] == tuple(TEXTS)
    assert together.second == tuple(OTHERS)
    assert ("L1N8" in together.labels["component"]) == neurons
    for index, pair in enumerate(zip(TEXTS, OTHERS, strict=True)):
        alone = cosine_attribution(model, *pair, neurons)
        assert alone.axes == ("component",)
        assert alone.labels["component"] == together.labels["component"]
        assert_parity(together.values[:, index], alone.values, tolerance=1e-12)
        assert_parity(together.total[index], alone.total, tolerance=1e-12)


def test_what_results_say() -> None:
    model = reader()
    assert cosine_attribution(model, "no", "she").title == "Direct attribution of the cosine with she"
    many = cosine_attribution(model, TEXTS, OTHERS)
    assert many.title == "Direct attribution of the cosine with another text"
    assert many.mean().mean.shape == (len(many.labels["component"]),)
    assert "completeness error" in str(many)
    pairs = token_pairs(model, "no", "the doctor")
    assert pairs.axes == ("component", "component of the second")
    assert pairs.labels["component"] == ("0 [CLS]", "1 no", "2 [SEP]", "bias")
    assert f"in their cosine of {pairs.cosine:.4g}" in str(pairs)


# Pairs of tokens


@every_part
def test_pairs_of_tokens_add_up_to_the_cosine(name: str) -> None:
    model = reader(name)
    pairs = token_pairs(model, TEXTS[0], TEXTS[3])
    assert_complete(pairs, 1e-11)
    assert_parity(pairs.values.sum(), cosines(model, TEXTS[0], TEXTS[3])[0], tolerance=1e-11)
    assert pairs.cosine == float(pairs.values.sum())
    assert [label.split()[-1] for label in pairs.labels["component"]] == [*model.to_str_tokens(TEXTS[0]), "bias"]
    back = token_pairs(model, TEXTS[3], TEXTS[0])
    assert_parity(back.values, pairs.values.mT, tolerance=1e-12)
    assert (back.labels["component"], back.labels["component of the second"]) == tuple(reversed(pairs.labels.values()))


def test_pairs_of_tokens_under_a_mean_are_products_of_the_stream() -> None:
    model = reader("mean")
    pairs = token_pairs(model, TEXTS[0], TEXTS[3])
    left, right = (model(text, "hidden")[0].detach() for text in (TEXTS[0], TEXTS[3]))
    by_hand = left @ right.mT / left.sum(0).norm() / right.sum(0).norm()
    assert_parity(pairs.values[:-1, :-1], by_hand, tolerance=1e-12)
    assert largest_of(pairs.values[-1]) < 1e-12 * largest_of(pairs.values), "there is no bias behind a mean"


def test_only_the_tokens_that_are_pooled_have_pairs() -> None:
    for name, row in (("cls", 0), ("lasttoken", -2)):
        values = token_pairs(reader(name), TEXTS[0], TEXTS[3]).values
        assert (values.abs() > 1e-12 * largest_of(values)).nonzero().tolist() == [[row % len(values), row % values.shape[1]]]


def test_a_bias_behind_the_pooling_has_its_own_pairs() -> None:
    pairs = token_pairs(reader("dense, normalize"), TEXTS[0], TEXTS[3])
    assert pairs.values[-1].abs().min() > 1e-6 * largest_of(pairs.values)
    assert pairs.labels["component"][-1] == "bias"


# What is refused


def test_what_is_refused(bert: HookedEncoder) -> None:
    model = reader()
    for attribution in (cosine_attribution, token_pairs):
        with pytest.raises(TaskError, match="is no sentence encoder, so its texts have no embeddings to compare"):
            attribution(bert, "no", "she")
        model.train()
        try:
            with pytest.raises(AnalysisError, match=r"training mode.*model\.eval\(\)"):
                attribution(model, "no", "she")
        finally:
            model.eval()
    with pytest.raises(InputError, match="there are 2 first texts and 3 second ones; give as many of both"):
        cosine_attribution(model, TEXTS[:2], TEXTS[:3])
    with pytest.raises(InputError, match="there are 1 first texts and 4 second ones"):
        cosine_attribution(model, "no", TEXTS)
    with pytest.raises(InputError, match="batch_size=0; it is a whole number from 1"):
        cosine_attribution(model, "no", "she", batch_size=0)
    for lists in ((TEXTS, "no"), ("no", ["no"])):
        with pytest.raises(InputError, match="token_pairs takes one text on each side, not lists"):
            token_pairs(model, *lists)


def test_an_activation_without_a_gain_is_refused() -> None:
    model = sentence_model(part("mean", dense(14, 9, "sigmoid")))
    for attribution in (cosine_attribution, token_pairs):
        with pytest.raises(AnalysisError, match="the activation 'sigmoid' is not 0 at 0"):
            attribution(model, *alone())
    assert not any(module.frozen for module in model.modules() if isinstance(module, Activation))


def test_inference_mode_around_a_call_does_no_harm() -> None:
    model = reader()
    with torch.inference_mode():
        rows, pairs = cosine_attribution(model, "no", "she"), token_pairs(model, "no", "she")
    assert_complete(rows, 1e-11)
    assert_complete(pairs, 1e-11)


@pytest.mark.parametrize("name", ["sentence.pooling.hook_out", "blocks.1.hook_normalized_resid_post"])
def test_a_constant_in_place_of_what_flows_is_all_of_the_cosine(name: str) -> None:
    model = sentence_model(part("mean", dense(14, 9)), dtype=torch.float64)
    first, second = sides(model)
    with model.hooks([(name, lambda x, hook: torch.linspace(-1, 1, 14, dtype=torch.float64).expand_as(x))]):
        rows = cosine_attribution(model, first, second)
        pairs = token_pairs(model, *alone())
    assert rows.values[rows.labels["component"].index("L0H0")].abs().max() == 0
    assert rows.error < 1e-11
    assert pairs.error < 1e-11
