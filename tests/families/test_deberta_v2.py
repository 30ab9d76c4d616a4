"""DeBERTa v2 and v3: buckets of distances, terms of scores, the convolution on the stream, and how checkpoints are stored."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DebertaV2Config, DebertaV2ForMaskedLM
from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position

from encoderlens import ActivationCache, EncoderConfig, HookedEncoder
from encoderlens.analysis import direct_logit_attribution, logit_lens
from encoderlens.components.disentangled import RelativeEmbedding
from encoderlens.config import ConvFirstPostLNPart, ConvolutionPart, RelativeEmbeddingPart, SequenceClassificationPart
from encoderlens.errors import ConfigError, InputError, UnknownArchitectureError, WeightsError
from encoderlens.families import family_of
from encoderlens.linearised import direct_rows
from tests.additive import (
    POSITIONS,
    TARGETS,
    additive_batch,
    arguments,
    biases_on_the_path,
    clean_run,
    head_gains,
    replay,
    run,
    scale_points,
    score,
    taken_out,
)
from tests.checkpoints import assert_same_tensors, edit_config, read_tensors, rename_tensors, save_tiny, write_tensors
from tests.hooks import POST_LN_BLOCK, declared, in_layers, norm, replaced
from tests.parity import assert_changed, assert_complete, assert_parity
from tests.tiny import VARIANTS, tiny_batch, tiny_hf

MASKED_LM, CLASSIFIER = "DebertaV2ForMaskedLM", "DebertaV2ForSequenceClassification"
OLDER = VARIANTS["deberta-v2"]["own keys and queries of positions, absolute ones too"]
LARGE = {"conv_kernel_size": 3, "conv_act": "gelu"}  # as of the largest v2
ALL = LARGE | OLDER | {"embedding_size": 24}  # everything that can join the stream, and every passage
SORTS: dict[str, dict[str, Any]] = {"v3": {}, "large v2": LARGE, "older": OLDER, "all": ALL}
every_sort = pytest.mark.parametrize("sort", SORTS)
DTYPES = [(torch.float32, 1e-5), (torch.float64, 1e-11)]


def load(hf_model: Any, **options: Any) -> HookedEncoder:
    return HookedEncoder.from_pretrained(hf_model=hf_model, device="cpu", **options)


def made(sort: str, hf_class: str = MASKED_LM, dtype: torch.dtype = torch.float32, **overrides: Any) -> HookedEncoder:
    return load(tiny_hf(hf_class, seed=2, **(SORTS[sort] | overrides)), dtype=dtype)


def batch_for(model: HookedEncoder) -> dict[str, Tensor]:
    batch = additive_batch()
    return batch if model.cfg.n_token_types else batch | {"types": torch.zeros_like(batch["types"])}


# Distances


@pytest.mark.parametrize(
    ("n_buckets", "max_distance"), [(256, 512), (32, 300), (6, 37), (7, 50), (2, 40), (None, 20), (64, 20)]
)
def test_rows_of_the_table_are_hugging_faces(n_buckets: int | None, max_distance: int) -> None:
    relative = RelativeEmbedding(max_distance, n_buckets, None, 0.0, 4)
    positions = torch.empty(700, 1)
    theirs = build_relative_position(positions, positions, n_buckets or -1, max_distance)[0]
    span = n_buckets or max_distance
    assert torch.equal(relative.rows(700), (theirs + span).clamp(0, 2 * span - 1))
    assert relative.rows(700).unique().numel() > span


def test_only_rows_that_a_batch_needs_are_read() -> None:
    model = made("v3", position_buckets=-1, norm_rel_ebd="none")
    assert model.relative.W_rel.shape == (2 * 37, 40)
    model(torch.tensor([[5, 6, 7, 8]]), "hidden").sum().backward()
    read = model.relative.weight.grad.abs().sum(1) > 0
    assert read.nonzero().flatten().tolist() == list(range(37 - 3, 37 + 4))


FAR = {"max_position_embeddings": 300}
REACHES = {
    "logarithmic": {"position_buckets": 32},
    "beyond the last bucket": {"position_buckets": 8, "max_relative_positions": 30},
    "beyond the last distance": {"position_buckets": -1, "max_relative_positions": 21},
}


@pytest.mark.parametrize("side", ["right", "left", "none"])
@pytest.mark.parametrize("reach", REACHES)
def test_long_sequences_padded_on_either_side(reach: str, side: str) -> None:
    hf_model = tiny_hf(MASKED_LM, seed=4, num_hidden_layers=2, **(ALL | FAR | REACHES[reach]))
    model, generator = load(hf_model), torch.Generator().manual_seed(1)
    tokens, types = (torch.randint(0, high, (2, 290), generator=generator) for high in (188, 2))
    mask = torch.ones(2, 290, dtype=torch.long)
    if side != "none":
        mask[1, slice(61, None) if side == "right" else slice(None, 229)] = 0
    with torch.no_grad():
        theirs = hf_model(tokens, mask, types, output_attentions=True)
        fused = model(tokens, "logits", types, mask)
        explicit, cache = model.run_with_cache(tokens, "logits", types, mask)
    assert_parity(fused, theirs.logits, mask)
    assert_parity(explicit, theirs.logits, mask)
    assert_parity(cache["pattern", 1].transpose(1, 2), theirs.attentions[1].transpose(1, 2), None)  # padding too


# Terms


@pytest.mark.parametrize("terms", [("c2p", "p2c"), ("c2p",), ("p2c",)])
@every_sort
def test_scores_are_the_sum_of_their_terms(sort: str, terms: tuple[str, ...]) -> None:
    model, batch = made(sort, pos_att_type=list(terms)), tiny_batch()
    with torch.no_grad():
        _, cache = model.run_with_cache(batch["tokens"], "hidden")
        for layer, block in enumerate(model.blocks):
            attn, q, k = block.attn, cache["q", layer], cache["k", layer]
            vectors = model.relative.normed(model.relative.weight)[model.relative.rows(11)].flatten(0, 1)
            products = {}
            if "c2p" in terms:
                keys = attn.position_keys(vectors).unflatten(0, (11, 11))
                products["c2p"] = torch.einsum("bqhd,qkhd->bhqk", q, keys)
            if "p2c" in terms:
                queries = attn.position_queries(vectors).unflatten(0, (11, 11))
                products["p2c"] = torch.einsum("bkhd,qkhd->bhqk", k, queries)
            content, scale = torch.einsum("bqhd,bkhd->bhqk", q, k), ((1 + len(terms)) * 8) ** -0.5
            found = {term: cache[f"blocks.{layer}.attn.hook_{term}"] for term in terms}
            for term in terms:
                assert_parity(found[term], products[term] * scale)
            assert_parity(cache[f"blocks.{layer}.attn.hook_rel_bias"], sum(found.values()))
            assert_parity(cache["attn_scores", layer], content * scale + sum(found.values()))
    assert not {f"blocks.0.attn.hook_{term}" for term in {"c2p", "p2c"} - set(terms)} & set(model.hook_dict)


def test_qk_is_the_term_of_content() -> None:
    model = made("v3")
    with torch.no_grad():
        model.blocks[1].attn.b_Q.zero_()
        model.blocks[1].attn.b_K.zero_()
        zeros = {"hook_c2p": 0.0, "hook_p2c": 0.0}
        hooks = [(f"blocks.1.attn.{name}", lambda tensor, hook: tensor * 0) for name in zeros]
        with model.hooks(hooks):
            _, cache = model.run_with_cache(tiny_batch()["tokens"], "hidden")
        x, scale = cache["resid_pre", 1], (3 * 8) ** -0.5
        content = torch.einsum("bqm,hmn,bkn->bhqk", x, model.QK[1].AB, x)
        assert_parity(cache["attn_scores", 1], content * scale)


def test_a_model_without_relative_positions_has_neither_their_points_nor_their_table() -> None:
    model = made("older", relative_attention=False)
    assert not any("c2p" in name or "rel" in name for name in (*model.hook_dict, *dict(model.named_parameters())))
    assert model.blocks[0].attn.scale == pytest.approx((3 * 8) ** -0.5)  # as in Hugging Face, for terms that are named


def test_dropout_in_training_is_on_vectors_of_positions_too() -> None:
    model = made("v3", hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.0).train()
    sequence = model.prepare(tiny_batch()["tokens"]).sequence
    vectors, _ = model.relative(sequence)
    share = (vectors == 0).float().mean()
    assert 0.4 < share < 0.6
    assert not torch.equal(vectors, model.relative(sequence)[0])
    assert not (model.eval().relative(sequence)[0] == 0).any()


# Hook points

DISENTANGLED = {f"attn.hook_{name}": "batch head query key" for name in ("c2p", "p2c", "rel_bias")}
CONVOLUTION = {f"blocks.0.hook_{name}": "batch pos d_model" for name in ("conv_out", "resid_conv", "normalized_resid_conv")}
CONVOLUTION |= norm("blocks.0.ln_conv")
EMBED = {"embed.hook_embed": "batch pos d_model", **norm("embed.ln"), "hook_full_embed": "batch pos d_model"}
ABSOLUTE = {"embed.hook_pos_embed": "batch pos d_model", "embed.hook_token_type_embed": "batch pos d_model"}
BLOCKS = in_layers(POST_LN_BLOCK | DISENTANGLED, 3)
MLM = {f"{name}": "batch pos d_model" for name in ("mlm_head.hook_pre", "mlm_head.hook_post", "unembed.hook_in")}
MLM |= norm("mlm_head.ln") | {"unembed.hook_out": "batch pos d_vocab"}
POOLED = {f"{name}": "batch d_model" for name in ("pre_classifier.hook_pre", "pre_classifier.hook_post", "classifier.hook_in")}
POOLED |= {"classifier.hook_out": "batch label"}
NARROW = dict.fromkeys(("embed.hook_embed", *ABSOLUTE, "mlm_head.hook_pre", "mlm_head.hook_post"), "batch pos d_embed")
NARROW |= {"mlm_head.ln.hook_normalized": "batch pos d_embed", "unembed.hook_in": "batch pos d_embed"}
DOCUMENTED = {
    ("v3", MASKED_LM): EMBED | BLOCKS | MLM,
    ("v3", CLASSIFIER): EMBED | BLOCKS | POOLED,
    ("large v2", MASKED_LM): EMBED | BLOCKS | CONVOLUTION | MLM,
    ("older", MASKED_LM): EMBED | ABSOLUTE | BLOCKS | MLM,
    ("all", MASKED_LM): EMBED | ABSOLUTE | BLOCKS | CONVOLUTION | MLM | NARROW,
}


@pytest.mark.parametrize(("sort", "hf_class"), DOCUMENTED)
def test_these_are_the_hook_points(sort: str, hf_class: str) -> None:
    assert declared(made(sort, hf_class)) == DOCUMENTED[sort, hf_class]


def test_each_hook_point_of_the_convolution_changes_the_run() -> None:
    model, tokens = made("large v2"), tiny_batch()["tokens"]
    names = [name for name in model.hook_dict if "conv" in name]
    assert len(names) == 5
    with torch.no_grad():
        before = model(tokens)
    for name in names:
        after, seen = replaced(model, name, lambda: model(tokens))
        assert [where for where, _ in seen] == [name]
        assert_changed(after, before)


def test_what_passes_the_points_of_the_convolution() -> None:
    model, batch = made("large v2"), tiny_batch()
    with torch.no_grad():
        _, cache = model.run_with_cache(batch["tokens"], "hidden", None, batch["mask"])
        block = model.blocks[0]
        assert_parity(cache["blocks.0.hook_conv_out"], block.conv(cache["resid_pre", 0]))
        resid = cache["normalized_resid_post", 0] + cache["blocks.0.hook_conv_out"]
        assert_parity(cache["blocks.0.hook_resid_conv"], resid)
        assert_parity(cache["resid_pre", 1], block.ln_conv(resid), batch["mask"])
    assert torch.equal(cache["resid_pre", 1], cache["blocks.0.hook_normalized_resid_conv"])
    assert cache["resid_pre", 0][~batch["mask"].bool()].abs().max() == 0  # so that no padding gets into the convolution
    assert cache["resid_pre", 1][~batch["mask"].bool()].abs().max() == 0
    assert not hasattr(model.blocks[1], "conv")


# The stream


def conv_cache(sort: str, dtype: torch.dtype, **overrides: Any) -> tuple[ActivationCache, dict[str, Tensor]]:
    model = made(sort, dtype=dtype, **overrides)
    batch = batch_for(model)
    return model.run_with_cache(**arguments(batch), names_filter=lambda name: True)[1], batch


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("n_layers", [1, 3])
@every_sort
def test_rows_sum_to_the_stream_at_every_layer(sort: str, n_layers: int, dtype: torch.dtype, tolerance: float) -> None:
    cache, batch = conv_cache(sort, dtype, num_hidden_layers=n_layers)
    mask, model = batch["mask"], cache.model
    places = [(layer, mid) for layer in range(n_layers) for mid in (False, True)] + [(n_layers, False)]
    for layer, mid in places:
        stream = cache[str(model.stream_point(layer, mid).name)]
        assert_parity(cache.decompose_resid(layer, mlp_input=mid).sum(0), stream, mask, tolerance)
        assert_parity(cache.get_full_resid_decomposition(layer, mlp_input=mid).sum(0), stream, mask, tolerance)
        for split in (cache.stack_head_results, cache.stack_neuron_results):
            if layer > 0 and not mid:
                assert_parity(split(layer, incl_remainder=True).sum(0), stream, mask, tolerance)
    assert_parity(cache.accumulated_resid()[-1], run(model, batch, "hidden").detach(), mask, tolerance)


def test_labels_with_a_convolution_are_these() -> None:
    cache, _ = conv_cache("all", torch.float32, num_hidden_layers=2)
    embeddings, first = ["embed", "pos_embed", "token_type_embed"], ["0_attn_out", "0_ln1_b", "0_mlp_out", "0_ln2_b"]
    second = ["1_attn_out", "1_ln1_b", "1_mlp_out", "1_ln2_b"]
    expected = [*embeddings, "embed_ln_b", *first, "0_conv_out", "0_ln_conv_b", *second]
    assert cache.decompose_resid(return_labels=True)[1] == expected
    assert cache.decompose_resid(mode="mlp", incl_embeds=False, return_labels=True)[1] == ["0_mlp_out", "1_mlp_out"]
    labels = cache.get_full_resid_decomposition(expand_neurons=False, return_labels=True)[1]
    assert labels[10:16] == ["0_mlp_out", "1_mlp_out", "0_conv_out", *embeddings]


def writes_of(model: HookedEncoder, clean: dict[str, Tensor]) -> dict[str, tuple[str, Tensor]]:
    """By row label: the hook point where something joins the stream, and what does: as it is, not as a row carries it."""
    found = {name: f"embed.hook_{name}" for name in ("embed", "pos_embed", "token_type_embed")}
    found |= {f"{layer}_{kind}_out": f"blocks.{layer}.hook_{kind}_out" for layer in range(3) for kind in ("attn", "mlp")}
    found |= {"0_conv_out": "blocks.0.hook_conv_out"}
    writes = {label: (name, clean[name]) for label, name in found.items() if name in clean}
    for layer, block in enumerate(model.blocks):
        for head in range(model.cfg.n_heads):
            z = clean[f"blocks.{layer}.attn.hook_z"][:, :, head]
            writes[f"L{layer}H{head}"] = (f"blocks.{layer}.hook_attn_out", z @ block.attn.W_O[head])
    return writes


@every_sort
def test_a_row_is_what_is_missing_when_its_write_is_taken_out(sort: str) -> None:
    """Scales, gains and all other writes have their values: then the stream, and the logit, change by minus the row."""
    model = made(sort, dtype=torch.float64)
    batch = batch_for(model)
    clean = clean_run(model, batch)
    _, cache = model.run_with_cache(**arguments(batch), names_filter=lambda name: True)
    whole = dict(zip(*reversed(cache.decompose_resid(return_labels=True)), strict=True))
    whole |= dict(zip(*reversed(cache.stack_head_results(return_labels=True)), strict=True))
    writes, mask = writes_of(model, clean), batch["mask"]
    points = [*scale_points(clean), *{name for name, _ in writes.values()}]
    rows = direct_rows(model, model.heads["masked_lm"], lambda: score(model, batch), ("H",))
    logits = dict(zip(rows.labels, rows.values, strict=True))
    kept = direct_rows(model, model.heads["masked_lm"], lambda: score(model, batch), ())
    logits |= dict(zip(kept.labels, kept.values, strict=True))
    with torch.no_grad():
        before, stream = score(model, batch), run(model, batch, "hidden")
        for label, (name, vectors) in writes.items():
            without = clean | {name: clean[name] - vectors}
            with replay(model, without, points, head_gains(clean)):
                assert_parity(before - score(model, batch), logits[label], None, 1e-10)
            with replay(model, without, [point for point in points if not point.startswith("mlm_head")]):
                assert_parity(stream - run(model, batch, "hidden"), whole[label], mask, 1e-10)
        for label, (module, bias) in biases_on_the_path(model).items():
            with replay(model, clean, points, head_gains(clean)), taken_out(module, bias, slice(None)):
                assert_parity(before - score(model, batch), logits[label], None, 1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("hf_class", [MASKED_LM, CLASSIFIER, "DebertaV2ForTokenClassification"])
@every_sort
def test_rows_of_a_logit_are_complete(sort: str, hf_class: str, dtype: torch.dtype, tolerance: float) -> None:
    model = made(sort, hf_class, dtype)
    batch, n_outputs = batch_for(model), 188 if hf_class == MASKED_LM else 3
    prepared = model.prepare(batch["tokens"], batch["types"], batch["mask"])
    where = {"position": POSITIONS.tolist()} if model.task != "sequence_classification" else {}
    for neurons in (False, True):
        found = direct_logit_attribution(model, prepared, (TARGETS % n_outputs).tolist(), neurons=neurons, **where)
        assert_complete(found, tolerance)
        assert ("0_conv_out" in found.labels["component"]) == (sort in ("large v2", "all"))
    logits = run(model, batch).detach()
    picked = logits[range(3), POSITIONS] if where else logits
    assert_parity(found.total, picked[range(3), TARGETS % n_outputs], None, tolerance)


@every_sort
def test_logit_lens_ends_on_what_the_model_says(sort: str) -> None:
    model = made(sort)
    tokens = tiny_batch()["tokens"]
    lens = logit_lens(model, tokens, top_k=188)
    with torch.no_grad():
        probabilities = model(tokens).softmax(-1)
    assert lens.labels["stream"][-1] == "final_post"
    assert_parity(lens.values[-1], probabilities.gather(-1, lens.ids[-1]))
    assert_parity(lens.values[-1].sum(-1), torch.ones(3, 11))
    middle = model.blocks[0].ln1(model.run_with_cache(tokens)[1]["resid_mid", 0])
    with torch.no_grad():
        read = model.heads["masked_lm"].probabilities(middle, model.prepare(tokens).sequence)
    assert_parity(lens.values[1], read.gather(-1, lens.ids[1]))


# Checkpoints


@pytest.mark.parametrize("variant", VARIANTS["deberta-v2"])
def test_every_variant_goes_back_bit_by_bit(variant: str, caplog: pytest.LogCaptureFixture) -> None:
    hf_model = tiny_hf(MASKED_LM, **VARIANTS["deberta-v2"][variant])
    with caplog.at_level(logging.WARNING, "encoderlens"):
        back = load(hf_model).to_hf()
    assert caplog.messages == []
    assert_same_tensors(back.state_dict(), hf_model.state_dict())
    said = {"_attn_implementation_internal", "architectures", "dtype", "transformers_version"}
    configs = [{key: value for key, value in one.config.to_dict().items() if key not in said} for one in (back, hf_model)]
    assert configs[0] == configs[1]


def test_a_checkpoint_like_the_published_ones_of_v3(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It names no class, has the head that Hugging Face's default configuration does not read, and tensors of no class."""
    hf_model = save_tiny(MASKED_LM, tmp_path, legacy=False)
    values = {key: value for key, value in tiny_config().items() if key not in ("legacy", "architectures")}
    DebertaV2Config(**values).save_pretrained(tmp_path)
    extra = {
        "deberta.embeddings.position_embeddings.weight": torch.zeros(37, 40),
        "mask_predictions.dense.weight": torch.zeros(40, 40),
        "mask_predictions.classifier.bias": torch.zeros(1),
        "deberta.embeddings.position_ids": torch.arange(37)[None],
    }
    write_tensors(tmp_path, read_tensors(tmp_path) | extra)
    model, batch = HookedEncoder.from_pretrained(tmp_path, device="cpu"), tiny_batch()
    assert model.cfg.original_architecture == MASKED_LM
    assert sorted(model.load_report.ignored) == sorted(extra)
    with caplog.at_level(logging.WARNING, "encoderlens"):
        back = model.to_hf()
    assert caplog.messages == []
    with torch.no_grad():
        theirs = hf_model(batch["tokens"], batch["mask"]).logits
        assert_parity(model(batch["tokens"], "logits", None, batch["mask"]), theirs, batch["mask"])
        assert_parity(back(batch["tokens"], batch["mask"]).logits, theirs, batch["mask"])
    assert back.config.legacy


