"""Encoder: what the hooked text and audio encoders share: blocks, heads, planned runs, weight properties, moving."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from encoderlens.components import Head, build, empty_parameters
from encoderlens.components.block import Block
from encoderlens.components.norm import LayerNorm
from encoderlens.components.residual import Step
from encoderlens.config import EncoderConfig, ModelConfig
from encoderlens.errors import ConfigError, InputError, TaskError
from encoderlens.factored_matrix import FactoredMatrix
from encoderlens.hook_points import HookPoint
from encoderlens.hooked_root_module import HookedRootModule
from encoderlens.names import block_of, did_you_mean, head_label
from encoderlens.sequence import Sequence
from encoderlens.shapes import Stream
from encoderlens.weights import LoadReport

AnyEncoder = TypeVar("AnyEncoder", bound="Encoder")
ReturnType = Literal["logits", "predictions", "hidden", "loss"]
RETURN_TYPES = ("logits", "predictions", "hidden", "loss", None)


@dataclass(frozen=True)
class RunPlan:
    """What one run computes.

    Attributes:
        returns: the kind of output.
        embeds: whether it starts from the input, rather than from a residual stream.
        start, stop: the blocks that run, the last one excluded.
        finishes: whether the final norm of a pre-LN encoder runs.
        head: the head that runs, if any.
    """

    returns: ReturnType | None
    embeds: bool
    start: int
    stop: int
    finishes: bool
    head: Head | None

    def reaches(self, name: str) -> bool:
        """Whether the run computes a hook point."""
        layer = block_of(name)
        if layer is not None:
            return self.start <= layer < self.stop
        top = name.split(".")[0]
        if top == "ln_final":
            return self.finishes
        return self.embeds if top in ("embed", "hook_full_embed") else self.head is not None and top in self.head.modules

    def __str__(self) -> str:
        blocks = f"blocks {self.start} to {self.stop - 1}" if self.start < self.stop else "no block"
        parts = [f"return_type={self.returns!r}", blocks]
        parts += ["the embeddings"] if self.embeds else []
        parts += [f"the {self.head.task} head"] if self.head else ["no head"]
        return ", ".join(parts)


class Encoder(HookedRootModule):
    """Base of hooked encoders, whatever they read.

    Attributes:
        cfg: configuration, device, dtype and ``use_*`` flags.
        blocks: the layers.
        ln_final: the norm after the last block; None for post-LN encoders.
        heads: every head that the model carries, by task.
        hf_config: the Hugging Face configuration that it was loaded with, empty for a model that was not.
        load_report: what became of the checkpoint's tensors.
    """

    blocks: nn.ModuleList
    ln_final: LayerNorm | None

    def __init__(self, cfg: EncoderConfig, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        with empty_parameters(device, dtype):
            self._make(cfg)
        self.cfg = ModelConfig(cfg, self)
        self._task = next(iter(self.heads), None)
        self.hf_config: dict[str, Any] = {}
        self.load_report = LoadReport()
        self.setup()

    def _make(self, cfg: EncoderConfig) -> None:
        context: dict[str, Any] = {"d_model": cfg.d_model}
        context["norm"] = partial(build, cfg.norm, {"d_model": cfg.d_model})
        self.embed = build(cfg.embed, context | {"pos_embed": build(cfg.positions, context)})
        self.hook_full_embed = HookPoint("batch pos d_model")
        self.blocks = nn.ModuleList(
            build(cfg.block, context | {"attn": build(cfg.attention, context), "mlp": build(cfg.mlp, context)})
            for _ in range(cfg.n_layers)
        )
        self.ln_final = context["norm"]() if cfg.block.final_norm else None
        context["embedding"] = self.embed.embed.weight
        self.heads: dict[str, Head] = {}
        if cfg.pooler is not None:
            self.pooler = context["pooler"] = build(cfg.pooler, context)
        for part in cfg.heads:
            head = self.heads[part.task] = build(part, context)
            for name, module in head.modules.items():
                setattr(self, name, module)

    def initialise(self, seed: Any = None) -> None:
        """Fill every parameter: matrices from N(0, ``initializer_range``), norms with ones, biases with zeros.

        Args:
            seed: of a generator of its own; None draws one seed from torch's global generator.
        """
        if not isinstance(seed, int | None):
            raise ConfigError(f"seed is {seed!r}; it must be a whole number")
        seed = int(torch.randint(2**62, ()).item()) if seed is None else seed
        generator = torch.Generator(self.cfg.device).manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, self.cfg.initializer_range, generator=generator)
                else:
                    parameter.zero_()
            for module in self.modules():
                if isinstance(module, LayerNorm):
                    module.w.fill_(1.0)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.cfg.bind(self)

    # Tasks and planned runs

    @property
    def task(self) -> str | None:
        """The head that ``return_type="logits"`` runs; None without one. Assign another task of ``heads`` to switch."""
        return self._task

    @task.setter
    def task(self, task: str | None) -> None:
        if task is not None and task not in self.heads:
            raise TaskError(f"the model has no {task!r} head; its heads: {self.head_names()}{did_you_mean(task, self.heads)}")
        self._task = task

    def head_names(self) -> str:
        """The tasks of the heads, for messages."""
        return ", ".join(self.heads) or "none"

    def task_head(self) -> Head:
        """The head of the task.

        Raises:
            TaskError: for a model without heads, or without a task.
        """
        if self.task is None:
            remedy = f"set model.task to one of its heads: {self.head_names()}" if self.heads else "it was loaded without heads"
            raise TaskError(f"this reads the logits of a head, and the model has no task; {remedy}")
        return self.heads[self.task]

    @contextmanager
    def use_task(self: AnyEncoder, task: str) -> Iterator[AnyEncoder]:
        """Context in which another head runs."""
        before, self.task = self._task, task
        try:
            yield self
        finally:
            self._task = before

    def default_hook_names(self) -> list[str]:
        return [name for name, point in self.hook_dict.items() if point.on_demand is None or getattr(self.cfg, point.on_demand)]

    def plan(
        self,
        return_type: Any = ...,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
    ) -> RunPlan:
        """What a run with these arguments computes.

        Raises:
            InputError: for an unknown return type, or layers that are not there.
            TaskError: for logits, predictions or a loss without a head.
            HookUnreachableError: if hooks name points that the run would not compute.
        """
        returns = self._returns(return_type, stop_at_layer)
        start = 0 if start_at_layer is None else self._layer_index(start_at_layer, "start_at_layer")
        stop = self.cfg.n_layers if stop_at_layer is None else self._layer_index(stop_at_layer, "stop_at_layer")
        if stop < start:
            raise InputError(f"stop_at_layer={stop_at_layer} lies before start_at_layer={start_at_layer}")
        head = self.heads[self.task] if returns in ("logits", "predictions", "loss") and self.task else None
        plan = RunPlan(returns, start_at_layer is None, start, stop, stop_at_layer is None, head)
        if self.context_level:
            self.check_reachable(plan.reaches, f"this run does not compute it ({plan})")
        return plan if returns is not None else self._shortened(plan)

    def _returns(self, return_type: Any, stop_at_layer: int | None) -> ReturnType | None:
        if return_type is ...:
            return "logits" if self.task is not None and stop_at_layer is None else "hidden"
        if return_type not in RETURN_TYPES:
            known = ", ".join(map(repr, RETURN_TYPES))
            raise InputError(f"return_type={return_type!r} is unknown; it is one of {known}")
        if return_type not in ("hidden", None):
            if stop_at_layer is not None:
                raise InputError(f"return_type={return_type!r} needs the last layer; with stop_at_layer take 'hidden' or None")
            if self.task is None:
                raise TaskError(f"return_type={return_type!r} needs a head, and this model has none; take 'hidden'")
        return cast("ReturnType | None", return_type)

    def _layer_index(self, layer: int, name: str) -> int:
        n_layers = self.cfg.n_layers
        if not isinstance(layer, int) or isinstance(layer, bool) or not -n_layers <= layer <= n_layers:
            raise InputError(f"{name}={layer!r}; layers run from 0 to {n_layers}, negative ones count from the end")
        return layer % n_layers if layer < 0 else layer

    def _shortened(self, plan: RunPlan) -> RunPlan:
        """With nothing to return, stop after the last block that has a hook, unless gradients flow back through all."""
        if any(point.bwd_hooks for point in self.hook_points()):
            return plan
        hooked = [name for name, point in self.hook_dict.items() if point.fwd_hooks]
        if plan.finishes and any(name.startswith("ln_final.") for name in hooked):
            return plan
        last = max((layer for layer in map(block_of, hooked) if layer is not None), default=-1)
        return RunPlan(plan.returns, plan.embeds, plan.start, max(plan.start, min(plan.stop, last + 1)), False, None)

    def run_blocks(
        self, resid: Float[Tensor, "batch pos d_model"], plan: RunPlan, sequence: Sequence
    ) -> Float[Tensor, "batch pos d_model"]:
        for block in self.blocks[plan.start : plan.stop]:
            resid = block(resid, sequence)
        return self.ln_final(resid) if plan.finishes and self.ln_final is not None else resid

    def residual_path(self, layer: int | None = None, mlp_input: bool = False) -> list[Step]:
        """What joins the residual stream, and the norms that it passes through, up to a layer.

        Args:
            layer: up to ``hook_resid_pre`` of this layer; ``n_layers`` or None: to the final stream, before any ``ln_final``.
            mlp_input: up to ``hook_resid_mid`` of this layer instead.
        """
        blocks = self._layers()
        stop = len(blocks) if layer is None else layer
        steps: list[Step] = list(self.embed.residual_path)
        for block in blocks[:stop]:
            steps += [*block.path_to_mid, *block.path_from_mid]
        return [*steps, *blocks[stop].path_to_mid] if mlp_input else steps

    def stream_point(self, layer: int, mlp_input: bool = False) -> HookPoint:
        """Where the stream that enters a layer passes (``n_layers``: the final one), or that at ``hook_resid_mid``."""
        blocks = self._layers()
        if layer == len(blocks):
            return blocks[-1].out_point
        return blocks[layer].hook_resid_mid if mlp_input else blocks[layer].hook_resid_pre

    def norm_in_front(self, layer: int, mlp_input: bool = False) -> LayerNorm | None:
        """The norm between a stream and what reads it: attention, the MLP, or for ``n_layers`` the head."""
        blocks = self._layers()
        return self.ln_final if layer == len(blocks) else blocks[layer].norm_in_front(mlp_input)

    def as_final(self, resid: Stream, layer: int, mlp_input: bool = False) -> Stream:
        """A stream from inside as a head would read it if nothing more were written: the norms, without the sublayers."""
        settled = self._layers()[layer].settled(resid) if mlp_input else resid
        return settled if self.ln_final is None else self.ln_final(settled)

    # Moving

    def to(self: AnyEncoder, *args: Any, device_or_dtype: Any = None, print_details: bool = True, **kwargs: Any) -> AnyEncoder:
        """Every form of ``torch.nn.Module.to``. ``print_details`` prints where the model is now, in one line."""
        if device_or_dtype is not None:
            args = (device_or_dtype, *args)
        if len(args) == 2 and isinstance(args[1], bool) and isinstance(args[0], str | torch.device):
            args, print_details = args[:1], args[1]
        super().to(*args, **kwargs)
        if print_details:
            print(f"{type(self).__name__} is on {self.cfg.device} in {str(self.cfg.dtype).removeprefix('torch.')}")
        return self

    def mps(self: AnyEncoder) -> AnyEncoder:
        """Move to Apple's GPU."""
        return self.to("mps", print_details=False)

    # Weights

    def _layers(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))

    @property
    def W_Q(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Query weights of all layers: a differentiable copy. Edit ``blocks[l].attn.W_Q`` in place, under ``no_grad``."""
        return torch.stack([block.attn.W_Q for block in self._layers()])

    @property
    def W_K(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Key weights of all layers: a differentiable copy. Edit ``blocks[l].attn.W_K`` in place, under ``no_grad``."""
        return torch.stack([block.attn.W_K for block in self._layers()])

    @property
    def W_V(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Value weights of all layers: a differentiable copy. Edit ``blocks[l].attn.W_V`` in place, under ``no_grad``."""
        return torch.stack([block.attn.W_V for block in self._layers()])

    @property
    def W_O(self) -> Float[Tensor, "layer head d_head d_model"]:
        """Output weights of attention: a differentiable copy. Edit ``blocks[l].attn.W_O`` in place, under ``no_grad``."""
        return torch.stack([block.attn.W_O for block in self._layers()])

    @property
    def W_in(self) -> Float[Tensor, "layer d_model d_mlp"]:
        """Input weights of the MLPs: a differentiable copy. Edit ``blocks[l].mlp.W_in`` in place, under ``no_grad``."""
        return torch.stack([block.mlp.W_in for block in self._layers()])

    @property
    def W_out(self) -> Float[Tensor, "layer d_mlp d_model"]:
        """Output weights of the MLPs: a differentiable copy. Edit ``blocks[l].mlp.W_out`` in place, under ``no_grad``."""
        return torch.stack([block.mlp.W_out for block in self._layers()])

    @property
    def b_Q(self) -> Float[Tensor, "layer head d_head"]:
        """Query biases of all layers: a differentiable copy. Edit ``blocks[l].attn.b_Q`` in place, under ``no_grad``."""
        return torch.stack([block.attn.b_Q for block in self._layers()])

    @property
    def b_K(self) -> Float[Tensor, "layer head d_head"]:
        """Key biases of all layers: a differentiable copy. Edit ``blocks[l].attn.b_K`` in place, under ``no_grad``."""
        return torch.stack([block.attn.b_K for block in self._layers()])

    @property
    def b_V(self) -> Float[Tensor, "layer head d_head"]:
        """Value biases of all layers: a differentiable copy. Edit ``blocks[l].attn.b_V`` in place, under ``no_grad``."""
        return torch.stack([block.attn.b_V for block in self._layers()])

    @property
    def b_O(self) -> Float[Tensor, "layer d_model"]:
        """Output biases of attention: a differentiable copy. Edit ``blocks[l].attn.b_O`` in place, under ``no_grad``."""
        return torch.stack([block.attn.b_O for block in self._layers()])

    @property
    def b_in(self) -> Float[Tensor, "layer d_mlp"]:
        """Input biases of the MLPs: a differentiable copy. Edit ``blocks[l].mlp.b_in`` in place, under ``no_grad``."""
        return torch.stack([block.mlp.b_in for block in self._layers()])

    @property
    def b_out(self) -> Float[Tensor, "layer d_model"]:
        """Output biases of the MLPs: a differentiable copy. Edit ``blocks[l].mlp.b_out`` in place, under ``no_grad``."""
        return torch.stack([block.mlp.b_out for block in self._layers()])

    @property
    def QK(self) -> FactoredMatrix:
        """``W_Q W_K^T`` of every head [layer head d_model d_model], unscaled and without biases."""
        return FactoredMatrix(self.W_Q, self.W_K.mT)

    @property
    def OV(self) -> FactoredMatrix:
        """``W_V W_O`` of every head [layer head d_model d_model]."""
        return FactoredMatrix(self.W_V, self.W_O)

    def all_head_labels(self) -> list[str]:
        """``["L0H0", "L0H1", …]``."""
        return [head_label(layer, head) for layer in range(self.cfg.n_layers) for head in range(self.cfg.n_heads)]
