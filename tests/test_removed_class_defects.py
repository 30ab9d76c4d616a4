"""What the removed classes got wrong with text and with caches, a test each. Hooks of the same list: test_run_with_cache.py."""

import copy
from typing import Any

import pytest
import torch

from encoderlens import BertNextSentencePrediction, HookedEncoder
from encoderlens.errors import ConfigError, InputError
from tests.parity import assert_changed, assert_parity
from tests.tiny import tiny_batch, tiny_hf

DICT = {"d_model": 24, "d_head": 6, "n_layers": 2, "n_ctx": 16, "d_vocab": 50, "seed": 1}


def test_attention_is_bidirectional_by_default() -> None:
    model = HookedEncoder(DICT, device="cpu")
    tokens = torch.arange(6)[None]
    changed = tokens.clone()
    changed[0, -1] = 40
    assert_changed(model(changed, "hidden")[0, 0], model(tokens, "hidden")[0, 0])
    with pytest.raises(ConfigError, match="encoders attend both ways"):
        HookedEncoder(DICT | {"attention_dir": "causal"})


@pytest.mark.parametrize("hf_class", ["BertModel", "BertForMaskedLM", "BertForSequenceClassification"])
def test_classes_other_than_pretraining_load_from_a_local_folder(hf_class: str, tmp_path: Any) -> None:
    hf_model = tiny_hf(hf_class)
    hf_model.save_pretrained(tmp_path)
    model = HookedEncoder.from_pretrained(str(tmp_path), device="cpu")
    tokens = tiny_batch()["tokens"]
    hidden = hf_model(tokens, output_hidden_states=True).hidden_states[-1]
    assert_parity(model(tokens, "hidden"), hidden)


def test_activation_and_token_types_come_from_the_checkpoint() -> None:
    model = HookedEncoder.from_pretrained(hf_model=tiny_hf("BertModel", hidden_act="relu", type_vocab_size=3), device="cpu")
    assert (model.cfg.act_fn, model.cfg.n_token_types, len(model.W_token_type)) == ("relu", 3, 3)
    _, cache = model.run_with_cache(tiny_batch()["tokens"])
    assert torch.equal(cache["post", 0], cache["pre", 0].relu())


def test_predictions_are_words_and_not_split_on_spaces(bert: HookedEncoder) -> None:
    assert isinstance(bert("the [MASK]", "predictions"), str)
    assert len(bert("[MASK] [MASK] [MASK]", "predictions")) == 3
    assert [len(row) for row in bert(["[MASK]", "[MASK] [MASK]"], "predictions")] == [1, 2]
    assert not any(word.startswith("Prediction") for word in bert("[MASK] [MASK]", "predictions"))


def test_return_type_none_runs_no_head_and_unknown_ones_are_refused(bert: HookedEncoder) -> None:
    runs: list[str] = []
    head = {"mlm_head", "unembed"}
    bert.add_hook(lambda name: name.split(".")[0] in head, lambda tensor, hook: runs.append(hook.name))
    assert bert(tiny_batch()["tokens"], None) is None
    bert.reset_hooks()
    assert runs == []
    with pytest.raises(InputError, match="return_type='probabilities' is unknown"):
        bert(tiny_batch()["tokens"], "probabilities")


def test_everything_moves_to_the_models_device() -> None:
    # The meta device stands for a GPU: an operation that mixed it with CPU tensors would raise.
    model = HookedEncoder(DICT, device="meta", init_weights=False)
    batch = {key: value[:, :8] % 2 if key != "mask" else value[:, :8] for key, value in tiny_batch().items()}
    logits = model(batch["tokens"], "logits", batch["types"], batch["mask"])
    assert logits.device.type == "meta"
    with model.use_task("next_sentence"):
        labels = torch.zeros(3, dtype=torch.long)
        assert model(batch["tokens"], "loss", batch["types"], batch["mask"], labels=labels).device.type == "meta"


def test_to_by_keyword_and_half_work(bert_twin: Any) -> None:
    model = HookedEncoder.from_pretrained(hf_model=bert_twin[0], device="cpu")
    assert model.to(device="cpu", print_details=False).cfg.device == torch.device("cpu")
    assert model.half().cfg.dtype == torch.float16
    output, cache = model.run_with_cache(tiny_batch()["tokens"])
    assert output.dtype == cache["resid_post", 0].dtype == torch.float16


def test_a_tokenizer_without_token_types_works(bert_twin: Any, tokenizer: Any) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.model_input_names = ["input_ids", "attention_mask"]
    assert "token_type_ids" not in bare("the doctor")
    model = HookedEncoder.from_pretrained(hf_model=bert_twin[0], tokenizer=bare, device="cpu")
    tokens, types, _ = model.to_tokens("the doctor")
    assert types.shape == tokens.shape
    assert types.abs().max() == 0
    assert torch.equal(model("the doctor"), model(tokens))


def test_the_input_basis_says_what_it_leaves_out(bert: HookedEncoder) -> None:
    assert "W_token_type" in str(type(bert).W_E_pos.__doc__)
    assert torch.equal(bert.W_E_pos, torch.cat([bert.W_E, bert.W_pos]))


def test_next_sentence_prediction_has_hooks(bert: HookedEncoder) -> None:
    seen: list[str] = []
    pair = ["the doctor", "walked"]
    names = ["pooler.hook_pooler_out", "nsp_head.hook_nsp_out"]
    BertNextSentencePrediction(bert).run_with_hooks(pair, fwd_hooks=[(names, lambda tensor, hook: seen.append(hook.name))])
    assert seen == names


# Caches


def padded_cache(model: HookedEncoder, **options: Any) -> Any:
    batch = tiny_batch()
    return model.run_with_cache(batch["tokens"], "logits", batch["types"], batch["mask"], **options)


def test_remove_batch_dim_drops_no_rows(bert: HookedEncoder) -> None:
    _, cache = padded_cache(bert)
    with pytest.raises(InputError, match="remove_batch_dim takes a cache of one sequence"):
        cache.remove_batch_dim()
    assert {len(tensor) for tensor in cache.values()} == {3}


def test_pos_slice_leaves_the_batch_of_pooled_outputs_alone(bert: HookedEncoder) -> None:
    bert.task = "next_sentence"
    names = ["pooler.hook_pooler_out", "nsp_head.hook_nsp_out", "blocks.0.attn.hook_q"]
    (_, whole), (_, cache) = (padded_cache(bert, names_filter=names, pos_slice=window) for window in (None, [1, 5]))
    for name in names[:2]:
        assert torch.equal(cache[name], whole[name])
    assert torch.equal(cache["q", 0], whole["q", 0][:, [1, 5]])


def test_decompose_resid_has_the_embeddings_and_sums_to_the_stream(bert: HookedEncoder) -> None:
    _, cache = padded_cache(bert)
    for layer in range(4):
        rows, labels = cache.decompose_resid(layer, return_labels=True)
        assert labels[:4] == ["embed", "pos_embed", "token_type_embed", "embed_ln_b"]
        stream = cache["resid_pre", layer] if layer < 3 else cache["normalized_resid_post", 2]
        assert_parity(rows.sum(0), stream)


def test_logit_attrs_sum_to_the_logit(bert: HookedEncoder) -> None:
    logits, cache = padded_cache(bert)
    found = cache.logit_attrs(cache.decompose_resid(), "the").sum(0) + cache.logit_constant("the")
    expected = logits[..., bert.tokenizer.convert_tokens_to_ids("the")]
    assert_parity(found, expected)
