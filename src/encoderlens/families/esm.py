"""ESM-2 (Lin et al. 2023) and ESM-1b (Rives et al. 2021): language models of proteins, which also predict contacts."""

from typing import Any

import encoderlens.families.bert_like as bert_like
import encoderlens.families.roberta as roberta
from encoderlens.config import (
    AttentionPart,
    AttentionPositionsPart,
    ContactPart,
    EmbeddingPart,
    EncoderConfig,
    LayerNormPart,
    MLPPart,
    PaddedPositionsPart,
    PoolerPart,
    PreClassifierPart,
    PreLNPart,
    RotaryFrequenciesPart,
    SharedRotaryAttentionPart,
    TokenDropoutEmbeddingPart,
)
from encoderlens.families.family import ConfigReader, Family
from encoderlens.weights import Row, linear, norm

BASE = "esm."
EOS = 2  # Hugging Face's contact head leaves this token out, whatever the configuration calls the end
OF_A_LAYER = "attention.self.rotary_embeddings.inv_freq"  # checkpoints had them once a layer, all the same
OLD_FREQUENCIES = tuple(f"{BASE}encoder.layer.{layer}.{OF_A_LAYER}" for layer in "0*")  # transformers 5 saves the asterisk
TABLE = "*position_embeddings.weight"  # which checkpoints hold though their positions are rotary
ENCODER = (
    Row(f"{BASE}embeddings.word_embeddings.weight", "embed.embed.weight"),
    Row(f"{BASE}embeddings.position_embeddings.weight", "embed.pos_embed.weight", crop=True),
    *norm(f"{BASE}embeddings.layer_norm", "embed.ln"),
    Row(f"{BASE}rotary_embeddings.inv_freq", "relative.frequencies", legacy=OLD_FREQUENCIES),
    *bert_like.block_rows(BASE, ln1="attention.LayerNorm", ln2="LayerNorm"),
    *norm(f"{BASE}encoder.emb_layer_norm_after", "ln_final"),
)
HEADS = {
    "pooler": linear(f"{BASE}pooler.dense", "pooler.dense"),
    "masked_lm": (
        *linear("lm_head.dense", "mlm_head.dense"),
        *norm("lm_head.layer_norm", "mlm_head.ln"),
        Row("lm_head.decoder.weight", "unembed.weight"),
        Row("lm_head.bias", "unembed.bias"),
    ),
    "sequence_classification": bert_like.TWO_LAYERS,
    "token_classification": bert_like.CLASSIFIER,
    "contacts": linear(f"{BASE}contact_head.regression", "contact_head.regression"),
}


def read_config(reader: ConfigReader, hf_class: str, parts: frozenset[str]) -> EncoderConfig:
    """Activations are gelu whatever ``hidden_act`` says, as in Hugging Face, which does not read it."""
    reader.ignore("hidden_act", "classifier_dropout")
    reader.require(is_folding_model=False, is_decoder=False, add_cross_attention=False)
    d_model, n_heads = reader.width_and_heads()
    dropout, theta = reader.read("hidden_dropout_prob"), float(reader.read("rope_theta"))
    rotary = reader.choose("position_embedding_type", {"absolute": False, "rotary": True})
    attention = (n_heads, d_model // n_heads, reader.read("attention_probs_dropout_prob"))
    transform = PreClassifierPart("tanh", dropout=dropout)
    cfg = EncoderConfig(
        family="esm",
        original_architecture=hf_class,
        d_model=d_model,
        n_layers=reader.read("num_hidden_layers"),
        embed=_embedding(reader),
        positions=_rotary_positions(reader) if rotary else _padded_positions(reader),
        attention=SharedRotaryAttentionPart(*attention) if rotary else AttentionPart(*attention),
        relative=RotaryFrequenciesPart(theta) if rotary else None,
        norm=LayerNormPart(reader.read("layer_norm_eps")),
        mlp=MLPPart(reader.read("intermediate_size")),
        block=PreLNPart(dropout),
        pooler=PoolerPart() if "pooler" in parts else None,
        heads=bert_like.read_heads(reader, ESM.classes[hf_class], parts, "gelu", dropout, transform),
        contacts=ContactPart(EOS) if "contacts" in parts else None,
        initializer_range=reader.read("initializer_range"),
    )
    reader.finish()
    return cfg


def _embedding(reader: ConfigReader) -> EmbeddingPart:
    common: dict[str, Any] = {
        "d_vocab": reader.read("vocab_size"),
        "n_token_types": 0,
        "normed": bool(reader.read("emb_layer_norm_before")),
        "zeroes_padding": True,
        "padding_idx": reader.read("pad_token_id"),
    }
    reader.ignore("mask_token_id")  # without token dropout, a mask token is like any other
    if reader.read("token_dropout"):
        return TokenDropoutEmbeddingPart(**common, mask=reader.token("mask_token_id", "token dropout needs it"))
    return EmbeddingPart(**common)


def _rotary_positions(reader: ConfigReader) -> AttentionPositionsPart:
    return AttentionPositionsPart(reader.read("max_position_embeddings"), "rotary")


def _padded_positions(reader: ConfigReader) -> PaddedPositionsPart:
    return roberta.padded_positions(reader, reader.token("pad_token_id", roberta.COUNTED))


def write_config(cfg: EncoderConfig) -> dict[str, Any]:
    bert_like.check_plain(cfg, PreLNPart)
    rotary, embed = cfg.relative, cfg.embed
    values = bert_like.shared_values(cfg) | {
        "position_embedding_type": "absolute" if rotary is None else "rotary",
        "hidden_dropout_prob": cfg.block.dropout,
        "token_dropout": isinstance(embed, TokenDropoutEmbeddingPart),
    }
    if isinstance(rotary, RotaryFrequenciesPart):
        values["rope_theta"] = rotary.theta
    else:
        values |= roberta.padded_values(cfg)
    if isinstance(embed, TokenDropoutEmbeddingPart):
        values["mask_token_id"] = embed.mask
    if isinstance(embed, EmbeddingPart) and embed.normed:
        values["emb_layer_norm_before"] = True
    return {key: value for key, value in values.items() if key not in ("type_vocab_size", "hidden_act")}


ESM = Family(
    name="ESM",
    model_type="esm",
    classes={
        "EsmModel": (),
        "EsmForMaskedLM": ("masked_lm",),
        "EsmForSequenceClassification": ("sequence_classification",),
        "EsmForTokenClassification": ("token_classification",),
    },
    base_prefix=BASE,
    encoder_rows=ENCODER,
    part_rows=HEADS,
    ignored=(*bert_like.IGNORED, f"*{OF_A_LAYER}", TABLE),
    read_config=read_config,
    write_config=write_config,
    hf_arguments=bert_like.without_pooler,
    layer_norm="pre-LN",
    positions="rotary, or absolute from padding",
)
