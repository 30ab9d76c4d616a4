"""Weights of every text family under TransformerLens' names: shapes, live views, shared and factorised ones; and copies."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from encoderlens import HookedEncoder
from encoderlens.components.mlp import GatedMLP
from encoderlens.errors import WeightsError
from tests.additive import run
from tests.parity import assert_parity
from tests.text_families import ENCODERS, MASKED_LM, new_text_model, text_batch, text_model

every_encoder = pytest.mark.parametrize(("hf_class", "variant"), MASKED_LM, ids=lambda value: value)
# Of every family one, and all whose layers may share parameters.
SHARED = [(name, variant) for name, variant in MASKED_LM if variant == "plain" or name == ENCODERS["albert"]]
every_family = pytest.mark.parametrize("hf_class", ENCODERS.values())


def views(model: HookedEncoder) -> dict[str, dict[str, tuple[int, ...]]]:
    """By component, the names and the shapes of its weights in every layer."""
    cfg = model.cfg
    d_model, d_mlp, per_head, per_kv_head = cfg.d_model, cfg.d_mlp, (cfg.n_heads, cfg.d_head), (cfg.n_kv_heads, cfg.d_head)
    matrices = {"W_Q": per_head, "W_K": per_kv_head, "W_V": per_kv_head}
    attention = {name: (heads, d_model, d_head) for name, (heads, d_head) in matrices.items()} | {"W_O": (*per_head, d_model)}
    attention |= {"b_Q": per_head, "b_K": per_kv_head, "b_V": per_kv_head, "b_O": (d_model,)}
    mlp = {"W_in": (d_model, d_mlp), "b_in": (d_mlp,), "W_out": (d_mlp, d_model), "b_out": (d_model,)}
    gate = {"W_gate": (d_model, d_mlp), "b_gate": (d_mlp,)} if isinstance(model.blocks[0].mlp, GatedMLP) else {}
    return {"attn": attention, "mlp": mlp | gate}


@every_encoder
def test_weights_of_layers_have_the_shapes_of_transformer_lens(hf_class: str, variant: str) -> None:
    model = text_model(hf_class, "masked_lm", variant)
    for component, shapes in views(model).items():
        for name, shape in shapes.items():
            for block in model.blocks:
                view = getattr(getattr(block, component), name)
                assert tuple(view.shape) == shape
                assert view.isfinite().all()
                assert name.startswith("b_") or view.any()
            if name not in ("W_gate", "b_gate"):
                assert tuple(getattr(model, name).shape) == (model.cfg.n_layers, *shape)
    assert model.OV.AB.shape == (model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_model, model.cfg.d_model)


@every_family
def test_an_edit_in_place_edits_the_model_and_no_bias_is_made_up(hf_class: str) -> None:
    model = new_text_model(hf_class, dtype=torch.float64)
    batch, generator = text_batch(model), torch.Generator().manual_seed(3)
    real = batch["mask"].bool()
    with torch.no_grad():
        before = run(model, batch)[real]
        for component, shapes in views(model).items():
            module = getattr(model.blocks[1], component)
            for name, shape in shapes.items():
                view = getattr(module, name)
                if not view.requires_grad:
                    assert not view.any()
                    with pytest.raises(WeightsError, match=f"{name} cannot be assigned: this model's layers have no such bias"):
                        setattr(module, name, torch.ones(shape))
                    continue
                kept, noise = view.clone(), torch.randn(shape, generator=generator)
                view += noise
                changed = run(model, batch)[real] - before
                assert name == "b_K" or changed.abs().max() > 1e-3 * before.abs().max(), name  # which the softmax may cancel
                assert_parity(getattr(module, name), kept + noise)
                setattr(module, name, kept)
        assert torch.equal(run(model, batch)[real], before)


@every_encoder
def test_an_edit_reaches_every_layer_that_shares_the_weight_and_no_other(hf_class: str, variant: str) -> None:
    model = new_text_model(hf_class, variant)
    owners = model.cfg.owners
    for component, shapes in views(model).items():
        for name in (name for name in shapes if name.startswith("W_")):
            stacked = [getattr(getattr(block, component), name) for block in model.blocks]
            assert len({view.data_ptr() for view in stacked}) == len(set(owners))
            untouched = [view.clone() for view in stacked]
            with torch.no_grad():
                stacked[-1].mul_(2)
            for owner, view, before in zip(owners, stacked, untouched, strict=True):
                assert torch.equal(view, 2 * before if owner == owners[-1] else before)


# Embeddings and unembeddings


def through_the_projection(model: HookedEncoder, table: Tensor) -> Tensor:
    projection = model.embed.projection
    return table if projection is None else table @ projection.weight.T


@every_encoder
def test_tables_of_the_embeddings_reach_the_stream(hf_class: str, variant: str) -> None:
    model = text_model(hf_class, "masked_lm", variant)
    cfg, embed = model.cfg, model.embed
    assert embed.embed.W_E.shape == (cfg.d_vocab, cfg.d_embed)
    assert model.W_E.shape == (cfg.d_vocab, cfg.d_model)
    assert_parity(model.W_E, through_the_projection(model, embed.embed.weight))
    if embed.token_type_embed is None:
        with pytest.raises(WeightsError, match="has no token types"):
            _ = model.W_token_type
    else:
        assert model.W_token_type.shape == (cfg.n_token_types, cfg.d_model)
        assert_parity(model.W_token_type, through_the_projection(model, embed.token_type_embed.weight))
    if embed.pos_embed is None:
        with pytest.raises(WeightsError, match=r"has no table of positions: they are .*, in attention"):
            _ = model.W_pos
        return
    assert embed.pos_embed.W_pos.shape == (cfg.n_ctx, cfg.d_embed)
    assert model.W_pos.shape == (cfg.n_ctx, cfg.d_model)
    assert model.W_E_pos.shape == (cfg.d_vocab + cfg.n_ctx, cfg.d_model)
    skipped = len(embed.pos_embed.weight) - cfg.n_ctx
    assert_parity(model.W_pos, through_the_projection(model, embed.pos_embed.weight[skipped:]))


@every_encoder
def test_the_first_row_of_positions_is_that_of_the_first_token_and_is_live(hf_class: str, variant: str) -> None:
    model = new_text_model(hf_class, variant)
    if model.embed.pos_embed is None:
        return
    tokens = torch.arange(5, 14)[None]  # none of which is a padding token
    _, cache = model.run_with_cache(tokens, None, names_filter="embed.hook_pos_embed")
    W_pos = model.embed.pos_embed.W_pos
    assert torch.equal(cache["pos_embed"][0], W_pos[:9])
    with torch.no_grad():
        W_pos[4] = 7.0
    _, cache = model.run_with_cache(tokens, None, names_filter="embed.hook_pos_embed")
    assert (cache["pos_embed"][0] == 7).all(1).tolist() == [position == 4 for position in range(9)]


@every_encoder
def test_the_unembedding_reads_the_stream(hf_class: str, variant: str) -> None:
    model = text_model(hf_class, "masked_lm", variant)
    cfg, unembed = model.cfg, model.unembed
    assert unembed.W_U.shape == (cfg.d_embed, cfg.d_vocab)
    assert model.W_U.shape == (cfg.d_model, cfg.d_vocab)
    assert model.b_U.shape == (cfg.d_vocab,)
    assert (unembed.weight is model.embed.embed.weight) == cfg.tie_word_embeddings
    narrow = cfg.d_embed != cfg.d_model
    assert_parity(model.W_U, model.mlm_head.dense.weight.T @ unembed.weight.T if narrow else unembed.weight.T)
    assert narrow or model.W_U.data_ptr() == unembed.weight.data_ptr()


# Copies


def moved(model: HookedEncoder) -> HookedEncoder:
    return model.to(torch.float32, print_details=False)


COPIES: dict[str, Callable[[Any], HookedEncoder]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "to(dtype)": moved,
    "deepcopy, then to(dtype)": lambda model: moved(copy.deepcopy(model)),
}


def sharing(model: HookedEncoder) -> list[int]:
    """For the name of each parameter, the first name with the same parameter."""
    parameters = [id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False)]
    return [parameters.index(parameter) for parameter in parameters]


@pytest.mark.parametrize(("hf_class", "variant"), SHARED, ids=lambda value: value)
def test_copies_share_what_the_model_shares(hf_class: str, variant: str) -> None:
    model = new_text_model(hf_class, variant, torch.float64)
    expected, batch = sharing(model), text_batch(model)
    with torch.no_grad():
        before = run(model, batch)
        for copied in COPIES.values():
            twin = copied(model)
            assert sharing(twin) == expected
            tolerance = 1e-12 if twin.cfg.dtype == torch.float64 else 1e-5
            assert_parity(run(twin, batch).double(), before, batch["mask"], tolerance)
