"""Every documented hook point of speech encoders, in every layout and class; what runs, what is kept, what is never made."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from encoderlens import ActivationCache, HookedAudioEncoder
from encoderlens.errors import HookNameError, HookResultError, HookUnreachableError, InputError
from encoderlens.slices import Slice
from tests.hooks import (
    POST_LN_BLOCK,
    PRE_LN_BLOCK,
    Axes,
    declared,
    in_layers,
    modules_that_run,
    norm,
    other_value,
    replaced,
    shape,
    while_split,
)
from tests.parity import assert_changed, assert_parity
from tests.speech import AMIABLE, LAYOUTS, speech, tiny_speech

# The documented hook points


def frontend(n_convolutions: int) -> Axes:
    points = ("hook_conv", "hook_post")
    return {f"frontend.{index}.{point}": "batch frame channel" for index in range(n_convolutions) for point in points}


PROJECTION = {"projection.hook_out": "batch pos d_model"}
EMBED = {
    "embed.hook_embed": "batch pos d_model",
    "embed.hook_pos_embed": "batch pos d_model",
    "hook_full_embed": "batch pos d_model",
}
POST_LN = EMBED | norm("embed.ln") | in_layers(POST_LN_BLOCK, 3)
PRE_LN = EMBED | in_layers(PRE_LN_BLOCK, 3) | norm("ln_final")
ENCODERS = {
    "group norm, post-LN": frontend(3) | norm("projection.ln", "channel") | PROJECTION | POST_LN,
    "layer norm, pre-LN": frontend(3) | norm("projection.ln", "channel") | PROJECTION | PRE_LN,
    "two convolutions, layer norm, post-LN, relu": frontend(2)
    | norm("projection.ln", "channel")
    | PROJECTION
    | EMBED
    | norm("embed.ln")
    | in_layers(POST_LN_BLOCK, 2),
    "group norm, pre-LN, biases, summed layers": frontend(3) | norm("projection.ln", "channel") | PROJECTION | PRE_LN,
    "no projection norm, batch norm, summed layers": frontend(3) | PROJECTION | POST_LN,
}
CTC = {"ctc_head.hook_in": "batch pos d_model", "ctc_head.hook_out": "batch pos d_vocab"}
CLASSIFIER = {
    "projector.hook_in": "batch pos d_model",
    "projector.hook_out": "batch pos d_pooled",
    "classifier.hook_in": "batch d_pooled",
    "classifier.hook_out": "batch label",
}
SUMMED = {"layer_sum.hook_out": "batch pos d_model"}
SUM_LAYOUTS = [layout for layout in ENCODERS if "summed layers" in layout]
HEADS = {"HubertModel": {}, "HubertForCTC": CTC, "HubertForSequenceClassification": CLASSIFIER}


def head_of(layout: str, hf_class: str) -> Axes:
    summed = hf_class == "HubertForSequenceClassification" and layout in SUM_LAYOUTS
    return HEADS[hf_class] | (SUMMED if summed else {})


TWO_LAYOUTS = ("group norm, post-LN", "layer norm, pre-LN")
DOCUMENTED = {
    (layout, hf_class): encoder | head_of(layout, hf_class)
    for layout, encoder in ENCODERS.items()
    for hf_class in HEADS
    if hf_class != "HubertModel" or layout in TWO_LAYOUTS
}


def reached(layout: str, hf_class: str) -> Axes:
    """What a run of the head, or without one to the final stream, computes: no final norm for a head that does not read it."""
    summed = "layer_sum.hook_out" in DOCUMENTED[layout, hf_class]
    return {name: axes for name, axes in DOCUMENTED[layout, hf_class].items() if not (summed and name in norm("ln_final"))}


# Of clips of 280 samples at most: how many frames each convolution makes, and how wide they are.
FRAMES = {3: (55, 27, 13), 2: (69, 22)}
CHANNELS = {3: (9, 7, 11), 2: (6, 10)}
SIZES = {"d_model": 24, "head": 3, "d_head": 8, "d_mlp": 31, "d_vocab": 32, "d_pooled": 17, "label": 5, "1": 1}
OTHER_SIZES = {
    "two convolutions, layer norm, post-LN, relu": {"d_model": 30, "head": 5, "d_head": 6},
    "group norm, pre-LN, biases, summed layers": {"head": 2, "d_head": 12},
}
CLIP = speech(AMIABLE)[20_000:20_280]
CLIPS = [CLIP[:211], CLIP, CLIP[30:190], CLIP[50:147]]  # in independent runs, all but one of them are padded

every_model = pytest.mark.parametrize(("layout", "hf_class"), DOCUMENTED)
every_head = pytest.mark.parametrize(("layout", "hf_class"), [key for key in DOCUMENTED if key[1] != "HubertModel"])
every_layout = pytest.mark.parametrize("layout", ENCODERS)
two_layouts = pytest.mark.parametrize("layout", TWO_LAYOUTS)


MADE: list[HookedAudioEncoder] = []


@cache
def tiny(layout: str, hf_class: str = "HubertForCTC") -> HookedAudioEncoder:
    """One for all tests."""
    MADE.append(tiny_speech(hf_class, layout))
    return MADE[-1]


@pytest.fixture(autouse=True)
def _no_hooks_left() -> Iterator[None]:
    """Hooks that a test leaves on a shared model are an error of that test."""
    yield
    left = [point for model in MADE for point in model.hook_points() if point.has_hooks()]
    for point in left:
        point.remove_hooks("both", including_permanent=True)
    assert not left


@pytest.fixture
def ctc() -> HookedAudioEncoder:
    return tiny("group norm, post-LN")


def expected_shape(layout: str, name: str, axes: str, batch: int = 4) -> tuple[int, ...]:
    n_convolutions = 2 if layout.startswith("two") else 3
    index = int(name.split(".")[1]) if name.startswith("frontend.") else -1
    sizes = SIZES | OTHER_SIZES.get(layout, {}) | {"batch": batch}
    sizes |= {"qkv_head": 3 * sizes["head"]}
    sizes |= {"frame": FRAMES[n_convolutions][index], "channel": CHANNELS[n_convolutions][index]}
    return shape(axes, sizes | dict.fromkeys(("pos", "query", "key"), FRAMES[n_convolutions][-1]))


def nothing(tensor: Tensor, hook: Any) -> None:
    pass


def everything(name: str) -> bool:
    return True


@every_model
def test_the_model_has_these_hook_points_with_these_axes_and_no_others(layout: str, hf_class: str) -> None:
    model = tiny(layout, hf_class)
    assert declared(model) == DOCUMENTED[layout, hf_class]
    assert list(declared(model)) == list(model.hook_dict)


@every_model
def test_each_fires_with_its_shape_and_what_it_returns_reaches_the_output(layout: str, hf_class: str) -> None:
    """Of a batch of one clip over and over, each hook has a row of its own to change; a longer clip makes it padded."""
    model, documented = tiny(layout, hf_class), reached(layout, hf_class)
    clips, rows = [CLIPS[0]] * (len(documented) + 1) + [CLIPS[1]], {name: row for row, name in enumerate(documented)}
    seen: dict[str, tuple[int, ...]] = {}

    def replace_a_row(tensor: Tensor, hook: Any) -> None:
        assert hook.name not in seen
        seen[hook.name] = tuple(tensor.shape)
        row = rows[hook.name]
        tensor[row : row + 1] = other_value(tensor[row : row + 1], hook.name)

    with torch.no_grad(), model.hooks([(everything, replace_a_row)]):
        after = model(clips, return_type="hidden" if model.task is None else "logits", padding="independent")
    axes_of = while_split(model, documented)
    assert seen == {name: expected_shape(layout, name, axes, len(clips)) for name, axes in axes_of.items()}
    read = model.run_state.last.sequence
    assert read.lengths[0] < read.pos
    untouched = after[len(documented)]
    for row in rows.values():
        assert_changed(after[row], untouched)


# Of the blocks the middle one; and the heads.
ALONE = [
    *(
        (layout, "HubertForCTC", name)
        for layout in TWO_LAYOUTS
        for name in DOCUMENTED[layout, "HubertForCTC"]
        if not name.startswith(("blocks.0", "blocks.2"))
    ),
    *((layout, "HubertForSequenceClassification", name) for layout in SUM_LAYOUTS for name in CLASSIFIER | SUMMED),
]


def logits_of(model: HookedAudioEncoder, clips: Any = CLIPS, **options: Any) -> Tensor:
    return model(clips, **({"return_type": "logits", "padding": "independent"} | options))


@cache
def untouched_logits(layout: str, hf_class: str) -> Tensor:
    with torch.no_grad():
        return logits_of(tiny(layout, hf_class))


@pytest.mark.parametrize(("layout", "hf_class", "name"), ALONE)
def test_it_fires_alone_too(layout: str, hf_class: str, name: str) -> None:
    model = tiny(layout, hf_class)
    after, seen = replaced(model, name, lambda: logits_of(model))
    assert seen == [(name, expected_shape(layout, name, DOCUMENTED[layout, hf_class][name]))]
    assert_changed(after, untouched_logits(layout, hf_class))


@every_model
def test_gradients_reach_every_point(layout: str, hf_class: str) -> None:
    model, documented = tiny(layout, hf_class), reached(layout, hf_class)
    options: dict[str, Any] = {"return_type": "loss", "labels": torch.tensor([[7, 9], [5, 5], [6, -100], [31, 8]])}
    if hf_class == "HubertModel":
        options = {"loss_fn": lambda hidden: hidden.square().sum()}
    elif hf_class == "HubertForSequenceClassification":
        options["labels"] = torch.tensor([4, 0, 2, 1])
    loss, kept = model.run_with_cache(CLIPS, padding="independent", names_filter=everything, incl_bwd=True, **options)
    model.zero_grad()
    assert loss.isfinite().all()
    assert len(kept) == 2 * len(documented)
    for name, axes in while_split(model, documented).items():
        gradient = kept[f"{name}_grad"]
        assert gradient.shape == kept[name].shape == expected_shape(layout, name, axes)
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0, name


# What a filter selects

Q0, PATTERN1, CONV0 = "blocks.0.attn.hook_q", "blocks.1.attn.hook_pattern", "frontend.0.hook_conv"
ON_DEMAND = {
    "use_attn_result": ["attn.hook_result"],
    "use_split_qkv_input": ["hook_q_input", "hook_k_input", "hook_v_input"],
    "use_hook_mlp_in": ["hook_mlp_in"],
}


@every_model
def test_everything_that_a_run_reaches_is_cached_with_the_documented_shape(layout: str, hf_class: str) -> None:
    model, documented = tiny(layout, hf_class), reached(layout, hf_class)
    _, kept = model.run_with_cache(CLIPS, padding="independent", return_type=..., names_filter=everything)
    shapes = {name: tuple(tensor.shape) for name, tensor in kept.items()}
    axes_of = while_split(model, documented)
    assert shapes == {name: expected_shape(layout, name, axes) for name, axes in axes_of.items()}
    for name, tensor in kept.items():
        assert name.endswith("hook_attn_scores") or tensor.isfinite().all(), name
    _, hidden = model.run_with_cache(CLIPS, padding="independent", names_filter=everything)
    assert set(hidden) == set(ENCODERS[layout])


@pytest.mark.parametrize("flags", [[], *([flag] for flag in ON_DEMAND), list(ON_DEMAND)], ids="+".join)
@two_layouts
def test_none_takes_on_demand_points_only_where_their_flag_is_on(layout: str, flags: list[str]) -> None:
    model = tiny_speech(layout=layout)
    for flag in flags:
        setattr(model.cfg, flag, True)
    left_out = tuple(name for flag, names in ON_DEMAND.items() if flag not in flags for name in names)
    _, kept = model.run_with_cache(CLIPS, return_type="logits")
    assert set(kept) == {name for name in DOCUMENTED[layout, "HubertForCTC"] if not name.endswith(left_out)}


@pytest.mark.parametrize(
    ("names_filter", "chosen"),
    [
        (CONV0, [CONV0]),
        (["ctc_head.hook_out", "frontend.1.hook_post", Q0], ["frontend.1.hook_post", Q0, "ctc_head.hook_out"]),
        ({"projection.hook_out", "embed.hook_embed"}, ["projection.hook_out", "embed.hook_embed"]),
        (lambda name: name.endswith("hook_conv"), [f"frontend.{index}.hook_conv" for index in range(3)]),
        (lambda name: name.startswith("projection"), [*norm("projection.ln"), "projection.hook_out"]),
        ("blocks.1.attn.hook_result", ["blocks.1.attn.hook_result"]),
    ],
)
def test_a_filter_gets_exactly_what_it_selects(ctc: HookedAudioEncoder, names_filter: Any, chosen: list[str]) -> None:
    output, kept = ctc.run_with_cache(CLIPS, return_type="logits", names_filter=names_filter)
    assert isinstance(kept, ActivationCache)
    assert list(kept) == chosen
    assert_parity(output.detach(), logits_of(ctc, padding="batch").detach())


@pytest.mark.parametrize(
    ("names_filter", "message"),
    [
        ("frontend.0.hook_cov", "there is no hook point 'frontend.0.hook_cov'; did you mean 'frontend.0.hook_conv'"),
        ("frontend.3.hook_conv", "there is no hook point 'frontend.3.hook_conv'; did you mean 'frontend.2.hook_conv'"),
        ("fronted.0.hook_post", "did you mean 'frontend.0.hook_post'"),
        ("projection.hook_in", "did you mean 'projection.hook_out'"),
        ("embed.hook_token_type_embed", "did you mean 'embed.hook_pos_embed'"),
        ("ctc_head.hook_outs", "did you mean 'ctc_head.hook_out'"),
        ("layer_sum.hook_out", "there is no hook point 'layer_sum.hook_out'"),
        ("frontend.0", "'frontend.0' is a module, not a hook point; did you mean 'frontend.0.hook_"),
        ("ln_final.hook_scale", "there is no hook point 'ln_final.hook_scale'"),
        ([], "the names filter is empty"),
        (lambda name: "unembed" in name, "selects none of the 94 hook points"),
    ],
)
def test_a_filter_that_selects_nothing_raises_before_anything_runs(
    ctc: HookedAudioEncoder, names_filter: Any, message: str
) -> None:
    for run in (
        lambda: ctc.run_with_cache(CLIPS, names_filter=names_filter),
        lambda: ctc.run_with_hooks(CLIPS, fwd_hooks=[(names_filter, nothing)]),
    ):
        with modules_that_run(ctc) as ran, pytest.raises(HookNameError, match=message):
            run()
        assert ran == []


# What a run does not reach

FRAME_INPUT = torch.linspace(-1, 1, 2 * 6 * 24).reshape(2, 6, 24)
FRAME_MASK = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
FROM_CLIPS, FROM_FRAMES, FROM_LAYER_1 = "the front end, the embeddings", "the embeddings", "blocks 1 to 2"
UNREACHABLE = {
    "a convolution, of frames": (CONV0, FRAME_INPUT, {}, FROM_FRAMES),
    "a convolution, of frames and a mask": ("frontend.2.hook_post", (FRAME_INPUT, FRAME_MASK), {}, FROM_FRAMES),
    "the projection, of frames": ("projection.hook_out", FRAME_INPUT, {"return_type": "logits"}, FROM_FRAMES),
    "the projection's norm, of frames": ("projection.ln.hook_scale", FRAME_INPUT, {"return_type": None}, FROM_FRAMES),
    "a convolution, from layer 1": (CONV0, FRAME_INPUT, {"start_at_layer": 1}, FROM_LAYER_1),
    "the projection, from layer 0": ("projection.hook_out", FRAME_INPUT, {"start_at_layer": 0}, "blocks 0 to 2, no head"),
    "the embeddings, from layer 1": ("embed.hook_pos_embed", FRAME_INPUT, {"start_at_layer": 1}, FROM_LAYER_1),
    "block 0, from layer 1": (Q0, FRAME_INPUT, {"start_at_layer": 1}, FROM_LAYER_1),
    "block 1, up to layer 1": (PATTERN1, CLIPS, {"stop_at_layer": 1}, f"blocks 0 to 0, {FROM_CLIPS}"),
    "the head, under hidden": ("ctc_head.hook_in", CLIPS, {}, f"return_type='hidden', blocks 0 to 2, {FROM_CLIPS}, no head"),
    "the head, under None": ("ctc_head.hook_out", CLIPS, {"return_type": None}, "return_type=None"),
    "one of several": ([Q0, CONV0], FRAME_INPUT, {}, f"{CONV0} is hooked, but this run does not compute it"),
}


@pytest.mark.parametrize("how", ["cache", "forward hook", "backward hook"])
@pytest.mark.parametrize(("names", "inputs", "options", "message"), UNREACHABLE.values(), ids=UNREACHABLE)
def test_a_named_point_that_the_run_cannot_reach_raises_before_anything_runs(
    ctc: HookedAudioEncoder, how: str, names: Any, inputs: Any, options: dict[str, Any], message: str
) -> None:
    run, hooked = ctc.run_with_hooks, {"fwd_hooks" if how == "forward hook" else "bwd_hooks": [(names, nothing)]}
    if how == "cache":
        run, hooked = ctc.run_with_cache, {"names_filter": names}
    with modules_that_run(ctc) as ran, pytest.raises(HookUnreachableError, match=message):
        run(inputs, **options, **hooked)
    assert ran == []
    assert not ctc.list_hooks()


@pytest.mark.parametrize("hf_class", HEADS)
def test_a_batch_of_frames_that_was_prepared_does_not_reach_the_front_end_either(hf_class: str) -> None:
    model = tiny("layer norm, pre-LN", hf_class)
    batch = model.prepare((FRAME_INPUT, FRAME_MASK))
    with pytest.raises(HookUnreachableError, match=f"{CONV0} is hooked"):
        model.run_with_cache(batch, names_filter=CONV0)
    _, kept = model.run_with_cache(batch, names_filter=everything)
    assert list(kept) == [name for name in ENCODERS["layer norm, pre-LN"] if not name.startswith(("frontend", "projection"))]


@pytest.mark.parametrize("layout", SUM_LAYOUTS)
def test_a_head_that_sums_layers_does_not_reach_the_final_norm_and_the_final_stream_not_the_sum(layout: str) -> None:
    model = tiny(layout, "HubertForSequenceClassification")
    with pytest.raises(HookUnreachableError, match=r"layer_sum\.hook_out is hooked, but"):
        model.run_with_cache(CLIPS, names_filter="layer_sum.hook_out")
    if model.ln_final is not None:
        with pytest.raises(HookUnreachableError, match=r"ln_final\.hook_scale is hooked, but"):
            model.run_with_cache(CLIPS, return_type="logits", names_filter="ln_final.hook_scale")
        assert model.run_with_cache(CLIPS, names_filter="ln_final.hook_scale")[1]["scale"].shape == (4, 13, 1)


def test_hooks_that_are_not_of_a_context_may_be_out_of_reach(ctc: HookedAudioEncoder) -> None:
    ctc.add_hook(CONV0, nothing)
    assert ctc(FRAME_INPUT).shape == (2, 6, 24)
    ctc.reset_hooks()


# Only what is needed runs

FRONT = ["frontend", "projection", "embed"]


@pytest.mark.parametrize(
    ("names_filter", "layout", "blocks"),
    [
        (CONV0, "group norm, post-LN", 0),
        ("projection.ln.hook_normalized", "group norm, post-LN", 0),
        ("hook_full_embed", "layer norm, pre-LN", 0),
        (Q0, "group norm, post-LN", 1),
        (Q0, "layer norm, pre-LN", 1),
        ([CONV0, "blocks.0.hook_resid_post"], "group norm, post-LN", 1),
        (lambda name: name.endswith(("hook_q", "hook_k")) and "blocks.2" not in name, "group norm, post-LN", 2),
        ("blocks.2.hook_resid_pre", "layer norm, pre-LN", 3),
        (None, "group norm, post-LN", 3),
    ],
)
def test_with_nothing_to_return_a_run_stops_after_the_last_block_it_needs(names_filter: Any, layout: str, blocks: int) -> None:
    model = tiny(layout)
    with modules_that_run(model) as ran:
        output, kept = model.run_with_cache(CLIPS, return_type=None, names_filter=names_filter)
    assert output is None
    assert ran == FRONT + [f"blocks.{layer}" for layer in range(blocks)]
    _, full = model.run_with_cache(CLIPS, names_filter=names_filter)
    assert list(kept) == list(full)
    assert all(torch.equal(kept[name], full[name]) for name in full)


def test_a_final_norm_runs_for_its_hooks(ctc: HookedAudioEncoder) -> None:
    model = tiny("layer norm, pre-LN")
    with modules_that_run(model) as ran:
        model.run_with_cache(CLIPS, return_type=None, names_filter="ln_final.hook_normalized")
    assert ran == [*FRONT, "blocks.0", "blocks.1", "blocks.2", "ln_final"]


def test_what_runs_of_frames_of_streams_and_of_nothing(ctc: HookedAudioEncoder) -> None:
    runs: dict[str, tuple[Callable[[], Any], list[str]]] = {
        "nothing to do": (lambda: ctc(CLIPS, return_type=None), FRONT),
        "frames": (lambda: ctc(FRAME_INPUT, return_type=None), ["embed"]),
        "frames, one block": (
            lambda: ctc.run_with_cache(FRAME_INPUT, return_type=None, names_filter=Q0),
            ["embed", "blocks.0"],
        ),
        "a stream": (lambda: ctc(FRAME_INPUT, start_at_layer=2), ["blocks.2"]),
        "a part": (lambda: ctc(CLIPS, stop_at_layer=1), [*FRONT, "blocks.0"]),
        "a gradient": (
            lambda: ctc.run_with_hooks(CLIPS, return_type=None, bwd_hooks=[(CONV0, nothing)]),
            [*FRONT, "blocks.0", "blocks.1", "blocks.2"],
        ),
        "logits": (lambda: ctc(FRAME_INPUT, return_type="logits"), ["embed", "blocks.0", "blocks.1", "blocks.2", "ctc_head"]),
        "to_frames": (lambda: ctc.to_frames(CLIPS), ["frontend", "projection"]),
    }
    for what, (run, expected) in runs.items():
        with modules_that_run(ctc) as ran:
            run()
        assert ran == expected, what


# Hooks on the front end, and hooks that fail


@every_layout
def test_to_frames_runs_the_hooks_of_the_front_end(layout: str) -> None:
    model = tiny(layout)
    before, real = model.to_frames(CLIPS, padding="independent")
    front = [name for name in ENCODERS[layout] if name.startswith(("frontend", "projection"))]
    for name in front:
        (after, mask), seen = replaced(model, name, lambda: model.to_frames(CLIPS, padding="independent"))
        assert seen == [(name, expected_shape(layout, name, ENCODERS[layout][name]))]
        assert_changed(after[real.bool()], before[real.bool()])
        assert torch.equal(mask, real)
    edit = [("frontend.0.hook_post", lambda x, hook: x * 1.5), ("projection.hook_out", lambda x, hook: x.flip(-1))]
    with torch.no_grad(), model.hooks(edit):
        edited = model.to_frames(CLIPS, padding="independent")
        expected = logits_of(model)
    with torch.no_grad():
        assert_parity(logits_of(model, edited), expected, real)


def test_what_to_frames_gives_is_cached_by_hooks_made_by_hand(ctc: HookedAudioEncoder) -> None:
    kept, fwd, _ = ctc.get_caching_hooks(["frontend.2.hook_post", "projection.hook_out"])
    with ctc.hooks(fwd):
        frames, _ = ctc.to_frames(CLIPS)
    assert torch.equal(kept["projection.hook_out"], frames)
    assert kept["frontend.2.hook_post"].shape == (4, 13, 11)


@pytest.mark.parametrize("name", [CONV0, "projection.hook_out", "embed.hook_embed", PATTERN1, "ctc_head.hook_in"])
def test_hooks_come_off_after_an_exception(ctc: HookedAudioEncoder, name: str) -> None:
    before = logits_of(ctc)

    def broken(tensor: Tensor, hook: Any) -> None:
        raise ArithmeticError(hook.name)

    runs = [
        lambda: ctc.run_with_hooks(CLIPS, return_type="logits", fwd_hooks=[(name, broken)], bwd_hooks=[(name, nothing)]),
        lambda: ctc.run_with_hooks(CLIPS, return_type="logits", fwd_hooks=[(everything, nothing), (name, broken)]),
    ]
    for run in runs:
        with pytest.raises(ArithmeticError, match=name):
            run()
        assert not ctc.list_hooks()
        assert ctc.context_level == 0
    with pytest.raises(ArithmeticError), ctc.hooks([(CONV0, broken)]):
        ctc.to_frames(CLIPS)
    with pytest.raises(
        HookResultError, match=r"a hook at frontend\.0\.hook_conv returned \[4, 9, 55\].* in place of \[4, 55, 9\]"
    ):
        ctc.run_with_hooks(CLIPS, fwd_hooks=[(CONV0, lambda x, hook: x.mT)])
    assert not ctc.list_hooks()
    assert torch.equal(logits_of(ctc), before)


def test_hooks_see_masked_frames_as_the_model_does(ctc: HookedAudioEncoder) -> None:
    masked = torch.zeros(4, 13, dtype=torch.bool)
    masked[:, 2] = True
    _, kept = ctc.run_with_cache(CLIPS, mask_time_indices=masked, names_filter=everything)
    _, plain = ctc.run_with_cache(CLIPS, names_filter=everything)
    assert torch.equal(kept["projection.hook_out"], plain["projection.hook_out"])
    assert torch.equal(kept["embed"][:, 2], ctc.embed.mask_embed.detach().expand(4, -1))
    assert torch.equal(kept["embed"][:, 3:], plain["embed"][:, 3:])


# What a cache carries

TIMES = (torch.arange(13, dtype=torch.float64) * 20 + 14) / 16_000  # the middle of 28 samples, and 20 more for each frame
REAL = torch.arange(13) < torch.tensor([10, 13, 7, 4])[:, None]


@pytest.mark.parametrize("hf_class", HEADS)
def test_a_cache_has_times_and_a_mask_and_no_tokens(hf_class: str) -> None:
    model = tiny("group norm, post-LN", hf_class)
    _, kept = model.run_with_cache(CLIPS, padding="independent")
    assert torch.equal(kept.frame_times, TIMES)
    assert torch.equal(kept.mask, REAL)
    assert (kept.tokens, kept.positions, kept.has_batch_dim) == (None, None, True)
    _, unmasked = model.run_with_cache(CLIPS)  # whose processor masks nothing
    assert unmasked.mask is None
    assert torch.equal(unmasked.frame_times, TIMES)
    _, frames = model.run_with_cache((FRAME_INPUT, FRAME_MASK))
    assert torch.equal(frames.frame_times, TIMES[:6])
    assert torch.equal(frames.mask, FRAME_MASK.bool())
    _, stream = model.run_with_cache(FRAME_INPUT, FRAME_MASK, start_at_layer=1)
    assert torch.equal(stream.frame_times, TIMES[:6])
    assert torch.equal(stream.mask, FRAME_MASK.bool())


SLICES = {
    "int": (4, [4]),
    "negative int": (-1, [12]),
    "range": ((2, 9, 3), [2, 5, 8]),
    "list": ([5, 0, 5], [5, 0, 5]),
    "tensor": (torch.tensor([1, -2]), [1, 11]),
    "seconds": (slice(2, 5), [2, 3, 4]),
}


@pytest.mark.parametrize(("pos_slice", "positions"), SLICES.values(), ids=SLICES)
@pytest.mark.parametrize("hf_class", ["HubertForCTC", "HubertForSequenceClassification"])
def test_pos_slice_keeps_the_front_end_and_what_has_no_positions_whole(
    hf_class: str, pos_slice: Any, positions: list[int]
) -> None:
    model = tiny("group norm, pre-LN, biases, summed layers", hf_class)
    options = {"padding": "independent", "return_type": "logits", "names_filter": everything}
    _, whole = model.run_with_cache(CLIPS, **options)
    _, kept = model.run_with_cache(CLIPS, pos_slice=pos_slice, **options)
    assert set(kept) == set(whole)
    for name, tensor in whole.items():
        if name.startswith(("frontend.", "classifier.")):
            expected = tensor
        elif name.endswith(("hook_attn_scores", "hook_pattern")):
            expected = tensor[:, :, positions]
        else:
            expected = tensor[:, positions]
        assert torch.equal(kept[name], expected), name
    assert torch.equal(kept.frame_times, TIMES[positions])
    assert torch.equal(kept.mask, REAL[:, positions])
    assert kept.positions.tolist() == positions


def test_seconds_choose_frames(ctc: HookedAudioEncoder) -> None:
    window = ctc.frames_of(0.003, 0.007)
    assert window == slice(2, 5)
    _, kept = ctc.run_with_cache(CLIPS, pos_slice=window, names_filter=Q0)
    assert ((kept.frame_times >= 0.003) & (kept.frame_times < 0.007)).all()
    _, one = ctc.run_with_cache(CLIPS, pos_slice=Slice(3), names_filter=[Q0, CONV0])
    assert one[Q0].shape == (4, 3, 8)
    assert one[CONV0].shape == (4, 55, 9)
    assert torch.equal(one.frame_times, TIMES[[3]])


@pytest.mark.parametrize("hf_class", ["HubertForCTC", "HubertForSequenceClassification"])
def test_remove_batch_dim(hf_class: str) -> None:
    model = tiny("group norm, post-LN", hf_class)
    options = {"return_type": "logits", "names_filter": everything}
    for inputs in (CLIP, [CLIP]):
        _, whole = model.run_with_cache(inputs, **options)
        output, bare = model.run_with_cache(inputs, remove_batch_dim=True, **options)
        assert len(output) == 1
        assert (bare.has_batch_dim, whole.has_batch_dim) == (False, True)
        assert all(torch.equal(bare[name], tensor[0]) for name, tensor in whole.items())
        assert torch.equal(bare.frame_times, TIMES)
        assert torch.equal(whole.remove_batch_dim()[CONV0], bare[CONV0])
    with pytest.raises(
        HookResultError, match=r"remove_batch_dim=True needs a batch of one, but frontend.0.hook_conv has 4 rows"
    ):
        model.run_with_cache(CLIPS, remove_batch_dim=True)


def test_a_clip_of_the_batch(ctc: HookedAudioEncoder) -> None:
    _, kept = ctc.run_with_cache(CLIPS, padding="independent", names_filter=everything)
    some = kept.apply_slice_to_batch_dim([2, 0])
    assert torch.equal(some[CONV0], kept[CONV0][[2, 0]])
    assert torch.equal(some.mask, REAL[[2, 0]])
    assert torch.equal(some.frame_times, TIMES)
    alone = kept.apply_slice_to_batch_dim(3)
    _, bare = ctc.run_with_cache(CLIPS[3], names_filter=everything, remove_batch_dim=True)
    assert_parity(alone["normalized_resid_post", -1][:4], bare["normalized_resid_post", -1])
    assert torch.equal(alone.mask, REAL[3])


@pytest.mark.parametrize(
    "options",
    [{}, {"pos_slice": [3, 1]}, {"padding": "batch"}, {"dtype": torch.float16}],
    ids=["whole", "positions", "no mask", "half"],
)
@pytest.mark.parametrize("layout", [*TWO_LAYOUTS, "no projection norm, batch norm, summed layers"])
def test_a_cache_is_saved_and_loaded(layout: str, options: dict[str, Any], tmp_path: Path) -> None:
    model, path = tiny(layout, "HubertForSequenceClassification"), tmp_path / "run.safetensors"
    _, kept = model.run_with_cache(CLIPS, return_type="logits", **({"padding": "independent"} | options))
    kept.save(path)
    read = ActivationCache.load(path, model)
    assert list(read) == list(kept)
    assert all(torch.equal(read[name], tensor) for name, tensor in kept.items())
    for name in ("frame_times", "mask", "positions"):
        ours, theirs = getattr(read, name), getattr(kept, name)
        assert (ours is None) == (theirs is None)
        assert ours is None or (torch.equal(ours, theirs) and ours.dtype == theirs.dtype)
    assert torch.equal(read.decompose_resid(), kept.decompose_resid())
    with pytest.raises(InputError, match="is of another model"):
        ActivationCache.load(path, tiny("two convolutions, layer norm, post-LN, relu", "HubertForSequenceClassification"))


# Runs in parts


@every_head
def test_two_runs_from_and_to_a_layer_compose_to_the_whole_run(layout: str, hf_class: str) -> None:
    model = tiny(layout, hf_class)
    returned = ("hidden", "logits") if hf_class == "HubertForCTC" else ("logits",)
    n_layers, summed = model.cfg.n_layers, bool(SUMMED.keys() & DOCUMENTED[layout, hf_class].keys())
    with torch.no_grad():
        whole = {name: logits_of(model, return_type=name) for name in returned}
        _, kept = model.run_with_cache(CLIPS, padding="independent")
        real = kept.mask
        frames, mask = model.to_frames(CLIPS, padding="independent")
        for name, expected in whole.items():
            assert_parity(logits_of(model, (frames, mask), return_type=name), expected, real if expected.ndim == 3 else None)
        for layer in range(n_layers + 1):
            middle = model(CLIPS, padding="independent", stop_at_layer=layer)
            if layer < n_layers:
                assert_parity(middle, kept["resid_pre", layer], real, 1e-6)
            for name, expected in whole.items():
                if name == "logits" and summed and layer:
                    with pytest.raises(InputError, match="reads the streams of all layers, and this run starts at layer"):
                        model(middle, real, return_type="logits", start_at_layer=layer)
                    continue
                resumed = model(middle, real, return_type=name, start_at_layer=layer)
                assert_parity(resumed, expected, real if expected.ndim == 3 else None)
        between = model(model(CLIPS, padding="independent", stop_at_layer=1), real, start_at_layer=1, stop_at_layer=2)
        assert_parity(between, model(CLIPS, padding="independent", stop_at_layer=2), real, 1e-6)


@pytest.mark.parametrize(
    ("at", "frames"),
    [
        (3, [[3]] * 4),
        (-1, [[12]] * 4),
        ([0, 5, 5], [[0, 5, 5]] * 4),
        (torch.tensor([2, -2]), [[2, 11]] * 4),
        (torch.tensor([[8, 0], [12, 1], [6, 3], [3, 3]]), [[8, 0], [12, 1], [6, 3], [3, 3]]),
    ],
)
@pytest.mark.parametrize("layout", TWO_LAYOUTS)
def test_logits_at_some_frames(layout: str, at: Any, frames: list[list[int]]) -> None:
    model = tiny(layout)
    whole = untouched_logits(layout, "HubertForCTC")
    output, kept = model.run_with_cache(CLIPS, padding="independent", return_type="logits", logits_at=at)
    expected = torch.stack([row[chosen] for row, chosen in zip(whole, frames, strict=True)])
    assert_parity(output.detach(), expected)
    assert torch.equal(kept["ctc_head.hook_out"], output)
    assert kept["ctc_head.hook_in"].shape == (4, len(frames[0]), 24)
    assert kept["resid_pre", 0].shape == (4, 13, 24)


def test_logits_at_what_has_none(ctc: HookedAudioEncoder) -> None:
    classifier = tiny("group norm, post-LN", "HubertForSequenceClassification")
    with pytest.raises(InputError, match="of a head that has logits for every position"):
        classifier(CLIPS, return_type="logits", logits_at=0)
    with pytest.raises(InputError, match="of a head that has logits for every position"):
        ctc(CLIPS, logits_at=0)
    with modules_that_run(ctc) as ran, pytest.raises(InputError, match="positions 13 to 13; the input has 13"):
        ctc(CLIPS, return_type="logits", logits_at=13)
    with pytest.raises(InputError, match="logits_at has 2 rows, the input 4"):
        ctc(CLIPS, return_type="logits", logits_at=torch.zeros(2, 1, dtype=torch.long))
    with pytest.raises(InputError, match="pos_slice and logits_at do not go together"):
        ctc.run_with_cache(CLIPS, return_type="logits", logits_at=0, pos_slice=0)
    assert ran == []


# The parts add up as the model does


def convolved(model: HookedAudioEncoder, layout: str, acts: Any) -> None:
    """The front end by torch functions, clip by clip without padding."""
    values = LAYOUTS.get(layout, {})
    act = {"gelu_new": lambda x: F.gelu(x, approximate="tanh")}.get(values.get("feat_extract_activation", "gelu"), F.gelu)
    for row, clip in enumerate(CLIPS):
        samples = torch.tensor(clip, dtype=torch.float64)
        x = ((samples - samples.mean()) / (samples.var(correction=0) + 1e-7).sqrt()).float()[None, None]
        for index, conv in enumerate(model.frontend):
            x = F.conv1d(x, conv.weight, conv.bias, conv.stride)
            n_frames = x.shape[-1]
            assert_parity(acts[f"frontend.{index}.hook_conv"][row, :n_frames], x[0].T)
            if conv.norm == "group":
                x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
            elif conv.norm == "layer":
                x = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
            if conv.norm != "none":
                x = x * conv.w[:, None] + conv.b[:, None]
            x = act(x)
            assert_parity(acts[f"frontend.{index}.hook_post"][row, :n_frames], x[0].T)


def assert_normed(acts: Any, path: str, norm: Any, read: Tensor, result: Tensor | None) -> None:
    """The hook points of a norm: its scale, what it has normalised, and what that gives with its weight and bias."""
    centred = read - read.mean(-1, keepdim=True)
    assert_parity(acts[f"{path}.hook_scale"], (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt())
    assert_parity(acts[f"{path}.hook_normalized"], centred / acts[f"{path}.hook_scale"])
    if result is not None:
        assert_parity(acts[f"{path}.hook_normalized"] * norm.w + norm.b, result)


@every_head
def test_the_cached_parts_add_up_as_the_model_does(layout: str, hf_class: str) -> None:
    model = tiny(layout, hf_class)
    pre_ln, act = model.ln_final is not None, F.relu if "relu" in layout else F.gelu
    with torch.no_grad():
        logits, acts = model.run_with_cache(CLIPS, padding="independent", return_type="logits", names_filter=everything)
        real = acts.mask[..., None]
        convolved(model, layout, acts)
        frames, projection = acts[f"frontend.{len(model.frontend) - 1}.hook_post"], model.projection
        if projection.ln is not None:
            assert_normed(acts, "projection.ln", projection.ln, frames, None)
            frames = acts["projection.ln.hook_normalized"] * projection.ln.w + projection.ln.b
        assert_parity(acts["projection.hook_out"], frames @ projection.dense.weight.T + projection.dense.bias)
        assert torch.equal(acts["embed"], acts["projection.hook_out"] * real)
        summed = acts["embed"] + acts["pos_embed"]
        if pre_ln:
            assert_parity(acts["full_embed"], summed, tolerance=1e-6)
        else:
            assert_normed(acts, "embed.ln", model.embed.ln, summed, acts["full_embed"])
        stream = acts["full_embed"]
        streams = [stream]
        for layer, block in enumerate(model.blocks):
            at = {name: acts[f"blocks.{layer}.{name}"] for name in (PRE_LN_BLOCK if pre_ln else POST_LN_BLOCK)}
            path, attn, mlp = f"blocks.{layer}", block.attn, block.mlp
            assert torch.equal(at["hook_resid_pre"], stream)
            inputs = [at[f"hook_{name}_input"] for name in "qkv"]
            for read in inputs:
                assert torch.equal(read, stream.unsqueeze(-2).expand_as(read))
            if pre_ln:
                assert_normed(acts, f"{path}.ln1", block.ln1, torch.cat(inputs, -2), None)
                inputs = (at["ln1.hook_normalized"] * block.ln1.w + block.ln1.b).chunk(3, -2)
            for name, read in zip("qkv", inputs, strict=True):
                weight, bias = getattr(attn, f"W_{name.upper()}"), getattr(attn, f"b_{name.upper()}")
                assert_parity(at[f"attn.hook_{name}"], torch.einsum("bphm,hmd->bphd", read, weight) + bias)
            scores = torch.einsum("bqhd,bkhd->bhqk", at["attn.hook_q"], at["attn.hook_k"]) / attn.d_head**0.5
            scores = scores.masked_fill(~acts.mask[:, None, None], -torch.inf)
            assert_parity(at["attn.hook_pattern"], scores.softmax(-1))
            assert torch.equal(at["attn.hook_attn_scores"] == -torch.inf, scores == -torch.inf)
            assert_parity(at["attn.hook_z"], torch.einsum("bhqk,bkhd->bqhd", at["attn.hook_pattern"], at["attn.hook_v"]))
            assert_parity(at["attn.hook_result"], torch.einsum("bqhd,hdm->bqhm", at["attn.hook_z"], attn.W_O))
            assert_parity(at["hook_attn_out"], at["attn.hook_result"].sum(2) + attn.b_O)
            mid = at["hook_resid_mid"]
            assert_parity(mid, stream + at["hook_attn_out"])
            assert torch.equal(at["hook_mlp_in"], mid)
            skip = mid if pre_ln else at["hook_normalized_resid_mid"]
            assert_normed(
                acts, f"{path}.{'ln2' if pre_ln else 'ln1'}", block.ln2 if pre_ln else block.ln1, mid, at["mlp.hook_in"]
            )
            assert_parity(at["mlp.hook_pre"], at["mlp.hook_in"] @ mlp.W_in + mlp.b_in)
            assert_parity(at["mlp.hook_post"], act(at["mlp.hook_pre"]))
            assert_parity(at["hook_mlp_out"], at["mlp.hook_post"] @ mlp.W_out + mlp.b_out)
            assert_parity(at["hook_resid_post"], skip + at["hook_mlp_out"])
            stream = at["hook_resid_post"]
            if not pre_ln:
                assert torch.equal(skip, at["mlp.hook_in"])
                assert_normed(acts, f"{path}.ln2", block.ln2, stream, at["hook_normalized_resid_post"])
                stream = at["hook_normalized_resid_post"]
            streams.append(stream)
        if "layer_sum.hook_out" in acts:
            shares = model.layer_sum.weights.exp() / model.layer_sum.weights.exp().sum()
            read = sum(share * one for share, one in zip(shares, streams, strict=True))
            assert_parity(acts["layer_sum.hook_out"], read)
        elif pre_ln:
            assert_normed(acts, "ln_final", model.ln_final, stream, None)
            read = acts["ln_final.hook_normalized"] * model.ln_final.w + model.ln_final.b
        else:
            read = stream
        if hf_class == "HubertForCTC":
            assert_parity(acts["ctc_head.hook_in"], read)
            assert_parity(acts["ctc_head.hook_out"], acts["ctc_head.hook_in"] @ model.ctc_head.W + model.ctc_head.b)
            assert torch.equal(acts["ctc_head.hook_out"], logits)
            return
        assert_parity(acts["projector.hook_in"], read)
        assert_parity(acts["projector.hook_out"], acts["projector.hook_in"] @ model.projector.W + model.projector.b)
        pooled = (acts["projector.hook_out"] * real).sum(1) / real.sum(1)
        assert_parity(acts["classifier.hook_in"], pooled)
        assert_parity(acts["classifier.hook_out"], acts["classifier.hook_in"] @ model.classifier.W + model.classifier.b)
        assert torch.equal(acts["classifier.hook_out"], logits)


# What is never made


class Watch(TorchDispatchMode):
    """Notes every operation that makes a tensor whose last two axes are both this long."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        self.seen += [str(func) for tensor in tensors if tensor.shape[-2:] == (self.length, self.length)]
        return made


