"""A cache as a thing that is kept: moved, sliced, saved and loaded."""

import copy
import dataclasses
import importlib.util
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from encoderlens import ActivationCache, HookedEncoder
from encoderlens.cached_run import CachedRun
from encoderlens.errors import HookNameError, InputError
from encoderlens.slices import Slice
from tests.additive import additive_batch, additive_model
from tests.checkpoints import assert_same_tensors

BATCH = additive_batch()
Q0 = "blocks.0.attn.hook_q"


@pytest.fixture(scope="module")
def model() -> HookedEncoder:
    return additive_model()


def run(model: HookedEncoder, rows: slice = slice(None), **options: Any) -> ActivationCache:
    batch = {name: tensor[rows] for name, tensor in BATCH.items()}
    return model.run_with_cache(batch["tokens"], "logits", batch["types"], batch["mask"], **options)[1]


@pytest.fixture
def cache(model: HookedEncoder) -> ActivationCache:
    return run(model)


def weight(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def beside(cache: CachedRun) -> dict[str, Tensor]:
    found = {name: getattr(cache, name) for name in ("tokens", "mask", "positions", "frame_times")}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def assert_same_cache(ours: CachedRun, theirs: CachedRun) -> None:
    assert list(ours) == list(theirs)
    assert_same_tensors(dict(ours), dict(theirs))
    assert_same_tensors(beside(ours), beside(theirs))
    assert ours.has_batch_dim == theirs.has_batch_dim


# Moving


def test_to_moves_everything_and_changes_no_dtype(model: HookedEncoder) -> None:
    cache = run(model, pos_slice=[2, 4], dtype=torch.float16)
    cache.frame_times = torch.tensor([0.5, 0.75])
    before = {name: (tensor.shape, tensor.dtype) for name, tensor in (dict(cache) | beside(cache)).items()}
    assert len(beside(cache)) == 4
    moved = cache.to("meta")
    assert moved is cache
    after = dict(cache) | beside(cache)
    assert {tensor.device.type for tensor in after.values()} == {"meta"}
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in after.items()} == before
    assert run(model).to(torch.device("cpu"))["q", 0].dtype == torch.float32


@pytest.mark.parametrize(
    ("device", "message"),
    [
        (torch.float64, "a cache moves to a device"),
        (None, "a cache moves to a device"),
        ("the moon", "'the moon' is no device that torch knows"),
    ],
)
def test_to_takes_devices_only(cache: ActivationCache, device: Any, message: str, unchecked: None) -> None:
    with pytest.raises(InputError, match=message):
        cache.to(device)
    assert cache.tokens is not None
    assert cache.tokens.dtype == torch.int64


def test_nbytes_is_what_the_tensors_weigh(model: HookedEncoder, cache: ActivationCache) -> None:
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in cache.values()}
    assert len(storages) < len(cache)  # the stream between two layers is one tensor under two names
    assert cache.nbytes == sum(storages.values()) < weight(cache.values())
    assert cache.to("meta").nbytes == weight(cache.values())
    for options in ({"pos_slice": [3]}, {"pos_slice": Slice(3)}, {"names_filter": Q0}, {"dtype": torch.bfloat16}):
        some = run(model, **options)
        assert some.nbytes == weight(some.values())
    tensor = torch.zeros(3, 8)
    shared = ActivationCache({"a": tensor, "b": tensor[:, :2], "c": torch.zeros(3)}, model)
    assert shared.nbytes == 4 * (3 * 8 + 3)
    assert ActivationCache({}, model).nbytes == 0


@pytest.fixture
def gradients() -> Iterator[None]:
    yield
    torch.set_grad_enabled(True)


def test_toggle_autodiff_is_for_all_of_torch(cache: ActivationCache, gradients: None, caplog: Any) -> None:
    assert cache.toggle_autodiff() is None
    assert not torch.is_grad_enabled()
    assert "gradients are now off for all of torch" in caplog.text
    cache.toggle_autodiff(True)
    assert torch.is_grad_enabled()
    assert "gradients are now on for all of torch" in caplog.text


# The batch axis


def test_remove_batch_dim(model: HookedEncoder) -> None:
    row = slice(1, 2)
    whole, cache = run(model, row, pos_slice=[0, 5]), run(model, row, pos_slice=[0, 5])
    assert cache.remove_batch_dim() is cache
    assert not cache.has_batch_dim
    assert_same_tensors(dict(cache), {name: tensor[0] for name, tensor in whole.items()})
    assert torch.equal(cache.tokens, BATCH["tokens"][1, [0, 5]])
    assert torch.equal(cache.mask, BATCH["mask"][1, [0, 5]].bool())
    assert cache.positions.tolist() == [0, 5]
    assert cache.nbytes == weight(cache.values())
    assert_same_cache(cache, run(model, row, pos_slice=[0, 5], remove_batch_dim=True))
    assert_same_cache(cache.remove_batch_dim(), cache)


