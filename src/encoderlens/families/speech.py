"""What speech encoders in the line of wav2vec 2.0 share: their table of weights and most of their configuration."""

from typing import Any

from encoderlens.config import (
    AttentionPart,
    AudioClassificationPart,
    AudioEmbedPart,
    BatchNormConvPositionsPart,
    ConvPositionsPart,
    CTCPart,
    EncoderConfig,
    FrontendPart,
    HeadPart,
    LayerNormPart,
    MLPPart,
    PostLNPart,
    PreLNPart,
    ProjectionPart,
    SpecAugment,
)
from encoderlens.errors import ConfigError
from encoderlens.families.family import ConfigReader, label_values
from encoderlens.weights import Row, linear, norm


def encoder_rows(base: str) -> tuple[Row, ...]:
    """The table of the encoder, under a base prefix. Which rows apply depends on the norms and biases that a model has."""
    conv, positions, layer = (
        f"{base}feature_extractor.conv_layers.{{c}}",
        f"{base}encoder.pos_conv_embed",
        f"{base}encoder.layers.{{l}}",
    )
    weight_norm = f"{positions}.conv.parametrizations.weight"
    return (
        *linear(f"{conv}.conv", "frontend.{c}"),
        *norm(f"{conv}.layer_norm", "frontend.{c}"),
        *norm(f"{base}feature_projection.layer_norm", "projection.ln"),
        *linear(f"{base}feature_projection.projection", "projection.dense"),
        Row(f"{positions}.conv.bias", "embed.pos_embed.bias"),
        Row(f"{positions}.conv.weight", "embed.pos_embed.weight"),
        Row(f"{weight_norm}.original0", "embed.pos_embed.g", legacy=(f"{positions}.conv.weight_g",)),
        Row(f"{weight_norm}.original1", "embed.pos_embed.v", legacy=(f"{positions}.conv.weight_v",)),
        *norm(f"{positions}.batch_norm", "embed.pos_embed"),
        Row(f"{positions}.batch_norm.running_mean", "embed.pos_embed.mean"),
        Row(f"{positions}.batch_norm.running_var", "embed.pos_embed.var"),
        *norm(f"{base}encoder.layer_norm", "embed.ln"),  # post-LN
        *norm(f"{base}encoder.layer_norm", "ln_final"),  # pre-LN
        *linear(f"{layer}.attention.q_proj", "blocks.{l}.attn.q"),
        *linear(f"{layer}.attention.k_proj", "blocks.{l}.attn.k"),
        *linear(f"{layer}.attention.v_proj", "blocks.{l}.attn.v"),
        *linear(f"{layer}.attention.out_proj", "blocks.{l}.attn.o"),
        *norm(f"{layer}.layer_norm", "blocks.{l}.ln1"),
        *linear(f"{layer}.feed_forward.intermediate_dense", "blocks.{l}.mlp.input"),
        *linear(f"{layer}.feed_forward.output_dense", "blocks.{l}.mlp.output"),
        *norm(f"{layer}.final_layer_norm", "blocks.{l}.ln2"),
    )


def part_rows(base: str) -> dict[str, tuple[Row, ...]]:
    """The tables of the vector for masked frames, and of the heads."""
    return {
        "mask_embed": (Row(f"{base}masked_spec_embed", "embed.mask_embed"),),
        "ctc": linear("lm_head", "ctc_head.dense"),
        "sequence_classification": (
            *linear("projector", "projector.dense"),
            *linear("classifier", "classifier.dense"),
            Row("layer_weights", "layer_sum.weights"),
        ),
    }