LONG = [speech(AMIABLE)[8_000:9_000], speech(AMIABLE)[20_000:20_800]]


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("padding", ["batch", "independent"])
@two_layouts
def test_no_square_of_frames_is_made_unless_scores_or_patterns_are_hooked(layout: str, padding: Any, gradients: bool) -> None:
    model = tiny(layout)
    batch = model.prepare(LONG, padding=padding)
    assert (batch.sequence.mask is None) == (padding == "batch" and "layer norm" not in layout)
    n_frames = batch.sequence.pos
    assert n_frames not in (*SIZES.values(), *FRAMES[3])
    others = [name for name in DOCUMENTED[layout, "HubertForCTC"] if not name.endswith(("hook_attn_scores", "hook_pattern"))]

    def made(names: Any) -> list[str]:
        with torch.set_grad_enabled(gradients), model.hooks([(names, nothing)] if names else []), Watch(n_frames) as watch:
            logits = model(batch, return_type="logits")
            if gradients:
                torch.autograd.grad(logits.square().sum(), list(model.blocks.parameters()))
        return watch.seen

    assert made(None) == []
    assert made(others) == []
    for name in ("hook_pattern", "hook_attn_scores"):
        assert "aten._softmax.default" in made(f"blocks.1.attn.{name}")


def test_the_watch_sees_what_is_kept_of_one_layer_only() -> None:
    model = tiny("layer norm, pre-LN")
    batch = model.prepare(LONG)
    counts = []
    for names in (["blocks.0.attn.hook_pattern"], [f"blocks.{layer}.attn.hook_pattern" for layer in range(3)]):
        with Watch(batch.sequence.pos) as watch, torch.no_grad():
            model.run_with_cache(batch, return_type="logits", names_filter=names)
        counts.append(watch.seen.count("aten._softmax.default"))
    assert counts == [1, 3]
