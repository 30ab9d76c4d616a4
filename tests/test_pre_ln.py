"""Pre-LN blocks, gated MLPs and the final norm: values by hand and by Hugging Face, and every hook point."""

from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import RobertaPreLayerNormConfig
from transformers.models.roberta_prelayernorm.modeling_roberta_prelayernorm import RobertaPreLayerNormModel

from encoderlens import HookedEncoder
from encoderlens.errors import ConfigError, HookUnreachableError
from encoderlens.names import act_name
from encoderlens.utils import get_act_name
from tests.additive import BLOCKS, MLPS, SIZES, TASKS, additive_batch, additive_model, run
from tests.hooks import PRE_LN_BLOCK, declared, in_layers, norm, replaced, shape
from tests.parity import assert_changed, assert_parity

N_LAYERS = SIZES["n_layers"]

every_mlp = pytest.mark.parametrize("mlp", MLPS)
every_block = pytest.mark.parametrize("block", BLOCKS)

# By hand


def norm_by_hand(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    variance = x.var(-1, keepdim=True, unbiased=False)
    return (x - x.mean(-1, keepdim=True)) / (variance + 1e-12).sqrt() * p[f"{name}.w"] + p[f"{name}.b"]


def linear_by_hand(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def attention_by_hand(p: dict[str, Tensor], name: str, x: Tensor, mask: Tensor) -> Tensor:
    mixed = []
    q, k, v = (linear_by_hand(p, f"{name}.{part}", x) for part in "qkv")
    for head in range(SIZES["n_heads"]):
        dims = slice(head * SIZES["d_head"], (head + 1) * SIZES["d_head"])
        scores = q[..., dims] @ k[..., dims].transpose(1, 2) / SIZES["d_head"] ** 0.5
        scores = torch.where(mask[:, None, :].bool(), scores, torch.tensor(-torch.inf, dtype=x.dtype))
        mixed.append(scores.softmax(-1) @ v[..., dims])
    return linear_by_hand(p, f"{name}.o", torch.cat(mixed, -1))


def mlp_by_hand(p: dict[str, Tensor], name: str, x: Tensor, gated: bool) -> Tensor:
    linear = linear_by_hand(p, f"{name}.input", x)
    hidden = F.gelu(linear_by_hand(p, f"{name}.gate", x)) * linear if gated else F.gelu(linear)
    return linear_by_hand(p, f"{name}.output", hidden)


def hidden_by_hand(model: HookedEncoder, batch: dict[str, Tensor]) -> Tensor:
    """The final stream, by torch functions and the model's parameters."""
    p, mask = model.state_dict(), batch["mask"]
    gated, pre_ln = "blocks.0.mlp.gate.weight" in p, "ln_final.w" in p
    x = p["embed.embed.weight"][batch["tokens"]] + p["embed.token_type_embed.weight"][batch["types"]]
    x = norm_by_hand(p, "embed.ln", x + p["embed.pos_embed.weight"][:11])
    for name in ("blocks.0", "blocks.1"):
        if pre_ln:
            x = x + attention_by_hand(p, f"{name}.attn", norm_by_hand(p, f"{name}.ln1", x), mask)
            x = x + mlp_by_hand(p, f"{name}.mlp", norm_by_hand(p, f"{name}.ln2", x), gated)
        else:
            x = norm_by_hand(p, f"{name}.ln1", x + attention_by_hand(p, f"{name}.attn", x, mask))
            x = norm_by_hand(p, f"{name}.ln2", x + mlp_by_hand(p, f"{name}.mlp", x, gated))
    return norm_by_hand(p, "ln_final", x) if pre_ln else x


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
@every_mlp
@every_block
def test_the_final_stream_by_hand(block: str, mlp: str, dtype: torch.dtype, tolerance: float) -> None:
    for seed in range(3):
        model, batch = additive_model(block, mlp, seed=seed, dtype=dtype), additive_batch(seed)
        with torch.no_grad():
            assert_parity(run(model, batch, "hidden"), hidden_by_hand(model, batch), batch["mask"], tolerance)


def test_logits_are_read_from_the_normed_stream() -> None:
    model, batch = additive_model("pre", "gated"), additive_batch()
    p = model.state_dict()
    hidden = hidden_by_hand(model, batch)
    transformed = norm_by_hand(p, "mlm_head.ln", F.gelu(linear_by_hand(p, "mlm_head.dense", hidden)))
    assert_parity(run(model, batch).detach(), linear_by_hand(p, "unembed", transformed), batch["mask"])
    pooled = torch.tanh(linear_by_hand(p, "pooler.dense", hidden[:, 0]))
    with model.use_task("next_sentence"):
        assert_parity(run(model, batch).detach(), linear_by_hand(p, "nsp_head.dense", pooled))


# By Hugging Face

HF_NAMES = {
    "attention.LayerNorm": "ln1",
    "attention.self.query": "attn.q",
    "attention.self.key": "attn.k",
    "attention.self.value": "attn.v",
    "attention.output.dense": "attn.o",
    "intermediate.LayerNorm": "ln2",
    "intermediate.dense": "mlp.input",
    "output.dense": "mlp.output",
}


def hf_pre_ln(model: HookedEncoder) -> RobertaPreLayerNormModel:
    """Hugging Face's pre-LN encoder with this model's blocks and final norm."""
    config = RobertaPreLayerNormConfig(
        vocab_size=7,
        hidden_size=model.cfg.d_model,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=model.cfg.n_heads,
        intermediate_size=model.cfg.d_mlp,
        layer_norm_eps=model.cfg.eps,
    )
    config._attn_implementation = "eager"
    twin = RobertaPreLayerNormModel(config, add_pooling_layer=False).eval()
    ours = model.state_dict()
    theirs = {f"LayerNorm.{kind}": ours[f"ln_final.{kind[0]}"] for kind in ("weight", "bias")}
    for layer in range(N_LAYERS):
        for hf_name, name in HF_NAMES.items():
            for kind in ("weight", "bias"):
                last = kind[0] if name.startswith("ln") else kind
                theirs[f"encoder.layer.{layer}.{hf_name}.{kind}"] = ours[f"blocks.{layer}.{name}.{last}"]
    left = twin.load_state_dict(theirs, strict=False)
    assert not left.unexpected_keys
    assert all(name.startswith("embeddings.") for name in left.missing_keys)
    return twin


def test_blocks_and_final_norm_of_hugging_face() -> None:
    model, batch = additive_model("pre", d_head=7, n_heads=2), additive_batch()
    twin = hf_pre_ln(model)
    embeddings = run(model, batch, "hidden", stop_at_layer=0)
    padded = torch.where(batch["mask"][:, None, None, :].bool(), 0.0, torch.finfo(torch.float32).min)
    with torch.no_grad():
        last = twin.encoder(embeddings, attention_mask=padded).last_hidden_state
        assert_parity(run(model, batch, "hidden", stop_at_layer=N_LAYERS), last, batch["mask"])
        assert_parity(run(model, batch, "hidden"), twin.LayerNorm(last), batch["mask"])


# Where a run ends


def test_hidden_is_after_the_final_norm_and_the_stream_before_it_can_be_had() -> None:
    model, batch = additive_model("pre"), additive_batch()
    with torch.no_grad():
        stream = run(model, batch, "hidden", stop_at_layer=N_LAYERS)
        hidden = run(model, batch, "hidden")
        _, acts = model.run_with_cache(batch["tokens"], "hidden", batch["types"], batch["mask"])
        assert_parity(stream, acts["resid_post", N_LAYERS - 1], None, 1e-6)
        assert_parity(acts["normalized"] * model.ln_final.w + model.ln_final.b, hidden, None, 1e-6)
        assert_parity((stream - stream.mean(-1, keepdim=True)) / acts["scale"], acts["normalized"], None, 1e-6)
        assert_changed(stream, hidden, 0.01)
        for layer in range(N_LAYERS + 1):
            middle = run(model, batch, "hidden", stop_at_layer=layer)
            resumed = model(middle, one_zero_attention_mask=batch["mask"], start_at_layer=layer)
            assert_parity(resumed, run(model, batch), None, 1e-6)


FINAL = ["ln_final.hook_scale", "ln_final.hook_normalized"]


@pytest.mark.parametrize("returned", ["hidden", "logits", None])
@pytest.mark.parametrize("name", FINAL)
def test_hooks_of_the_final_norm_are_reached(name: str, returned: str | None) -> None:
    model, batch = additive_model("pre"), additive_batch()
    seen: list[tuple[int, ...]] = []
    with model.hooks([(name, lambda tensor, hook: seen.append(tuple(tensor.shape)))]):
        run(model, batch, returned)
    assert seen == [(3, 11, 1 if name.endswith("scale") else SIZES["d_model"])]


@pytest.mark.parametrize("stop", range(N_LAYERS + 1))
@pytest.mark.parametrize("name", FINAL)
def test_hooks_of_the_final_norm_are_refused_where_it_does_not_run(name: str, stop: int) -> None:
    model, batch = additive_model("pre"), additive_batch()
    with pytest.raises(HookUnreachableError, match=name), model.hooks([(name, lambda tensor, hook: None)]):
        run(model, batch, "hidden", stop_at_layer=stop)


def test_a_run_for_hooks_alone_computes_no_more_than_they_need() -> None:
    model, batch = additive_model("pre"), additive_batch()
    ran: list[str] = []
    handles = [module.register_forward_hook(lambda *_, name=name: ran.append(name)) for name, module in model.named_modules()]
    names = {"blocks.0.hook_attn_out", *FINAL}
    for wanted in ({"blocks.0.hook_attn_out"}, names):
        ran.clear()
        _, acts = model.run_with_cache(batch["tokens"], None, names_filter=wanted)
        assert set(acts) == wanted
        assert ("blocks.1" in ran) == ("ln_final" in ran) == (wanted == names)
    for handle in handles:
        handle.remove()


def test_a_post_ln_model_has_no_final_norm() -> None:
    model = additive_model("post")
    assert model.ln_final is None
    assert not [name for name in [*model.hook_dict, *model.state_dict()] if "ln_final" in name]


# Every hook point

EMBED = {
    "embed.hook_embed": "batch pos d_model",
    "embed.hook_pos_embed": "batch pos d_model",
    "embed.hook_token_type_embed": "batch pos d_model",
    **norm("embed.ln"),
    "hook_full_embed": "batch pos d_model",
}
GATED = {"mlp.hook_pre_linear": "batch pos d_mlp"}
BLOCK = {"plain": PRE_LN_BLOCK, "gated": PRE_LN_BLOCK | GATED}
ENCODER = {mlp: EMBED | in_layers(block, N_LAYERS) | norm("ln_final") for mlp, block in BLOCK.items()}
LENGTHS = {"batch": 3, "pos": 11, "query": 11, "key": 11, "1": 1, "head": SIZES["n_heads"], **SIZES}
HEAD_MODULES = ("mlm_head", "unembed", "pooler", "nsp_head", "classifier", "qa_head")


@cache
def pre_ln(mlp: str) -> HookedEncoder:
    return additive_model("pre", mlp)


@cache
def untouched(mlp: str) -> Tensor:
    return run(pre_ln(mlp), additive_batch()).detach()


@every_mlp
def test_the_encoder_has_these_hook_points_with_these_axes_and_no_others(mlp: str) -> None:
    found = {name: axes for name, axes in declared(pre_ln(mlp)).items() if name.split(".")[0] not in HEAD_MODULES}
    assert found == ENCODER[mlp]


@pytest.mark.parametrize("name", ENCODER["gated"])
def test_it_fires_with_its_shape_and_what_it_returns_reaches_the_output(name: str) -> None:
    model = pre_ln("gated")
    after, seen = replaced(model, name, lambda: run(model, additive_batch()))
    assert seen == [(name, shape(ENCODER["gated"][name], LENGTHS))]
    assert_changed(after, untouched("gated"))


@every_mlp
def test_hooks_that_return_what_they_got_change_nothing(mlp: str) -> None:
    for name in ENCODER[mlp]:
        with torch.no_grad(), pre_ln(mlp).hooks([(name, lambda tensor, hook: tensor)]):
            assert_parity(run(pre_ln(mlp), additive_batch()), untouched(mlp), additive_batch()["mask"], 2e-6)


@every_mlp
def test_the_cached_parts_add_up_as_the_block_does(mlp: str) -> None:
    model, batch = pre_ln(mlp), additive_batch()
    with torch.no_grad():
        logits, acts = model.run_with_cache(
            batch["tokens"], "logits", batch["types"], batch["mask"], names_filter=lambda name: True
        )
        assert_parity(logits, untouched(mlp), batch["mask"], 2e-6)
        for layer, block in enumerate(model.blocks):
            act = {name: acts[f"blocks.{layer}.{name}"] for name in BLOCK[mlp]}
            resid, mid = act["hook_resid_pre"], act["hook_resid_mid"]
            inputs = torch.cat([act[f"hook_{name}_input"] for name in ("q", "k", "v")], -2)
            assert torch.equal(inputs, resid.unsqueeze(-2).expand_as(inputs))
            for stream, name in ((inputs, "ln1"), (mid, "ln2")):
                centred = stream - stream.mean(-1, keepdim=True)
                assert_parity(act[f"{name}.hook_scale"], centred.square().mean(-1, keepdim=True).sqrt())
                assert_parity(act[f"{name}.hook_normalized"], centred / act[f"{name}.hook_scale"])
            assert_parity(act["mlp.hook_in"], act["ln2.hook_normalized"] * block.ln2.w + block.ln2.b)
            of_heads = (act["ln1.hook_normalized"] * block.ln1.w + block.ln1.b).chunk(3, -2)
            for name, reads in zip(("q", "k", "v"), of_heads, strict=True):
                weight, bias = getattr(block.attn, f"W_{name.upper()}"), getattr(block.attn, f"b_{name.upper()}")
                assert_parity(act[f"attn.hook_{name}"], torch.einsum("bphm,hmd->bphd", reads, weight) + bias)
            assert_parity(act["hook_attn_out"], act["attn.hook_result"].sum(2) + block.attn.b_O)
            assert_parity(mid, resid + act["hook_attn_out"])
            assert torch.equal(act["hook_mlp_in"], mid)
            pre = act["mlp.hook_in"] @ (block.mlp.W_gate if mlp == "gated" else block.mlp.W_in)
            assert_parity(act["mlp.hook_pre"], pre + (block.mlp.b_gate if mlp == "gated" else block.mlp.b_in))
            post = F.gelu(act["mlp.hook_pre"])
            if mlp == "gated":
                assert_parity(act["mlp.hook_pre_linear"], act["mlp.hook_in"] @ block.mlp.W_in + block.mlp.b_in)
                post = post * act["mlp.hook_pre_linear"]
            assert_parity(act["mlp.hook_post"], post)
            assert_parity(act["hook_mlp_out"], post @ block.mlp.W_out + block.mlp.b_out)
            assert_parity(act["hook_resid_post"], mid + act["hook_mlp_out"])


@pytest.mark.parametrize("name", ["hook_mlp_in", "mlp.hook_in"])
def test_an_edit_of_what_the_mlp_reads_does_not_reach_the_skip_path(name: str) -> None:
    model, batch = pre_ln("plain"), additive_batch()
    kept = [f"blocks.1.hook_{place}" for place in ("resid_mid", "mlp_out", "resid_post")]
    ramp = torch.linspace(-1, 1, SIZES["d_model"])
    with torch.no_grad():
        _, clean = model.run_with_cache(batch["tokens"], "hidden", names_filter=kept)
        with model.hooks([(f"blocks.1.{name}", lambda tensor, hook: tensor + ramp)]):
            _, edited = model.run_with_cache(batch["tokens"], "hidden", names_filter=kept)
    mid, mlp_out, post = (edited[place] for place in kept)
    assert torch.equal(mid, clean[kept[0]])
    assert_parity(post, mid + mlp_out)
    assert_changed(mlp_out, clean[kept[1]])


# Weights and the rest


@every_block
def test_views_of_a_gated_mlp(block: str) -> None:
    model = additive_model(block, "gated")
    mlp = model.blocks[1].mlp
    assert mlp.W_in.shape == mlp.W_gate.shape == (SIZES["d_model"], SIZES["d_mlp"])
    assert mlp.W_out.shape == (SIZES["d_mlp"], SIZES["d_model"])
    assert torch.equal(mlp.W_in, mlp.input.weight.T)
    assert torch.equal(mlp.W_gate, mlp.gate.weight.T)
    assert torch.equal(mlp.W_out, mlp.output.weight.T)
    assert mlp.b_in is mlp.input.bias
    assert mlp.b_gate is mlp.gate.bias
    assert mlp.b_out is mlp.output.bias
    assert torch.equal(model.W_in, torch.stack([each.mlp.W_in for each in model.blocks]))
    assert torch.equal(model.W_out[1], mlp.W_out)
    batch = additive_batch()
    before = run(model, batch).detach()
    with torch.no_grad():
        mlp.W_gate[:, 3] = 0
        mlp.b_gate[3] = 0
    assert mlp.gate.weight[3].abs().sum() == 0
    _, acts = model.run_with_cache(batch["tokens"], "logits", batch["types"], batch["mask"])
    assert (acts["post", 1][..., 3] == 0).all()  # the gate of a neuron without gate weights is shut
    assert_changed(run(model, batch), before)


@every_mlp
def test_norm_in_front(mlp: str) -> None:
    for model in (additive_model("pre", mlp), additive_model("post", mlp)):
        block = model.blocks[0]
        expected = (None, block.ln1) if model.ln_final is None else (block.ln1, block.ln2)
        assert (block.norm_in_front(mlp_input=False), block.norm_in_front(mlp_input=True)) == expected


@pytest.mark.parametrize("key", [("pre_linear", 0), ("pre_linear0",)])
def test_short_name_of_the_linear_branch(key: tuple[Any, ...]) -> None:
    assert act_name(*key) == get_act_name(*key) == "blocks.0.mlp.hook_pre_linear"
    _, acts = pre_ln("gated").run_with_cache(additive_batch()["tokens"])
    assert torch.equal(acts[key if len(key) > 1 else key[0]], acts["blocks.0.mlp.hook_pre_linear"])


@pytest.mark.parametrize(
    ("block", "mlp", "what"),
    [
        ("pre", "plain", "PreLNBlock and MLP"),
        ("post", "gated", "PostLNBlock and GatedMLP"),
        ("pre", "gated", "PreLNBlock and Gat"),
    ],
)
def test_hugging_faces_bert_has_no_place_for_such_a_model(block: str, mlp: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        additive_model(block, mlp).to_hf()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-2), (torch.bfloat16, 6e-2)])
@pytest.mark.parametrize("task", TASKS)
@every_mlp
def test_half_precision(mlp: str, task: str, dtype: torch.dtype, tolerance: float) -> None:
    batch = additive_batch()
    with torch.no_grad():
        wide, half = (run(additive_model("pre", mlp, task, dtype=kind), batch) for kind in (torch.float64, dtype))
    assert half.dtype == dtype
    mask = batch["mask"] if wide.ndim == 3 else None
    assert_parity(half.double(), wide, mask, tolerance)


@every_mlp
def test_every_parameter_gets_a_gradient(mlp: str) -> None:
    model, batch = additive_model("pre", mlp), additive_batch()
    run(model, batch).square().mean().backward()
    with model.use_task("next_sentence"):
        run(model, batch).square().mean().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert all(name.startswith(("classifier.", "qa_head.")) for name in without)


def test_initialised_with_norms_of_one_and_biases_of_zero() -> None:
    model = HookedEncoder(additive_model("pre", "gated").cfg.encoder, device="cpu")
    model.initialise(seed=0)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            assert 0.01 < parameter.std() < 0.03, name
        else:
            assert (parameter == (1 if name.endswith(".w") else 0)).all(), name