# What fairseq, or transformers before version 5, left in configurations; whatever these say changes nothing.
LEFT_OVER = (
    *("feat_extract_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "freeze_feat_extract_train"),
    *("mask_channel_length", "mask_channel_min_space", "mask_channel_other", "mask_channel_prob", "mask_channel_selection"),
    *("mask_time_min_space", "mask_time_other", "mask_time_selection", "no_mask_channel_overlap", "no_mask_time_overlap"),
    *("mask_feature_min_space", "mask_feature_other", "mask_feature_selection", "no_mask_feature_overlap"),
)
# Of wav2vec 2.0's pre-training objective, its adapter and a speaker-verification head, which do not change the encoder;
# configurations of HuBERT hold some of them too.
OBJECTIVE = (
    *("num_codevectors_per_group", "num_codevector_groups", "contrastive_logits_temperature", "num_negatives"),
    *("codevector_dim", "proj_codevector_dim", "diversity_loss_weight", "feat_quantizer_dropout"),
    *("tdnn_dim", "tdnn_kernel", "tdnn_dilation", "xvector_output_dim"),
    *("adapter_kernel_size", "adapter_stride", "num_adapter_layers"),
)
KEPT = ("*batch_norm.num_batches_tracked",)


def read_config(
    reader: ConfigReader, family: str, hf_class: str, parts: frozenset[str], normed: bool, batch_norm: bool
) -> EncoderConfig:
    """A configuration, from the keys that these families share.

    Args:
        normed: whether the feature projection has a norm.
        batch_norm: whether the positional convolution has a batch norm in place of a weight norm.
    """
    reader.ignore("num_feat_extract_layers", "output_hidden_size", "tie_word_embeddings", *LEFT_OVER, *OBJECTIVE)
    reader.require(add_adapter=False, adapter_attn_dim=None)
    d_model, n_heads = reader.width_and_heads()
    eps, dropout, act_fn = reader.read("layer_norm_eps"), reader.read("hidden_dropout"), reader.read("feat_extract_activation")
    frontend = _frontend(reader, act_fn)
    stable = reader.read("do_stable_layer_norm")
    positions = BatchNormConvPositionsPart if batch_norm else ConvPositionsPart
    cfg = EncoderConfig(
        family=family,
        original_architecture=hf_class,
        d_model=d_model,
        n_layers=reader.read("num_hidden_layers"),
        frontend=frontend,
        projection=ProjectionPart(frontend.channels[-1], eps if normed else None, reader.read("feat_proj_dropout")),
        embed=AudioEmbedPart("mask_embed" in parts, not stable, dropout, _augment(reader)),
        positions=positions(reader.read("num_conv_pos_embeddings"), reader.read("num_conv_pos_embedding_groups"), act_fn),
        attention=AttentionPart(n_heads, d_model // n_heads, reader.read("attention_dropout")),
        norm=LayerNormPart(eps),
        mlp=MLPPart(reader.read("intermediate_size"), reader.read("hidden_act"), reader.read("activation_dropout")),
        block=PreLNPart(dropout) if stable else PostLNPart(dropout),
        heads=_heads(reader, parts),
        layerdrop=reader.read("layerdrop"),
        initializer_range=reader.read("initializer_range"),
    )
    reader.finish()
    return cfg


def _frontend(reader: ConfigReader, act_fn: str) -> FrontendPart:
    norm = reader.read("feat_extract_norm")
    if norm not in ("group", "layer"):
        raise ConfigError(f"feat_extract_norm={norm!r} is not implemented; 'group' and 'layer' are")
    channels, kernels, strides = (reader.read(key) for key in ("conv_dim", "conv_kernel", "conv_stride"))
    part = FrontendPart(channels, kernels, strides, reader.read("conv_bias"), norm, act_fn)
    part.check()
    return part


_AUGMENT = ("mask_time_prob", "mask_time_length", "mask_time_min_masks") + (
    "mask_feature_prob",
    "mask_feature_length",
    "mask_feature_min_masks",
)


def _augment(reader: ConfigReader) -> SpecAugment | None:
    values = [reader.read(key) for key in _AUGMENT]
    return SpecAugment(*values) if reader.read("apply_spec_augment") else None


def _heads(reader: ConfigReader, parts: frozenset[str]) -> tuple[HeadPart, ...]:
    d_vocab, blank, dropout = reader.read("vocab_size"), reader.read("pad_token_id"), reader.read("final_dropout")
    reduction, zero_infinity = reader.read("ctc_loss_reduction"), reader.read("ctc_zero_infinity")
    d_pooled, summed = reader.read("classifier_proj_size"), reader.read("use_weighted_layer_sum")
    heads: list[HeadPart] = []
    if "ctc" in parts:
        if not isinstance(d_vocab, int) or not isinstance(blank, int) or not 0 <= blank < d_vocab:
            raise ConfigError(f"a CTC head needs vocab_size and, as its blank, a pad_token_id below it: {d_vocab}, {blank}")
        if reduction not in ("sum", "mean"):
            raise ConfigError(f"ctc_loss_reduction={reduction!r} is not implemented; 'sum' and 'mean' are")
        heads.append(CTCPart(d_vocab, blank, reduction, zero_infinity, dropout))
    if "sequence_classification" in parts:
        n_summed = reader.read("num_hidden_layers") + 1 if summed else None
        heads.append(AudioClassificationPart(reader.labels(), d_pooled, n_summed))
    return tuple(heads)


def write_config(cfg: EncoderConfig) -> dict[str, Any]:
    """The Hugging Face values of the keys that these families share."""
    frontend, projection, embed = cfg.frontend, cfg.projection, cfg.embed
    if frontend is None or projection is None or not isinstance(embed, AudioEmbedPart):
        raise ConfigError("this is no audio encoder: it has no front end")
    if type(cfg.mlp) is not MLPPart or cfg.n_heads * cfg.d_head != cfg.d_model:
        raise ConfigError(
            f"Hugging Face's speech encoders have MLP and n_heads * d_head = d_model; this has {cfg.mlp.component} and "
            f"{cfg.n_heads} * {cfg.d_head} for {cfg.d_model}"
        )
    stable = type(cfg.block) is PreLNPart
    if stable is embed.normed or not isinstance(cfg.positions, ConvPositionsPart):
        raise ConfigError("Hugging Face's speech encoders have a norm after the embeddings just if their blocks are post-LN")
    values: dict[str, Any] = {
        "hidden_size": cfg.d_model,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "intermediate_size": cfg.d_mlp,
        "hidden_act": cfg.act_fn,
        "layer_norm_eps": cfg.eps,
        "do_stable_layer_norm": stable,
        "conv_dim": list(frontend.channels),
        "conv_kernel": list(frontend.kernels),
        "conv_stride": list(frontend.strides),
        "num_feat_extract_layers": len(frontend.channels),
        "conv_bias": frontend.bias,
        "feat_extract_norm": frontend.norm,
        "feat_extract_activation": frontend.act_fn,
        "feat_proj_dropout": projection.dropout,
        "num_conv_pos_embeddings": cfg.positions.kernel,
        "num_conv_pos_embedding_groups": cfg.positions.groups,
        "hidden_dropout": cfg.embed.dropout,
        "attention_dropout": cfg.attention.dropout,
        "activation_dropout": cfg.mlp.dropout,
        "layerdrop": cfg.layerdrop,
        "initializer_range": cfg.initializer_range,
        "apply_spec_augment": embed.augment is not None,
    }
    if embed.augment is not None:
        augment = embed.augment
        spans = (augment.time_share, augment.time_length, augment.time_spans)
        values |= zip(_AUGMENT, (*spans, augment.channel_share, augment.channel_length, augment.channel_spans), strict=True)
    for head in cfg.heads:
        values |= _head_values(head)
    return values


def _head_values(head: HeadPart) -> dict[str, Any]:
    if isinstance(head, CTCPart):
        return {
            "vocab_size": head.d_vocab,
            "pad_token_id": head.blank,
            "ctc_loss_reduction": head.reduction,
            "ctc_zero_infinity": head.zero_infinity,
            "final_dropout": head.dropout,
        }
    if isinstance(head, AudioClassificationPart):
        return {
            "classifier_proj_size": head.d_pooled,
            "use_weighted_layer_sum": head.n_summed is not None,
        } | label_values(head.labels)
    raise ConfigError(f"Hugging Face's speech encoders have no {head.task} head")
