"""The row table: applied, inverted, checked; and that the families' tables keep up with transformers' renames."""

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming

from encoderlens import HookedEncoder, HookedTransformerConfig, conversion, loading, weights
from encoderlens.errors import ConfigError, WeightsError
from encoderlens.families import REGISTRY, transformer_lens
from encoderlens.tensor_source import MemorySource
from encoderlens.weights import Piece, Row, apply, expand, find, invert, linear, norm
from tests.checkpoints import assert_same_parameters, assert_same_tensors
from tests.tiny import tiny_batch, tiny_hf

SIZES = {"head": 2, "d_head": 3, "pos": 4}


class Small(nn.Module):
    """A tied pair, a matrix that is stored transposed, heads that are stored apart, positions that may be cropped."""

    def __init__(self, n_ctx: int = 4) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(5, 4))
        self.tied = self.a
        self.matrix = nn.Parameter(torch.zeros(7, 4))
        self.heads = nn.Parameter(torch.zeros(6, 4))
        self.positions = nn.Parameter(torch.zeros(n_ctx, 3))


ROWS = (
    Row("base.a", "a", legacy=("base.alpha",)),
    Row("out.a", "tied"),
    Row("matrix", "matrix", "d_in d_out -> d_out d_in"),
    Row("heads", "heads", "head d_model d_head -> (head d_head) d_model"),
    Row("positions", "positions", crop=True),
)


def stored(**changes: Tensor | None) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(5, 4, generator=generator)
    tensors: dict[str, Any] = {
        "base.a": a,
        "out.a": a.clone(),
        "matrix": torch.randn(4, 7, generator=generator),
        "heads": torch.randn(2, 4, 3, generator=generator),
        "positions": torch.randn(4, 3, generator=generator),
    }
    tensors |= {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in tensors.items() if value is not None}


def load(tensors: dict[str, Tensor], model: nn.Module | None = None, **options: Any) -> tuple[nn.Module, weights.LoadReport]:
    model = Small() if model is None else model
    report = apply(ROWS, MemorySource(tensors, "the file"), model, sizes=SIZES, base_prefix="base.", **options)
    return model, report


def test_rows_spell_out_layers():
    rows = expand((Row("old.{l}.w", "new.{l}.w", legacy=("older.{l}.g",)), Row("top", "top")), {0: "0", 1: "1"})
    assert [row.source for row in rows] == ["old.0.w", "old.1.w", "top"]
    assert [row.target for row in rows] == ["new.0.w", "new.1.w", "top"]
    assert rows[1].legacy == ("older.1.g",)


def test_old_names_of_parts_of_a_key_in_every_mixture():
    old = {"key": Piece("qk", 1, 2), "layers": "blocks", "norm": "ln"}
    row, other = weights.respelt((Row("layers.{l}.key.w", "k", legacy=("layers.{l}.k",)), Row("top", "top")), old)
    assert other == Row("top", "top")
    fused = Piece("layers.{l}.qk.w", 1, 2), Piece("blocks.{l}.qk.w", 1, 2)
    assert set(row.spellings) == {*fused, *map(Piece, ("layers.{l}.key.w", "blocks.{l}.key.w", "layers.{l}.k", "blocks.{l}.k"))}
    assert row.spellings[0] == Piece("layers.{l}.key.w")
    assert find(row.at("{l}", 3, "3"), {"blocks.3.qk.w"}, "") == Piece("blocks.3.qk.w", 1, 2)


def test_helpers_of_the_table():
    assert linear("s", "t") == (Row("s.weight", "t.weight"), Row("s.bias", "t.bias"))
    assert [row.legacy for row in norm("s", "t")] == [("s.gamma",), ("s.beta",)]


@pytest.mark.parametrize("name", ["base.a", "base.alpha", "a", "alpha"])
def test_find_knows_every_spelling(name: str):
    assert find(ROWS[0], {name}, "base.") == Piece(name)
    assert find(ROWS[0], {"other." + name}, "base.") is None