def test_remove_batch_dim_refuses_several_rows_and_leaves_them(model: HookedEncoder, cache: ActivationCache) -> None:
    message = (
        r"remove_batch_dim takes a cache of one sequence, and \S+ has 3: choose one with apply_slice_to_batch_dim\(index\)"
    )
    with pytest.raises(InputError, match=message):
        cache.remove_batch_dim()
    assert cache.has_batch_dim
    assert_same_cache(cache, run(model))


@pytest.mark.parametrize("rows", [1, -1, [2, 0], (1, 3), (2,), slice(0, 3, 2), torch.tensor([1]), Slice(0), Slice([0])])
def test_apply_slice_to_batch_dim(model: HookedEncoder, rows: Any) -> None:
    cache = run(model, pos_slice=[4, 7, 1])
    cache.frame_times = torch.tensor([0.1, 0.2, 0.3])
    cache.max_stack_bytes = 12345
    window = rows if isinstance(rows, Slice) else Slice(rows)
    chosen = cache.apply_slice_to_batch_dim(rows)
    assert type(chosen) is ActivationCache
    assert chosen.model is model
    assert chosen.has_batch_dim != window.drops_axis
    assert list(chosen) == list(cache)
    assert_same_tensors(dict(chosen), {name: window.apply(tensor) for name, tensor in cache.items()})
    assert torch.equal(chosen.tokens, window.apply(cache.tokens))
    assert torch.equal(chosen.mask, window.apply(cache.mask))
    assert chosen.positions.tolist() == [4, 7, 1]
    assert torch.equal(chosen.frame_times, cache.frame_times)
    assert chosen.max_stack_bytes == 12345
    assert cache.has_batch_dim
    assert len(cache["q", 0]) == 3


def test_a_slice_owns_its_memory(model: HookedEncoder, cache: ActivationCache) -> None:
    expected = run(model).apply_slice_to_batch_dim([1])
    for rows in (1, [1], (1, 2), None):
        chosen = cache.apply_slice_to_batch_dim(rows)
        assert chosen.nbytes == sum(tensor.untyped_storage().nbytes() for tensor in chosen.values()) == weight(chosen.values())
    one = cache.apply_slice_to_batch_dim((1, 2))
    for tensor in (*cache.values(), cache.tokens, cache.mask):
        tensor.zero_()
    assert_same_cache(one, expected)


def test_batch_slices_that_cannot_be(model: HookedEncoder, cache: ActivationCache) -> None:
    for rows in (3, [0, 3], -4):
        with pytest.raises(InputError, match=r"a slice takes entry -?\d of an axis that has 3"):
            cache.apply_slice_to_batch_dim(rows)
    with pytest.raises(InputError, match="this cache has no batch axis to slice"):
        cache.apply_slice_to_batch_dim(0).apply_slice_to_batch_dim(0)


def test_a_key_that_is_too_long_names_the_form(cache: ActivationCache) -> None:
    for key in (("q", 0, "ln1", 2), (), 3, (0, "q")):
        with pytest.raises(HookNameError, match=r"a cache's key is a hook name, or a tuple \(short name, layer, norm\)"):
            cache[key]


# Files

CACHES: dict[str, Callable[[HookedEncoder], ActivationCache]] = {
    "whole": run,
    "some positions": lambda model: run(model, pos_slice=[4, 1]),
    "one position": lambda model: run(model, pos_slice=Slice(4)),
    "one sequence": lambda model: run(model, slice(2, 3), remove_batch_dim=True),
    "a slice": lambda model: run(model).apply_slice_to_batch_dim([2, 1]),
    "in half": lambda model: run(model, dtype=torch.bfloat16),
    "no padding": lambda model: run(model, slice(0, 1)),
    "few": lambda model: run(model, names_filter=["blocks.1.attn.hook_q", "embed.hook_embed"]),
}


@pytest.mark.parametrize("make", CACHES.values(), ids=CACHES)
def test_a_file_gives_back_the_cache(model: HookedEncoder, make: Any, tmp_path: Path) -> None:
    cache, path = make(model), tmp_path / "cache.safetensors"
    assert cache.save(path) is None
    loaded = ActivationCache.load(str(path), model)
    assert type(loaded) is ActivationCache
    assert loaded.model is model
    assert_same_cache(loaded, cache)
    assert loaded.nbytes == weight(loaded.values())
    assert [file.name for file in tmp_path.iterdir()] == ["cache.safetensors"]


