"""The registry: every model family that EncoderLens knows, by ``model_type``."""

from typing import Any

from encoderlens.errors import UnknownArchitectureError
from encoderlens.families.albert import ALBERT
from encoderlens.families.bert import BERT
from encoderlens.families.camembert import CAMEMBERT
from encoderlens.families.deberta_v2 import DEBERTA_V2
from encoderlens.families.distilbert import DISTILBERT
from encoderlens.families.electra import ELECTRA
from encoderlens.families.ernie import ERNIE
from encoderlens.families.esm import ESM
from encoderlens.families.eurobert import EUROBERT
from encoderlens.families.family import Family
from encoderlens.families.hubert import HUBERT
from encoderlens.families.megatron_bert import MEGATRON_BERT
from encoderlens.families.modernbert import MODERNBERT
from encoderlens.families.mpnet import MPNET
from encoderlens.families.nomic_bert import NOMIC_BERT
from encoderlens.families.roberta import ROBERTA
from encoderlens.families.roberta_prelayernorm import ROBERTA_PRELAYERNORM
from encoderlens.families.wav2vec2 import WAV2VEC2
from encoderlens.families.xlm_roberta import XLM_ROBERTA
from encoderlens.names import did_you_mean

POST_LN = (BERT, ROBERTA, XLM_ROBERTA, CAMEMBERT, DISTILBERT, ELECTRA, ALBERT, MPNET, ERNIE, DEBERTA_V2, NOMIC_BERT)
PRE_LN = (MEGATRON_BERT, ROBERTA_PRELAYERNORM, MODERNBERT, EUROBERT, ESM)
SPEECH = (HUBERT, WAV2VEC2)

REGISTRY: dict[str, Family] = {family.model_type: family for family in (*POST_LN, *PRE_LN, *SPEECH)}


def family_of(model_type: Any, where: str) -> Family:
    """The family of a ``model_type``.

    Raises:
        UnknownArchitectureError: for one that is not in the registry, with those that are.
    """
    if model_type is None:
        raise UnknownArchitectureError(f"{where} lacks model_type; add it: one of {', '.join(sorted(REGISTRY))}")
    if not isinstance(model_type, str) or model_type not in REGISTRY:
        raise UnknownArchitectureError(
            f"{where} has model_type {model_type!r}, which is not supported{did_you_mean(model_type, REGISTRY)}; supported: "
            f"{', '.join(sorted(REGISTRY))}"
        )
    return REGISTRY[model_type]
