"""Caches and the weights that they are of: changes since the run, fingerprints, gradients that are no activations, memory."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import encoderlens.memory
from encoderlens import ActivationCache, EncoderConfig, HookedEncoder
from encoderlens.config import AbsolutePositionsPart, AttentionPart, EmbeddingPart, LayerNormPart, MLPPart, PostLNPart
from encoderlens.errors import AnalysisError, DeviceError, InputError, WeightsError
from encoderlens.fingerprint import fingerprint
from encoderlens.memory import free_bytes
from tests.additive import additive_batch, additive_model, arguments, audio_batch, audio_model

MODELS = {
    "post": (lambda: additive_model("post", "plain"), additive_batch),
    "pre": (lambda: additive_model("pre", "gated"), additive_batch),
    "speech": (lambda: audio_model("layer norm, pre-LN"), audio_batch),
}


@pytest.fixture(params=MODELS)
def made(request: pytest.FixtureRequest) -> tuple[Any, dict[str, Any]]:
    """A model of the test's own, and what it reads."""
    make, batch = MODELS[request.param]
    return make(), arguments(batch()) | {"return_type": "logits"}


@pytest.fixture
def run(made: tuple[Any, dict[str, Any]]) -> tuple[Any, ActivationCache]:
    """A model, and a cache of everything."""
    model, inputs = made
    return model, model.run_with_cache(**inputs)[1]


# Weights that have changed since the run


def scale(weight: Tensor) -> None:
    with torch.no_grad():
        weight.mul_(1.5)


READ_BY: dict[str, tuple[Callable[[Any], Tensor], Callable[[ActivationCache], Any]]] = {
    "head results": (lambda model: model.blocks[0].attn.o.weight, lambda cache: cache.stack_head_results()),
    "one layer's head results": (lambda model: model.blocks[0].attn.o.weight, lambda cache: cache.compute_head_results()),
    "neuron results": (lambda model: model.blocks[1].mlp.output.weight, lambda cache: cache.get_neuron_results(1)),
    "full decomposition": (lambda model: model.blocks[1].mlp.output.bias, lambda cache: cache.get_full_resid_decomposition()),
    "norm of a stack": (
        lambda model: model.blocks[1].norm_in_front(True).w,
        lambda cache: cache.apply_ln_to_stack(cache.decompose_resid(1, mlp_input=True), 1, mlp_input=True),
    ),
    "logits": (
        lambda model: next(iter(model.task_head().modules.values())).get_parameter("dense.weight"),
        lambda cache: cache.logit_attrs(cache.decompose_resid(), 1),
    ),
}


@pytest.mark.parametrize("what", READ_BY)
def test_a_weight_that_has_changed_since_the_run_is_not_read(run, what):
    model, cache = run
    weight, read = READ_BY[what]
    read(cache.apply_slice_to_batch_dim(slice(None)))
    scale(weight(model))
    with pytest.raises(AnalysisError, match=r"the weights of .* have changed since the run .*: run the model again"):
        read(cache)


CHANGES = ["load_state_dict", "assign", "data", "cast", "cast and back", "array", "after a move", "fused"]


@pytest.mark.parametrize("change", CHANGES)
def test_every_way_to_change_a_weight_counts(run, change):
    model, cache = run
    weight = model.blocks[0].attn.o.weight
    if change == "load_state_dict":
        model.load_state_dict(model.state_dict())
    elif change == "assign":
        model.blocks[0].attn.o.weight = torch.nn.Parameter(weight.detach().clone())
    elif change == "data":
        weight.data = weight.data * 2
    elif change == "cast and back":
        model.half().float()
    elif change == "array":
        weight.detach().numpy()[:] *= 2
    elif change == "after a move":
        model.cpu()
        weight.data = weight.data * 2
    elif change == "fused":
        weight.grad = torch.ones_like(weight)
        torch.optim.SGD([weight], lr=0.1, fused=True).step()
    else:
        model.half()
    with pytest.raises(AnalysisError, match=r"the weights of blocks\.0\.attn\.o have changed"):
        cache.compute_head_results()