def tiny_config() -> dict[str, Any]:
    return tiny_hf(MASKED_LM).config.to_dict()


def test_absolute_positions_that_are_called_for_are_missed(tmp_path: Path) -> None:
    save_tiny(MASKED_LM, tmp_path)
    edit_config(tmp_path, position_biased_input=True)
    with pytest.raises(WeightsError, match=r"lacks 1 tensors .*: deberta\.embeddings\.position_embeddings\.weight"):
        HookedEncoder.from_pretrained(tmp_path, device="cpu")


def test_a_head_of_the_stream_over_narrow_embeddings_is_refused(tmp_path: Path) -> None:
    """Hugging Face makes it, and cannot run it."""
    hf_model = DebertaV2ForMaskedLM(DebertaV2Config(**(tiny_config() | {"legacy": False, "embedding_size": 24})))
    with pytest.raises(WeightsError, match=r"lm_predictions\.lm_head\.dense\.weight has shape \[40, 40\]"):
        load(hf_model)


def test_old_spellings_of_norms(tmp_path: Path) -> None:
    hf_model = save_tiny(MASKED_LM, tmp_path, **LARGE)
    rename_tensors(tmp_path, lambda name: re.sub("Norm.bias$", "Norm.beta", re.sub("Norm.weight$", "Norm.gamma", name)))
    tokens = tiny_batch()["tokens"]
    with torch.no_grad():
        assert_parity(HookedEncoder.from_pretrained(tmp_path, device="cpu")(tokens), hf_model(tokens).logits)


