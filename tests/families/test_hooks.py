"""Every hook point of every text family: documented, reached by a run, of its shape, and what it returns reaches the output."""

from typing import Any

import pytest
import torch
from torch import Tensor

from encoderlens import HookedEncoder, HookPoint
from tests.additive import run
from tests.hooks import assert_documented, declared, replaced, shape, while_split
from tests.parity import assert_changed, assert_parity
from tests.text_families import ENCODERS, HEADS, MASKED_LM, TEXT, text_batch, text_model

every_head = pytest.mark.parametrize(("hf_class", "task"), HEADS, ids=lambda value: value)
OTHERS = [(name, variant) for name, variant in MASKED_LM if variant != "plain"]
every_base_class = pytest.mark.parametrize("hf_class", [family.base_class for family in TEXT.values()])


def sizes(model: HookedEncoder, logits: Tensor) -> dict[str, int]:
    cfg = model.cfg
    widths = {"d_model": cfg.d_model, "d_embed": cfg.d_embed, "d_mlp": cfg.d_mlp, "d_head": cfg.d_head, "1": 1}
    heads = {
        "head": cfg.n_heads,
        "kv_head": cfg.n_kv_heads,
        "qkv_head": cfg.n_heads + 2 * cfg.n_kv_heads,
        "label": logits.shape[-1],
        "d_vocab": cfg.d_vocab,
    }
    return {"batch": 3, "pos": 11, "query": 11, "key": 11} | widths | heads


def of_heads(model: HookedEncoder) -> set[str]:
    """The modules whose hook points are not reached with every task; contacts are predicted apart."""
    return {"pooler", "contact_head"}.union(*(head.modules for head in model.heads.values()))


def assert_all_fire_and_change_nothing(model: HookedEncoder) -> None:
    batch, seen = text_batch(model), dict[str, tuple[int, ...]]()

    def note(tensor: Tensor, hook: HookPoint) -> Tensor:
        assert hook.name not in seen, f"{hook.name} has fired twice"
        seen[str(hook.name)] = tuple(tensor.shape)
        return tensor

    head = model.heads[str(model.task)]
    elsewhere = of_heads(model) - set(head.modules)
    axes_of = while_split(model, declared(model))
    expected = {name: axes for name, axes in axes_of.items() if name.split(".")[0] not in elsewhere}
    with torch.no_grad():
        plain = run(model, batch)
        with model.hooks([(list(expected), note)]):
            hooked = run(model, batch)
    by_output = head.by_output(plain)
    assert seen == {name: shape(axes, sizes(model, by_output)) for name, axes in expected.items()}
    assert_parity(hooked, plain, batch["mask"] if head.per_position else None, 1e-11)


@every_head
def test_every_hook_point_fires_with_its_shape_and_changes_nothing_by_itself(hf_class: str, task: str) -> None:
    assert_all_fire_and_change_nothing(text_model(hf_class, task))


@pytest.mark.parametrize(("hf_class", "variant"), OTHERS, ids=lambda value: value)
def test_so_in_every_variant(hf_class: str, variant: str) -> None:
    model = text_model(hf_class, "masked_lm", variant)
    assert_documented(model)
    assert_all_fire_and_change_nothing(model)


def assert_reaches_the_output(model: Any, names: list[str]) -> None:
    batch = text_batch(model)
    with torch.no_grad():
        before = run(model, batch)
    for name in names:
        after, seen = replaced(model, name, lambda: run(model, batch))
        assert [fired for fired, _ in seen] == [name]
        real = batch["mask"].bool() if model.heads[model.task].per_position else slice(None)
        assert_changed(after[real], before[real])


@pytest.mark.parametrize("hf_class", ENCODERS.values())
def test_what_a_hook_of_the_encoder_returns_reaches_the_output(hf_class: str) -> None:
    """In front of the blocks and behind them; each of the blocks in one of them."""
    model = text_model(hf_class, "masked_lm")
    layers = [f"blocks.{layer}." for layer in range(model.cfg.n_layers)]
    inside = {name.removeprefix(layer): name for layer in layers for name in model.hook_dict if name.startswith(layer)}
    outside = [name for name in model.hook_dict if not name.startswith("blocks.") and name.split(".")[0] not in of_heads(model)]
    assert len(inside) > 20
    assert_reaches_the_output(model, [*outside, *inside.values()])


@every_head
def test_what_a_hook_of_a_head_returns_reaches_its_output(hf_class: str, task: str) -> None:
    model = text_model(hf_class, task)
    assert_documented(model)
    names = [name for name in model.hook_dict if name.split(".")[0] in model.heads[task].modules]
    assert len(names) > 1
    assert_reaches_the_output(model, names)


@every_base_class
def test_hook_points_of_base_models(hf_class: str) -> None:
    """They have no more than the encoder's, what predicts contacts, and a pooler's, which is reached by calling it."""
    model = text_model(hf_class)
    assert_documented(model)
    own = {"embed", "hook_full_embed", "blocks", "ln_final", "pooler", "contact_head"}
    assert {name.split(".")[0] for name in model.hook_dict} <= own
    if model.cfg.pooler is None:
        return
    hidden = run(model, text_batch(model), "hidden")
    with torch.no_grad():
        before = model.pooler(hidden)
    after, seen = replaced(model, "pooler.hook_pooler_out", lambda: model.pooler(hidden))
    assert seen == [("pooler.hook_pooler_out", (3, model.cfg.d_model))]
    assert_changed(after, before)
