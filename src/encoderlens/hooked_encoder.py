"""HookedEncoder: a BERT-style text encoder with a hook point on every activation that matters."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from encoderlens import conversion, loading
from encoderlens.activation_cache import ActivationCache
from encoderlens.components.heads import Head
from encoderlens.config import EncoderConfig
from encoderlens.config_from_dict import ModelRequest, request_from_dict
from encoderlens.encoder import Encoder, ReturnType, RunPlan
from encoderlens.errors import ConfigError, InputError, TaskError
from encoderlens.sequence import Sequence, at_positions
from encoderlens.slices import Slice
from encoderlens.text_input import (
    Alignment,
    TextBatch,
    TextInput,
    align,
    as_texts,
    check_mask,
    check_pairs,
    check_positions,
    check_token_types,
    check_tokens,
    encode,
    is_text,
    require_tokenizer,
)

Positions = int | list | Tensor


class HookedEncoder(Encoder):
    """A BERT-style encoder, randomly initialised from a configuration; ``from_pretrained`` loads a checkpoint.

    Args:
        cfg: an EncoderConfig, or a dictionary with TransformerLens' field names (see ``request_from_dict``), whose ``device``,
            ``dtype``, ``seed``, ``tokenizer_name`` and ``use_*`` fields are honoured.
        tokenizer: a Hugging Face tokenizer, for text input.
        move_to_device: False keeps the model on the CPU, whatever device is asked for.
        device, dtype: of the parameters; by default the GPU if there is one, and float32.
        init_weights: False leaves the parameters unfilled.

    Raises:
        ConfigError: for a configuration that is incomplete, or asks for something that is not implemented.
    """

    def __init__(
        self,
        cfg: EncoderConfig | dict[str, Any],
        tokenizer: Any = None,
        move_to_device: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        init_weights: bool = True,
    ) -> None:
        request = _request(cfg)
        wanted = loading.device_named(device or request.device) if move_to_device else torch.device("cpu")
        super().__init__(request.encoder, wanted, _float_dtype(dtype or request.dtype))
        for flag, value in request.flags.items():
            setattr(self.cfg, flag, value)
        if tokenizer is None and request.tokenizer_name is not None:
            tokenizer = loading.tokenizer_named(request.tokenizer_name)
        self.tokenizer: Any = tokenizer
        if init_weights:
            self.initialise(request.seed)

    # Loading and saving

    @classmethod
    def from_pretrained(
        cls,
        model_name: str | Path | None = None,
        checkpoint_index: int | None = None,
        checkpoint_value: int | None = None,
        hf_model: Any = None,
        device: torch.device | str | None = None,
        tokenizer: Any = None,
        move_to_device: bool = True,
        dtype: torch.dtype = torch.float32,
        *,
        task: str | None = None,
        revision: str | None = None,
        torch_dtype: torch.dtype | None = None,
        n_ctx: int | None = None,
    ) -> "HookedEncoder":
        """Load a checkpoint, in eval mode, with every known head whose weights it holds.

        Args:
            model_name: a folder, a hub id (through the hub's cache; works offline once it is filled) or an embedded name
                such as ``encoderlens/tiny-bert``. May be left out with ``hf_model``.
            checkpoint_index, checkpoint_value: not for encoders; use ``revision``.
            hf_model: a Hugging Face model of a supported class: its weights are copied.
            device: by default the GPU if there is one.
            tokenizer: used instead of the checkpoint's own.
            move_to_device: False keeps the model on the CPU.
            dtype: of the parameters, whatever the checkpoint's; ``torch_dtype`` is another name for it.
            task: the head that ``return_type="logits"`` runs; "encoder" loads just the encoder, also of a class that is not
                supported, and lists what it left in ``load_report.left``.
            revision: branch, tag or commit on the hub.
            n_ctx: keep only so many positions.

        Raises:
            CheckpointNotFoundError, UnknownArchitectureError, ConfigError, WeightsError, TaskError: see ``errors``.
        """
        if checkpoint_index is not None or checkpoint_value is not None:
            raise ConfigError(
                "checkpoint_index and checkpoint_value have no meaning for encoders: name a training step by revision="
            )
        name = None if model_name is None else str(model_name)
        checkpoint = loading.open_checkpoint(name, hf_model=hf_model, revision=revision, task=task)
        encoder = conversion.read_config(checkpoint, n_ctx)
        wanted = torch_dtype or dtype
        model = cls(encoder, None, move_to_device, device=device, dtype=wanted, init_weights=False)
        conversion.fill(model, checkpoint)
        model.tokenizer = loading.tokenizer_of(checkpoint, name, revision) if tokenizer is None else tokenizer
        return model.eval()

    @classmethod
    def from_transformer_lens_state_dict(
        cls,
        state_dict: dict[str, Tensor],
        cfg: EncoderConfig | dict[str, Any],
        tokenizer: Any = None,
        **kwargs: Any,
    ) -> "HookedEncoder":
        """A model from the ``state_dict()`` of a TransformerLens HookedEncoder, in eval mode.

        Args:
            state_dict: all of its tensors.
            cfg: its configuration's fields as a dictionary, those left out at TransformerLens' defaults, or an EncoderConfig.
            tokenizer, kwargs: as for the class.

        Raises:
            WeightsError: for tensors that are missing, left over or misshapen.
        """
        if isinstance(cfg, dict):
            cfg = conversion.transformer_lens_defaults(state_dict) | cfg
        model = cls(cfg, tokenizer, init_weights=False, **kwargs)
        conversion.fill_from_transformer_lens(model, state_dict)
        return model.eval()

    def to_hf(self) -> Any:
        """The Hugging Face model of the class that was loaded, with this model's weights (a copy), dtype and device.

        Weights for which that class has no place (the pooler of a BertForMaskedLM) are named in a log warning.
        """
        return conversion.to_hf(self)

    # Text

    def to_tokens(
        self, input: TextInput, move_to_device: bool = True, truncate: bool = True
    ) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
        """Tokens, token types and one-zero mask [batch pos] of a text, a pair ``(a, b)``, or a list of either.

        Args:
            move_to_device: put them on the model's device.
            truncate: cut texts that are longer than the model takes; False raises instead.
        """
        texts, _ = as_texts(input)
        tensors = encode(require_tokenizer(self.tokenizer, "text input"), texts, self.cfg.n_ctx, truncate)
        tokens, types, mask = (tensor.to(self.cfg.device) if move_to_device else tensor for tensor in tensors)
        return tokens, types, mask

    def tokens_to_str(self, input: Any) -> Any:
        """Each token as a string: a list for a text, pair or [pos] ids; a list of lists for many or [batch pos] ids."""
        tokenizer = require_tokenizer(self.tokenizer, "tokens_to_str")
        if not isinstance(input, Tensor):
            texts, single = as_texts(input)
            strings = [tokenizer.convert_ids_to_tokens(self.to_tokens(text)[0][0].tolist()) for text in texts]
            return strings[0] if single else strings
        rows = check_tokens(input, self.cfg.d_vocab, max(self.cfg.n_ctx, *input.shape, 1))
        strings = [tokenizer.convert_ids_to_tokens(row) for row in rows.tolist()]
        return strings if input.ndim == 2 else strings[0]

    def align(self, text: Any) -> Alignment:
        """Tokens, words and character spans of a text or pair, set against each other.

        Raises:
            TokenizerMissingError: without a tokenizer.
            InputError: for a tokenizer that keeps no offsets, or anything but one text or pair.
        """
        return align(require_tokenizer(self.tokenizer, "align"), text)

    # Running

    def prepare(
        self, input: Any, token_type_ids: Tensor | None = None, one_zero_attention_mask: Tensor | None = None
    ) -> TextBatch:
        """One checked batch on the model's device, which ``forward`` takes in place of the three arguments.

        Raises:
            InputError, TokenizerMissingError: for what the model cannot read.
        """
        types, mask, texts = token_type_ids, one_zero_attention_mask, None
        if isinstance(input, TextBatch):
            if types is not None or mask is not None:
                raise InputError("a prepared batch has its token types and its mask; give them to prepare()")
            return input
        if is_text(input):
            texts, single = as_texts(input)
            tokenizer = require_tokenizer(self.tokenizer, "text input")
            tokens, own_types, own_mask = encode(tokenizer, texts, self.cfg.n_ctx, truncate=False)
            types = own_types if types is None else types
            mask = own_mask if mask is None else mask
        else:
            single, tokens = isinstance(input, Tensor) and input.ndim == 1, input
        tokens = check_tokens(tokens, self.cfg.d_vocab, self.cfg.n_ctx)
        types = check_token_types(types, tokens.shape, self.cfg.n_token_types)
        sequence = self._sequence(check_mask(mask, tokens.shape), *tokens.shape)
        device = self.cfg.device
        types = None if types is None else types.to(device)
        return TextBatch(tokens.to(device), types, sequence, single, texts, self.tokenizer)

    def forward(
        self,
        input: Any,
        return_type: Any = ...,
        token_type_ids: Tensor | None = None,
        one_zero_attention_mask: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        logits_at: Positions | None = None,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input: token ids [batch pos] or [pos]; a text; a pair ``(a, b)``; a list of texts or of pairs (always a batch); what
                ``prepare`` made of any of these; with ``start_at_layer``, a residual stream [batch pos d_model].
            return_type: "logits" of the task's head; "predictions" (masked LM: the words for a text's masks, one bare string
                if there is one mask, a list of lists for a batch; classifiers: labels; next sentence: a verdict; question
                answering: the answer's text); "hidden", the final residual stream [batch pos d_model]; "loss" against
                ``labels``; None, to run no head and return nothing. Left out: "logits" if there is a head, else "hidden".
            token_type_ids: segments [batch pos], 0 everywhere by default (from the tokenizer for text).
            one_zero_attention_mask: 1 or True at real positions [batch pos]; by default all (from the tokenizer for text).
            labels: for "loss": class ids in the shape of the head's logits without the last axis (question answering: first
                and last position [batch 2]); -100 is left out of the mean.
            logits_at: unembed only these positions: an int, a list of ints, or a tensor [k] or [batch k].
            start_at_layer: the layer whose input ``input`` is.
            stop_at_layer: return the stream that enters this layer.

        Returns:
            As ``return_type`` says; logits are [batch pos d_vocab], [batch pos label], [batch label], [batch 2] or, for
            question answering, [batch pos 2] (start, end).

        Raises:
            InputError, TaskError, TokenizerMissingError, HookUnreachableError: before anything runs.
        """
        plan = self.plan(return_type, start_at_layer, stop_at_layer)
        self._check_options(plan, labels, logits_at)
        prepare = self.prepare if plan.embeds else self._stream
        batch = prepare(input, token_type_ids, one_zero_attention_mask)
        chosen = None if logits_at is None else check_positions(logits_at, batch.sequence)
        if labels is not None and plan.head is not None:
            plan.head.check_labels(labels, batch.sequence)
        if plan.returns == "predictions" and plan.head is not None:
            plan.head.check_text(batch)
        with self.run_state.run(batch.sequence, batch.token_ids):
            resid = self.run_blocks(self._first_stream(plan, input, batch), plan, batch.sequence)
            if plan.returns is None or plan.head is None:
                return None if plan.returns is None else resid
            if chosen is not None:
                resid = at_positions(resid, chosen)
            return self._run_head(plan, plan.head, resid, batch, labels)

    def encoder_output(
        self,
        tokens: Int[Tensor, "batch pos"],
        token_type_ids: Int[Tensor, "batch pos"] | None = None,
        one_zero_attention_mask: Tensor | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The final residual stream: ``forward`` with ``return_type="hidden"``."""
        return self(tokens, "hidden", token_type_ids, one_zero_attention_mask)

    def next_sentence(
        self,
        input: Any,
        return_type: ReturnType | None = "logits",
        token_type_ids: Int[Tensor, "batch pos"] | None = None,
        one_zero_attention_mask: Tensor | None = None,
        *,
        labels: Tensor | None = None,
    ) -> Any:
        """Next-sentence prediction: logits [batch 2] (it follows; it does not), verdicts, or the loss.

        Raises:
            TaskError: if the checkpoint has no next-sentence head.
            InputError: for single texts, or tokens without token types.
        """
        check_pairs(input, token_type_ids)
        with self.use_task("next_sentence"):
            return self(input, return_type, token_type_ids, one_zero_attention_mask, labels=labels)

    def run_with_cache(self, *model_args: Any, pos_slice: Any = None, logits_at: Any = None, **kwargs: Any) -> tuple[Any, Any]:
        """As ``HookedRootModule.run_with_cache``; the cache is an ActivationCache unless ``return_cache_object`` is False.

        Raises:
            InputError: for ``pos_slice`` with ``logits_at``, which give the head's hook points positions of their own.
        """
        if pos_slice is not None and logits_at is not None:
            raise InputError("pos_slice and logits_at do not go together: the head would be sliced along the chosen positions")
        at = {} if logits_at is None else {"logits_at": logits_at}
        return super().run_with_cache(*model_args, pos_slice=pos_slice, **at, **kwargs)

    def cache_object(self, cache: dict[str, Tensor], has_batch_dim: bool, pos_slice: Slice) -> ActivationCache:
        tokens, sequence = self.run_state.tokens, self.run_state.sequence
        mask = None if sequence is None else sequence.mask
        tokens, mask = (
            None if beside is None else pos_slice.apply(beside if has_batch_dim else beside[0], -1) for beside in (tokens, mask)
        )
        positions = None if sequence is None or pos_slice.selects_all else pos_slice.indices(sequence.pos)
        return ActivationCache(cache, self, has_batch_dim, tokens, mask, positions)

    def _check_options(self, plan: RunPlan, labels: Tensor | None, logits_at: Positions | None) -> None:
        if (labels is not None) != (plan.returns == "loss"):
            found = "no labels" if labels is None else "labels"
            raise InputError(f"return_type={plan.returns!r} with {found}; labels and return_type='loss' go together")
        if not isinstance(labels, Tensor | None):
            raise InputError(f"labels are a tensor, not a {type(labels).__name__}")
        if logits_at is not None and not (plan.returns == "logits" and plan.head and plan.head.per_position):
            raise InputError("logits_at chooses positions of return_type='logits' of a head that has logits for every position")

    def _stream(self, input: Any, token_type_ids: Tensor | None, mask: Tensor | None) -> TextBatch:
        if not isinstance(input, Tensor) or input.ndim != 3 or input.shape[-1] != self.cfg.d_model:
            found = list(input.shape) if isinstance(input, Tensor) else type(input).__name__
            raise InputError(f"with start_at_layer the input is a residual stream [batch pos {self.cfg.d_model}], not {found}")
        if token_type_ids is not None:
            raise InputError("token_type_ids belong to the embeddings, which start_at_layer skips")
        sequence = self._sequence(check_mask(mask, input.shape[:2]), *input.shape[:2])
        return TextBatch(None, None, sequence, False, None, self.tokenizer)

    def _first_stream(self, plan: RunPlan, input: Any, batch: TextBatch) -> Float[Tensor, "batch pos d_model"]:
        if plan.embeds:
            return self.hook_full_embed(self.embed(batch.tokens, batch.token_type_ids, batch.sequence))
        return input.to(self.cfg.device, self.cfg.dtype)

    def _sequence(self, mask: Tensor | None, batch: int, pos: int) -> Sequence:
        return Sequence(batch, pos, None if mask is None else mask.to(self.cfg.device))

    def _run_head(self, plan: RunPlan, head: Head, resid: Tensor, batch: TextBatch, labels: Tensor | None) -> Any:
        logits = head.forward(resid, batch.sequence)
        if plan.returns == "loss" and labels is not None:
            return head.loss(logits, labels.to(logits.device))
        if plan.returns == "predictions":
            decoded = head.decode(logits, batch)
            return head.decode_one(decoded[0]) if batch.single else decoded
        return logits

    # Weights

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """The word-piece embedding: the parameter itself."""
        return self.embed.embed.W_E

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        """The position embedding: the parameter itself."""
        return self.embed.pos_embed.W_pos

    @property
    def W_token_type(self) -> Float[Tensor, "token_type d_model"]:
        """The token-type embedding: the parameter itself."""
        return self.embed.token_type_embed.W_token_type

    @property
    def W_E_pos(self) -> Float[Tensor, "d_vocab_plus_n_ctx d_model"]:
        """``W_E`` over ``W_pos``, a differentiable copy. It is the whole input basis only up to ``W_token_type``: every
        position also gets a token-type vector, row 0 of it for single texts.
        """
        return torch.cat([self.W_E, self.W_pos])

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """The unembedding, a live view; tied to ``W_E`` in most checkpoints, so that editing one edits both.

        Raises:
            TaskError: for a checkpoint without a masked-LM head.
        """
        return self._masked_lm().W_U

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:
        """The unembedding's bias: the parameter itself.

        Raises:
            TaskError: for a checkpoint without a masked-LM head.
        """
        return self._masked_lm().b_U

    def _masked_lm(self) -> Any:
        if "masked_lm" not in self.heads:
            raise TaskError(f"{self.cfg.model_name} has no masked-LM head, so no unembedding; its heads: {self.head_names()}")
        return self.heads["masked_lm"].modules["unembed"]


def _request(cfg: EncoderConfig | dict[str, Any]) -> ModelRequest:
    if isinstance(cfg, dict):
        return request_from_dict(cfg)
    if not isinstance(cfg, EncoderConfig):
        raise ConfigError(
            f"cfg is an EncoderConfig or a dictionary, not {type(cfg).__name__}; from_pretrained loads a checkpoint"
        )
    return ModelRequest(cfg, None, torch.float32, None, None, {})


def _float_dtype(dtype: torch.dtype) -> torch.dtype:
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigError(f"dtype={dtype!r}; a model's dtype is torch.float32, float16, bfloat16 or float64")
    return dtype