def test_fewer_positions_do_not_change_how_far_attention_sees() -> None:
    hf_model = tiny_hf(MASKED_LM, **OLDER)
    model, tokens = load(hf_model, n_ctx=12), tiny_batch()["tokens"]
    assert model.W_pos.shape == (12, 40)
    back = model.to_hf()
    assert (back.config.max_position_embeddings, back.config.max_relative_positions) == (12, 37)
    with torch.no_grad():
        theirs = hf_model(tokens).logits
        assert_parity(model(tokens), theirs)
        assert_parity(back(tokens).logits, theirs)
    with pytest.raises(InputError, match="13"):
        model(torch.ones(1, 13, dtype=torch.long))


def test_classifier_with_its_own_dropout_and_pooler() -> None:
    options = {"cls_dropout": 0.4, "pooler_dropout": 0.2, "pooler_hidden_act": "tanh"}
    hf_model = tiny_hf(CLASSIFIER, **options)
    model, batch = load(hf_model), tiny_batch()
    (head,) = model.cfg.heads
    assert isinstance(head, SequenceClassificationPart)
    assert head.pre_classifier is not None
    assert (head.dropout, head.pre_classifier.dropout, head.pre_classifier.act_fn) == (0.4, 0.2, "tanh")
    assert {key: model.to_hf().config.to_dict()[key] for key in options} == options
    with torch.no_grad():
        theirs = hf_model(batch["tokens"], attention_mask=batch["mask"]).logits
        assert_parity(model(batch["tokens"], "logits", None, batch["mask"]), theirs)


