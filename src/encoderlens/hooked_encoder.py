"""HookedEncoder: a BERT-style text encoder with a hook point on every activation that matters."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from encoderlens import conversion, loading
from encoderlens.alignment import Alignment
from encoderlens.components.heads import MaskedLMHead
from encoderlens.config import AnyConfig, EncoderConfig, ModelConfig
from encoderlens.config_from_dict import request_from_dict, request_of, sized_by, tokenizer_name_of
from encoderlens.encoder import ReturnType
from encoderlens.errors import InputError, TaskError, WeightsError
from encoderlens.given import Whole, as_tensor, check_text, described
from encoderlens.hub import Hub
from encoderlens.pretrained_encoder import dtype_of, place_of
from encoderlens.sequence import Sequence, check_positions
from encoderlens.shapes import Resid
from encoderlens.switches import check_switches
from encoderlens.text_input import (
    TextArguments,
    TextBatch,
    TextFit,
    TextInput,
    align,
    as_texts,
    check_mask,
    check_pairs,
    check_token_types,
    check_tokens,
    check_vectors,
    encode,
    is_text,
    lower_casing,
    require_tokenizer,
    text_arguments,
    warn_of_cuts,
)
from encoderlens.token_lookup import TokenLookup

Positions = Whole | list | Tensor | np.ndarray


class HookedEncoder(TokenLookup):
    """A BERT-style encoder, randomly initialised from a configuration; ``from_pretrained`` loads a checkpoint.

    Args:
        cfg: an EncoderConfig; another model's ``cfg``; or TransformerLens' fields (see ``request_from_dict``) in a dictionary,
            a HookedTransformerConfig or any object with ``to_dict()``. Their ``device``, ``dtype``, ``seed``,
            ``tokenizer_name`` and ``use_*`` fields are honoured, and a missing ``d_vocab`` comes from the tokenizer.
        tokenizer: a Hugging Face tokenizer for text input, or the folder or name of one.
        move_to_device: False keeps the model on the CPU, whatever device is asked for.
        device, dtype: of the parameters; by default the GPU if there is one, and float32.
        init_weights: False leaves the parameters unfilled.

    Raises:
        ConfigError: for a configuration that is incomplete, or asks for something that is not implemented.
    """

    def __init__(
        self,
        cfg: AnyConfig,
        tokenizer: Any = None,
        move_to_device: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        init_weights: bool = True,
    ) -> None:
        tokenizer = loading.tokenizer_given(tokenizer)
        if tokenizer is None:
            tokenizer = loading.tokenizer_given(tokenizer_name_of(cfg))
        request = request_of(cfg, lambda fields: request_from_dict(sized_by(tokenizer, fields)))
        loading.check_modality(request.encoder.modality, "text", request.encoder.model_name)
        super().__init__(request, move_to_device, device, dtype, init_weights)
        self.tokenizer = tokenizer
        self.prompt = "" if request.encoder.sentence is None else request.encoder.sentence.prompt

    @property
    def prompt(self) -> str:
        """What stands in front of every single text; empty unless a sentence encoder has one. ``cfg.sentence.prompts`` holds
        those that it was trained with. Another one can be assigned, and None for none.

        Raises:
            InputError: for anything but text.
        """
        return self._prompt

    @prompt.setter
    def prompt(self, prompt: str | None) -> None:
        if not isinstance(prompt, str | None):
            raise InputError(f"prompt is {described(prompt)}; it is text to stand in front of every text, or None")
        check_text(prompt or "", "the prompt")
        self._prompt = prompt or ""

    @property
    def tokenizer(self) -> Any:
        """A Hugging Face tokenizer, for text input; None without one. Another one can be assigned, also by its name.

        Raises:
            ConfigError: for anything else.
            CheckpointNotFoundError: for a name that leads to no tokenizer.
        """
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self._tokenizer = loading.tokenizer_given(tokenizer)

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
        n_ctx: Whole | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **switches: Any,
    ) -> "HookedEncoder":
        """Load a checkpoint, in eval mode, with every known head whose weights it holds.

        Args:
            model_name: a folder, a hub id (through the hub's cache; works offline once it is filled) or an embedded name
                such as ``encoderlens/tiny-bert``. May be left out with ``hf_model``.
            checkpoint_index, checkpoint_value: not for encoders; use ``revision``.
            hf_model: a Hugging Face model of a supported class: its weights are copied.
            device: by default the GPU if there is one.
            tokenizer: used instead of the checkpoint's own, or the folder or name of one; where a sentence encoder reads lower
                case, a copy that makes it so.
            move_to_device: False keeps the model on the CPU.
            dtype: of the parameters, whatever the checkpoint's; ``torch_dtype`` is another name for it.
            task: the head that ``return_type="logits"`` runs; "encoder" loads just the encoder, also of a class that is not
                supported, and lists what it left in ``load_report.left``.
            revision: branch, tag or commit on the hub.
            n_ctx: keep only so many positions; of a model without a table of positions (rotary or relative ones), also more
                than it was trained on.
            token, cache_dir, local_files_only: of the hub client, for weights and tokenizer: an access token, another folder
                for the cache, and to look in the cache only.
            switches: those of TransformerLens that process weights (``fold_ln``, ``center_unembed``, …), all of them off.

        Raises:
            CheckpointNotFoundError, UnknownArchitectureError, ConfigError, WeightsError, TaskError: see ``errors``.
            TypeError: for an argument that is unknown.
        """
        check_switches(cls.from_pretrained, switches)
        hub = Hub(revision, token, cache_dir, local_files_only)
        hub.check()
        place = place_of(device, move_to_device)
        wanted = dtype_of(torch_dtype, dtype)
        tokenizer = loading.tokenizer_given(tokenizer, replace(hub, revision=None))
        checkpoint = cls._open(model_name, checkpoint_index, checkpoint_value, hf_model, hub, task)
        loading.check_modality(checkpoint.family.modality, "text", checkpoint.where)
        encoder = conversion.read_config(checkpoint, n_ctx)
        model = cls(encoder, device=place, dtype=wanted, init_weights=False)
        conversion.fill(model, checkpoint, crop=n_ctx is not None)
        name = None if model_name is None else str(model_name)
        tokenizer = loading.tokenizer_of(checkpoint, name, hub) if tokenizer is None else tokenizer
        lowercases = encoder.sentence is not None and encoder.sentence.lowercases and tokenizer is not None
        model.tokenizer = lower_casing(tokenizer) if lowercases else tokenizer
        return model.eval()

    @classmethod
    def from_transformer_lens_state_dict(
        cls,
        state_dict: dict[str, Tensor],
        cfg: AnyConfig,
        tokenizer: Any = None,
        **kwargs: Any,
    ) -> "HookedEncoder":
        """A model from the ``state_dict()`` of a TransformerLens HookedEncoder, in eval mode.

        Args:
            state_dict: its tensors. Of a dictionary's model, the heads and the pooler are those whose tensors are there.
            cfg: as for the class; TransformerLens' fields that are left out have its defaults.
            tokenizer, kwargs: as for the class.

        Raises:
            WeightsError: for tensors that are missing, left over or misshapen.
        """
        state_dict = conversion.lens_state(state_dict)
        if not isinstance(cfg, EncoderConfig | ModelConfig):
            cfg = conversion.transformer_lens_fields(cfg, state_dict)
        model = cls(cfg, tokenizer, init_weights=False, **kwargs)
        conversion.fill_from_transformer_lens(model, state_dict)
        return model.eval()

    # Text

    def to_tokens(
        self, input: TextInput, move_to_device: bool = True, truncate: bool = True
    ) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
        """Tokens, token types and one-zero mask [batch pos] of a text, a pair ``(a, b)``, or a list of either. Threads that
        share a tokenizer take turns.

        Args:
            move_to_device: put them on the model's device.
            truncate: cut texts that are longer than the model takes; False raises instead.
        """
        texts, _ = as_texts(input)
        tokenizer = require_tokenizer(self.tokenizer, "text input")
        made = encode(tokenizer, [self._prompted(text) for text in texts], self.max_tokens, truncate)
        device = self.cfg.device if move_to_device else made.tokens.device
        return made.tokens.to(device), made.types.to(device), made.mask.to(device)

    def to_str_tokens(self, input: Any) -> Any:
        """Each token as a string: a list for a text, pair or [pos] ids; a list of lists for many or [batch pos] ids."""
        tokenizer = require_tokenizer(self.tokenizer, "to_str_tokens")
        if not isinstance(input, Tensor | np.ndarray):
            texts, single = as_texts(input)
            strings = [tokenizer.convert_ids_to_tokens(self.to_tokens(text)[0][0].tolist()) for text in texts]
            return strings[0] if single else strings
        given = as_tensor(input, "the input")
        rows = check_tokens(given, self.cfg.d_vocab, max(self.cfg.n_ctx, *given.shape, 1))
        strings = [tokenizer.convert_ids_to_tokens(row) for row in rows.tolist()]
        return strings if given.ndim == 2 else strings[0]

    def align(self, text: Any) -> Alignment:
        """Tokens, words and character spans of a text or pair, set against each other; with any prompt in front of the text,
        which spans then count too.

        Raises:
            TokenizerMissingError: without a tokenizer.
            InputError: for a tokenizer that keeps no offsets, or anything but one text or pair.
        """
        return align(require_tokenizer(self.tokenizer, "align"), self._prompted(text))

    # Running

    def prepare(
        self,
        input: Any = None,
        token_type_ids: Any = None,
        one_zero_attention_mask: Any = None,
        *,
        input_ids: Any = None,
        attention_mask: Any = None,
        inputs_embeds: Any = None,
    ) -> TextBatch:
        """One checked batch on the model's device, which ``forward`` takes in place of these arguments. It holds copies,
        and it follows the model to another device.

        Raises:
            InputError, TokenizerMissingError: for what the model cannot read, or what another model prepared.
        """
        named = {"input_ids": input_ids, "attention_mask": attention_mask, "inputs_embeds": inputs_embeds}
        given = text_arguments(input, token_type_ids, one_zero_attention_mask, **named)
        return self._of_vectors(given) if given.input is None else self._of_input(given)

    def _of_input(self, arguments: TextArguments) -> TextBatch:
        """Text, token ids or a prepared batch."""
        input, types, mask, texts, encodings = arguments.input, arguments.types, arguments.mask, None, None
        fit = TextFit.of(self.cfg.encoder)
        if isinstance(input, TextBatch):
            if types is not None or mask is not None:
                raise InputError("a prepared batch has its token types and its mask; give them to prepare()")
            input.check_fit(replace(fit, tokenizer=self.tokenizer, prompt=self.prompt))
            batch = input.at(self.cfg.device)
            if batch.vectors is None:
                return batch
            return replace(batch, vectors=self._own_vectors(batch.vectors))
        if is_text(input):
            given, single = as_texts(input)
            tokenizer, texts = require_tokenizer(self.tokenizer, "text input"), [self._prompted(text) for text in given]
            cuts = self.sentence_embedding is not None
            made = encode(tokenizer, texts, self.max_tokens, truncate=cuts)
            if cuts:
                warn_of_cuts(tokenizer, texts, made.mask, self.max_tokens)
            tokens, encodings = made.tokens, made.encodings
            fit = replace(fit, tokenizer=tokenizer, prompt=self.prompt if isinstance(texts[0], str) else None)
            types = made.types if types is None and self.cfg.n_token_types else types
            mask = made.mask if mask is None else mask
        else:
            single, tokens = isinstance(input, Tensor | np.ndarray) and input.ndim == 1, input
        tokens = check_tokens(tokens, self.cfg.d_vocab, self.cfg.n_ctx)
        types = check_token_types(types, tokens.shape, self.cfg.n_token_types)
        sequence = self._sequence(check_mask(mask, tokens.shape), *tokens.shape)
        device = self.cfg.device
        types = None if types is None else types.to(device)
        return TextBatch(tokens.to(device), types, sequence, single, texts, encodings, self.tokenizer, fit)

    def _of_vectors(self, arguments: TextArguments) -> TextBatch:
        """Vectors in place of word embeddings."""
        vectors = self._own_vectors(arguments.vectors)
        shape = vectors.shape[:2]
        types = check_token_types(arguments.types, shape, self.cfg.n_token_types)
        types = None if types is None else types.to(self.cfg.device)
        sequence = self._sequence(check_mask(arguments.mask, shape), *shape)
        fit = TextFit.of(self.cfg.encoder)
        return TextBatch(None, types, sequence, False, None, None, self.tokenizer, fit, vectors)

    def _own_vectors(self, vectors: Any) -> Tensor:
        """A copy of vectors in place of word embeddings, where the model is and as what it computes."""
        return check_vectors(vectors, self.cfg.d_embed, self.cfg.n_ctx, self.cfg.dtype).to(self.cfg.device)

    def forward(
        self,
        input: Any = None,
        return_type: Any = ...,
        token_type_ids: Any = None,
        one_zero_attention_mask: Any = None,
        *,
        input_ids: Any = None,
        attention_mask: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        logits_at: Positions | None = None,
        start_at_layer: Whole | None = None,
        stop_at_layer: Whole | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input: token ids [batch pos] or [pos]; a text; a pair ``(a, b)``; a list of texts or of pairs (always a batch); what
                a Hugging Face tokenizer returns, or a dictionary with its names; what ``prepare`` made of any of these; with
                ``start_at_layer``, a residual stream [batch pos d_model].
            return_type: "logits" of the task's head; "predictions" (masked LM: the words for a text's masks, one bare string
                if there is one mask, a list of lists for a batch; classifiers: labels; next sentence: a verdict; question
                answering: the answer's text); "hidden", the final residual stream [batch pos d_model]; "loss" against
                ``labels``; "embedding", a sentence encoder's vector of each text [batch d_sentence]; None, to run no head and
                return nothing. Left out: "logits" if there is a head, else "embedding" of a sentence encoder, else "hidden".
            token_type_ids: segments [batch pos], 0 everywhere by default (from the tokenizer for text).
            one_zero_attention_mask: 1 or True at real positions [batch pos]; by default all (from the tokenizer for text). With
                padding in front, as in Hugging Face, a model with a plain table of positions ("absolute" in the README) counts
                it, so that a text's numbers depend on its batch; and heads that read [CLS] read the first position.
            input_ids, attention_mask: Hugging Face's names of ``input`` and ``one_zero_attention_mask``.
            inputs_embeds: vectors [batch pos d_embed] in place of the rows of the word-embedding table, before token types,
                positions and the norm, as in Hugging Face; ``embed.hook_embed`` fires on them, and gradients flow back to
                them. Token dropout (ESM) does not act on them, and positions count from the first, padding included.
            labels: for "loss": class ids in the shape of the head's logits without the last axis (question answering: first
                and last position [batch 2]; replaced tokens: [batch pos]); -100 is left out of the mean.
            logits_at: unembed only these positions: an int, a list of ints, or a tensor [k] or [batch k].
            start_at_layer: the layer whose input ``input`` is.
            stop_at_layer: return the stream that enters this layer.

        Returns:
            As ``return_type`` says; logits are [batch pos d_vocab], [batch pos label], [batch label], [batch 2],
            for question answering [batch pos 2] (start, end), or for replaced tokens [batch pos].

        Raises:
            InputError, TaskError, TokenizerMissingError, HookUnreachableError: before anything runs.
        """
        plan = self.plan(return_type, start_at_layer, stop_at_layer)
        self.check_options(plan, labels, logits_at)
        named = {"input_ids": input_ids, "attention_mask": attention_mask, "inputs_embeds": inputs_embeds}
        given = text_arguments(input, token_type_ids, one_zero_attention_mask, **named)
        batch = self.prepare(**given.for_embeddings()) if plan.embeds else self._of_stream(given)
        chosen = None if logits_at is None else check_positions(logits_at, batch.sequence)

        def first_stream() -> Resid:
            return self._embedded(batch) if plan.embeds else self.check_stream(given.input)

        return self.run(plan, batch, first_stream, labels, chosen)

    def encoder_output(
        self,
        tokens: Any,
        token_type_ids: Any = None,
        one_zero_attention_mask: Any = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The final residual stream: ``forward`` with ``return_type="hidden"``."""
        return self(tokens, "hidden", token_type_ids, one_zero_attention_mask)

    def next_sentence(
        self,
        input: Any = None,
        return_type: ReturnType | None = "logits",
        token_type_ids: Any = None,
        one_zero_attention_mask: Any = None,
        *,
        input_ids: Any = None,
        attention_mask: Any = None,
        labels: Any = None,
    ) -> Any:
        """Next-sentence prediction: logits [batch 2] (it follows; it does not), verdicts, or the loss.

        Raises:
            TaskError: if the checkpoint has no next-sentence head.
            InputError: for single texts, or tokens without token types.
        """
        named = {"input_ids": input_ids, "attention_mask": attention_mask}
        given = text_arguments(input, token_type_ids, one_zero_attention_mask, **named)
        check_pairs(given.input, given.types)
        with self.use_task("next_sentence"):
            return self(given.input, return_type, given.types, given.mask, labels=labels)

    def contacts(
        self, input: Any, token_type_ids: Any = None, one_zero_attention_mask: Any = None
    ) -> Float[Tensor, "batch residue residue"]:
        """The probability that two residues of a protein touch, from the attention of all layers (Rao et al. 2021).

        Residue i is position i + 1: the token in front and the last position of the batch are left out. In a padded batch, a
        pair with padding, or with the end of a shorter sequence, has a number that means nothing (``analysis.contacts`` has
        NaN there); it changes no other pair. Gradients flow back through the patterns.

        Args:
            input, token_type_ids, one_zero_attention_mask: as for ``forward``.

        Raises:
            TaskError: for a model without a contact head.
            InputError, TokenizerMissingError, HookUnreachableError: before anything runs.
        """
        head = self.require_contact_head()
        batch = self.prepare(input, token_type_ids, one_zero_attention_mask)
        patterns: list[Tensor] = []
        names = [str(block.attn.hook_pattern.name) for block in self._layers()]
        reading = self.hooks([(names, lambda pattern, hook: patterns.append(pattern))], nested=False)
        with reading, self.run_state.call():
            self.run(self.plan(None, after=("contact_head",)), batch, lambda: self._embedded(batch))
        return head(patterns, batch.tokens, batch.sequence)

    def _embedded(self, batch: TextBatch) -> Resid:
        stream = self.embed(batch.token_ids, batch.token_type_ids, batch.sequence, batch.vectors)
        return self.hook_full_embed(stream)

    def _of_stream(self, arguments: TextArguments) -> TextBatch:
        of_embeddings = {"token_type_ids": arguments.types, "inputs_embeds": arguments.vectors}
        for name, value in of_embeddings.items():
            if value is not None:
                raise InputError(f"{name} belong to the embeddings, which start_at_layer skips")
        batch, pos, _ = self.check_stream(arguments.input).shape
        sequence = self._sequence(check_mask(arguments.mask, (batch, pos)), batch, pos)
        return TextBatch(None, None, sequence, False, None, None, self.tokenizer, TextFit.of(self.cfg.encoder))

    @property
    def max_tokens(self) -> int:
        """The longest text in tokens, special ones included. Longer ones are an error; sentence encoders cut them, with a
        warning in the log.
        """
        if self.cfg.sentence is None:
            return self.cfg.n_ctx
        own = self.cfg.sentence.max_tokens
        limit = self.tokenizer.model_max_length if own is None and self.tokenizer is not None else own
        return self.cfg.n_ctx if limit is None else min(limit, self.cfg.n_ctx)

    def _prompted(self, text: Any) -> Any:
        """A single text with the prompt in front; a pair as it is."""
        return f"{self.prompt}{text}" if isinstance(text, str) else text

    def _sequence(self, mask: Tensor | None, batch: int, pos: int) -> Sequence:
        return Sequence(batch, pos, None if mask is None else mask.to(self.cfg.device))

    # Weights

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """The word-piece embedding: the parameter itself. Where embeddings are factorised, through the projection to the
        stream, a differentiable copy; the parameter is ``embed.embed.W_E``.
        """
        return self.embed.to_stream(self.embed.embed.W_E)

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        """The position embedding, a live view of the rows that stand for positions; of factorised embeddings as ``W_E``.

        Raises:
            WeightsError: for a model whose positions enter in attention only.
        """
        if self.embed.pos_embed is None:
            raise WeightsError(
                f"{self.cfg.model_name} has no table of positions: they are {self.cfg.positional_embedding_type}, in attention"
            )
        return self.embed.to_stream(self.embed.pos_embed.W_pos)

    @property
    def W_token_type(self) -> Float[Tensor, "token_type d_model"]:
        """The token-type embedding: the parameter itself; of factorised embeddings as ``W_E``.

        Raises:
            WeightsError: for a model without token types.
        """
        if self.embed.token_type_embed is None:
            raise WeightsError(f"{self.cfg.model_name} has no token types")
        return self.embed.to_stream(self.embed.token_type_embed.W_token_type)

    @property
    def W_E_pos(self) -> Float[Tensor, "d_vocab_plus_n_ctx d_model"]:
        """``W_E`` over ``W_pos``, a differentiable copy. It is the whole input basis only up to ``W_token_type``: every
        position also gets a token-type vector, row 0 of it for single texts.
        """
        return torch.cat([self.W_E, self.W_pos])

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """The unembedding, a live view; tied to ``W_E`` in most checkpoints, so that editing one edits both. Where embeddings
        are factorised, through the dense layer of the head in front of it (its activation function and norm left out), a
        differentiable copy; the parameter is then ``unembed.W_U``.

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
        return self._masked_lm().unembed.b_U

    def _masked_lm(self) -> MaskedLMHead:
        if "masked_lm" not in self.heads:
            raise TaskError(f"{self.cfg.model_name} has no masked-LM head, so no unembedding; its heads: {self.head_names()}")
        return cast(MaskedLMHead, self.heads["masked_lm"])
