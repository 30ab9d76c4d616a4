"""Encoder: what the hooked text and audio encoders share: blocks, heads, planned runs, their place on the stream, moving."""

import copy
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from encoderlens.batch import Batch
from encoderlens.components import Head, Readout, SentenceEmbedding, build, empty_parameters, share_parameters
from encoderlens.components.contacts import ContactHead
from encoderlens.components.effective import REMEDY, made_of_others
from encoderlens.components.heads import owned_labels
from encoderlens.components.linear import Gains
from encoderlens.components.norm import ScaledNorm
from encoderlens.components.residual import Norm, Step
from encoderlens.config import AttentionPositionsPart, EncoderConfig, ModelConfig
from encoderlens.config.fields import Seed, check_value, frozen
from encoderlens.devices import check_move, device_named
from encoderlens.errors import InputError, TaskError, WeightsError
from encoderlens.given import Whole, as_tensor, dtype_name, is_whole
from encoderlens.hook_points import CachingHook, HookPoint
from encoderlens.memory import free_bytes
from encoderlens.names import block_of, check_word, did_you_mean
from encoderlens.not_on_encoders import NOT_ON_ENCODERS
from encoderlens.precision import model_dtype
from encoderlens.sequence import Sequence, at_positions
from encoderlens.shapes import Resid, Stream
from encoderlens.state_dicts import shared_names
from encoderlens.weight_stacks import WeightStacks
from encoderlens.weights import LoadReport

AnyEncoder = TypeVar("AnyEncoder", bound="Encoder")
ReturnType = Literal["logits", "predictions", "hidden", "loss", "embedding"]
SMALL_CACHE = 64 * 2**20  # bytes, for which free memory is not looked up
RETURN_TYPES = ("logits", "predictions", "hidden", "loss", "embedding", None)


@dataclass(frozen=True)
class RunPlan:
    """What one run computes.

    Attributes:
        returns: the kind of output.
        front: the modules and hook points that run in front of the blocks; none for a run from a residual stream.
        start, stop: the blocks that run, the last one excluded.
        finishes: whether the final norm of a pre-LN encoder runs.
        head: the head, or the sentence embedding, that runs, if any.
        after: the modules that run when it is over.
    """

    returns: ReturnType | None
    front: tuple[str, ...]
    start: int
    stop: int
    finishes: bool
    head: Readout | None
    after: tuple[str, ...] = ()

    @property
    def embeds(self) -> bool:
        """Whether it starts from the input, rather than from a residual stream."""
        return bool(self.front)

    def reaches(self, name: str) -> bool:
        """Whether the run computes a hook point."""
        layer = block_of(name)
        if layer is not None:
            return self.start <= layer < self.stop
        top = name.split(".")[0]
        if top == "ln_final":
            return self.finishes
        return top in (*self.front, *self.after) or (self.head is not None and top in self.head.modules)

    def __str__(self) -> str:
        blocks = f"blocks {self.start} to {self.stop - 1}" if self.start < self.stop else "no block"
        parts = [f"return_type={self.returns!r}", blocks]
        parts += [name for top, name in (("frontend", "the front end"), ("embed", "the embeddings")) if top in self.front]
        parts += [f"the {self.head.task} head"] if self.head else ["no head"]
        return ", ".join(parts)


