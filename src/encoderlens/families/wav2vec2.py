"""wav2vec 2.0 (Baevski et al. 2020)."""

from typing import Any

import encoderlens.families.speech as speech
from encoderlens.config import BatchNormConvPositionsPart, EncoderConfig
from encoderlens.errors import ConfigError
from encoderlens.families.family import ConfigReader, Family

BASE = "wav2vec2."


def read_config(reader: ConfigReader, hf_class: str, parts: frozenset[str]) -> EncoderConfig:
    return speech.read_config(reader, "wav2vec2", hf_class, parts, normed=True, batch_norm=False)


def write_config(cfg: EncoderConfig) -> dict[str, Any]:
    if cfg.projection is None or cfg.projection.norm_eps is None or type(cfg.positions) is BatchNormConvPositionsPart:
        raise ConfigError("Hugging Face's wav2vec 2.0 has a norm in its feature projection, and weight norm in its positions")
    return speech.write_config(cfg)


WAV2VEC2 = Family(
    name="wav2vec 2.0",
    model_type="wav2vec2",
    classes={
        "Wav2Vec2Model": (),
        "Wav2Vec2ForPreTraining": (),
        "Wav2Vec2ForCTC": ("ctc",),
        "Wav2Vec2ForSequenceClassification": ("sequence_classification",),
    },
    base_prefix=BASE,
    encoder_rows=speech.encoder_rows(BASE),
    part_rows=speech.part_rows(BASE),
    ignored=(),
    kept=(*speech.KEPT, "quantizer.*", "project_hid.*", "project_q.*"),
    read_config=read_config,
    write_config=write_config,
    hf_arguments=lambda cfg: {},
    layer_norm="post-LN, pre-LN",
    positions="convolution",
    modality="audio",
)