def test_a_loaded_cache_decomposes_the_same(model: HookedEncoder, cache: ActivationCache, tmp_path: Path) -> None:
    cache.save(tmp_path / "cache")
    loaded = ActivationCache.load(tmp_path / "cache", model)
    rows = cache.get_full_resid_decomposition()
    assert torch.equal(loaded.get_full_resid_decomposition(), rows)
    assert torch.equal(loaded.logit_attrs(rows, BATCH["tokens"]), cache.logit_attrs(rows, BATCH["tokens"]))
    assert torch.equal(loaded.logit_constant(3), cache.logit_constant(3))


def test_order_gradients_and_what_was_added(model: HookedEncoder, tmp_path: Path) -> None:
    cache = run(model, names_filter=lambda name: "hook_z" in name or "resid" in name)
    labels = BATCH["tokens"]
    _, backward = model.run_with_cache(labels, "loss", labels=labels, incl_bwd=True)
    model.zero_grad()
    cache.compute_head_results()
    for name, kept in (("added", cache), ("gradients", backward)):
        kept.save(tmp_path / name)
        assert_same_cache(ActivationCache.load(tmp_path / name, model), kept)
    names = list(backward)
    assert sum(name.endswith("_grad") for name in names) == len(names) / 2
    assert names != sorted(names)


def test_shared_and_strided_tensors(model: HookedEncoder, cache: ActivationCache, tmp_path: Path) -> None:
    tensor = torch.randn(3, 11, 4, 10)
    layers = {Q0: tensor[..., ::2], "blocks.0.attn.hook_k": tensor[..., :5], "blocks.0.attn.hook_v": tensor[..., :5]}
    layers["embed.hook_pos_embed"] = torch.randn(11, 14).expand(3, -1, -1)
    layers["blocks.0.hook_attn_out"] = torch.randn(3, 14, 11).mT
    odd = ActivationCache(layers, model, True, BATCH["tokens"].T.contiguous().T, cache.mask)
    odd.frame_times = torch.linspace(0, 1, 22)[::2]
    odd.save(tmp_path / "odd")
    loaded = ActivationCache.load(tmp_path / "odd", model)
    assert_same_cache(loaded, odd)
    assert loaded.nbytes == weight(odd.values())


def test_saving_over_an_old_file(model: HookedEncoder, cache: ActivationCache, tmp_path: Path) -> None:
    path = tmp_path / "cache"
    run(model, pos_slice=[1]).save(path)
    cache.save(path)
    assert_same_cache(ActivationCache.load(path, model), cache)


@pytest.mark.skipif(importlib.util.find_spec("resource") is None, reason="no limits on files here")
def test_a_write_that_fails_leaves_the_old_file(model: HookedEncoder, cache: ActivationCache, tmp_path: Path) -> None:
    import resource

    path = tmp_path / "cache"
    cache.save(path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))  # a disk that becomes full
    try:
        with pytest.raises(InputError, match=r"the cache cannot be written to .*File too large"):
            run(model).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_where_a_cache_cannot_be_written(cache: ActivationCache, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "nowhere" / "cache"):
        with pytest.raises(InputError, match="the cache cannot be written to "):
            cache.save(path)
    with pytest.raises(InputError, match=r"the cache cannot be written to .*meta"):
        cache.to("meta").save(tmp_path / "meta")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_layers": 3}, "n_layers 2, not 3"),
        ({"d_model": 12}, "d_model 14, not 12"),
        ({"n_heads": 2, "d_head": 10}, "n_heads 4, not 2, d_head 5, not 10"),
        ({"block": "pre"}, "a hook point 'blocks.0.hook_normalized_resid_mid'"),
    ],
)
def test_a_file_of_another_model(cache: ActivationCache, options: Any, message: str, tmp_path: Path) -> None:
    cache.save(tmp_path / "cache")
    with pytest.raises(InputError, match=f"is of another model, 'custom': it has {message}"):
        ActivationCache.load(tmp_path / "cache", additive_model(**options))