def test_weights_that_a_decomposition_does_not_read_may_change(run):
    model, cache = run
    before = cache.stack_head_results(1)
    scale(model.blocks[1].attn.o.weight)
    scale(model.blocks[0].mlp.input.weight)
    assert torch.equal(cache.stack_head_results(1), before)


def test_copies_and_slices_of_a_cache_know_its_weights(run):
    model, cache = run
    twin, piece = copy.deepcopy(cache), cache.apply_slice_to_batch_dim(slice(0, 2))
    before = cache.stack_head_results()
    scale(model.blocks[0].attn.o.weight)
    assert torch.equal(twin.stack_head_results(), before)
    changed = copy.deepcopy(cache)
    for stale in (piece, changed):
        with pytest.raises(AnalysisError, match="have changed since the run"):
            stale.stack_head_results()


# Fingerprints


def test_a_fingerprint_is_of_the_contents(run):
    model, _ = run
    before = fingerprint(model)
    assert len(before) == 64
    assert fingerprint(copy.deepcopy(model)) == before
    last = list(model.parameters())[-1]
    kept = last.detach().clone()
    with torch.no_grad():
        last.view(-1)[-1] += 1e-3
    assert fingerprint(model) != before
    with torch.no_grad():
        last.copy_(kept)
    assert fingerprint(model) == before
    assert fingerprint(copy.deepcopy(model).double()) != before


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "Adagrad"])
def test_a_fingerprint_sees_what_torch_does_not_count(optimizer: str) -> None:
    model = additive_model()
    before = fingerprint(model)
    weight = model.blocks[0].attn.o.weight
    weight.grad = torch.zeros_like(weight)
    weight.grad[0, 0] = 1.0
    getattr(torch.optim, optimizer)([weight], lr=0.1, fused=True).step()
    after = fingerprint(model)
    assert after != before
    weight.detach().numpy()[0, 1] += 1
    assert fingerprint(model) != after


def test_a_fingerprint_does_not_depend_on_the_order_of_registration() -> None:
    one, other = torch.nn.Module(), torch.nn.Module()
    for name in ("a", "b"):
        one.register_parameter(name, torch.nn.Parameter(torch.ones(2)))
    for name in ("b", "a"):
        other.register_parameter(name, torch.nn.Parameter(torch.ones(2)))
    assert fingerprint(one) == fingerprint(other)


def test_a_cache_is_saved_with_the_weights_that_ran(run, tmp_path: Path):
    model, cache = run
    scale(model.blocks[1].mlp.output.weight)
    with pytest.raises(InputError, match=r"weights of blocks\.1\.mlp\.output have changed since the run.*save_file"):
        cache.save(tmp_path / "cache")
    assert not list(tmp_path.iterdir())
    save_file({name: tensor.contiguous().clone() for name, tensor in cache.items()}, tmp_path / "cache")
    assert load_file(tmp_path / "cache").keys() == cache.keys()


DAMAGED = {
    "no JSON": "{",
    "a list": "[]",
    "a field is missing": '{"model": "m", "sizes": {}, "weights": "0", "names": []}',
    "a field of another kind": '{"model": "m", "sizes": {}, "weights": [1.0], "has_batch_dim": true, "names": []}',
    "sizes are missing": '{"model": "m", "sizes": {}, "weights": "0", "has_batch_dim": true, "names": []}',
}


@pytest.mark.parametrize("how", DAMAGED)
def test_damaged_metadata_of_a_file(how, tmp_path: Path):
    save_file({"x": torch.zeros(1)}, tmp_path / "cache", {"encoderlens_cache": DAMAGED[how]})
    with pytest.raises(InputError, match=r"cache is damaged"):
        ActivationCache.load(tmp_path / "cache", additive_model())


def test_a_file_that_lacks_an_activation(run, tmp_path: Path):
    from safetensors import safe_open

    model, cache = run
    cache.save(tmp_path / "whole")
    with safe_open(tmp_path / "whole", framework="pt") as file:
        about = file.metadata()
    tensors = load_file(tmp_path / "whole")
    del tensors["blocks.0.attn.hook_q"]
    save_file(tensors, tmp_path / "cache", about)
    with pytest.raises(InputError, match=r"cache is damaged: it names 'blocks\.0\.attn\.hook_q' and does not hold it"):
        ActivationCache.load(tmp_path / "cache", model)


