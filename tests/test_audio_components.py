"""The front end of speech encoders, module by module, against Hugging Face's on the same weights."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import HubertConfig
from transformers.models.hubert import modeling_hubert as hf

from encoderlens.components import build
from encoderlens.config import AudioEmbedPart, ConvPositionsPart, FrontendPart, LayerNormPart, ProjectionPart
from encoderlens.errors import ConfigError, InputError
from encoderlens.hook_points import HookPoint
from encoderlens.sequence import Sequence
from tests.parity import assert_changed, assert_parity

SIZES = {"conv_dim": (7, 6, 5), "conv_kernel": (9, 4, 3), "conv_stride": (4, 3, 2), "num_feat_extract_layers": 3}
D_MODEL = 12


def config(**values: Any) -> HubertConfig:
    return HubertConfig(
        **(SIZES | {"hidden_size": D_MODEL, "layer_norm_eps": 1e-5, "num_conv_pos_embedding_groups": 3} | values)
    )


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """In eval mode, with norms away from one and every bias non-zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "layer_norm.weight" in name or "original0" in name else 0.4 * noise)
    return module.eval()


def waves(batch: int = 3, samples: int = 211, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, samples, generator=torch.Generator().manual_seed(seed))


def frontend(values: HubertConfig) -> tuple[nn.Module, Any]:
    """Hugging Face's front end, and ours with its weights."""
    theirs = shaken(hf.HubertFeatureEncoder(values))
    part = FrontendPart(
        tuple(values.conv_dim), tuple(values.conv_kernel), tuple(values.conv_stride), values.conv_bias, values.feat_extract_norm
    )
    ours = build(part, {})
    with torch.no_grad():
        for mine, other in zip(ours, theirs.conv_layers, strict=True):
            mine.weight.copy_(other.conv.weight)
            if mine.bias is not None:
                mine.bias.copy_(other.conv.bias)
            if mine.w is not None:
                mine.w.copy_(other.layer_norm.weight)
                mine.b.copy_(other.layer_norm.bias)
    return theirs, ours


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("bias", [False, True])
def test_convolutions(norm: str, bias: bool) -> None:
    theirs, ours = frontend(config(feat_extract_norm=norm, conv_bias=bias))
    assert len(list(ours.parameters())) == len(list(theirs.parameters()))
    mine, other = waves().requires_grad_(), waves().requires_grad_()
    frames, expected = ours(mine), theirs(other).mT
    assert_parity(frames, expected)
    weights = torch.randn(frames.shape, generator=torch.Generator().manual_seed(2))
    (frames * weights).sum().backward()
    (expected * weights).sum().backward()
    assert_parity(mine.grad, other.grad, tolerance=1e-4)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_hooks_see_each_convolution_by_frames_and_what_they_return_flows_on(norm: str) -> None:
    _, ours = frontend(config(feat_extract_norm=norm))
    plain, seen = ours(waves()), {}
    for index, conv in enumerate(ours):
        conv.hook_conv.add_hook(lambda x, hook, i=index: seen.__setitem__(("conv", i), x.shape))
        conv.hook_post.add_hook(lambda x, hook, i=index: seen.__setitem__(("post", i), x.shape))
    assert_parity(ours(waves()), plain)
    frames = [51, 16, 7]
    assert seen == {(what, i): (3, frames[i], SIZES["conv_dim"][i]) for what in ("conv", "post") for i in range(3)}
    for conv in ours:
        for point in (conv.hook_conv, conv.hook_post):
            point.remove_hooks()
            handle = point.add_hook(lambda x, hook: x + torch.linspace(-1, 1, x[0].numel()).square().reshape(x.shape[1:]))
            assert_changed(ours(waves()), plain)
            point.detach(handle)
    assert all(point.axes == ("batch", "frame", "channel") for point in ours.modules() if isinstance(point, HookPoint))