def test_files_that_are_no_cache(model: HookedEncoder, cache: ActivationCache, tmp_path: Path) -> None:
    tensors = tmp_path / "tensors"
    save_file({Q0: torch.zeros(3, 11, 4, 5)}, tensors, metadata={"format": "pt"})
    with pytest.raises(InputError, match="holds no cache: it was not written by a cache's save"):
        ActivationCache.load(tensors, model)
    save_file({Q0: torch.zeros(3, 11, 4, 5)}, tensors)
    with pytest.raises(InputError, match="holds no cache"):
        ActivationCache.load(tensors, model)
    whole = tmp_path / "cache"
    cache.save(whole)
    content = whole.read_bytes()
    for name, bytes_of in {"text": b"not a safetensors file", "empty": b"", "cut": content[:-1], "head": content[:100]}.items():
        (tmp_path / name).write_bytes(bytes_of)
        with pytest.raises(InputError, match=f"{name} cannot be read as a cache"):
            ActivationCache.load(tmp_path / name, model)
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(InputError, match="cannot be read as a cache"):
            ActivationCache.load(path, model)


def test_any_reader_of_safetensors_finds_the_activations(cache: ActivationCache, tmp_path: Path) -> None:
    cache.save(tmp_path / "cache")
    assert_same_tensors(load_file(tmp_path / "cache"), dict(cache) | beside(cache))


# Words

PUBLIC = sorted(
    {(owner, name) for owner in (CachedRun, ActivationCache) for name in vars(owner) if not name.startswith("_")},
    key=lambda pair: (pair[0].__name__, pair[1]),
)


@pytest.mark.parametrize(("owner", "name"), [pair for pair in PUBLIC if pair[1] != "max_stack_bytes"])
def test_every_public_method_has_a_docstring(owner: type, name: str) -> None:
    member = inspect.getattr_static(owner, name)
    function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
    assert function.__doc__
    described = function.__doc__
    for parameter in inspect.signature(function).parameters:
        if "Args:" in described and parameter not in ("self", "cls"):
            assert f" {parameter}:" in described or f" {parameter}," in described, f"{name} does not say what {parameter} is"


def test_positional_arguments_stand_as_in_transformer_lens() -> None:
    orders = {
        "accumulated_resid": "layer incl_mid apply_ln pos_slice mlp_input return_labels",
        "decompose_resid": "layer mlp_input mode apply_ln pos_slice incl_embeds return_labels",
        "logit_attrs": "residual_stack tokens incorrect_tokens pos_slice batch_slice has_batch_dim",
        "stack_head_results": "layer return_labels incl_remainder pos_slice apply_ln",
        "stack_activation": "activation_name layer sublayer_type",
        "get_neuron_results": "layer neuron_slice pos_slice project_output_onto",
        "stack_neuron_results": "layer pos_slice neuron_slice return_labels incl_remainder apply_ln project_output_onto",
        "apply_ln_to_stack": "residual_stack layer mlp_input pos_slice batch_slice has_batch_dim recompute_ln",
        "get_full_resid_decomposition": "layer mlp_input expand_neurons apply_ln pos_slice return_labels project_output_onto",
        "apply_slice_to_batch_dim": "batch_slice",
        "toggle_autodiff": "mode",
        "to": "device",
        "__init__": "cache_dict model has_batch_dim",
    }
    for name, order in orders.items():
        parameters = list(inspect.signature(getattr(ActivationCache, name)).parameters)[1:]
        assert parameters[: len(order.split())] == order.split()


def test_the_mark_of_a_file_is_json(cache: ActivationCache, tmp_path: Path) -> None:
    from safetensors import safe_open

    cache.save(tmp_path / "cache")
    with safe_open(tmp_path / "cache", framework="pt") as file:
        about = json.loads(file.metadata()["encoderlens_cache"])
    assert about["names"] == list(cache)
    assert about["has_batch_dim"] is True
    assert about["sizes"]["d_model"] == 14


def test_a_file_does_not_load_for_a_model_with_other_weights(cache: ActivationCache, tmp_path: Path) -> None:
    path, other = tmp_path / "run.safetensors", copy.deepcopy(cache.model)
    cache.save(path)
    assert_same_cache(ActivationCache.load(path, other), cache)
    with torch.no_grad():
        other.blocks[1].mlp.output.bias[-1] += 1e-3
    with pytest.raises(InputError, match=r"is of another model.*other weights"):
        ActivationCache.load(path, other)
    with pytest.raises(InputError, match=r"is of another model.*other weights"):
        ActivationCache.load(path, copy.deepcopy(cache.model).half())


def test_a_file_does_not_load_for_a_model_with_other_heads(tmp_path: Path) -> None:
    model, path = additive_model(), tmp_path / "run.safetensors"
    model.run_with_cache(BATCH["tokens"], None, names_filter=Q0)[1].save(path)
    other = HookedEncoder(dataclasses.replace(model.cfg.encoder, heads=()), device="cpu")
    assert len(list(other.parameters())) < len(list(model.parameters()))
    with pytest.raises(InputError, match=r"is of another model.*other weights"):
        ActivationCache.load(path, other)
