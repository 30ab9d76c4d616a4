"""What the residual stream is made of, written out: every write pushed through the norms after it, one by one."""

import itertools
from collections.abc import Iterator

from torch import Tensor, nn

from encoderlens import ActivationCache
from encoderlens.components.norm import LayerNorm
from tests.additive import AnyModel, embeddings_of, run, written
from tests.parity import assert_parity


def places(model: AnyModel) -> list[tuple[int, bool]]:
    """Every layer, with and without mlp_input."""
    return [*itertools.product(range(model.cfg.n_layers), (False, True)), (model.cfg.n_layers, False)]


def stream(cache: ActivationCache, layer: int, mlp_input: bool) -> Tensor:
    if layer < cache.model.cfg.n_layers:
        return cache["resid_mid" if mlp_input else "resid_pre", layer]
    last = ("normalized_resid_conv", "normalized_resid_post", "resid_post")  # as far as its block goes
    return next(cache[name] for name in (f"blocks.{layer - 1}.hook_{point}" for point in last) if name in cache)


def front_norm(model: AnyModel, layer: int, mlp_input: bool) -> str | None:
    """The name of the norm between the stream and what reads it."""
    if model.ln_final is None:
        return f"blocks.{layer}.ln1" if mlp_input else None
    name = "ln_final" if layer == model.cfg.n_layers else f"blocks.{layer}.ln{1 + mlp_input}"
    return name if name in dict(model.named_modules()) else None


def what_reads(cache: ActivationCache, batch: dict[str, Tensor], layer: int, mlp_input: bool) -> Tensor:
    """What attention, the MLP or the head got in the run of a batch."""
    if layer == cache.model.cfg.n_layers:
        return run(cache.model, batch, "hidden").detach()
    if mlp_input:
        return cache["in", layer]
    name = front_norm(cache.model, layer, mlp_input)
    if name is None:
        return cache["resid_pre", layer]
    norm = cache.model.get_submodule(name)
    scaled = cache[f"{name}.hook_normalized"] * norm.w
    return (scaled if norm.b is None else scaled + norm.b).detach()


def bias_label(norm: str) -> str:
    return norm.removeprefix("blocks.").replace(".", "_") + "_b"


def history(model: AnyModel, layer: int, mlp_input: bool) -> Iterator[tuple[str, str]]:
    """What happens to the stream, in order: ("write", label), ("norm", module name) and ("linear", module name). Written out
    here, and read nowhere.
    """
    yield from (("write", name) for name in embeddings_of(model))
    post, there = model.ln_final is None, dict(model.named_modules())
    between = [(kind, name) for kind, name in (("norm", "embed.ln"), ("linear", "embed.projection")) if name in there]
    narrow = len(between) == 2 and len(model.embed.ln.w) == model.embed.projection.weight.shape[1]
    yield from between if narrow else reversed(between)  # a norm as wide as the embeddings stands in front of the projection
    for index in range(layer + mlp_input):
        yield "write", f"{index}_attn_out"
        if index == layer:
            return
        if post:
            yield "norm", f"blocks.{index}.ln1"
        yield "write", f"{index}_mlp_out"
        if post:
            yield "norm", f"blocks.{index}.ln2"
        if f"blocks.{index}.hook_conv_out" in model.hook_dict:
            yield from (("write", f"{index}_conv_out"), ("norm", f"blocks.{index}.ln_conv"))


def parts_of(model: AnyModel, label: str) -> tuple[list[str], str]:
    """The labels of the parts of a write, and of its bias, which may be missing."""
    layer, _, kind = label.partition("_")
    if kind == "attn_out":
        return [f"L{layer}H{head}" for head in range(model.cfg.n_heads)], f"{layer}_b_O"
    return [f"L{layer}N{neuron}" for neuron in range(model.cfg.d_mlp)], f"{layer}_b_out"


def by_hand(cache: ActivationCache, layer: int, mlp_input: bool, apply_ln: bool, split: str) -> dict[str, Tensor]:
    """Every row in the order of the path: each write pushed through the linear part of one norm after the other."""
    model = cache.model
    steps = list(history(model, layer, mlp_input))
    norm = front_norm(model, layer, mlp_input)
    if apply_ln and norm is not None:
        steps.append(("norm", norm))
    vectors = {label: tensor for label, (_, tensor) in written(model, dict(cache)).items()}
    rows: dict[str, Tensor] = {}
    for kind, name in steps:
        if kind == "norm":
            norm, scale = model.get_submodule(name), cache[f"{name}.hook_scale"]
            rows = {label: centred(norm, row) / scale * norm.w for label, row in rows.items()}
            rows |= {} if norm.b is None else {bias_label(name): norm.b}
        elif kind == "linear":
            linear = model.get_submodule(name)
            rows = {label: row @ linear.weight.mT for label, row in rows.items()}
            rows |= {} if linear.bias is None else {"embed_b": linear.bias}
        else:
            split_here = {"attn_out": "H", "mlp_out": "N"}.get(name.partition("_")[2], "none") in split
            labels, bias = parts_of(model, name) if split_here else ([name], "")
            rows |= {label: vectors[label] for label in [*labels, bias] if label in vectors}
    shape = stream(cache, layer, mlp_input).shape
    return {label: row.detach().expand(shape) for label, row in rows.items()}


def centred(norm: nn.Module, row: Tensor) -> Tensor:
    """What a norm divides by its scale."""
    return row - row.mean(-1, keepdim=True) if isinstance(norm, LayerNorm) else row


def assert_rows(found: tuple[Tensor, list[str]], expected: dict[str, Tensor], tolerance: float = 1e-12) -> None:
    rows, labels = found
    assert labels == list(expected)
    assert len(rows) == len(labels)
    for row, label in zip(rows, labels, strict=True):
        assert_parity(row, expected[label], None, tolerance)


def in_order_of_the_full_decomposition(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    def place(label: str) -> int:
        if label.startswith("L"):
            return 0 if "H" in label else 1
        if label.endswith(("_mlp_out", "_conv_out")):
            return 1 if "mlp" in label else 2
        return 4 if "_b_" in label or label.endswith("_b") else 3

    return {label: rows[label] for label in sorted(rows, key=place)}