@pytest.mark.parametrize("normed", [True, False])
def test_projection(normed: bool) -> None:
    theirs = shaken(hf.HubertFeatureProjection(config(feat_proj_layer_norm=normed)))
    ours = build(ProjectionPart(5, 1e-5 if normed else None), {"d_model": D_MODEL})
    with torch.no_grad():
        ours.dense.weight.copy_(theirs.projection.weight)
        ours.dense.bias.copy_(theirs.projection.bias)
        if normed:
            ours.ln.w.copy_(theirs.layer_norm.weight)
            ours.ln.b.copy_(theirs.layer_norm.bias)
    frames = torch.randn(2, 9, 5)
    assert_parity(ours(frames), theirs(frames))


def positions(values: HubertConfig) -> tuple[nn.Module, Any]:
    theirs = shaken(hf.HubertPositionalConvEmbedding(values))
    part = ConvPositionsPart(values.num_conv_pos_embeddings, values.num_conv_pos_embedding_groups)
    ours = build(part, {"d_model": D_MODEL})
    weight = theirs.conv.parametrizations.weight
    with torch.no_grad():
        ours.g.copy_(weight.original0)
        ours.v.copy_(weight.original1)
        ours.bias.copy_(theirs.conv.bias)
    return theirs, ours


@pytest.mark.parametrize("kernel", [1, 2, 5, 8])
def test_positional_convolution(kernel: int) -> None:
    theirs, ours = positions(config(num_conv_pos_embeddings=kernel))
    assert_parity(ours.weight, theirs.conv.weight, tolerance=1e-6)
    x = torch.randn(2, 11, D_MODEL)
    assert_parity(ours(x, Sequence(2, 11)), theirs(x))


def layer_norm() -> nn.Module:
    return build(LayerNormPart(1e-5), {"d_model": D_MODEL, "width": "d_model", "rows": "batch pos"})


@pytest.mark.parametrize("normed", [True, False])
def test_padded_frames_are_zeroed_before_the_positional_convolution(normed: bool) -> None:
    _, conv = positions(config(num_conv_pos_embeddings=8))
    context = {"d_model": D_MODEL, "pos_embed": conv, "norm": layer_norm}
    embed = shaken(build(AudioEmbedPart(normed=normed), context))
    frames = torch.randn(2, 10, D_MODEL)
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[1, 6:] = False
    padded = embed(frames, None, Sequence(2, 10, mask))
    changed = frames.masked_fill(~mask[..., None], 100.0)
    assert_parity(embed(changed, None, Sequence(2, 10, mask))[mask], padded[mask])
    shorter = embed(frames[1:, :6], None, Sequence(1, 6))
    assert_parity(padded[1:, :6], shorter)
    assert [type(step).__name__ for step in embed.residual_path] == ["Write", "Write", "Norm"][: 2 + normed]


def test_masked_frames_get_the_mask_vector() -> None:
    _, conv = positions(config(num_conv_pos_embeddings=4))
    context = {"d_model": D_MODEL, "pos_embed": conv, "norm": layer_norm}
    embed = shaken(build(AudioEmbedPart(normed=False), context))
    frames, masked = torch.randn(2, 7, D_MODEL), torch.zeros(2, 7, dtype=torch.bool)
    masked[0, 2:4] = True
    by_hand = frames.clone()
    by_hand[masked] = embed.mask_embed.detach()
    assert_parity(embed(frames, masked, Sequence(2, 7)), embed(by_hand, None, Sequence(2, 7)))
    without = shaken(build(AudioEmbedPart(masks=False, normed=False), context))
    with pytest.raises(InputError, match="no vector that stands for masked frames"):
        without(frames, masked, Sequence(2, 7))


@given(st.integers(0, 400))
@settings(deadline=None, max_examples=60)
def test_the_number_of_frames(samples: int) -> None:
    part = FrontendPart((7, 6, 5), (9, 4, 3), (4, 3, 2))
    assert part.stride == 24
    if part.n_frames(samples) == 0:
        assert samples < 9 + 4 * 3 + 12 * 2  # the receptive field
        return
    _, ours = frontend(config())
    assert ours(torch.zeros(1, samples)).shape[1] == part.n_frames(samples)


def test_parts_refuse_sizes_that_are_none() -> None:
    for part, name in ((ConvPositionsPart(kernel=0), "kernel"), (ProjectionPart(d_in=-1), "d_in")):
        with pytest.raises(ConfigError, match=f"{name} is .*; it must be a positive whole number"):
            part.check()
