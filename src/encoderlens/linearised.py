"""The frozen-quantity forward pass, on which every additive analysis rests.

With its scale held at its value in the run, a LayerNorm is affine: ``w * (v - mean(v)) / scale + b``. So what any component
writes is carried to any later point of the stream by the linear parts of the norms on the way, and the carried writes sum to
the stream there. There are two ways to use this, and they agree:

- a row a component, as **write x gradient**: the forward pass as it is, under ``linearised``; one backward gives every row
  (``direct_rows``), and no stack of vectors is in memory;
- whole vectors, **carried forward** (``carries``): scales are one number a position, so they commute with everything else,
  and the norms between two points are one matrix [d_model d_model] and the product of their scales. The matrix goes onto the
  weights that parts write with (``W_O``, ``W_out``), and the vectors of all heads cost little more than writing them down.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from encoderlens.components.freezing import Quantity, freeze
from encoderlens.components.heads import Readout
from encoderlens.components.residual import Passage, Step, Write, WriteOfParts
from encoderlens.components.stand_ins import check_layers, hooked_names
from encoderlens.encoder import Encoder
from encoderlens.errors import AnalysisError
from encoderlens.hook_points import CachingHook, HookPoint
from encoderlens.module_tree import all_modules
from encoderlens.precision import same_numbers
from encoderlens.run_state import RunState

# Carrying forward


@dataclass(frozen=True)
class Carry:
    """The linear map ``v -> v @ matrix / scale`` from a place on the residual path to a later one.

    Attributes:
        matrix: the linear parts of the norms on the way, up to a factor; None for none.
        scale: the product of their scales [... 1], up to the same factor; None for none.

    The factor keeps the largest entry of the matrix at one: over many norms of small (or large) weights, the products of
    weights and of scales would each leave the range of float32, though their ratio does not.
    """

    matrix: Float[Tensor, "d_in d_out"] | None = None
    scale: Float[Tensor, "*rows 1"] | None = None

    def before(self, passage: Passage, scale: Float[Tensor, "*rows 1"] | None) -> "Carry":
        """The same map with a passage, and its scale if it has one, in front."""
        matrix = passage.in_front_of(self.matrix)
        if scale is None:
            return Carry(matrix, self.scale)
        matrix = matrix.to(scale.device)
        scale = scale.to(torch.promote_types(scale.dtype, matrix.dtype))
        size = matrix.abs().max().clamp_min(torch.finfo(matrix.dtype).tiny)
        return Carry(matrix / size, (scale if self.scale is None else self.scale * scale) / size)

    def __call__(self, vectors: Float[Tensor, "*some d_in"]) -> Float[Tensor, "*rows d_out"]:
        """Carry vectors, or one vector that is added at every position."""
        return self.scaled(self.weights(vectors))

    def weights(self, weights: Float[Tensor, "*some d_in"]) -> Float[Tensor, "*some d_out"]:
        """What parts write with, so that they write the carried vector, up to the scale."""
        return weights if self.matrix is None else weights.to(self.matrix) @ self.matrix

    def scaled(self, vectors: Float[Tensor, "*some out"]) -> Float[Tensor, "*rows out"]:
        return vectors if self.scale is None else vectors / self.scale


def carries(path: list[Step], scale_of: Callable[[HookPoint], Float[Tensor, "*rows 1"]]) -> list[Carry]:
    """For each step of a residual path, the map from just after it to the path's end.

    Args:
        path: the steps.
        scale_of: the frozen scale of a norm, by the hook point that it passes.
    """
    maps: list[Carry] = []
    carry = Carry()
    for step in reversed(path):
        maps.append(carry)
        if isinstance(step, Passage):
            carry = carry.before(step, None if step.scale_point is None else scale_of(step.scale_point))
    return maps[::-1]


# Write x gradient


@contextmanager
def linearised(model: Encoder, *, ln: bool = True, pattern: bool = True, gain: bool = True) -> Iterator[None]:
    """Context in which the forward pass has the values that it always has, and quantities that take no gradient: in the
    runs that this thread starts directly in it, and not in those that hooks start in them.

    With all three frozen, logits are an affine function of the embeddings, and ``embedding x gradient`` is what each token
    contributes. Leave one out to differentiate through it.

    Args:
        model: a model in eval mode.
        ln: freeze the scale of every norm.
        pattern: freeze attention patterns.
        gain: freeze activations: ``act(x)`` is ``x`` times a constant; in a gated MLP the activated gate is the constant.

    Raises:
        AnalysisError: for a model in training mode, or an activation that is not 0 at 0.
    """
    require_eval(model)
    chosen: dict[Quantity, bool] = {"ln": ln, "pattern": pattern, "gain": gain}
    with freeze([model], [quantity for quantity, wanted in chosen.items() if wanted]):
        yield


def require_eval(model: nn.Module) -> None:
    """Refuse a model of which any part is in training mode.

    Raises:
        AnalysisError: with the first such part, and the remedy.
    """
    if not any(part.training for part in all_modules(model)):
        return
    parts = ((name, part) for name, part in model.named_modules() if not isinstance(part, nn.ModuleDict | nn.ModuleList))
    training = next((name for name, part in parts if part.training), None)  # not of containers: parametrising adds new ones
    if training is not None:
        where = f"{training} of the model" if training else "the model"
        raise AnalysisError(f"{where} is in training mode, where dropout changes every run; call model.eval() first")


@dataclass(frozen=True)
class DirectRows:
    """What each component adds to a score of its own accord, that is, not by way of later attention and MLPs.

    Attributes:
        labels: of the components; "hooks" for what hooks on the stream or in the head added, where they did.
        values: their rows, which sum to ``total``.
        total: the score of each sequence.
    """

    labels: tuple[str, ...]
    values: Float[Tensor, "component batch"]
    total: Float[Tensor, " batch"]

    def completed(self, labels: tuple[str, ...]) -> "DirectRows":
        """The same rows under these labels, which may have one for hooks where these rows have none."""
        if labels == self.labels:
            return self
        rest = self.total - self.values.sum(0)
        return DirectRows(labels, torch.cat([self.values, rest[None]]), self.total)


def direct_rows(
    model: Encoder, head: Readout, score: Callable[[], Float[Tensor, " batch"]], split: Collection[str] = ("H",)
) -> DirectRows:
    """Rows of everything on the residual path, and of the head's biases: write x gradient, by one backward pass.

    Args:
        model: a model in eval mode.
        head: the head behind the score.
        score: runs the model once and gives a number a sequence, linear in the head's logits.
        split: which writers have a row a part and one for their bias: "H" for attention, "N" for MLPs. Others have one row.

    Raises:
        AnalysisError: for a model in training mode or made in inference mode, a head whose activation is not 0 at 0, a second
            run in ``score`` or one that does not reach the head, hooks that edit what split writers write, and forward hooks of
            torch on what is taken apart.
        WeightsError: for what stands in for a layer there, and computes in a way of its own.
    """
    require_eval(model)
    if next(model.parameters()).is_inference():
        raise AnalysisError("the model was made inside torch.inference_mode(), so nothing in it has gradients: load it outside")
    path = model.residual_path() + model.norms_to_head(head)
    check_layers(model, _taken_apart(model, path, head, split), hooked_names(model))
    taps = _Taps(path, head, split)
    with torch.inference_mode(False), torch.enable_grad(), freeze([model], ["ln"]), freeze(head.modules.values(), ["gain"]):
        with taps.on(model):
            total = score()
        gradients = taps.gradients(total.sum())
    with torch.no_grad():
        _refuse_edited_parts(path, taps, split)
        rows = [row for step in path for row in _rows_of(step, taps, gradients, split)]
        rows += [_bias_row(label, bias, gradients[module]) for label, (module, bias) in head.biases().items()]
        if taps.hooks_take_part:
            rows.append((["hooks"], (total - sum(values.sum(0) for _, values in rows))[None]))
    labels = tuple(label for names, _ in rows for label in names)
    return DirectRows(labels, torch.cat([values for _, values in rows]), total.detach())


def _taken_apart(model: Encoder, path: list[Step], head: Readout, split: Collection[str]) -> Iterator[nn.Module]:
    """The modules whose outputs are the stream, or have rows."""
    yield from (model.embed, *model.blocks, *head.modules.values(), *(module for module, _ in head.biases().values()))
    for step in path:
        if isinstance(step, Passage):
            yield step.module
        elif isinstance(step, WriteOfParts) and step.writer.part in split:
            yield from (step.writer, step.writer.out_layer)


Rows = tuple[list[str], Float[Tensor, "some batch"]]
Gradients = Mapping[HookPoint | nn.Module, Tensor]


def _refuse_edited_parts(path: list[Step], taps: "_Taps", split: Collection[str]) -> None:
    """Refuse hooks that changed what a split writer wrote, behind its parts."""
    for step in path:
        if not isinstance(step, WriteOfParts) or step.writer.part not in split:
            continue
        for point in (step.point, *step.writer.after_parts):
            if point in taps.edited:
                raise AnalysisError(
                    f"a hook edits {point.name}, after the parts whose rows are asked for, so that they would not add up. "
                    f"Edit {step.writer.parts_point.name} instead"
                )


@contextmanager
def torch_hooks(
    modules: Collection[nn.Module], state: RunState, hook: Callable[..., Any], before: bool = False
) -> Iterator[None]:
    """Context in which a torch hook is on modules, and acts in the runs that this thread starts from here, and not in those
    that hooks start in them.

    Args:
        modules: where.
        state: of the model.
        hook: called as ``hook(module, inputs, output)`` after a module has run, or as ``hook(module, inputs)``.
        before: call it before a module runs.
    """
    scope = state.here

    def in_these_runs(module: nn.Module, *flowing: Any) -> Any:
        return hook(module, *flowing) if state.is_in(scope) else None

    attach = nn.Module.register_forward_pre_hook if before else nn.Module.register_forward_hook
    handles = [attach(module, in_these_runs) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Taps:
    """Leaves in place of what is written, so that gradients take the direct path; the outputs of modules with a bias; and what
    hooks changed.

    Attributes:
        flowing: what is written, and what modules with a bias give, in the run.
        parts: the activations of the parts of split writers.
        edited: the hook points at which a hook changed what passes. That is compared exactly, not up to rounding.
        probes: a zero that was added behind each hook in the stream or in the head: one that the score depends on shows that
            the hook takes part in it.
    """

    def __init__(self, path: list[Step], head: Readout, split: Collection[str]) -> None:
        self.writes = [step for step in path if isinstance(step, Write)]
        writers = [step.writer for step in path if isinstance(step, WriteOfParts) and step.writer.part in split]
        self.part_names = [str(writer.parts_point.name) for writer in writers]
        self.biased = [step.module for step in path if isinstance(step, Passage) and step.bias is not None]
        self.biased += [module for module, _ in head.biases().values()]
        self.flowing: dict[HookPoint | nn.Module, Tensor] = {}
        self.parts: dict[str, Tensor] = {}
        self.edited: set[HookPoint] = set()
        self.probes: list[Tensor] = []
        self.hooks_take_part = False

    @contextmanager
    def on(self, model: Encoder) -> Iterator[None]:
        """Context in which the next run of this thread is tapped. Backward hooks do not act in it."""
        hooks: list[Any] = [([step.name for step in self.writes], self._cut)]
        if self.part_names:
            hooks.append((self.part_names, CachingHook(self.parts)))
        state = model.run_state
        with (
            torch_hooks(self.biased, state, self._note),
            model.hooks(hooks, nested=False),
            state.silenced("bwd"),
            state.watched(self._see),
        ):
            yield

    def _cut(self, tensor: Tensor, hook: HookPoint) -> Tensor:
        if hook in self.flowing:
            raise AnalysisError(
                "score runs the model more than once, and rows are of one run: sum what direct_rows gives of each"
            )
        self.flowing[hook] = tensor.detach().requires_grad_()
        return self.flowing[hook]

    def _note(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.flowing[module] = output

    def _see(self, point: HookPoint, entered: Tensor, leaving: Tensor, replaced: bool) -> Tensor:
        changed = not same_numbers(entered, leaving)
        if changed:
            self.edited.add(point)
        if point.name in self.parts:
            self.parts[point.name] = leaving.detach()
        if point in self.flowing or not (changed or replaced):
            return leaving
        self.probes.append(torch.zeros_like(leaving, requires_grad=True))
        return leaving + self.probes[-1]

    def gradients(self, score: Float[Tensor, ""]) -> Gradients:
        """Of the score, with respect to all that flows: zeros for what a hook on the stream has replaced."""
        if any(module not in self.flowing for module in self.biased):
            raise AnalysisError(
                "score does not run the head whose rows are asked for: run the model with that head as its task"
            )
        leaves = [*self.flowing.values(), *self.probes]
        found = torch.autograd.grad(score, leaves, allow_unused=True)
        self.hooks_take_part = any(gradient is not None for gradient in found[len(self.flowing) :])
        return {
            tapped: torch.zeros_like(tensor) if gradient is None else gradient
            for (tapped, tensor), gradient in zip(self.flowing.items(), found, strict=False)
        }


def _rows_of(step: Step, taps: _Taps, gradients: Gradients, split: Collection[str]) -> Iterator[Rows]:
    if isinstance(step, Passage):
        if step.bias is not None:
            yield _bias_row(step.label, step.bias, gradients[step.module])
    elif isinstance(step, WriteOfParts) and step.writer.part in split:
        parts, gradient = taps.parts[str(step.writer.parts_point.name)], gradients[step.point]
        rows = step.writer.dot(parts, gradient).sum(1).mT
        yield step.part_labels(range(len(rows))), rows
        if step.writer.out_bias is not None:
            yield _bias_row(step.bias_label, step.writer.out_bias, gradient)
    else:
        yield [step.label], (taps.flowing[step.point] * gradients[step.point]).flatten(1).sum(1)[None]


def _bias_row(label: str, bias: Tensor, gradient: Float[Tensor, "batch *some"]) -> Rows:
    return [label], (bias * gradient).flatten(1).sum(1)[None]
