"""HookedAudioEncoder: a HuBERT-style speech encoder with a hook point on every activation that matters."""

from dataclasses import replace
from numbers import Real
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from encoderlens import conversion, loading
from encoderlens.audio import AudioBatch, SpeechAlignment, Timing
from encoderlens.audio.forced_alignment import align_transcript
from encoderlens.audio.processor import (
    Processing,
    default_processor,
    processing_of,
    require_ctc_tokenizer,
    tokenizer_in,
)
from encoderlens.audio.reader import AudioReader, are_frames, audio_arguments
from encoderlens.audio.transcripts import normalised, target_of
from encoderlens.batch import Batch
from encoderlens.components.heads import CTCHead
from encoderlens.config import AnyConfig, EncoderConfig, FrontendPart, ModelConfig, fields_of
from encoderlens.config_from_dict import audio_request_from_dict, request_of
from encoderlens.errors import InputError, TaskError
from encoderlens.given import Whole, as_indices, is_whole
from encoderlens.hub import Hub
from encoderlens.linearised import require_eval
from encoderlens.pretrained_encoder import PretrainedEncoder, dtype_of, place_of
from encoderlens.sequence import check_positions
from encoderlens.shapes import Resid
from encoderlens.switches import check_switches

MOST_FRAMES = 10**8  # what is beyond is no number of frames of a clip
LONGEST = 1e9  # in seconds