@pytest.mark.parametrize("problem", [None, "single_label_classification", "multi_label_classification", "regression"])
def test_losses_of_sequences(problem: str | None) -> None:
    hf_model = tiny_hf(CLASSIFIER, problem_type=problem)
    model, tokens = load(hf_model), tiny_batch()["tokens"]
    labels = torch.rand(3, 3) if problem in ("multi_label_classification", "regression") else torch.tensor([2, 0, 1])
    assert_parity(model(tokens, "loss", labels=labels), hf_model(tokens, labels=labels).loss)
    assert model.to_hf().config.problem_type == problem


def test_soft_labels_are_refused_where_hugging_face_has_another_loss_for_them_than_elsewhere() -> None:
    model = made("v3", CLASSIFIER)
    with pytest.raises(InputError, match="class labels for this input have shape"):
        model(tiny_batch()["tokens"], "loss", labels=torch.rand(3, 3))


REFUSED = {
    "pos_att_type": (["c2p", "p2p"], r"pos_att_type=\['c2p', 'p2p'\] is not implemented; only 'c2p' and 'p2c' is"),
    "norm_rel_ebd": ("batch_norm", "norm_rel_ebd='batch_norm' is not implemented; only 'none' or 'layer_norm' is"),
    "position_embedding_type": ("relative_key", "position_embedding_type='relative_key' is not implemented"),
    "is_decoder": (True, "is_decoder=True is not implemented"),
    "share_att_key": (1, "share_att_key=1 is not implemented; only True or False is"),
    "position_buckets": (True, "position_buckets=True is not implemented; only a whole number is"),
    "max_relative_positions": (2.5, "max_relative_positions"),
    "conv_kernel_size": (4, "kernel=4: .* must be odd"),
    "conv_groups": (True, "groups is True; it must be a positive whole number"),
    "conv_act": ("gelo", "unknown activation 'gelo'; did you mean 'gelu'"),
    "attention_head_size": (16, "attention_head_size=16 is not implemented; only 8 is"),
    "pooler_hidden_size": (24, "pooler_hidden_size=24 is not implemented; only 40 is"),
    "type_vocab_size": (-1, "type_vocab_size|n_token_types is -1"),
    "z_steps": (2, "z_steps=2 is not understood"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_a_configuration_cannot_ask_for_is_refused_by_name(key: str, tmp_path: Path) -> None:
    value, message = REFUSED[key]
    save_tiny(MASKED_LM, tmp_path, **LARGE)
    edit_config(tmp_path, **{key: value})
    with pytest.raises(ConfigError, match=message):
        HookedEncoder.from_pretrained(tmp_path, device="cpu")


def test_groups_that_do_not_divide_the_stream(tmp_path: Path) -> None:
    save_tiny(MASKED_LM, tmp_path, **LARGE)
    edit_config(tmp_path, conv_groups=3)
    with pytest.raises(ConfigError, match="d_model=40 is not a multiple of the convolution's groups=3"):
        HookedEncoder.from_pretrained(tmp_path, device="cpu")


def test_parts_refuse_what_makes_no_sense() -> None:
    for part, message in [
        (RelativeEmbeddingPart(0), "max_distance is 0"),
        (RelativeEmbeddingPart(9, 1), "n_buckets=1"),
        (ConvFirstPostLNPart(conv=ConvolutionPart(kernel=2)), "must be odd"),
    ]:
        with pytest.raises(ConfigError, match=message):
            part.check()


def test_the_first_version_is_another_family() -> None:
    with pytest.raises(UnknownArchitectureError, match="model_type 'deberta', which is not supported"):
        family_of("deberta", "config.json")


def test_a_model_from_a_configuration_alone() -> None:
    cfg = made("all").cfg.encoder
    assert isinstance(cfg, EncoderConfig)
    model = HookedEncoder(cfg, device="cpu")
    assert torch.equal(model.blocks[0].ln_conv.w, torch.ones(40))
    plain = HookedEncoder(made("v3").cfg.encoder, device="cpu")
    assert torch.equal(plain.relative.w, torch.ones(40))
    assert not plain.relative.b.any()
    tokens = tiny_batch()["tokens"]
    with torch.no_grad():
        assert_parity(plain.eval()(tokens), plain.to_hf()(tokens).logits)