SPOILT: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "mask of another shape": (lambda held: {"mask": torch.ones(3, 9, dtype=torch.bool)}, "the mask is a Tensor of shape"),
    "mask of numbers": (lambda held: {"mask": held["tokens"].clone()}, "the mask is .* int64; it is True or False"),
    "tokens": (lambda held: {"tokens": held["tokens"].float()}, "the tokens are .* float32, and are whole numbers"),
    "whole numbers": (lambda held: {"hook_full_embed": held["hook_full_embed"].long()}, "'hook_full_embed' is .* int64"),
    "width": (lambda held: {"hook_full_embed": held["hook_full_embed"][..., 1:].clone()}, "its axes are batch pos d_model"),
    "axes": (lambda held: {"hook_full_embed": held["hook_full_embed"].flatten()}, "its axes are batch pos d_model"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_file_whose_tensors_cannot_be_those_of_a_cache(how: str, bert: HookedEncoder, tmp_path: Path) -> None:
    from safetensors import safe_open

    path, (spoil, message) = tmp_path / "cache", SPOILT[how]
    bert.run_with_cache(torch.tensor([[5, 6, 7]]), names_filter="hook_full_embed")[1].save(path)
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    held = load_file(path)
    save_file(held | spoil(held), path, about)
    with pytest.raises(InputError, match=f"cache is damaged: .*{message}"):
        ActivationCache.load(path, bert)


def test_what_names_no_file(bert: HookedEncoder, unchecked: None) -> None:
    _, cache = bert.run_with_cache(torch.tensor([[5, 6, 7]]))
    for call in (lambda: cache.save(None), lambda: ActivationCache.load(None, bert)):
        with pytest.raises(InputError, match="path is a NoneType; give the name of a file"):
            call()


def test_models_and_stacks_on_the_meta_device(bert: HookedEncoder, tmp_path: Path) -> None:
    model = HookedEncoder(bert.cfg.encoder, device="meta", init_weights=False).eval()
    tokens = torch.tensor([[5, 6, 7]])
    cache = model.run_with_cache(tokens)[1]
    for call in (lambda: cache.save(tmp_path / "cache"), model.to_hf):
        with pytest.raises(WeightsError, match="on the meta device, which holds no numbers"):
            call()
    with pytest.raises(DeviceError, match=r"cannot be moved there \(Cannot copy out of meta tensor"):
        model.to("cpu")
    assert model.half().to_empty(device="cpu").cfg.device.type == "cpu"
    cache = bert.run_with_cache(tokens)[1]
    with pytest.raises(InputError, match="the stack is on the meta device"):
        cache.logit_attrs(cache.decompose_resid().to("meta"), 3)


# What a cache is of


def test_a_cache_of_gradients_has_no_decomposition(made):
    model, inputs = made
    gradients: dict[str, Tensor] = {}

    def keep(gradient: Tensor, hook: Any) -> None:
        gradients[hook.name] = gradient.detach()

    with model.hooks(bwd_hooks=[(lambda name: True, keep)]):
        model(**inputs).square().sum().backward()
    cache = ActivationCache(gradients, model)
    for decompose in (
        lambda: cache.decompose_resid(),
        lambda: cache.stack_head_results(),
        lambda: cache.get_full_resid_decomposition(),
        lambda: cache.accumulated_resid(apply_ln=True),
        lambda: cache.get_neuron_results(0),
    ):
        with pytest.raises(AnalysisError, match=r"these are gradients, not the activations of a run.*cache\[name\] \* grads"):
            decompose()
    assert cache.stack_activation("attn_out").shape[0] == model.cfg.n_layers


def test_a_cache_keeps_its_tokens_and_its_mask_when_the_callers_change(bert):
    tokens, mask = torch.randint(5, 90, (2, 6)), torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    batch = bert.prepare(tokens, None, mask)
    _, cache = bert.run_with_cache(batch)
    before = cache.tokens.clone(), cache.mask.clone()
    tokens.zero_()
    mask.fill_(True)
    batch.token_ids.zero_()
    batch.sequence.mask.fill_(True)
    assert torch.equal(cache.tokens, before[0])
    assert torch.equal(cache.mask, before[1])


def test_stacks_of_whole_numbers_are_refused(bert, unchecked):
    _, cache = bert.run_with_cache(torch.tensor([[5, 6, 7]]))
    whole = cache.decompose_resid().long()
    for read in (lambda: cache.logit_attrs(whole, 3), lambda: cache.apply_ln_to_stack(whole, 1, mlp_input=True)):
        with pytest.raises(InputError, match=r"the stack is int64; .* floating-point"):
            read()


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.float8_e4m3fn])
def test_activations_are_kept_as_floating_point_numbers(bert, dtype):
    with pytest.raises(InputError, match=r"dtype=.*; give a floating-point torch\.dtype"):
        bert.run_with_cache(torch.tensor([[5, 6, 7]]), dtype=dtype)