class HookedAudioEncoder(PretrainedEncoder):
    """A HuBERT-style encoder, randomly initialised from a configuration; ``from_pretrained`` loads a checkpoint.

    Args:
        cfg: an EncoderConfig; another model's ``cfg``; or TransformerLens' fields (see ``audio_request_from_dict``) in a
            dictionary, a HookedTransformerConfig or any object with ``to_dict()``. Their ``device``, ``dtype``, ``seed`` and
            ``use_*`` fields are honoured.
        move_to_device: False keeps the model on the CPU, whatever device is asked for.
        model_name: what the model is called.
        processor: a Hugging Face processor or feature extractor; by default the one that the checkpoints of this family have.
        device, dtype: of the parameters; by default the GPU if there is one, and float32.
        init_weights: False leaves the parameters unfilled.

    Raises:
        ConfigError: for a configuration that is incomplete, or asks for something that is not implemented.
    """

    FRONT: ClassVar[tuple[str, ...]] = ("frontend", "projection", "embed", "hook_full_embed")
    LAST_HIDDEN_IS_NORMED: ClassVar[bool] = False

    def __init__(
        self,
        cfg: AnyConfig,
        move_to_device: bool = True,
        model_name: str | None = None,
        *,
        processor: Any = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        init_weights: bool = True,
    ) -> None:
        request = request_of(cfg, audio_request_from_dict)
        loading.check_modality(request.encoder.modality, "audio", request.encoder.model_name)
        if model_name is not None:
            request = replace(request, encoder=replace(request.encoder, model_name=model_name))
        super().__init__(request, move_to_device, device, dtype, init_weights)
        self.processor = default_processor(self.frontend_part) if processor is None else processor

    # Loading and saving

    @classmethod
    def from_pretrained(
        cls,
        model_name: str | Path | None = None,
        checkpoint_index: int | None = None,
        checkpoint_value: int | None = None,
        hf_model: Any = None,
        device: torch.device | str | None = None,
        move_to_device: bool = True,
        dtype: torch.dtype = torch.float32,
        *,
        processor: Any = None,
        task: str | None = None,
        revision: str | None = None,
        torch_dtype: torch.dtype | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **switches: Any,
    ) -> "HookedAudioEncoder":
        """Load a checkpoint, in eval mode, with every known head whose weights it holds.

        Args:
            model_name: a folder or a hub id (through the hub's cache; works offline once it is filled). May be left out with
                ``hf_model``.
            checkpoint_index, checkpoint_value: not for encoders; use ``revision``.
            hf_model: a Hugging Face model of a supported class: its weights are copied.
            device: by default the GPU if there is one.
            move_to_device: False keeps the model on the CPU.
            dtype: of the parameters, whatever the checkpoint's; ``torch_dtype`` is another name for it.
            processor: used instead of the checkpoint's own, or of the family's default where it has none.
            task: the head that ``return_type="logits"`` runs; "encoder" loads just the encoder, also of a class that is not
                supported, and lists what it left in ``load_report.left``.
            revision: branch, tag or commit on the hub.
            token, cache_dir, local_files_only: of the hub client, for weights and processor: an access token, another folder
                for the cache, and to look in the cache only.
            switches: those of TransformerLens that process weights (``fold_ln``, …), all of them off.

        Raises:
            CheckpointNotFoundError, UnknownArchitectureError, ConfigError, WeightsError, TaskError: see ``errors``.
            TypeError: for an argument that is unknown.
        """
        check_switches(cls.from_pretrained, switches)
        hub = Hub(revision, token, cache_dir, local_files_only)
        hub.check()
        place = place_of(device, move_to_device)
        wanted = dtype_of(torch_dtype, dtype)
        checkpoint = cls._open(model_name, checkpoint_index, checkpoint_value, hf_model, hub, task)
        loading.check_modality(checkpoint.family.modality, "audio", checkpoint.where)
        encoder = conversion.read_config(checkpoint)
        if processor is None:
            name = None if model_name is None else str(model_name)
            default = default_processor(cast(FrontendPart, encoder.frontend))
            processor = loading.processor_of(checkpoint, name, hub, default)
        model = cls(encoder, processor=processor, device=place, dtype=wanted, init_weights=False)
        conversion.fill(model, checkpoint)
        return model.eval()

    @classmethod
    def from_transformer_lens_state_dict(
        cls, state_dict: dict[str, Tensor], cfg: AnyConfig, **kwargs: Any
    ) -> "HookedAudioEncoder":
        """A model from the ``state_dict()`` of a TransformerLens HookedAudioEncoder, in eval mode.

        Args:
            state_dict: all of its tensors. Of the Hugging Face model inside it, the layers are ignored: it did not run them.
            cfg: as for the class; TransformerLens' fields mean the front end of HuBERT-base.
            kwargs: as for the class.

        Raises:
            WeightsError: for tensors that are missing, left over or misshapen.
        """
        state_dict = conversion.lens_state(state_dict)
        if not isinstance(cfg, EncoderConfig | ModelConfig):
            cfg = fields_of(cfg) | {"mask_embed": "hubert_model.masked_spec_embed" in state_dict}
        model = cls(cfg, init_weights=False, **kwargs)
        conversion.fill_from_transformer_lens(model, state_dict)
        return model.eval()

    @property
    def processor(self) -> Any:
        """The Hugging Face processor or feature extractor: it says the sampling rate, and how clips are normalised and padded.

        Another one can be assigned.

        Raises:
            ConfigError: for a processor of another kind.
        """
        return self._processor

    @processor.setter
    def processor(self, processor: Any) -> None:
        processing_of(processor)
        self._processor = processor

    @property
    def processing(self) -> Processing:
        """What the processor, as it is now, does to waveforms."""
        return processing_of(self.processor)

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer, of what a CTC head predicts; None for a feature extractor."""
        return tokenizer_in(self.processor)

    @property
    def hubert_model(self) -> Any:
        """A Hugging Face HubertModel or Wav2Vec2Model of which every parameter is this model's own, made at each access.

        Moving or casting one of the two moves the other. For a vector for masked frames that this model lacks, zeros stand in.

        Raises:
            WeightsError: for parametrised or pruned weights, which are no parameters; ``to_hf`` makes a copy.
        """
        return conversion.hf_base_model(self)

    # Time

    @property
    def timing(self) -> Timing:
        """Where frames lie in time."""
        return self._reader.timing

    @property
    def _reader(self) -> AudioReader:
        cfg = self.cfg
        return AudioReader(self.processing, self.frontend_part, cfg.d_model, cfg.device, cfg.dtype, self.tokenizer)

    @property
    def frontend_part(self) -> Any:
        """The configuration of the front end."""
        return self.cfg.encoder.frontend

    def frame_times(self, n_frames: Any) -> Float[Tensor, " frame"]:
        """The middle of each of so many frames in seconds, in float64: frame i sees the samples from ``i * stride`` on, as many
        as the receptive field has (HuBERT: 12.5 ms, and 20 ms more for each frame).

        Raises:
            InputError: for anything but a whole number.
        """
        if not is_whole(n_frames) or not 0 <= n_frames <= MOST_FRAMES:
            raise InputError(f"n_frames={n_frames!r}; it is a number of frames")
        return self.timing.times(int(n_frames))

    def frames_of(self, start_s: Any, end_s: Any) -> slice:
        """The frames whose middle lies in [start_s, end_s), in seconds, as a slice of the position axis.

        Raises:
            InputError: for a span that ends before it starts, or in which no frame has its middle.
        """
        for name, seconds in (("start_s", start_s), ("end_s", end_s)):
            number = isinstance(seconds, Real) and not isinstance(seconds, bool)
            if not number or not -LONGEST <= cast(float, seconds) <= LONGEST:
                raise InputError(f"{name}={seconds!r}; it is a number of seconds")
        frames = self.timing.frames(float(start_s), float(end_s))
        if not frames:
            raise InputError(
                f"no frame has its middle in [{start_s}, {end_s}) s; they are {self.timing.stride / self.timing.rate:g} s apart"
            )
        return slice(frames.start, frames.stop)

    def frame_lengths(self, n_samples: Any) -> Int[Tensor, " batch"]:
        """How many frames clips of so many samples have, at the model's rate.

        Args:
            n_samples: an int, a list of ints or an integer tensor [batch].

        Raises:
            InputError: for anything else.
        """
        wrong = f"n_samples={short_repr(n_samples)}; give whole numbers of samples"
        counts = torch.atleast_1d(as_indices(n_samples, "n_samples", wrong))
        if counts.ndim != 1 or bool((counts < 0).any()):
            raise InputError(wrong)
        return torch.tensor([self.frontend_part.n_frames(count) for count in counts.tolist()], dtype=torch.int64)

    def position_times(self, n_positions: int) -> Float[Tensor, " pos"]:
        return self.frame_times(n_positions)

    def axis_sizes(self, batch: Batch) -> dict[str, int]:
        return super().axis_sizes(batch) | {"channel": self.frontend_part.channels[-1]}

    def own_axis_sizes(self, name: str, batch: Batch) -> dict[str, int]:
        if not name.startswith("frontend.") or not isinstance(batch, AudioBatch) or batch.waves is None:
            return {}
        n_convs = int(name.split(".")[1]) + 1
        n_frames = self.frontend_part.frames_after(n_convs, batch.waves.shape[1])
        return {"frame": n_frames, "channel": self.frontend_part.channels[n_convs - 1]}

    # Running

    def prepare(
        self,
        inputs: Any = None,
        one_zero_attention_mask: Any = None,
        sampling_rate: Any = ...,
        move_to_device: bool = True,
        *,
        input_values: Any = None,
        attention_mask: Any = None,
        padding: Any = "batch",
        mask_time_indices: Any = None,
    ) -> AudioBatch:
        """One checked batch on the model's device, which ``forward`` takes in place of these arguments.

        Raises:
            InputError, GradientError: for what the model cannot read, or what another model prepared.
        """
        named = {"input_values": input_values, "attention_mask": attention_mask}
        given = audio_arguments(inputs, one_zero_attention_mask, **named)
        if isinstance(given.inputs, AudioBatch):
            masked = given.mask is not None or mask_time_indices is not None
            if masked or sampling_rate is not ... or padding != "batch":
                raise InputError("a prepared batch has its rate, its padding and its masks; give these to prepare()")
            batch = self._reader.prepared(given.inputs)
        else:
            batch = self._reader.batch(given.inputs, given.mask, sampling_rate, move_to_device, padding, mask_time_indices)
        self.embed.check_masked(batch.masked)
        return batch

    def forward(
        self,
        inputs: Any = None,
        one_zero_attention_mask: Any = None,
        sampling_rate: Any = ...,
        move_to_device: bool = True,
        *,
        input_values: Any = None,
        attention_mask: Any = None,
        return_type: Any = "hidden",
        use_proj: bool = False,
        labels: Any = None,
        padding: Any = "batch",
        logits_at: Any = None,
        start_at_layer: Whole | None = None,
        stop_at_layer: Whole | None = None,
        mask_time_indices: Any = None,
    ) -> Any:
        """Run the model.

        Args:
            inputs: one waveform [sample]; the path of an audio file; a list of these, stereo ones as [channel sample] or
                [sample channel]; clips of one length [batch sample]; projected frames [batch frame d_model], alone or as
                (frames, mask); what ``prepare`` made of any of these; with ``start_at_layer``, a residual stream. Tensors or
                arrays, of which int16 and int32 are scaled; a waveform can be a list of floats. Also what a Hugging Face
                feature extractor returns, or a dictionary with its names.
            one_zero_attention_mask: 1 or True at real frames [batch frame], or at real samples [batch sample]; by default as
                the processor and ``padding`` say.
            sampling_rate: of the waveforms, in Hz; they are resampled to the model's. Leave it out for files, which say their
                own. An array cannot say it: always give it for arrays, which are taken to have 16000 without it.
            move_to_device: False refuses a tensor on another device than the model's.
            input_values: what a feature extractor made of clips [batch sample], read as it is: it is not normalised again,
                and only a mask says what is padding, as in Hugging Face.
            attention_mask: Hugging Face's name of ``one_zero_attention_mask``.
            return_type: "hidden", the final stream [batch frame d_model]; "logits" of the task's head (CTC [batch frame
                d_vocab], classification [batch label]); "predictions" (CTC: the greedy transcript; classification: the label;
                bare for one bare waveform, otherwise a list); "loss" against ``labels``; None, to run no head and return
                nothing.
            use_proj: another name for ``return_type="logits"``.
            labels: for "loss": symbol ids [batch target], -100 after the end of each, or class ids [batch].
            padding: "batch": as Hugging Face computes a padded batch under the processor's own policy, in which a group norm
                sees the padding; "independent": each clip gets what it would get alone.
            logits_at: the logits of these frames only: an int, a list of ints, or a tensor [k] or [batch k].
            start_at_layer: the layer whose input ``inputs`` is.
            stop_at_layer: return the stream that enters this layer.
            mask_time_indices: True or 1 at frames [batch frame] in whose place the model's mask vector shall stand.

        Raises:
            InputError, GradientError, TaskError, TokenizerMissingError, HookUnreachableError: before anything runs.
        """
        if use_proj:
            if return_type not in ("hidden", "logits"):
                raise InputError(f"use_proj=True is return_type='logits', and return_type={return_type!r} is given too")
            return_type = "logits"
        named = {"input_values": input_values, "attention_mask": attention_mask}
        given = audio_arguments(inputs, one_zero_attention_mask, **named)
        front = self.FRONT[2:] if are_frames(given.inputs) else self.FRONT
        plan = self.plan(return_type, start_at_layer, stop_at_layer, front)
        self.check_options(plan, labels, logits_at)
        if plan.embeds:
            batch = self.prepare(
                given.inputs,
                given.mask,
                sampling_rate,
                move_to_device,
                padding=padding,
                mask_time_indices=mask_time_indices,
            )
        else:
            if mask_time_indices is not None:
                raise InputError("mask_time_indices belong to the embeddings, which start_at_layer skips")
            batch = self._reader.of_stream(self.check_stream(given.inputs), given.mask)
        chosen = None if logits_at is None else check_positions(logits_at, batch.sequence)

        def first_stream() -> Resid:
            if not plan.embeds:
                return self.check_stream(given.inputs)
            frames = self._frames(batch) if batch.frames is None else batch.frames.clone()  # a cache keeps what is its own
            return self.hook_full_embed(self.embed(frames, batch.masked, batch.sequence))

        return self.run(plan, batch, first_stream, labels, chosen)

    def to_frames(
        self, raw_inputs: Any, sampling_rate: Any = ..., move_to_device: bool = True, *, padding: Any = "batch"
    ) -> tuple[Float[Tensor, "batch frame d_model"], Int[Tensor, "batch frame"]]:
        """Projected frames of waveforms, and which of them are real: 1 or 0, and 1 everywhere where padding is read as silence
        (``frame_lengths`` gives the real lengths). ``forward`` takes both as a tuple, and ``padding`` again.

        Raises:
            InputError, GradientError: as for ``forward``.
            HookUnreachableError: if hooks name points that it does not compute.
        """
        if are_frames(raw_inputs):
            raise InputError("to_frames makes frames of waveforms, and these are frames already")
        with self.run_state.call():
            self.check_reachable(
                self.awaited(),
                lambda name: name.split(".")[0] in self.FRONT[:2],
                "to_frames runs the front end and the projection",
            )
            batch = self.prepare(raw_inputs, None, sampling_rate, move_to_device, padding=padding)
            with self.run_state.run(batch.sequence, None):
                return self._frames(batch), batch.sequence.real.long().to(batch.device)

    def encoder_output(self, frames: Any, one_zero_attention_mask: Any = None) -> Float[Tensor, "batch frame d_model"]:
        """The final stream of projected frames: ``forward`` with ``return_type="hidden"``."""
        return self(frames, one_zero_attention_mask)

    def align(self, waveform: Any, transcript: str, sampling_rate: Any = ..., *, normalise: bool = False) -> SpeechAlignment:
        """Where the characters and words of a transcript lie in a clip, by the best path of the CTC head.

        Args:
            waveform: one clip, or the path of an audio file.
            transcript: what is said in it, in symbols of the tokenizer: words between spaces; or of a tokenizer of phonemes,
                these between spaces, and words between its delimiter ("|").
            sampling_rate: of the waveform, in Hz; as for ``forward``.
            normalise: put the transcript in the case of the tokenizer's characters, and leave out punctuation that it lacks.

        Raises:
            TaskError: for a model without a CTC head.
            TokenizerMissingError: without a tokenizer.
            AnalysisError: in training mode.
            InputError: for several clips, characters that the tokenizer lacks, or a clip too short for the transcript.
        """
        if "ctc" not in self.heads:
            raise TaskError(f"align needs a CTC head; the heads of {self.cfg.model_name}: {self.head_names()}")
        require_eval(self)
        head = cast(CTCHead, self.heads["ctc"])
        tokenizer = require_ctc_tokenizer(self.tokenizer, head.blank)
        said = normalised(tokenizer, transcript) if normalise and isinstance(transcript, str) else transcript
        target = target_of(tokenizer, said, head.n_outputs)
        batch = self.prepare(waveform, None, sampling_rate)
        if batch.sequence.batch != 1 or batch.waves is None:
            raise InputError("align takes one waveform at a time")
        n_frames = batch.sequence.lengths[0]
        if not bool(batch.sequence.real[0, :n_frames].all()):
            raise InputError("align takes a clip whose padding, if any, stands at its end")
        with torch.no_grad(), self.use_task("ctc"):
            logits = self(batch, return_type="logits")[0, :n_frames]
        return align_transcript(logits.double().log_softmax(-1).cpu().numpy(), target, head.blank, self.timing)

    def _frames(self, batch: AudioBatch) -> Float[Tensor, "batch frame d_model"]:
        return self.projection(self.frontend(batch.waves, batch.samples))
