import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoderlens.errors import ConfigError, HookNameError, InputError
from encoderlens.names import (
    act_name,
    block_of,
    check_word,
    did_you_mean,
    head_label,
    in_block,
    norm_label,
    part_label,
    select,
    write_label,
)
from encoderlens.utils import get_act_name, to_numpy

# Short names of a block, and what stands between "blocks.l." and "hook_".
IN_BLOCK = {
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "z": "attn.hook_z",
    "result": "attn.hook_result",
    "attn_scores": "attn.hook_attn_scores",
    "pattern": "attn.hook_pattern",
    "in": "mlp.hook_in",
    "pre": "mlp.hook_pre",
    "post": "mlp.hook_post",
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_in": "hook_mlp_in",
    "mlp_out": "hook_mlp_out",
    "q_input": "hook_q_input",
    "k_input": "hook_k_input",
    "v_input": "hook_v_input",
    "normalized_resid_mid": "hook_normalized_resid_mid",
    "normalized_resid_post": "hook_normalized_resid_post",
    # aliases
    "attn": "attn.hook_pattern",
    "attn_logits": "attn.hook_attn_scores",
    "query": "attn.hook_q",
    "key": "attn.hook_k",
    "value": "attn.hook_v",
    "mlp_pre": "mlp.hook_pre",
    "mlp_post": "mlp.hook_post",
}


@pytest.mark.parametrize("short", IN_BLOCK)
def test_short_names_in_a_block(bert, short):
    full = f"blocks.2.{IN_BLOCK[short]}"
    assert act_name(short, 2) == full
    assert act_name(f"{short}2") == full
    assert full in bert.hook_dict


@pytest.mark.parametrize(
    ("key", "full"),
    [
        (("embed",), "embed.hook_embed"),
        (("pos_embed",), "embed.hook_pos_embed"),
        (("token_type_embed",), "embed.hook_token_type_embed"),
        (("full_embed",), "hook_full_embed"),
        (("scale", 2, "ln1"), "blocks.2.ln1.hook_scale"),
        (("normalized", 27, "ln2"), "blocks.27.ln2.hook_normalized"),
        (("scale2ln1",), "blocks.2.ln1.hook_scale"),
        (("normalized10ln2",), "blocks.10.ln2.hook_normalized"),
        (("scale2", None, "ln1"), "blocks.2.ln1.hook_scale"),
        (("scale",), "ln_final.hook_scale"),
        (("normalized",), "ln_final.hook_normalized"),
        (("scale", None, "embed"), "embed.ln.hook_scale"),
        (("normalized", None, "mlm_head"), "mlm_head.ln.hook_normalized"),
        (("k", 6, "a"), "blocks.6.attn.hook_k"),
        (("rot_q", 1), "blocks.1.attn.hook_rot_q"),
        (("rot_k3",), "blocks.3.attn.hook_rot_k"),
        (("mlm_head.hook_pre",), "mlm_head.hook_pre"),
        (("hook_full_embed",), "hook_full_embed"),
        (("blocks.3.attn.hook_q",), "blocks.3.attn.hook_q"),
    ],
)
def test_other_forms(key, full):
    assert act_name(*key) == full
    assert get_act_name(*key) == full


@given(st.sampled_from(list(IN_BLOCK)), st.integers(0, 999))
@settings(deadline=None, max_examples=30)
def test_compact_form_is_name_and_layer(short, layer):
    full = act_name(short, layer)
    assert act_name(f"{short}{layer}") == full
    assert block_of(full) == layer
    assert act_name(full) == full


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (("patern", 0), "no activation is called 'patern'; did you mean 'pattern'?"),
        (("resid_pr3",), "no activation is called 'resid_pr'; did you mean 'resid_pre'"),
        (("nothing_like_it", 0), "no activation is called 'nothing_like_it'$"),
        (("q",), r"'q' is an activation of a block: give its layer, as in \('q', 0\) or 'q0'"),
        (("attn",), "'pattern' is an activation of a block"),
        (("scale", 0), "'scale' of which norm"),
        (("scale", 0, "ln3"), "'ln1' or 'ln2'"),
        (("normalized2",), "'normalized' of which norm"),
        (("scale", None, "ln1"), "'embed', 'mlm_head', 'ln_final'"),
        (("",), "no activation is called ''"),
    ],
)
def test_errors_of_act_name(key, message):
    with pytest.raises(HookNameError, match=message):
        act_name(*key)


def test_hook_name_error_is_a_key_error_with_a_plain_message():
    with pytest.raises(KeyError) as caught:
        act_name("q")
    assert str(caught.value).startswith("'q' is an activation")


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("blocks.0.attn.hook_q", 0),
        ("blocks.12.hook_resid_pre", 12),
        ("hook_full_embed", None),
        ("embed.ln.hook_scale", None),
        ("blocks.hook_q", None),
        ("my.blocks.3.hook_q", None),
        ("", None),
    ],
)
def test_block_of(name, layer):
    assert block_of(name) == layer


def test_head_label():
    assert head_label(3, 11) == "L3H11"