def test_ragged_targets_are_refused(bert):
    _, cache = bert.run_with_cache(torch.tensor([[5, 6, 7], [5, 6, 7]]))
    with pytest.raises(InputError, match=r"tokens are a list .* of different lengths"):
        cache.logit_attrs(cache.decompose_resid(), [[1, 2], [3]])


# Memory


def test_a_cache_that_does_not_fit_into_memory_is_refused_before_the_run():
    """The patterns and scores of this batch take 16 TiB."""
    cfg = EncoderConfig(
        family="bert",
        original_architecture="BertModel",
        d_model=64,
        n_layers=8,
        embed=EmbeddingPart(50),
        positions=AbsolutePositionsPart(16_384),
        attention=AttentionPart(n_heads=64, d_head=1),
        norm=LayerNormPart(1e-5),
        mlp=MLPPart(d_mlp=8),
        block=PostLNPart(),
    )
    model = HookedEncoder(cfg, device="cpu")
    tokens = torch.zeros(16, 16_384, dtype=torch.long)
    ran = []
    model.add_hook("hook_full_embed", lambda x, hook: ran.append(hook.name))
    with pytest.raises(InputError, match=r"would take about \d+\.\d GiB, and .* free on cpu.*names_filter.*pos_slice.*dtype"):
        model.run_with_cache(tokens)
    with pytest.raises(InputError, match="would take about"):
        model.run_with_cache(tokens, names_filter="blocks.3.attn.hook_pattern", dtype=torch.bfloat16)
    assert not ran
    _, cache = model.run_with_cache(tokens[:1, :64], names_filter="blocks.3.attn.hook_pattern")
    assert cache["pattern", 3].shape == (1, 64, 64, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_estimate_of_a_cache_is_what_it_takes(made, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    """Free memory is a mock: it cannot be had at will."""
    model, inputs = made
    model.to(dtype, print_details=False)
    _, cache = model.run_with_cache(**inputs)
    taken = sum(tensor.numel() * tensor.element_size() for tensor in cache.values())
    monkeypatch.setattr("encoderlens.encoder.SMALL_CACHE", 0)
    for free, fits in ((int(1.02 * taken), True), (int(0.98 * taken), False)):
        monkeypatch.setattr("encoderlens.encoder.free_bytes", lambda device, free=free: free)
        if fits:
            model.run_with_cache(**inputs)
        else:
            with pytest.raises(InputError, match="the cache of this run would take"):
                model.run_with_cache(**inputs)


def test_free_memory_is_that_of_the_smallest_group_around_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The folders are made up: limits of Linux's control groups cannot be set everywhere."""
    job = tmp_path / "slurm" / "job"
    job.mkdir(parents=True)
    for folder, limit, used in ((job.parent, "max", 0), (job, str(5 << 20), 3 << 20)):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon {1 << 20}\ninactive_file {1 << 20}\n")
    monkeypatch.setattr(encoderlens.memory, "_group_folders", lambda: [job, job.parent])
    assert free_bytes(torch.device("cpu")) == 3 << 20
    assert free_bytes(torch.device("meta")) is None
    available = free_bytes(torch.device("cpu"))
    (job / "memory.stat").write_text("anon 1\n")
    assert free_bytes(torch.device("cpu")) != available, "a group that does not say what is cached is left out"
    (job / "memory.stat").unlink()
    assert free_bytes(torch.device("cpu")) > available