class Encoder(WeightStacks, ABC):
    """Base of hooked encoders, whatever they read.

    Attributes:
        cfg: configuration, device, dtype and ``use_*`` flags.
        blocks: the layers.
        ln_final: the norm after the last block; None for post-LN encoders.
        heads: every head that the model carries, by task.
        sentence_embedding: how it makes one vector of a text; None for a model that is no sentence encoder.
        hf_config: the Hugging Face configuration that it was loaded with, empty for a model that was not.
        load_report: what became of the checkpoint's tensors.
        weight_names: the names of each parameter and buffer that the configuration calls for, several where modules share it.
    """

    ln_final: ScaledNorm | None

    FRONT: ClassVar[tuple[str, ...]] = ("embed", "hook_full_embed")  # what stands in front of the blocks
    LAST_HIDDEN_IS_NORMED: ClassVar[bool] = True  # whether Hugging Face's last hidden state has passed ln_final

    def __init__(self, cfg: EncoderConfig, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        with empty_parameters(device, dtype):
            self._make(cfg)
        self.cfg = ModelConfig(cfg, self)
        self.weight_names = shared_names(self)
        self._task = next(iter(self.heads), None)
        self.hf_config: dict[str, Any] = {}
        self.load_report = LoadReport()
        self.setup()

    def _make(self, cfg: EncoderConfig) -> None:
        context: dict[str, Any] = {"d_model": cfg.d_model, "d_embed": cfg.d_embed, "projected": cfg.factorised}
        context |= {"n_layers": cfg.n_layers, "n_heads": cfg.n_heads, "d_head": cfg.d_head, "norm": partial(_build_norm, cfg)}
        if cfg.frontend is not None and cfg.projection is not None:
            self.frontend = build(cfg.frontend, context)
            self.projection = build(cfg.projection, context)
        has_table = not isinstance(cfg.positions, AttentionPositionsPart)
        self.embed = build(cfg.embed, context | {"pos_embed": build(cfg.positions, context) if has_table else None})
        self.hook_full_embed = HookPoint("batch pos d_model")
        if cfg.relative is not None:
            self.relative = context["relative"] = build(cfg.relative, context)
        self.blocks = nn.ModuleList(self._make_block(cfg, layer, context) for layer in range(cfg.n_layers))
        for layer, owner in enumerate(cfg.owners):
            if owner != layer:
                share_parameters(self.blocks[layer], self.blocks[owner])
        self.ln_final = context["norm"]() if cfg.block.final_norm else None
        context |= self.embed.shared
        self.contact_head: ContactHead | None = None if cfg.contacts is None else build(cfg.contacts, context)
        self.heads: dict[str, Head] = {}
        context["pooler"] = None
        if cfg.pooler is not None:
            self.pooler = context["pooler"] = build(cfg.pooler, context)
        for part in cfg.heads:
            head = self.heads[part.task] = build(part, context)
            for name, module in head.modules.items():
                setattr(self, name, module)
        self.sentence_embedding: SentenceEmbedding | None = None
        if cfg.sentence is not None:
            embedding: SentenceEmbedding = build(cfg.sentence, context)
            self.sentence_embedding, self.sentence = embedding, embedding.modules["sentence"]

    def _make_block(self, cfg: EncoderConfig, layer: int, context: dict[str, Any]) -> nn.Module:
        sublayers = {"attn": build(cfg.attention.at(layer), context), "mlp": build(cfg.mlp.at(layer), context)}
        return build(cfg.block.at(layer), context | sublayers)

    def initialise(self, seed: Any = None) -> None:
        """Fill every parameter: matrices from N(0, ``initializer_range``), convolutions from N(0, sqrt(2 / fan-in)) (He et al.
        2015), gains with ones, biases with zeros.

        Args:
            seed: of a generator of its own; None draws one seed from torch's global generator.

        Raises:
            ConfigError: for a seed that is no whole number.
            WeightsError: for weights that are made of others.
        """
        seed = frozen(seed)
        if seed is not None:
            check_value("seed", seed, Seed)
        computed = made_of_others(self)
        if computed:
            raise WeightsError(f"{computed[0]} is parametrised or pruned, so that nothing can be drawn for it; {REMEDY}")
        seed = int(torch.randint(2**62, ()).item()) if seed is None else seed
        generator = torch.Generator(device_named(self.cfg.device)).manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim == 1:
                    parameter.zero_()
                    continue
                deviation = self.cfg.initializer_range if parameter.ndim == 2 else (2 / parameter[0].numel()) ** 0.5
                parameter.normal_(0.0, deviation, generator=generator)
            for module in self.modules():
                gains = [getattr(module, name) for name in module.gains] if isinstance(module, Gains) else []
                for gain in gains:
                    if gain is not None:
                        gain.fill_(1.0)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuses another module in the place of one that heads hold too, and would go on to run.

        Raises:
            WeightsError: with what to do instead.
        """
        for readout in self._readouts():
            if value is not readout.modules.get(name, value):
                raise WeightsError(
                    f"model.{name} cannot be replaced: the {readout.task} head runs the module that is there. Edit or "
                    "parametrise its weights, or replace modules inside it"
                )
        super().__setattr__(name, value)

    def _readouts(self) -> list[Readout]:
        """The heads, and the sentence embedding if there is one; none while they are made."""
        heads, embedding = self.__dict__.get("heads", {}), self.__dict__.get("sentence_embedding")
        return [*heads.values()] if embedding is None else [*heads.values(), embedding]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.cfg = copy.copy(self.cfg)
        self.cfg.bind(self)

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        """``cfg.use_attn_result``: whether a names filter of None includes ``attn.hook_result``."""
        self.cfg.use_attn_result = use_attn_result

    def set_use_split_qkv_input(self, use_split_qkv_input: bool) -> None:
        """``cfg.use_split_qkv_input``: whether a names filter of None includes ``hook_q_input`` and its like."""
        self.cfg.use_split_qkv_input = use_split_qkv_input

    def set_use_hook_mlp_in(self, use_hook_mlp_in: bool) -> None:
        """``cfg.use_hook_mlp_in``: whether a names filter of None includes ``hook_mlp_in``."""
        self.cfg.use_hook_mlp_in = use_hook_mlp_in

    def __getattr__(self, name: str) -> Any:
        """What a module holds; for a member of TransformerLens' language models, what to use instead.

        Raises:
            AttributeError: for anything else.
        """
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name not in NOT_ON_ENCODERS:
                raise
        raise AttributeError(f"{type(self).__name__} has no {name}: {NOT_ON_ENCODERS[name]}")

    # Tasks and planned runs

    @property
    def task(self) -> str | None:
        """The head that ``return_type="logits"`` runs; None without one. Assign another task of ``heads`` to switch."""
        chosen = self.run_state.tasks
        return chosen[-1] if chosen else self._task

    @task.setter
    def task(self, task: str | None) -> None:
        self._check_task(task)
        if self.run_state.tasks:
            self.run_state.tasks[-1] = task
        else:
            self._task = task

    def _check_task(self, task: str | None) -> None:
        if task is not None and not (isinstance(task, str) and task in self.heads):
            raise TaskError(f"the model has no {task!r} head; its heads: {self.head_names()}{did_you_mean(task, self.heads)}")

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

    def require_contact_head(self) -> ContactHead:
        """What predicts contacts between positions.

        Raises:
            TaskError: for a model without it.
        """
        if self.contact_head is None:
            raise TaskError(f"{self.cfg.model_name} has no contact head, which models of proteins can have")
        return self.contact_head

    @contextmanager
    def use_task(self: AnyEncoder, task: str) -> Iterator[AnyEncoder]:
        """Context in which another head runs, in this thread.

        Raises:
            TaskError: for a head that the model does not have.
        """
        self._check_task(task)
        chosen = self.run_state.tasks
        chosen.append(task)
        try:
            yield self
        finally:
            chosen.pop()

    def default_hook_names(self) -> list[str]:
        return [name for name, point in self.hook_dict.items() if point.on_demand is None or getattr(self.cfg, point.on_demand)]

    def plan(
        self,
        return_type: Any = ...,
        start_at_layer: Whole | None = None,
        stop_at_layer: Whole | None = None,
        front: tuple[str, ...] | None = None,
        after: tuple[str, ...] = (),
    ) -> RunPlan:
        """What a run with these arguments computes.

        Args:
            front: what runs in front of the blocks, if not all of ``FRONT``.
            after: the modules that run when the run is over, on what it has computed.

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
        head = self._readout(returns)
        if head is not None and head.layer_sum is not None and start > 0:
            raise InputError(f"the {head.task} head reads the streams of all layers, and this run starts at layer {start}")
        in_front = () if start_at_layer is not None else self.FRONT if front is None else front
        finishes = stop_at_layer is None and (head is None or head.layer_sum is None)
        plan = RunPlan(returns, in_front, start, stop, finishes, head, after)
        if self.context_level:
            self.check_reachable(plan.reaches, f"this run does not compute it ({plan})")
        return plan if returns is not None else self._shortened(plan)

    def _readout(self, returns: ReturnType | None) -> Readout | None:
        """What runs behind the blocks for a kind of output."""
        if returns == "embedding":
            return self.sentence_embedding
        return self.heads[self.task] if returns in ("logits", "predictions", "loss") and self.task else None

    def _returns(self, return_type: Any, stop_at_layer: Whole | None) -> ReturnType | None:
        if return_type is ...:
            return self._default_return_type(stop_at_layer)
        check_word("return_type", return_type, RETURN_TYPES)
        if return_type not in ("hidden", None):
            if stop_at_layer is not None:
                raise InputError(f"return_type={return_type!r} needs the last layer; with stop_at_layer take 'hidden' or None")
            if return_type == "embedding" and self.sentence_embedding is None:
                raise TaskError(
                    "return_type='embedding' needs a sentence encoder, and this is none: its folder has no modules.json with a "
                    "pooling; take 'hidden' and pool it yourself"
                )
            if return_type != "embedding" and self.task is None:
                raise TaskError(f"return_type={return_type!r} needs a head, and this model has none; take 'hidden'")
        return cast("ReturnType | None", return_type)

    def _default_return_type(self, stop_at_layer: Whole | None) -> ReturnType:
        if stop_at_layer is not None:
            return "hidden"
        if self.task is not None:
            return "logits"
        return "hidden" if self.sentence_embedding is None else "embedding"

    def _layer_index(self, layer: Any, name: str) -> int:
        n_layers = self.cfg.n_layers
        if not is_whole(layer) or not -n_layers <= layer <= n_layers:
            raise InputError(f"{name}={layer!r}; layers run from 0 to {n_layers}, negative ones count from the end")
        return int(layer) % n_layers if layer < 0 else int(layer)

    def _shortened(self, plan: RunPlan) -> RunPlan:
        """With nothing to return, stop after the last block that has a hook, unless gradients flow back through all."""
        if any(point.awaiting("bwd") for point in self.hook_points()):
            return plan
        hooked = [name for name, point in self.hook_dict.items() if point.awaiting("fwd")]
        if plan.finishes and any(name.startswith("ln_final.") for name in hooked):
            return plan
        last = max((layer for layer in map(block_of, hooked) if layer is not None), default=-1)
        return RunPlan(plan.returns, plan.front, plan.start, max(plan.start, min(plan.stop, last + 1)), False, None)

    # Running

    def run(
        self,
        plan: RunPlan,
        batch: Batch,
        first: Callable[[], Resid],
        labels: Any = None,
        at: Int[Tensor, "batch k"] | None = None,
    ) -> Any:
        """One run: the blocks from the stream that ``first`` makes, then the head, at some positions or all.

        Args:
            plan: what to compute.
            batch: what is read; its sequence goes with the stream.
            first: makes the stream in front of the first block, inside the run.
            labels: for a loss.
            at: positions whose logits are wanted, of a head that has logits for every position; None for all.

        Raises:
            InputError: before anything runs, for labels that do not fit, for input without what predictions need, and for a
                cache that would not fit into memory.
        """
        readout, head = plan.head, plan.head if isinstance(plan.head, Head) else None
        labels = None if labels is None else owned_labels(labels)
        if head is not None and labels is not None:
            head.check_labels(labels, batch.sequence)
        if head is not None and plan.returns == "predictions":
            head.check_input(batch)
        if self.context_level:
            self._check_cache_fits(plan, batch)
        with self.run_state.run(batch.sequence, batch.token_ids):
            resid = self.run_blocks(first(), plan, batch.sequence)
            if readout is None or plan.returns is None:
                return None if plan.returns is None else resid
            outputs = readout.forward(resid if at is None else at_positions(resid, at), batch.sequence)
            if head is None or plan.returns not in ("predictions", "loss"):
                return outputs
            if labels is not None:
                return head.loss(outputs, labels.to(outputs.device), batch.sequence)
            decoded = head.decode(outputs, batch)
            return head.decode_one(decoded[0]) if batch.single else decoded

    def _check_cache_fits(self, plan: RunPlan, batch: Batch) -> None:
        """Refuse a run whose caches would take more memory than is free.

        Raises:
            InputError: with the remedies.
        """
        needed: Counter[torch.device] = Counter()
        for name, point in self.hook_dict.items():
            if not plan.reaches(name):
                continue
            for handle in (*point.awaiting("fwd"), *point.awaiting("bwd")):
                if isinstance(handle.user_hook, CachingHook):
                    device = torch.device(handle.user_hook.device or self.cfg.device)
                    sizes = self.axis_sizes(name, batch)
                    needed[device] += handle.user_hook.kept_bytes(point, sizes, self._dtype_at(name))
        for device, size in needed.items():
            free = free_bytes(device) if size > SMALL_CACHE else None
            if free is not None and size > free:
                raise InputError(
                    f"the cache of this run would take about {size / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free on "
                    f"{device}: keep some activations (names_filter=) or positions (pos_slice=) only, or fewer bits "
                    "(dtype=torch.bfloat16), or keep them on another device (device=), or run fewer or shorter inputs"
                )

    def _dtype_at(self, name: str) -> torch.dtype:
        """The dtype of what passes a hook point: norms compute in float32 or wider."""
        in_norm = name.endswith((".hook_scale", ".hook_normalized"))
        return torch.promote_types(self.cfg.dtype, torch.float32) if in_norm else self.cfg.dtype

    def axis_sizes(self, name: str, batch: Batch) -> dict[str, int]:
        """How long the axes of a hook point are in a run.

        Args:
            name: of the hook point.
            batch: what is read.
        """
        cfg, sequence = self.cfg.encoder, batch.sequence
        sizes = {"batch": sequence.batch, "pos": sequence.pos, "query": sequence.pos, "key": sequence.pos}
        sizes |= {"head": cfg.n_heads, "kv_head": cfg.n_kv_heads, "d_head": cfg.d_head, "d_model": cfg.d_model}
        return sizes | {"d_mlp": cfg.d_mlp, "d_embed": cfg.d_embed, "d_vocab": cfg.d_vocab_out or 1}

    def run_blocks(self, resid: Resid, plan: RunPlan, sequence: Sequence) -> Resid:
        """The stream after the last block that runs, through any final norm; or the sum of streams that the head reads."""
        layer_sum = None if plan.head is None else plan.head.layer_sum
        streams: list[Resid] = []
        for block in self._layers()[plan.start : plan.stop]:
            resid = block.hook_resid_pre(resid)  # here, so that what a hook makes of a stream is in the sum too
            if layer_sum is not None:
                streams.append(resid)
            if not self._drops_block():
                resid = block(resid, sequence)
        if layer_sum is not None:
            return layer_sum([*streams, resid])
        return self.ln_final(resid) if plan.finishes and self.ln_final is not None else resid

    def _drops_block(self) -> bool:
        return self.training and self.cfg.layerdrop > 0 and bool(torch.rand(()) < self.cfg.layerdrop)

    def check_options(self, plan: RunPlan, labels: Any, logits_at: Any) -> None:
        """Refuse labels without a loss, a loss without labels, and positions where there are no logits for positions.

        Raises:
            InputError: for any of these.
        """
        if (labels is not None) != (plan.returns == "loss"):
            found = "no labels" if labels is None else "labels"
            raise InputError(f"return_type={plan.returns!r} with {found}; labels and return_type='loss' go together")
        if logits_at is not None and not (plan.returns == "logits" and plan.head and plan.head.per_position):
            raise InputError("logits_at chooses positions of return_type='logits' of a head that has logits for every position")

    def check_stream(self, resid: Any) -> Resid:
        """The residual stream that a run with ``start_at_layer`` is given, where the model is and as what it computes.

        Raises:
            InputError: for anything else.
        """
        resid = as_tensor(resid, "the residual stream") if isinstance(resid, Tensor | np.ndarray) else resid
        if not isinstance(resid, Tensor) or resid.ndim != 3 or resid.shape[-1] != self.cfg.d_model:
            found = list(resid.shape) if isinstance(resid, Tensor) else type(resid).__name__
            raise InputError(f"with start_at_layer the input is a residual stream [batch pos {self.cfg.d_model}], not {found}")
        return resid.to(self.cfg.device, self.cfg.dtype, copy=True)  # what a cache keeps is no one else's

    @property
    @abstractmethod
    def tokenizer(self) -> Any:
        """Of the text that the model reads, or of what it predicts; None without one."""

    @abstractmethod
    def prepare(self, input: Any, /) -> Batch:
        """One checked batch, which ``forward`` takes in place of the input."""

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
            return blocks[-1].hook_block_out
        return blocks[layer].hook_resid_mid if mlp_input else blocks[layer].hook_resid_pre

    def norm_in_front(self, layer: int, mlp_input: bool = False) -> ScaledNorm | None:
        """The norm between a stream and what reads it: attention, the MLP, or for ``n_layers`` the head."""
        blocks = self._layers()
        return self.ln_final if layer == len(blocks) else blocks[layer].norm_in_front(mlp_input)

    def as_final(self, resid: Stream, layer: int, mlp_input: bool = False) -> Stream:
        """A stream from inside as the final one, if nothing more were written: the norms, without the sublayers."""
        settled = self._layers()[layer].settled(resid) if mlp_input else resid
        return settled if self.ln_final is None else self.ln_final(settled)

    def as_read(self, head: Readout, before: list[Resid], resid: Resid, layer: int, mlp_input: bool = False) -> Resid:
        """A stream from inside as a head would read it if nothing more were written. To a head that sums the streams of all
        layers, it stands for every later one too.

        Args:
            before: the streams that entered the layers so far: those before ``layer``, and with ``mlp_input`` its own.
        """
        if head.layer_sum is None:
            return self.as_final(resid, layer, mlp_input)
        settled = self._layers()[layer].settled(resid) if mlp_input else resid
        return head.layer_sum([*before, *[settled] * (self.cfg.n_layers + 1 - len(before))])

    def norms_to_head(self, head: Readout) -> list[Step]:
        """The norm between the final stream and what a head reads, if there is one."""
        return [] if self.ln_final is None or head.layer_sum is not None else [Norm(self.ln_final)]

    # Moving

    def to(self: AnyEncoder, *args: Any, device_or_dtype: Any = None, print_details: bool = True, **kwargs: Any) -> AnyEncoder:
        """Every form of ``torch.nn.Module.to``. ``print_details`` prints where the model is now, in one line.

        Raises:
            DeviceError: for a device that is not there.
            ConfigError: for a dtype that no model computes in.
        """
        if device_or_dtype is not None:
            args = (device_or_dtype, *args)
        if len(args) == 2 and isinstance(args[1], bool) and isinstance(args[0], str | torch.device):
            args, print_details = args[:1], args[1]
        super().to(*map(_destination, args), **{name: _destination(value) for name, value in kwargs.items()})
        if print_details:
            print(f"{type(self).__name__} is on {self.cfg.device} in {dtype_name(self.cfg.dtype)}")
        return self

    def mps(self: AnyEncoder) -> AnyEncoder:
        """Move to Apple's GPU."""
        return self.to("mps", print_details=False)

    def _apply(self: AnyEncoder, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AnyEncoder:
        model_dtype(check_move(fn, self.cfg.device).dtype)  # whatever torch calls the move: to(), cuda(), half(), type(), …
        super()._apply(fn, recurse)
        self.cfg.bind(self)
        return self


def _destination(value: Any) -> Any:
    """An argument of ``to``, checked if it is a device or a dtype."""
    if isinstance(value, torch.dtype):
        return model_dtype(value)
    is_device = isinstance(value, str | int | torch.device) and not isinstance(value, bool)
    return device_named(value, empty=True) if is_device else value


def _build_norm(cfg: EncoderConfig, d_model: int | None = None, width: str = "d_model", rows: str = "batch pos") -> ScaledNorm:
    """A norm over the stream, or over another width that its hook points call by this name."""
    return build(cfg.norm, {"d_model": cfg.d_model if d_model is None else d_model, "width": width, "rows": rows})
