"""HuBERT (Hsu et al. 2021)."""

from typing import Any

import encoderlens.families.speech as speech
from encoderlens.config import BatchNormConvPositionsPart, EncoderConfig
from encoderlens.families.family import ConfigReader, Family

BASE = "hubert."


def read_config(reader: ConfigReader, hf_class: str, parts: frozenset[str]) -> EncoderConfig:
    normed, batch_norm = reader.read("feat_proj_layer_norm"), reader.read("conv_pos_batch_norm")
    return speech.read_config(reader, "hubert", hf_class, parts, normed, batch_norm)


def write_config(cfg: EncoderConfig) -> dict[str, Any]:
    return speech.write_config(cfg) | {
        "feat_proj_layer_norm": cfg.projection is not None and cfg.projection.norm_eps is not None,
        "conv_pos_batch_norm": type(cfg.positions) is BatchNormConvPositionsPart,
    }


HUBERT = Family(
    name="HuBERT",
    model_type="hubert",
    classes={
        "HubertModel": (),
        "HubertForCTC": ("ctc",),
        "HubertForSequenceClassification": ("sequence_classification",),
    },
    base_prefix=BASE,
    encoder_rows=speech.encoder_rows(BASE),
    part_rows=speech.part_rows(BASE),
    ignored=(),
    kept=speech.KEPT,
    read_config=read_config,
    write_config=write_config,
    hf_arguments=lambda cfg: {},
    layer_norm="post-LN, pre-LN",
    positions="convolution",
    modality="audio",
)
