"""Small models for additive analyses, and replays that say what their rows must be.

A replay runs a model with hooks that put back values of an earlier run: scales, patterns, gains, or whole writes. What is not
put back is then linear, and "take one write out and run again" is what a row claims to be. Nothing here knows of
``encoderlens.linearised``.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from encoderlens import HookedAudioEncoder, HookedEncoder
from encoderlens.components.heads.head import TokenOutputs
from encoderlens.components.norm import ScaledNorm
from encoderlens.config import (
    AbsolutePositionsPart,
    AttentionPart,
    EmbeddingPart,
    EncoderConfig,
    GatedMLPPart,
    LayerNormPart,
    MaskedLMPart,
    MLPPart,
    NextSentencePart,
    Part,
    PoolerPart,
    PostLNPart,
    PreLNPart,
    QuestionAnsweringPart,
    SentenceEmbeddingPart,
    SequenceClassificationPart,
    TokenClassificationPart,
)
from tests.speech import ALL_LAYOUTS, AMIABLE, CLUBS, DISPOSED, RATE, speech, tiny_speech
from tests.tiny import SPEECH, tiny_batch

BLOCKS = {"post": PostLNPart, "pre": PreLNPart}
MLPS = {"plain": MLPPart, "gated": GatedMLPPart}
TASKS = ("masked_lm", "next_sentence", "sequence_classification", "token_classification", "question_answering")
LABELS = ("no", "yes", "maybe", "often", "never", "always")
SIZES = {"d_model": 14, "n_layers": 2, "n_heads": 4, "d_head": 5, "d_mlp": 9, "d_vocab": 41, "n_ctx": 13}

AUDIO_TASKS = {"ctc": "HubertForCTC", "sequence_classification": "HubertForSequenceClassification"}

POSITIONS = torch.tensor([2, 5, 1])  # real ones of the three sequences of additive_batch, and of the three clips of audio_batch
TARGETS = torch.tensor([17, 3, 40])


def additive_model(
    block: str = "post",
    mlp: str = "plain",
    task: str = "masked_lm",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    act_fn: str = "gelu",
    head_act_fn: str = "gelu",
    parts: Mapping[str, Part] | None = None,
    **sizes: int,
) -> HookedEncoder:
    """A model in eval mode with trained-like random weights, the same in every dtype.

    Args:
        block: "post" or "pre".
        mlp: "plain" or "gated".
        task: the task it is set to. It has every other head too, but only one of the two kinds of classifier.
        act_fn, head_act_fn: of the MLPs, and of the masked-LM head.
        parts: of the configuration, instead of BERT's.
        sizes: instead of ``SIZES``.
    """
    size = SIZES | sizes
    per_token = task == "token_classification"
    cfg = EncoderConfig(
        family="bert",
        original_architecture="BertForPreTraining",
        d_model=size["d_model"],
        n_layers=size["n_layers"],
        embed=EmbeddingPart(size["d_vocab"]),
        positions=AbsolutePositionsPart(size["n_ctx"]),
        attention=AttentionPart(size["n_heads"], size["d_head"]),
        norm=LayerNormPart(),
        mlp=MLPS[mlp](size["d_mlp"], act_fn),
        block=BLOCKS[block](),
        pooler=PoolerPart(),
        heads=(
            MaskedLMPart(head_act_fn),
            NextSentencePart(),
            TokenClassificationPart(LABELS) if per_token else SequenceClassificationPart(LABELS),
            QuestionAnsweringPart(),
        ),
    )
    model = _trained_like(replace(cfg, **(parts or {})), dtype, seed)
    model.task = task
    return model


def sentence_model(
    part: SentenceEmbeddingPart, block: str = "post", mlp: str = "plain", dtype: torch.dtype = torch.float32, **sizes: int
) -> HookedEncoder:
    """A sentence encoder, without heads, that is otherwise an ``additive_model``."""
    cfg = additive_model(block, mlp, **sizes).cfg.encoder
    return _trained_like(replace(cfg, heads=(), pooler=None, sentence=part), dtype, seed=0)


def _trained_like(cfg: EncoderConfig, dtype: torch.dtype, seed: int) -> HookedEncoder:
    model = HookedEncoder(cfg, device="cpu", dtype=dtype, init_weights=False).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * 0.25)
            else:
                parameter.copy_(0.3 * noise + (1 if name.endswith(".w") else 0))
    return model


def additive_batch(seed: int = 0) -> dict[str, Tensor]:
    """Tokens, types and mask [3 11]; two sequences are padded."""
    return tiny_batch(vocab=SIZES["d_vocab"], seed=seed)


def audio_model(
    layout: str, task: str = "ctc", dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any
) -> HookedAudioEncoder:
    """A tiny speech model of one of the layouts, the same in every dtype, with a frame each 20 ms."""
    sizes = {"num_hidden_layers": 2, "intermediate_size": 11, "conv_kernel": (10, 8, 5), "conv_stride": (10, 8, 4)}
    if len(ALL_LAYOUTS[layout].get("conv_dim", SPEECH["conv_dim"])) == 2:
        sizes |= {"conv_kernel": (24, 18), "conv_stride": (20, 16)}
    return tiny_speech(AUDIO_TASKS[task], layout, seed, dtype, **(sizes | overrides))


def audio_clips() -> list[Tensor]:
    """Three clips of speech, of 0.3, 0.21 and 0.15 s."""
    cut = ((DISPOSED, 0.8, 0.3), (AMIABLE, 1.2, 0.21), (CLUBS, 0.4, 0.15))
    return [torch.tensor(speech(path)[int(start * RATE) :][: int(length * RATE)]) for path, start, length in cut]


def audio_batch() -> dict[str, Tensor]:
    """Waves and the mask of their samples [3 4800]; two clips are padded."""
    clips = audio_clips()
    longest = max(map(len, clips))
    mask = torch.stack([torch.arange(longest) < len(clip) for clip in clips]).long()
    return {"waves": torch.stack([torch.nn.functional.pad(clip, (0, longest - len(clip))) for clip in clips]), "mask": mask}


AnyModel = HookedEncoder | HookedAudioEncoder


def arguments(batch: dict[str, Tensor]) -> dict[str, Any]:
    """A batch as a model's forward takes it; clips each get what they would get alone."""
    mask = {"one_zero_attention_mask": batch["mask"]}
    if "waves" in batch:
        return {"inputs": batch["waves"], "padding": "independent", **mask}
    return {"input": batch["tokens"], "token_type_ids": batch["types"], **mask}