@pytest.mark.parametrize(("part", "layer", "index", "label"), [("H", 0, 3, "L0H3"), ("N", 11, 3071, "L11N3071")])
def test_part_label(part, layer, index, label):
    assert part_label(part, layer, index) == label


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("embed.hook_embed", "embed"),
        ("embed.hook_pos_embed", "pos_embed"),
        ("embed.hook_token_type_embed", "token_type_embed"),
        ("blocks.0.hook_attn_out", "0_attn_out"),
        ("blocks.12.hook_mlp_out", "12_mlp_out"),
    ],
)
def test_write_label(name, label):
    assert write_label(name) == label


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("embed.ln.hook_scale", "embed_ln_b"),
        ("blocks.0.ln1.hook_scale", "0_ln1_b"),
        ("blocks.12.ln2.hook_normalized", "12_ln2_b"),
        ("ln_final.hook_scale", "ln_final_b"),
        ("mlm_head.ln.hook_scale", "mlm_head_ln_b"),
    ],
)
def test_norm_label(name, label):
    assert norm_label(name) == label


@pytest.mark.parametrize(("layer", "label"), [(None, "b_U"), (0, "0_b_U"), (12, "12_b_U")])
def test_in_block(layer, label):
    assert in_block(layer, "b_U") == label


@pytest.mark.parametrize(
    ("word", "known", "text"),
    [
        ("hook_pattrn", ["hook_pattern", "hook_z"], "; did you mean 'hook_pattern'?"),
        ("aab", ["aaa", "aac", "zzz"], "; did you mean 'aac' or 'aaa'?"),
        ("xyz", ["hook_pattern"], ""),
        ("xyz", [], ""),
    ],
)
def test_did_you_mean(word, known, text):
    assert did_you_mean(word, known) == text


NAMES = ["a.x", "a.y", "b.x", "b.y"]


@pytest.mark.parametrize(
    ("names_filter", "chosen"),
    [
        (None, NAMES),
        ("b.x", ["b.x"]),
        (["b.y", "a.x"], ["a.x", "b.y"]),
        (["a.x", "a.x"], ["a.x"]),
        (("b.x",), ["b.x"]),
        ({"b.x", "a.y"}, ["a.y", "b.x"]),
        ({"b.x": 1}.keys(), ["b.x"]),
        (lambda name: name.endswith("y"), ["a.y", "b.y"]),
    ],
)
def test_select(names_filter, chosen):
    assert select(names_filter, NAMES) == chosen


@pytest.mark.parametrize(
    ("names_filter", "message"),
    [
        ("a.z", "there is no hook point 'a.z'; did you mean"),
        (["a.x", "b.xx"], "there is no hook point 'b.xx'; did you mean 'b.x'"),
        ([], "the names filter is empty"),
        (lambda name: False, "selects none of the 4 hook points"),
        ("", "there is no hook point ''"),
    ],
)
def test_select_refuses_what_selects_nothing(names_filter, message):
    with pytest.raises(HookNameError, match=message):
        select(names_filter, NAMES)


@given(st.sets(st.sampled_from(NAMES), min_size=1))
@settings(deadline=None, max_examples=30)
def test_a_set_a_list_and_a_predicate_select_the_same(wanted):
    expected = [name for name in NAMES if name in wanted]
    assert (
        select(wanted, NAMES) == select(sorted(wanted, reverse=True), NAMES) == select(wanted.__contains__, NAMES) == expected
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.tensor([[1.0, 2.0]], requires_grad=True), np.array([[1.0, 2.0]], dtype=np.float32)),
        (torch.tensor([1.5, -2.0], dtype=torch.bfloat16), np.array([1.5, -2.0], dtype=np.float32)),
        (torch.tensor([1.5], dtype=torch.float16), np.array([1.5], dtype=np.float16)),
        (torch.nn.Parameter(torch.ones(2)), np.ones(2, dtype=np.float32)),
        (torch.tensor([True, False]), np.array([True, False])),
        (np.arange(3), np.arange(3)),
        ([1, 2], np.array([1, 2])),
        ((1.0, 2.0), np.array([1.0, 2.0])),
        (3, np.array(3)),
        (2.5, np.array(2.5)),
        (True, np.array(True)),
    ],
)
def test_to_numpy(value, expected):
    array = to_numpy(value)
    assert isinstance(array, np.ndarray)
    assert array.dtype == expected.dtype
    np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("name", ["embed", "pos_embed", "token_type_embed", "full_embed"])
def test_what_stands_in_front_of_the_blocks_has_no_layer(name):
    with pytest.raises(HookNameError, match=f"'{name}' stands in front of the blocks"):
        act_name(name, 0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "embeddings",
            "kind='embeddings' is unknown; it is one of 'logits', 'loss', 'embedding', None; did you mean 'embedding'",
        ),
        ("Loss", "'Loss' is unknown; .* did you mean 'loss'"),
        ("xyzzy", "None$"),
        (5, "kind=5 is unknown; it is one of 'logits'"),
        (["loss"], r"kind=\['loss'\] is unknown"),
        (np.array(["loss", "logits"]), r"kind=array"),
        (torch.zeros(2), r"kind=tensor"),
    ],
)
def test_what_is_none_of_a_set_of_words(value, message):
    with pytest.raises(InputError, match=message):
        check_word("kind", value, ("logits", "loss", "embedding", None))


def test_one_of_a_set_of_words():
    check_word("kind", None, ("logits", None))
    check_word("kind", np.str_("logits"), ("logits", None))
    with pytest.raises(ConfigError, match="reads='firts' is unknown; it is 'first' or 'mean'; did you mean 'first'"):
        check_word("reads", "firts", ("first", "mean"), ConfigError)