def test_apply_and_invert_undo_each_other():
    model, report = load(stored())
    assert report == weights.LoadReport(loaded=5)
    assert_same_tensors(invert(ROWS, model, SIZES), stored())
    assert torch.equal(model.matrix, stored()["matrix"].T)
    assert torch.equal(model.heads[3:, 0], stored()["heads"][1, 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_another_dtype_are_converted_in_pieces(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(weights, "CHUNK_BYTES", 20)
    tensors = {name: tensor.to(dtype) for name, tensor in stored().items()}
    model, _ = load(tensors)
    assert_same_tensors(invert(ROWS, model, SIZES), {name: tensor.float() for name, tensor in tensors.items()})


@pytest.mark.parametrize("chunk", [1, 20, 10**6])
@pytest.mark.parametrize("row", [0, 2, 4])
def test_tied_tensors_are_compared_to_the_last_row(chunk: int, row: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(weights, "CHUNK_BYTES", chunk)
    tensors = stored()
    tensors["out.a"][row, 3] += 1
    with pytest.raises(WeightsError, match=r"the file: out\.a and base\.a are tied but differ; .*tie_word_embeddings: false"):
        load(tensors)


def test_a_buffer_is_filled_where_the_checkpoint_holds_it_and_keeps_its_value_where_not():
    for held in ({}, {"rate": torch.tensor([3.0, 5.0])}):
        model = Small()
        model.register_buffer("rate", torch.tensor([1.0, 2.0]))
        rows = (*ROWS, Row("rate", "rate"))
        apply(rows, MemorySource(stored(**held), "the file"), model, sizes=SIZES, base_prefix="base.")
        assert model.rate.tolist() == ([3.0, 5.0] if held else [1.0, 2.0])
        assert torch.equal(invert(rows, model, SIZES)["rate"], model.rate)


@pytest.mark.parametrize("absent", ["base.a", "out.a"])
def test_one_of_two_tied_tensors_is_enough(absent: str):
    tensors = stored()
    del tensors[absent]
    model, report = load(tensors)
    assert report.loaded == 4
    assert torch.equal(model.a, stored()["base.a"])


def test_spare_tensor_of_an_untied_model_is_kept_aside():
    rows = (ROWS[0], replace(ROWS[1], spare=True), *ROWS[2:])
    other = torch.randn(5, 4)
    source = MemorySource(stored(out__a=other), "the file")
    model = Small()
    report = apply(rows, source, model, sizes=SIZES, base_prefix="base.", tied=False)
    assert torch.equal(model.a, stored()["base.a"])
    assert_same_tensors(report.spare, {"out.a": other})
    with pytest.raises(WeightsError, match="tied but differ"):
        apply(rows, source, Small(), sizes=SIZES, base_prefix="base.")


def test_positions_may_be_cropped_on_request_only():
    model, _ = load(stored(), Small(n_ctx=3), crop=True)
    assert torch.equal(model.positions, stored()["positions"][:3])
    message = r"positions has shape \[4, 3\], the configuration calls for \[3, 3\] .*; correct .* or keep .* with n_ctx=4$"
    with pytest.raises(WeightsError, match=message):
        load(stored(), Small(n_ctx=3))


def test_ignored_and_left_tensors_are_reported():
    extra = {"base__position_ids": torch.arange(4)[None], "classifier__weight": torch.ones(2)}
    _, report = load(stored(**extra), ignored=("*position_ids",), leave=True)
    assert report == weights.LoadReport(loaded=5, ignored=("base.position_ids",), left=("classifier.weight",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"matrix": None}, "the file lacks 1 tensors that its configuration calls for: matrix"),
        ({"base__a": None, "out__a": None}, r"the file lacks 2 tensors .*: base\.a, out\.a"),
        ({"matrx": torch.ones(1)}, "the file holds 1 tensors that no part of the model takes: matrx; did you mean 'matrix'"),
        ({"a": torch.ones(5, 4)}, "the file holds 1 tensors that no part of the model takes: a"),
        ({"base__a": torch.ones(4, 5)}, r"base\.a has shape \[4, 5\], the configuration calls for \[5, 4\] \(a\)"),
        ({"base__a": torch.ones(20)}, r"base\.a has shape \[20\], the configuration calls for \[5, 4\]"),
        (
            {"matrix": torch.ones(7, 4)},
            r"matrix has shape \[7, 4\], the configuration calls for \[4, 7\] \(matrix, pattern d_in",
        ),
        ({"heads": torch.ones(2, 3, 4)}, r"heads has shape \[2, 3, 4\], the configuration calls for \[2, 4, 3\]"),
        ({"heads": torch.ones(4, 6)}, r"heads has shape \[4, 6\], the configuration calls for \[2, 4, 3\]"),
        ({"positions": torch.ones(3, 3)}, r"positions has shape \[3, 3\], the configuration calls for \[4, 3\]"),
        ({"positions": torch.ones(9, 2)}, r"positions has shape \[9, 2\]"),
        ({"positions": torch.ones(())}, r"positions has shape \[\]"),
        ({"matrix": torch.ones(4, 7, dtype=torch.int64)}, r"matrix has dtype torch\.int64; weights are floating-point"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_read(changes: dict[str, Any], message: str):
    model = Small()
    with pytest.raises(WeightsError, match=message):
        load(stored(**changes), model)
    assert all(not parameter.any() for parameter in model.parameters()), "nothing may be filled"


def test_long_lists_of_names_are_cut():
    extra = {f"x{index}": torch.ones(1) for index in range(9)}
    with pytest.raises(WeightsError, match=r"holds 9 tensors .*: x0, x1, x2, x3 and 5 more"):
        load(stored(**extra))


def test_parameter_that_no_row_fills():
    model = Small()
    model.forgotten = nn.Parameter(torch.zeros(1))
    with pytest.raises(WeightsError, match="the family's table fills no parameter forgotten"):
        load(stored(), model)


# transformers' own renames


# Old spellings that the walk must come across, by model_type; of text families that are not named, BERT's.
GAMMA_BETA = {"LayerNorm.gamma", "LayerNorm.beta"}
RENAMES = {
    "hubert": {".weight_g", ".weight_v"},
    "wav2vec2": {".weight_g", ".weight_v"},
    "nomic_bert": GAMMA_BETA
    | {"encoder.layers", "emb_ln", "attn.out_proj", "fc11", "fc12", "fc2", "norm1", "norm2", "attn.Wqkv"},
    "modernbert": set(),
    "eurobert": set(),
    "esm": GAMMA_BETA | {"encoder.layer.*.attention.self.rotary_embeddings.inv_freq"},
}


def table_of(hf_model: Any) -> list[Row]:
    """The rows of the model that a Hugging Face model becomes."""
    checkpoint = loading.open_checkpoint(None, hf_model=hf_model)
    return checkpoint.family.rows_of(conversion.read_config(checkpoint))


def old_piece(conversion: WeightRenaming | WeightConverter, name: str) -> Piece | None:
    """Where a conversion would find a tensor of today: under its old name, or as a piece of what is chunked. None: nowhere."""
    old, pattern = conversion.reverse_transform().rename_source_key(name)
    if pattern is None:
        return None
    if isinstance(conversion, WeightRenaming):
        return Piece(old)
    (chunk,) = conversion.operations
    assert isinstance(chunk, Chunk), f"a conversion that is neither a rename nor a chunk: {conversion}"
    assert (chunk.dim, chunk.num_shards_attribute) == (0, None)
    return Piece(old, conversion.target_patterns.index(pattern), len(conversion.target_patterns))


@pytest.mark.parametrize("model_type", REGISTRY)
def test_every_rename_of_transformers_is_known(model_type: str):
    """Each old spelling that transformers turns into a key of the family is a spelling of the key's own row, and what it
    chunks is found piece by piece.
    """
    family = REGISTRY[model_type]
    reached = set()
    for hf_class in family.classes:
        hf_model = tiny_hf(hf_class)
        rows = table_of(hf_model)
        for rename in get_model_conversion_mapping(hf_model):
            for name in hf_model.state_dict():
                piece = old_piece(rename, name)
                if piece is None:
                    continue
                reached.add(rename.source_patterns[0])
                found = [find(row, {piece.name}, family.base_prefix) for row in rows if find(row, {name}, family.base_prefix)]
                assert piece in found, f"no row finds {piece}, of old {name}"
    assert RENAMES.get(model_type, GAMMA_BETA) <= reached, "the walk has lost sight of renames that the family has"


@pytest.mark.parametrize("hf_class", [name for family in REGISTRY.values() for name in family.classes])
def test_every_key_of_transformers_is_in_the_table(hf_class: str):
    hf_model = tiny_hf(hf_class)
    family, names = REGISTRY[hf_model.config.model_type], hf_model.state_dict()
    found = [find(row, names, family.base_prefix) for row in table_of(hf_model)]
    left = set(names) - {piece.name for piece in found if piece is not None}
    assert all(any(fnmatchcase(name, pattern) for pattern in (*family.ignored, *family.kept)) for name in left), left


# TransformerLens' state dicts

TL_CONFIG = {
    "d_model": 40,
    "d_head": 8,
    "n_layers": 3,
    "n_ctx": 37,
    "d_vocab": 188,
    "d_mlp": 52,
    "act_fn": "gelu",
    "eps": 1e-12,
    "attention_dir": "bidirectional",
    "device": "cpu",
}


@pytest.fixture
def lens_state(bert: HookedEncoder) -> dict[str, Tensor]:
    """The weights of the twin as TransformerLens' HookedEncoder would save them, its buffers included."""
    tensors = invert(transformer_lens.rows("text", 3, 0), bert, {"head": 5, "d_head": 8})
    buffers = {f"blocks.{layer}.attn.mask": torch.empty(0, 0) for layer in range(3)}
    buffers |= {f"blocks.{layer}.attn.IGNORE": torch.tensor(-torch.inf) for layer in range(3)}
    return {name: tensor.clone() for name, tensor in tensors.items()} | buffers


def test_lens_state_dict_has_the_shapes_of_transformer_lens(lens_state: dict[str, Tensor]):
    shapes = {name: list(tensor.shape) for name, tensor in lens_state.items()}
    expected = {
        "embed.embed.W_E": [188, 40],
        "embed.pos_embed.W_pos": [37, 40],
        "embed.token_type_embed.W_token_type": [2, 40],
        "blocks.1.attn.W_Q": [5, 40, 8],
        "blocks.1.attn.W_O": [5, 8, 40],
        "blocks.1.attn.b_K": [5, 8],
        "blocks.1.mlp.W_in": [40, 52],
        "blocks.1.mlp.W_out": [52, 40],
        "mlm_head.W": [40, 40],
        "unembed.W_U": [40, 188],
        "nsp_head.W": [40, 2],
    }
    assert {name: shapes[name] for name in expected} == expected
    assert len(shapes) == 5 + 3 * (16 + 2) + 4 + 2 + 4


def test_lens_state_dict_round_trip(bert: HookedEncoder, lens_state: dict[str, Tensor]):
    batch = tiny_batch()
    model = HookedEncoder.from_transformer_lens_state_dict(lens_state, TL_CONFIG)
    assert_same_parameters(model, bert)
    assert not model.training
    assert len(model.load_report.ignored) == 6
    for task in ("masked_lm", "next_sentence"):
        with bert.use_task(task), model.use_task(task):
            expected = bert(batch["tokens"], "logits", batch["types"], batch["mask"])
            assert torch.equal(model(batch["tokens"], "logits", batch["types"], batch["mask"]), expected)


def test_lens_state_dict_under_an_encoder_config(bert: HookedEncoder, lens_state: dict[str, Tensor]):
    model = HookedEncoder.from_transformer_lens_state_dict(lens_state, bert.cfg.encoder, device="cpu")
    assert_same_parameters(model, bert)


def test_lens_state_dict_with_a_configuration_object(bert: HookedEncoder, lens_state: dict[str, Tensor]):
    sizes = ("n_layers", "d_model", "n_ctx", "n_heads", "d_mlp", "d_vocab", "act_fn", "eps")
    cfg = HookedTransformerConfig(**{name: getattr(bert.cfg, name) for name in sizes}, tie_word_embeddings=False)
    model = HookedEncoder.from_transformer_lens_state_dict(lens_state, cfg)
    assert_same_parameters(model, bert)


def test_untied_lens_state_dict_stays_untied(lens_state: dict[str, Tensor]):
    lens_state["unembed.W_U"] = lens_state["unembed.W_U"] + 1
    model = HookedEncoder.from_transformer_lens_state_dict(lens_state, TL_CONFIG)
    assert torch.equal(model.W_U, lens_state["unembed.W_U"])
    assert torch.equal(model.W_E, lens_state["embed.embed.W_E"])
    with pytest.raises(WeightsError, match=r"unembed\.W_U and embed\.embed\.W_E are tied but differ"):
        HookedEncoder.from_transformer_lens_state_dict(lens_state, TL_CONFIG | {"tie_word_embeddings": True})


def test_lens_dictionary_without_eps_means_what_it_means_there(lens_state: dict[str, Tensor]):
    cfg = {name: value for name, value in TL_CONFIG.items() if name != "eps"}
    assert HookedEncoder.from_transformer_lens_state_dict(lens_state, cfg).cfg.eps == 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks.1.attn.W_Q": None}, r"the TransformerLens state dict lacks 1 tensors .*: blocks\.1\.attn\.W_Q"),
        ({"nsp_head.b": None}, r"lacks 1 tensors .*: nsp_head\.b"),
        ({"blocks.3.ln1.w": torch.ones(40)}, r"holds 1 tensors that no part of the model takes: blocks\.3\.ln1\.w"),
        ({"blocks.0.attn.W_O": torch.ones(8, 5, 40)}, r"W_O has shape \[8, 5, 40\], the configuration calls for \[5, 8, 40\]"),
        ({"mlm_head.W": torch.ones(1600)}, r"mlm_head\.W has shape \[1600\], the configuration calls for \[40, 40\]"),
    ],
)
def test_lens_state_dict_that_does_not_fit(changes: dict[str, Tensor | None], message: str, lens_state: dict[str, Tensor]):
    changed = {name: tensor for name, tensor in (lens_state | changes).items() if tensor is not None}
    with pytest.raises(WeightsError, match=message):
        HookedEncoder.from_transformer_lens_state_dict(changed, TL_CONFIG)


def test_lens_state_dict_holds_more_than_a_model_with_fewer_heads(lens_state: dict[str, Tensor]):
    masked_lm = HookedEncoder.from_pretrained(hf_model=tiny_hf("BertForMaskedLM"), device="cpu").cfg.encoder
    with pytest.raises(WeightsError, match=r"holds 4 tensors that no part of the model takes: pooler\.W, pooler\.b, nsp_head"):
        HookedEncoder.from_transformer_lens_state_dict(lens_state, masked_lm, device="cpu")


def test_lens_configuration_for_another_model(lens_state: dict[str, Tensor]):
    with pytest.raises(ConfigError, match="attention_dir='causal'"):
        HookedEncoder.from_transformer_lens_state_dict(lens_state, TL_CONFIG | {"attention_dir": "causal"})
    with pytest.raises(WeightsError, match=r"blocks\.2\."):
        HookedEncoder.from_transformer_lens_state_dict(lens_state, TL_CONFIG | {"n_layers": 2})