def run(model: AnyModel, batch: dict[str, Tensor], return_type: str | None = "logits", **options: Any) -> Any:
    return model(**arguments(batch), return_type=return_type, **options)


def targets_of(model: AnyModel) -> Tensor:
    """The logit of each sequence whose score it is."""
    head = model.heads[str(model.task)]
    return TARGETS % (head.n_outputs if isinstance(head, TokenOutputs) else len(head.labels))


def score(model: AnyModel, batch: dict[str, Tensor]) -> Tensor:
    """One logit a sequence [batch], by a plain run: at one position, for heads that have logits for each.

    Args:
        batch: the three sequences of ``additive_batch`` or ``audio_batch``, once or several times.
    """
    logits, rows = run(model, batch), torch.arange(len(batch["mask"]))
    at = logits[rows, POSITIONS.repeat(len(rows) // 3)] if model.heads[model.task].per_position else logits
    at = at.reshape(len(rows), -1)  # a head may have one logit for each position
    return at[rows, targets_of(model).repeat(len(rows) // 3)]


# Replays


def unsplit(name: str) -> bool:
    return not name.endswith(("hook_q_input", "hook_k_input", "hook_v_input"))


def clean_run(model: AnyModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The activations of a run whose attention inputs are not split, by name, and ``"pooler.dense"``: what the pooler's
    activation function gets.
    """
    clean: dict[str, Tensor] = {}
    returns = "embedding" if model.task is None else "logits"
    with torch.no_grad(), _noting_pooler(model, clean):
        _, cache = model.run_with_cache(
            **arguments(batch), return_type=returns, names_filter=unsplit, return_cache_object=False
        )
    return clean | cache


@contextmanager
def replay(
    model: AnyModel, values: dict[str, Tensor], points: Collection[str] = (), gains: Collection[tuple[str, str]] = ()
) -> Iterator[None]:
    """Context in which runs have these values at some points, and these activation functions are multiplications.

    Args:
        values: of ``clean_run``, or changed ones.
        points: hook points that always give their value.
        gains: pairs of names, before and after an activation function; its gain is the quotient of their values.
    """
    now: dict[str, Tensor] = {}
    before = {after: name for name, after in gains}

    def note(tensor: Tensor, hook: Any) -> None:
        now[hook.name] = tensor

    def put_back(tensor: Tensor, hook: Any) -> Tensor:
        return values[hook.name]

    def multiply(tensor: Tensor, hook: Any) -> Tensor:
        source = before[hook.name]
        return now[source] * (values[hook.name] / values[source])

    noted = [name for name, _ in gains if name != "pooler.dense"]
    pairs = [(points, put_back), (noted, note), (list(before), multiply)]
    with ExitStack() as stack:
        stack.enter_context(_noting_pooler(model, now))
        stack.enter_context(model.hooks([(names, hook) for names, hook in pairs if names]))
        yield


@contextmanager
def _noting_pooler(model: AnyModel, into: dict[str, Tensor]) -> Iterator[None]:
    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        into["pooler.dense"] = output

    handles = [model.pooler.dense.register_forward_hook(note)] if hasattr(model, "pooler") else []
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def scale_points(clean: dict[str, Tensor]) -> list[str]:
    return [name for name in clean if name.endswith("hook_scale")]


def pattern_points(clean: dict[str, Tensor]) -> list[str]:
    return [name for name in clean if name.endswith("hook_pattern")]


def head_gains(clean: dict[str, Tensor]) -> list[tuple[str, str]]:
    pairs = [(f"{name}.hook_pre", f"{name}.hook_post") for name in ("mlm_head", "pre_classifier")]
    pairs.append(("pooler.dense", "pooler.hook_pooler_out"))
    return [(before, after) for before, after in pairs if after in clean]


def all_gains(model: AnyModel, clean: dict[str, Tensor]) -> list[tuple[str, str]]:
    pre = "hook_pre_linear" if "blocks.0.mlp.hook_pre_linear" in clean else "hook_pre"
    layers = range(model.cfg.n_layers)
    return [(f"blocks.{layer}.mlp.{pre}", f"blocks.{layer}.mlp.hook_post") for layer in layers] + head_gains(clean)


# The direct path


def direct_losses(
    model: AnyModel, batch: dict[str, Tensor], score: Any = score, parts: Collection[str] = ("H", "N")
) -> dict[str, Tensor]:
    """By row label, what the score loses when one write, or one bias, is taken out and nothing but the direct path reacts.

    Scales and the head's gains keep their values, and so does every other write.

    Args:
        score: a number a sequence, of a model and a batch; the batch is repeated, once for each write or bias that is taken
            out, and once more for none.
        parts: which writers are also taken apart.
    """
    clean = clean_run(model, batch)
    writes, biases = written(model, clean, parts), biases_on_the_path(model)
    labels, rows = [*writes, *biases], len(batch["mask"])
    values = repeated(clean, len(labels) + 1)
    copies = {label: slice(index * rows, (index + 1) * rows) for index, label in enumerate(labels)}
    for label, (name, vectors) in writes.items():
        values[name][copies[label]] -= vectors
    points = [*scale_points(clean), *stream_writes(model)]
    without_bias = [taken_out(module, bias, copies[label]) for label, (module, bias) in biases.items()]
    with torch.no_grad(), ExitStack() as stack:
        for context in (*without_bias, replay(model, values, points, head_gains(clean))):
            stack.enter_context(context)
        scores = score(model, repeated(batch, len(labels) + 1)).unflatten(0, (-1, rows))
    return dict(zip(labels, scores[-1] - scores[:-1], strict=True))


def repeated(tensors: dict[str, Tensor], times: int) -> dict[str, Tensor]:
    """Tensors whose batch axis is repeated."""
    return {name: tensor.repeat(times, *[1] * (tensor.ndim - 1)) for name, tensor in tensors.items()}


def stream_writes(model: AnyModel) -> list[str]:
    """The hook points of all that joins the stream."""
    layers = range(model.cfg.n_layers)
    embeddings = [f"embed.hook_{name}" for name in embeddings_of(model)]
    of_blocks = [f"blocks.{layer}.hook_{name}_out" for layer in layers for name in ("attn", "mlp", "conv")]
    return embeddings + [name for name in of_blocks if name in model.hook_dict]


def embeddings_of(model: AnyModel) -> list[str]:
    """The row labels of the summands of the embedding."""
    summands = ("embed", "pos_embed", "token_type_embed", "task_type_embed")
    return [name for name in summands if f"embed.hook_{name}" in model.hook_dict]


def written(model: AnyModel, clean: dict[str, Tensor], parts: Collection[str] = ("H", "N")) -> dict[str, tuple[str, Tensor]]:
    """By row label: the hook point where it joins the stream, and what is written there."""
    found = {label: (f"embed.hook_{label}", clean[f"embed.hook_{label}"]) for label in embeddings_of(model)}
    for layer, block in enumerate(model.blocks):
        attn, mlp = f"blocks.{layer}.hook_attn_out", f"blocks.{layer}.hook_mlp_out"
        z, post = clean[f"blocks.{layer}.attn.hook_z"], clean[f"blocks.{layer}.mlp.hook_post"]
        d_head = z.shape[-1]
        found[f"{layer}_attn_out"], found[f"{layer}_mlp_out"] = (attn, clean[attn]), (mlp, clean[mlp])
        for head in range(z.shape[-2] if "H" in parts else 0):
            weight = block.attn.o.weight[:, head * d_head : (head + 1) * d_head]
            found[f"L{layer}H{head}"] = (attn, z[:, :, head] @ weight.T)
        for neuron in range(post.shape[-1] if "N" in parts else 0):
            found[f"L{layer}N{neuron}"] = (mlp, post[:, :, neuron, None] * block.mlp.output.weight[:, neuron])
        biases = {f"{layer}_b_O": (attn, block.attn.o.bias), f"{layer}_b_out": (mlp, block.mlp.output.bias)}
        found |= {label: (point, bias) for label, (point, bias) in biases.items() if bias is not None}
        conv = f"blocks.{layer}.hook_conv_out"
        found |= {f"{layer}_conv_out": (conv, clean[conv])} if conv in model.hook_dict else {}
    return found


# By row label, the module that adds the bias: of blocks with norms on the stream, of encoders, and of heads' modules.
POST_LN_BIASES = {f"{{l}}_{norm}_b": f"blocks.{{l}}.{norm}" for norm in ("ln1", "ln2", "ln_conv")}
BIASES = {"embed_ln_b": "embed.ln", "embed_b": "embed.projection", "ln_final_b": "ln_final"}
HEAD_BIASES = {
    "mlm_head": {"head_b": "mlm_head.dense", "head_ln_b": "mlm_head.ln"},
    "unembed": {"b_U": "unembed"},
    "pooler": {"pooler_b": "pooler.dense"},
    "pre_classifier": {"pre_classifier_b": "pre_classifier.dense", "pre_classifier_ln_b": "pre_classifier.ln"},
    "projector": {"projector_b": "projector.dense"},
    "layer_sum": {},
}


def biases_on_the_path(model: AnyModel) -> dict[str, tuple[nn.Module, Tensor]]:
    """By row label: what norms and projections of the whole stream, and the head, add, each with the module that adds it."""
    paths = dict(BIASES)
    if model.ln_final is None:
        for layer in range(model.cfg.n_layers):
            paths |= {label.format(l=layer): path.format(l=layer) for label, path in POST_LN_BIASES.items()}
    if model.task is None:  # a sentence encoder
        paths |= {f"{name}_b": f"sentence.{name}.dense" for name in model.sentence if name.startswith("dense")}
        paths |= {f"{name}_b": f"sentence.{name}.ln" for name in model.sentence if name.startswith("layer_norm")}
    head = {} if model.task is None else model.heads[model.task].modules
    if "layer_sum" in head:  # which reads the streams in front of it
        del paths["ln_final_b"]
    for name in head:
        paths |= HEAD_BIASES.get(name, {"head_b": f"{name}.dense"})
    there = dict(model.named_modules())
    modules = {label: there[path] for label, path in paths.items() if path in there}
    biases = {label: module.b if isinstance(module, ScaledNorm) else module.bias for label, module in modules.items()}
    return {label: (modules[label], bias) for label, bias in biases.items() if bias is not None}


@contextmanager
def taken_out(module: nn.Module, bias: Tensor, rows: slice) -> Iterator[None]:
    """Context in which a module does not add its bias for these rows of a batch. The parameter, which other modules may share,
    stays as it is.
    """

    def subtract(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[rows] -= bias
        return output

    handle = module.register_forward_hook(subtract)
    try:
        yield
    finally:
        handle.remove()
