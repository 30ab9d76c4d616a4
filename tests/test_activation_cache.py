import pytest
import torch

from encoderlens import ActivationCache, HookedEncoder
from encoderlens.errors import HookNameError
from tests.tiny import tiny_batch

BATCH = tiny_batch()


@pytest.fixture
def cache(bert):
    return bert.run_with_cache(BATCH["tokens"], "logits", BATCH["types"], BATCH["mask"])[1]


@pytest.mark.parametrize(
    ("key", "full"),
    [
        ("blocks.0.attn.hook_q", "blocks.0.attn.hook_q"),
        (("q", 0), "blocks.0.attn.hook_q"),
        ("q0", "blocks.0.attn.hook_q"),
        (("q", -1), "blocks.2.attn.hook_q"),
        (("q", -3), "blocks.0.attn.hook_q"),
        (("attn", 1), "blocks.1.attn.hook_pattern"),
        ("resid_pre2", "blocks.2.hook_resid_pre"),
        (("scale", 1, "ln2"), "blocks.1.ln2.hook_scale"),
        (("scale", -1, "ln1"), "blocks.2.ln1.hook_scale"),
        ("normalized0ln1", "blocks.0.ln1.hook_normalized"),
        (("normalized", None, "embed"), "embed.ln.hook_normalized"),
        (("scale", None, "mlm_head"), "mlm_head.ln.hook_scale"),
        ("embed", "embed.hook_embed"),
        (("pos_embed",), "embed.hook_pos_embed"),
        ("full_embed", "hook_full_embed"),
        (("blocks.1.mlp.hook_in",), "blocks.1.mlp.hook_in"),
    ],
)
def test_keys(cache, key, full):
    assert cache.full_name(key) == full
    assert cache[key] is cache.cache_dict[full]
    assert key in cache


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("blocks.0.attn.hook_w", "the cache holds no 'blocks.0.attn.hook_w'; did you mean 'blocks.0.attn.hook_"),
        (("q", 3), "the cache holds no 'blocks.3.attn.hook_q'; did you mean"),
        (("q", -4), "the cache holds no 'blocks.-1.attn.hook_q'"),
        (("scale",), "the cache holds no 'ln_final.hook_scale'"),
        (("result", 0), "the cache holds no 'blocks.0.attn.hook_result'"),
        ("q", "'q' is an activation of a block: give its layer"),
        (("patern", 0), "no activation is called 'patern'; did you mean 'pattern'"),
    ],
)
def test_missing_keys(cache, key, message):
    with pytest.raises(HookNameError, match=message):
        cache[key]
    assert key not in cache


def test_it_is_a_mapping(cache):
    assert isinstance(cache, ActivationCache)
    assert list(cache) == list(cache.keys()) == list(cache.cache_dict)
    assert len(cache) == 75
    assert all(value is cache.cache_dict[name] for name, value in cache.items())
    assert len(list(cache.values())) == 75
    assert cache.get("blocks.9.attn.hook_q") is None


def test_what_it_carries(bert, cache):
    assert cache.model is bert
    assert cache.has_batch_dim
    assert torch.equal(cache.tokens, BATCH["tokens"])
    assert cache.mask.dtype == torch.bool
    assert torch.equal(cache.mask, BATCH["mask"].bool())


def test_without_padding_there_is_no_mask(bert):
    for mask in (None, torch.ones(3, 11, dtype=torch.long)):
        cache = bert.run_with_cache(BATCH["tokens"], one_zero_attention_mask=mask)[1]
        assert cache.mask is None
        assert torch.equal(cache.tokens, BATCH["tokens"])


def test_from_a_residual_stream_there_are_no_tokens(bert):
    bert(BATCH["tokens"])
    cache = bert.run_with_cache(torch.zeros(3, 11, 40), start_at_layer=1, one_zero_attention_mask=BATCH["mask"])[1]
    assert cache.tokens is None
    assert torch.equal(cache.mask, BATCH["mask"].bool())


def test_text_brings_tokens_and_mask(bert):
    texts = ["the doctor walked", "no"]
    cache = bert.run_with_cache(texts)[1]
    tokens, _, mask = bert.to_tokens(texts)
    assert torch.equal(cache.tokens, tokens)
    assert torch.equal(cache.mask, mask.bool())


def test_a_later_run_does_not_change_what_it_carries(bert, cache):
    bert(torch.zeros(1, 2, dtype=torch.long))
    assert torch.equal(cache.tokens, BATCH["tokens"])
    assert torch.equal(cache.mask, BATCH["mask"].bool())


def test_gradients_under_their_full_names(bert):
    name = "blocks.1.hook_attn_out"
    _, cache = bert.run_with_cache(BATCH["tokens"], "loss", labels=BATCH["tokens"], names_filter=name, incl_bwd=True)
    bert.zero_grad()
    assert list(cache) == [name, f"{name}_grad"]
    assert cache[f"{name}_grad"].shape == cache["attn_out", 1].shape


def test_repr(bert, cache):
    assert repr(cache).startswith("ActivationCache with 75 activations: embed.hook_embed, ")
    assert repr(cache).endswith(", …")
    few = ActivationCache({"a": torch.ones(1)}, bert)
    assert repr(few) == "ActivationCache with 1 activations: a"


def test_notebooks_show_a_row_for_each_activation_of_all_layers() -> None:
    model = HookedEncoder.from_pretrained("encoderlens/tiny-bert", device="cpu")
    _, cache = model.run_with_cache("a [MASK]")
    shown = cache._repr_html_()
    assert "<td>blocks.{l}.attn.hook_q</td><td>[1, 4, 2, 64] float32</td><td>0, 1, 2, 3</td>" in shown
    assert "<td>embed.hook_embed</td><td>[1, 4, 128] float32</td><td></td>" in shown
