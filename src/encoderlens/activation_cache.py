"""ActivationCache: the activations of one run, and what its residual stream is made of."""

from collections.abc import Callable, Collection
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from encoderlens.cached_run import CachedRun, Window, as_slice
from encoderlens.carried_rows import CarriedRows, check_size
from encoderlens.components.heads import Head, LinearHead
from encoderlens.components.residual import Norm, Passage, Step, WriteOfParts
from encoderlens.components.stand_ins import check_layers
from encoderlens.errors import AnalysisError, InputError
from encoderlens.given import as_indices, as_tensor, dtype_name, fault_of, is_whole
from encoderlens.hook_points import HookPoint
from encoderlens.linearised import Carry, require_eval
from encoderlens.names import check_word, stream_label
from encoderlens.sequence import Sequence
from encoderlens.slices import Slice

Stack = Float[Tensor, "component *rows out"]


class ActivationCache(CachedRun):
    """The activations of one run, and what the residual stream is made of.

    It is a mapping from hook names to tensors (see ``CachedRun``). Methods that decompose the stream hold every norm's scale at
    its value in the run, so that what each component wrote is carried to a later point of the stream by linear maps, and a full
    stack sums to the stream there. On post-LN encoders every row has passed all norms between where it was written and where it
    is looked at. ``layer`` is where: the stream that enters that layer; ``n_layers``, -1 or None mean the final stream, and
    ``mlp_input=True`` means ``hook_resid_mid`` of the layer. ``pos_slice`` keeps some positions; an int drops the axis. Rows
    have the dtype of the activations.

    Attributes:
        max_stack_bytes: larger stacks of vectors are refused before any of their rows is made.
    """

    max_stack_bytes: int = 8 * 2**30

    @property
    def hidden_states(self) -> list[Float[Tensor, "*rows d_model"]]:
        """The stream in front of block 0 and after every block, ``n_layers + 1`` tensors: what Hugging Face returns for
        ``output_hidden_states=True``, padding aside. A text encoder with a norm after the last block has passed it in the last
        one; a speech encoder has not.

        Raises:
            HookNameError: for a cache without ``hook_resid_pre`` of block 0, or ``hook_block_out`` of any block.
        """
        outputs = [self["block_out", layer] for layer in range(self.model.cfg.n_layers)]
        if self.model.ln_final is not None and self.model.LAST_HIDDEN_IS_NORMED:
            outputs[-1] = self._run(self.model.ln_final, outputs[-1])
        return [self["resid_pre", 0], *outputs]

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: Window = None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ) -> Any:
        """The stream as it enters each layer, up to ``layer``: ``"0_pre"``, ``"1_pre"``, …, ``"final_post"``.

        Args:
            layer: the last of them.
            incl_mid: also ``hook_resid_mid`` of the layers before it (``"0_mid"``).
            apply_ln: up to the final stream: make each what a head reads of that one (see ``Encoder.as_final``), norms with
                statistics of their own, for a logit lens. Up to an earlier layer: ``apply_ln_to_stack``.
            pos_slice: positions.
            mlp_input: also ``hook_resid_mid`` of ``layer``.
            return_labels: also return the labels.

        Returns:
            The streams [component batch pos d_model], and with ``return_labels`` their labels.
        """
        target, window, model = self._layer(layer, mlp_input), as_slice(pos_slice), self.model
        places = [(index, mid) for index in range(target) for mid in (False, True)[: 1 + incl_mid]]
        places += [(target, mid) for mid in (False, True)[: 1 + mlp_input]]
        streams = [self._at(model.stream_point(*place), window) for place in places]
        if apply_ln and target == model.cfg.n_layers:
            self._check_weights_of(self._norms_to(target, mlp_input))
            streams = [self._run(model.as_final, stream, *place) for stream, place in zip(streams, places, strict=True)]
        stack = torch.stack(streams).detach()
        if apply_ln and target < model.cfg.n_layers:
            stack = self.apply_ln_to_stack(stack, target, mlp_input, pos_slice)
        return _labelled(stack, [stream_label(*place, model.cfg.n_layers) for place in places], return_labels)

    def stack_activation(
        self, activation_name: str, layer: int | None = -1, sublayer_type: str | None = None
    ) -> Float[Tensor, "layer ..."]:
        """One activation of every layer before ``layer``, as it is: ``cache.stack_activation("q")``."""
        layers = range(self._layer(layer))
        if not layers:
            raise InputError("there is no layer before layer 0: stack_activation takes layers 1 to n_layers")
        return torch.stack([self[activation_name, index, sublayer_type] for index in layers])

    # Decompositions

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: Literal["all", "mlp", "attn"] = "all",
        apply_ln: bool = False,
        pos_slice: Window = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Any:
        """What the stream that enters ``layer`` is made of: embeddings, attention and MLP outputs, and on post-LN encoders the
        LayerNorm biases, each carried there. With ``mode="all"`` and embeddings, the rows sum to the stream: where hooks have
        edited the stream itself, to all but what they added.

        Args:
            layer: where.
            mlp_input: at ``hook_resid_mid`` of the layer.
            mode: "attn" or "mlp" keep only those outputs (and the embeddings).
            apply_ln: carry on through the norm in front of what reads the stream there, if there is one; with ``mode="all"``
                its bias is the last row, so that rows sum to what is read.
            pos_slice: positions.
            incl_embeds: keep the embeddings and the bias of their LayerNorm.
            return_labels: also return the labels.

        Returns:
            Rows [component batch pos d_model], and with ``return_labels`` their labels: ``"embed"``, ``"0_attn_out"``,
            ``"0_ln1_b"``, ….
        """
        parts = {"all": None, "attn": "H", "mlp": "N"}
        check_word("mode", mode, ("all", "attn", "mlp"))
        rows = self._rows(layer, mlp_input, apply_ln, pos_slice)
        blocks = [
            block
            for block in rows.blocks()
            if (incl_embeds if block.of_embeddings else mode == "all" or block.of("write", parts[mode]))
        ]
        return _labelled(*rows.stack(blocks, self.max_stack_bytes), return_labels)

    def compute_head_results(self) -> None:
        """Add ``attn.hook_result`` [batch pos head d_model], what each head writes, of every layer whose z is here."""
        for block in self.model.blocks:
            result, z = str(block.attn.hook_result.name), block.attn.hook_z.name
            if result not in self.cache_dict and z in self.cache_dict:
                self._check_weights_of([block.attn.out_layer])
                weight = block.attn.out_weight.detach().to(self[z])
                self.cache_dict[result] = block.attn.spread(self[z], weight)

    def stack_head_results(
        self,
        layer: int | None = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: Window = None,
        apply_ln: bool = False,
    ) -> Any:
        """What each head before ``layer`` wrote, carried there. ``b_V`` is in it, as ``b_V W_O``; ``b_O`` is not.

        Args:
            layer: where.
            return_labels: also return the labels: ``"L0H0"``, ….
            incl_remainder: a last row, ``"remainder"``, for the rest of the stream.
            pos_slice: positions.
            apply_ln: carry on through the norm in front of what reads the stream there.

        Returns:
            Rows [component batch pos d_model], and with ``return_labels`` their labels.
        """
        rows = self._rows(layer, False, apply_ln, pos_slice, split=("H",))
        return self._parts(rows, "H", incl_remainder, return_labels)

    def get_neuron_results(
        self,
        layer: int,
        neuron_slice: Window = None,
        pos_slice: Window = None,
        project_output_onto: Any = None,
    ) -> Float[Tensor, "..."]:
        """What each neuron of a layer wrote, where it wrote it: not carried further.

        Args:
            layer: the layer; negative ones count from the last.
            neuron_slice: neurons; an int drops the axis.
            pos_slice: positions.
            project_output_onto: a direction [d_model], or several [d_model out], in place of whole vectors.

        Returns:
            [batch pos neuron d_model]; projected: [batch pos neuron] or [batch pos neuron out].

        Raises:
            InputError: for a layer that is not there, or if that is larger than ``max_stack_bytes``.
        """
        n_layers, onto = self.model.cfg.n_layers, self._directions(project_output_onto)
        if not is_whole(layer) or not -n_layers <= layer < n_layers:
            raise InputError(f"layer={layer!r}; the layers are 0 to {n_layers - 1}, negative ones count from the last")
        mlp, window = self.model.blocks[layer].mlp, as_slice(neuron_slice)
        self._check_weights_of([mlp.out_layer])
        activation = window.apply(self._at(mlp.hook_post, as_slice(pos_slice)), -1)
        out = mlp.out_weight.shape[1:] if onto is None else onto.shape[1:]
        check_size((*activation.shape, *out), activation.dtype, self.max_stack_bytes)
        weight = window.apply(mlp.out_weight.detach()).to(activation)
        weight = weight if onto is None else weight @ onto.to(weight)
        return activation * weight if onto is not None and onto.ndim == 1 else activation.unsqueeze(-1) * weight

    def stack_neuron_results(
        self,
        layer: int | None,
        pos_slice: Window = None,
        neuron_slice: Window = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        apply_ln: bool = False,
        project_output_onto: Any = None,
    ) -> Any:
        """What each neuron before ``layer`` wrote, carried there. Whole vectors are large: project them where that is enough.

        Args:
            layer: where.
            pos_slice: positions.
            neuron_slice: neurons of every layer.
            return_labels: also return the labels: ``"L0N0"``, ….
            incl_remainder: a last row, ``"remainder"``, for the rest of the stream.
            apply_ln: carry on through the norm in front of what reads the stream there.
            project_output_onto: a direction at ``layer`` [d_model], or several [d_model out], in place of whole vectors, which
                then are never made.

        Returns:
            Rows [component batch pos d_model], or [component batch pos] or [component batch pos out] when they are projected,
            and with ``return_labels`` their labels.

        Raises:
            InputError: if that is larger than ``max_stack_bytes``.
        """
        rows = self._rows(
            layer, False, apply_ln, pos_slice, split=("N",), onto=project_output_onto, neurons=as_slice(neuron_slice)
        )
        return self._parts(rows, "N", incl_remainder, return_labels)

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: Window = None,
        return_labels: bool = False,
        project_output_onto: Any = None,
    ) -> Any:
        """All that the stream at ``layer`` is made of: heads, then neurons (or MLP outputs), embeddings, and every bias under
        its own label; each carried there. The rows sum to the stream, or with ``apply_ln`` to what is read there.

        Args:
            layer: where.
            mlp_input: at ``hook_resid_mid`` of the layer.
            expand_neurons: a row a neuron, rather than a row an MLP.
            apply_ln: carry on through the norm in front of what reads the stream there.
            pos_slice: positions.
            return_labels: also return the labels.
            project_output_onto: as for ``stack_neuron_results``.

        Returns:
            As ``stack_neuron_results``.

        Raises:
            InputError: if that is larger than ``max_stack_bytes``.
        """
        split = ("H", "N") if expand_neurons else ("H",)
        rows = self._rows(layer, mlp_input, apply_ln, pos_slice, split=split, onto=project_output_onto)
        order = ("H", "N", "whole", "embeddings", "bias")
        blocks = sorted(rows.blocks(), key=lambda block: order.index(block.group))
        return _labelled(*rows.stack(blocks, self.max_stack_bytes), return_labels)

    def apply_ln_to_stack(
        self,
        residual_stack: Stack,
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: Window = None,
        batch_slice: Window = None,
        has_batch_dim: bool = True,
        recompute_ln: bool = False,
    ) -> Float[Tensor, "component ..."]:
        """Carry a stack through the norm between the stream at ``layer`` and what reads it: its linear part, at the scale of
        the run. On post-LN encoders only the MLP has a norm in front of it (``mlp_input=True``): otherwise, and for the head,
        the stack is given back as it is. The rows of a full stack, and the norm's bias, sum to what is read.

        Args:
            residual_stack: rows [component batch pos d_model] at ``layer``, with ``pos_slice`` applied already.
            layer, mlp_input: where.
            pos_slice: the positions that the stack has.
            batch_slice: keep some sequences of the stack; of a stack without a batch axis: the sequence that it is of.
            has_batch_dim: whether the stack has a batch axis, where the cache has one.
            recompute_ln: the whole norm, with the statistics of each row, in place of its linear part.

        Raises:
            InputError: for a stack of other sequences or positions than these.
        """
        _check_stack(residual_stack)
        sequences = self._sequences(batch_slice, has_batch_dim)
        stack = residual_stack if sequences.selects_all or not has_batch_dim else sequences.apply(residual_stack, 1)
        norm = self.model.norm_in_front(self._layer(layer, mlp_input), mlp_input)
        if norm is None:
            return stack
        self._check_weights_of([norm])
        if recompute_ln:
            return self._run(norm, stack)
        scale = self._at(norm.hook_scale, as_slice(pos_slice))
        scale = scale if sequences.selects_all else sequences.apply(scale)
        _check_rows(stack, (*scale.shape[:-1], self.model.cfg.d_model))
        return Carry().before(Norm(norm), scale)(stack).to(stack.dtype)

    # Logits

    def logit_attrs(
        self,
        residual_stack: Stack,
        tokens: Any,
        incorrect_tokens: Any = None,
        pos_slice: Window = None,
        batch_slice: Window = None,
        has_batch_dim: bool = True,
    ) -> Float[Tensor, "component ..."]:
        """What each row of a stack at the final stream adds to a logit of the model's task head, whose LayerNorm scale and
        activation gain are held at their values for the stream of the run. Hooks on the head are not part of that.

        For a full stack, ``logit_attrs(stack, tokens).sum(0) + logit_constant(tokens)`` is the logit.

        Args:
            residual_stack: rows [component batch pos d_model], with ``pos_slice`` applied already.
            tokens: which logit: a token id or string (for a classifier: a class or its name), or ids [batch] or [batch pos] for
                everything in the cache, before ``pos_slice`` and ``batch_slice``.
            incorrect_tokens: subtract this logit's.
            pos_slice: the positions that the stack has.
            batch_slice, has_batch_dim: as for ``apply_ln_to_stack``.

        Returns:
            [component batch pos]; for a head with one row a sequence [component batch].

        Raises:
            TaskError: for a model without a head.
            AnalysisError: for a head that reads the streams of all layers.
            InputError: for a target that is not there; a stack of other sequences or positions than these; positions for a
                head that reads a whole sequence.
        """
        _check_stack(residual_stack)
        if residual_stack.is_meta:
            raise InputError(f"the stack {fault_of(residual_stack)}")
        window, sequences = as_slice(pos_slice), self._sequences(batch_slice, has_batch_dim)
        head, linear = self._linear_head(tokens, incorrect_tokens, window)
        stack = self.apply_ln_to_stack(residual_stack, None, False, pos_slice, batch_slice, has_batch_dim)
        direction = self._sliced(linear.direction, window, sequences).to(stack)
        _check_rows(stack, direction.shape)
        rows = (stack * direction).sum(-1)
        return rows if head.per_position else rows.sum(-1)

    def logit_constant(
        self, tokens: Any, incorrect_tokens: Any = None, pos_slice: Window = None, batch_slice: Window = None
    ) -> Float[Tensor, "*rows"]:
        """What the biases of the head (and of ``ln_final``) add to a logit: what a full stack of ``logit_attrs`` lacks.

        Args:
            tokens, incorrect_tokens, pos_slice, batch_slice: as for ``logit_attrs``.

        Returns:
            [batch pos]; for a head with one row a sequence [batch].
        """
        window, sequences = as_slice(pos_slice), self._sequences(batch_slice, True)
        head, linear = self._linear_head(tokens, incorrect_tokens, window)
        constant = linear.constant
        norm = self.model.ln_final
        if norm is not None and norm.bias is not None:
            biases = (linear.direction * norm.bias.detach()).sum(-1)
            constant = constant + (biases if head.per_position else biases.sum(-1))
        return self._sliced(constant, window, sequences)

    def _linear_head(self, tokens: Any, incorrect_tokens: Any, window: Slice) -> tuple[Head, LinearHead]:
        """The task's head around the final stream of the run, for every sequence and position in the cache."""
        model = self.model
        require_eval(model)
        head = model.task_head()
        self._check_weights_of([*head.modules.values(), *([] if model.ln_final is None else [model.ln_final])])
        if head.layer_sum is not None:
            raise AnalysisError(
                f"the {head.task} head reads the streams of all layers, not the final one: take direct_logit_attribution"
            )
        if not head.per_position and not window.selects_all:
            raise InputError(f"the {head.task} head reads a whole sequence: its rows need every position, without pos_slice")
        if not head.per_position and self.positions is not None:
            raise InputError(f"the {head.task} head reads a whole sequence, and the cache holds some positions of it")
        stream = self._batched(self._at(model.stream_point(model.cfg.n_layers), Slice())).to(model.cfg.device, model.cfg.dtype)
        mask = None if self.mask is None else self.mask.reshape(stream.shape[:2]).to(model.cfg.device)
        sequence = Sequence(stream.shape[0], stream.shape[1], mask)
        read = stream if model.ln_final is None else self._run(model.ln_final, stream)
        shape = stream.shape[: 1 + head.per_position]
        with model.without_hooks():
            linear = head.linearise(read, sequence, self._targets(head, tokens, shape))
            if incorrect_tokens is None:
                return head, linear
            other = head.linearise(read, sequence, self._targets(head, incorrect_tokens, shape))
        return head, LinearHead(linear.direction - other.direction, linear.constant - other.constant)

    def _targets(self, head: Head, tokens: Any, shape: torch.Size) -> Int[Tensor, "batch *pos"]:
        model = self.model
        if isinstance(tokens, Tensor | np.ndarray) and tokens.ndim == 0:
            tokens = as_tensor(tokens, "the target").item()
        if not isinstance(tokens, list | tuple | Tensor | np.ndarray):
            return torch.full(shape, head.output_index(tokens, model.tokenizer), device=model.cfg.device)
        of_positions = f" or every position {list(shape)}" if shape[1:] else ""
        needed = f"they are whole numbers for every sequence {list(shape[:1])}{of_positions} of the cache"
        listed = isinstance(tokens, list | tuple)
        found = "a list of words, fractions or booleans, or of lists of different lengths" if listed else _kind(tokens)
        ids = as_indices(tokens, "tokens", f"tokens are {found}; {needed}")
        rows = ids if self.has_batch_dim or ids.ndim == len(shape) else ids.unsqueeze(0)
        if rows.shape != shape[: rows.ndim]:
            raise InputError(f"tokens are {_kind(ids)}; {needed}")
        for extreme in torch.aminmax(ids):
            head.output_index(int(extreme), model.tokenizer)
        return rows.reshape(*rows.shape, *(1,) * (len(shape) - rows.ndim)).expand(shape).to(model.cfg.device)

    # How the methods above see the cache

    def _layer(self, layer: int | None, mlp_input: bool = False) -> int:
        n_layers = self.model.cfg.n_layers
        if layer is None or layer == -1 or layer == n_layers:
            if mlp_input:
                raise InputError(f"mlp_input=True is for a layer from 0 to {n_layers - 1}: the final stream is read by no MLP")
            return n_layers
        if not is_whole(layer) or not 0 <= layer < n_layers:
            raise InputError(
                f"layer={layer!r}; layers run from 0 to {n_layers}, where {n_layers}, -1 and None are the final stream"
            )
        return int(layer)

    def _rows(
        self,
        layer: int | None,
        mlp_input: bool,
        apply_ln: bool,
        pos_slice: Window,
        split: Collection[str] = (),
        onto: Any = None,
        neurons: Slice | None = None,
    ) -> CarriedRows:
        require_eval(self.model)
        target, window = self._layer(layer, mlp_input), as_slice(pos_slice)
        path: list[Step] = self.model.residual_path(target, mlp_input)
        norm = self.model.norm_in_front(target, mlp_input) if apply_ln else None
        writers = [step.writer for step in path if isinstance(step, WriteOfParts) and step.writer.part in split]
        read = [*self._norms_to(target, mlp_input), *(writer.out_layer for writer in writers)]
        self._check_weights_of(read if norm is None else [*read, norm])
        check_layers(self.model, [self.model.embed, *self.model.blocks[:target], *writers], self.hooked)
        stream = self._at(self.model.stream_point(target, mlp_input), window)
        return CarriedRows(
            path=path,
            reads=norm,
            stream=stream,
            activation=lambda point: self._at(point, window),
            split=split,
            onto=self._directions(onto),
            neurons=neurons or Slice(),
        )

    def _norms_to(self, layer: int, mlp_input: bool) -> list[nn.Module]:
        """What the stream passes through on its way to a layer, and the norm behind the last one."""
        path = self.model.residual_path(layer, mlp_input)
        final = [] if self.model.ln_final is None else [self.model.ln_final]
        return [*(step.module for step in path if isinstance(step, Passage)), *final]

    def _check_weights_of(self, modules: list[nn.Module]) -> None:
        """Refuse weights that are not those of the run, and activations that are none.

        Raises:
            AnalysisError: for either.
        """
        self.check_weights(modules)
        for name, scale in self.items():
            if not name.endswith(".hook_scale") or scale.is_meta:  # there are no numbers on the meta device
                continue
            if bool((scale <= 0).any()):
                raise AnalysisError(
                    f"{name} holds {float(scale.min()):.3g}, and scales are above 0: these are gradients, not the activations "
                    "of a run, and have no decomposition. What a component does to a loss by its gradient is the activation "
                    "times the gradient at its own hook point, cache[name] * grads[name], summed over its last axes"
                )

    def _parts(self, rows: CarriedRows, part: str, incl_remainder: bool, return_labels: bool) -> Any:
        blocks = [block for block in rows.blocks() if block.of("parts", part)]
        return _labelled(*rows.stack(blocks, self.max_stack_bytes, incl_remainder), return_labels)

    def _at(self, point: HookPoint, window: Slice) -> Tensor:
        """The activation at a hook point, at some positions."""
        kept = self._one_for_all_heads(point)
        if window.selects_all:
            return kept
        axes = point.axes if self.has_batch_dim else point.axes[1:]
        if kept.ndim != len(axes):
            raise InputError("the cache holds one position, without an axis to slice: leave pos_slice out")
        return window.apply(kept, axes.index("pos"))

    def _directions(self, onto: Any) -> Float[Tensor, "d_model *out"] | None:
        d_model = self.model.cfg.d_model
        if onto is not None and (not isinstance(onto, Tensor) or onto.ndim not in (1, 2) or len(onto) != d_model):
            found = f"shape {list(onto.shape)}" if isinstance(onto, Tensor) else f"the type {type(onto).__name__}"
            raise InputError(f"project_output_onto has {found}; one direction is a tensor [{d_model}], several [{d_model}, n]")
        return None if onto is None else onto.detach()

    def _one_for_all_heads(self, point: HookPoint) -> Tensor:
        """The activation at a hook point; of a norm in front of split inputs, that which all heads have.

        Raises:
            AnalysisError: if it differs between heads.
        """
        kept = self[str(point.name)]
        axes = point.axes if self.has_batch_dim else point.axes[1:]
        if kept.ndim <= len(axes):
            return kept
        if not torch.equal(kept, kept[..., :1, :].expand_as(kept)):
            raise AnalysisError(
                f"{point.name} differs between heads, since hooks changed what some of them read: "
                "no one norm stands between the stream and attention in this run"
            )
        return kept[..., 0, :]

    def _run(self, function: Callable[..., Tensor], stream: Tensor, *args: Any) -> Tensor:
        """What a part of the model makes of a stream, where and as what the cache keeps it."""
        with torch.no_grad(), self.model.without_hooks():
            return function(stream.to(self.model.cfg.device, self.model.cfg.dtype), *args).to(stream)

    def _batched(self, stream: Tensor) -> Float[Tensor, "batch pos d_model"]:
        """A stream with its batch and position axes, where the cache has dropped them."""
        stream = stream if self.has_batch_dim else stream.unsqueeze(0)
        return stream if stream.ndim == 3 else stream.unsqueeze(1)

    def _sequences(self, batch_slice: Window, has_batch_dim: bool) -> Slice:
        sequences = as_slice(batch_slice)
        if not sequences.selects_all and not self.has_batch_dim:
            raise InputError("batch_slice chooses sequences, and this cache has no batch axis to choose along")
        if self.has_batch_dim and not has_batch_dim and not sequences.drops_axis:
            raise InputError("the stack has no batch axis, and the cache has one: say with batch_slice=index which sequence")
        return sequences

    def _sliced(self, rows: Float[Tensor, "batch *some"], window: Slice, sequences: Slice) -> Tensor:
        """What was made for the whole cache, at the positions and sequences that are wanted, with the axes that it has."""
        final = self._at(self.model.stream_point(self.model.cfg.n_layers), Slice())
        if final.ndim - self.has_batch_dim == 1 and rows.ndim > 1:  # the cache has no position axis
            rows = rows.squeeze(1)
        elif not window.selects_all:
            rows = window.apply(rows, 1)
        return sequences.apply(rows) if self.has_batch_dim else rows[0]


def _kind(tokens: Tensor | np.ndarray) -> str:
    return f"{dtype_name(tokens)} {list(tokens.shape)}"


def _check_stack(stack: Any) -> None:
    if not isinstance(stack, Tensor) or not stack.is_floating_point():
        found = dtype_name(stack) if isinstance(stack, Tensor) else f"a {type(stack).__name__}"
        raise InputError(f"the stack is {found}; it is a tensor of floating-point numbers [component batch pos d_model]")


def _check_rows(stack: Stack, rows: tuple[int, ...]) -> None:
    if tuple(stack.shape[1:]) != tuple(rows):
        raise InputError(
            f"the stack has rows of shape {list(stack.shape[1:])}, and the cache at this pos_slice and batch_slice has "
            f"{list(rows)}: give the slices that the stack was made with"
        )


def _labelled(stack: Tensor, labels: list[str], return_labels: bool) -> Any:
    return (stack, labels) if return_labels else stack
