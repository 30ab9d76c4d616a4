"""EncoderConfig: what an encoder is made of, as a frozen sum of parts.

A part names the component that it becomes (``component``), and its fields are that component's keyword arguments. Families
choose parts; nothing else decides what a model looks like.
"""

from typing import Any

from encoderlens.config.attention import TERMS as TERMS
from encoderlens.config.attention import AttentionPart as AttentionPart
from encoderlens.config.attention import ContentAttentionPart as ContentAttentionPart
from encoderlens.config.attention import DisentangledAttentionPart as DisentangledAttentionPart
from encoderlens.config.attention import RelativeBiasAttentionPart as RelativeBiasAttentionPart
from encoderlens.config.attention import RelativeBiasPart as RelativeBiasPart
from encoderlens.config.attention import RelativeEmbeddingPart as RelativeEmbeddingPart
from encoderlens.config.attention import RotaryAttentionPart as RotaryAttentionPart
from encoderlens.config.attention import RotaryFrequenciesPart as RotaryFrequenciesPart
from encoderlens.config.attention import SharedRotaryAttentionPart as SharedRotaryAttentionPart
from encoderlens.config.audio import AudioEmbedPart as AudioEmbedPart
from encoderlens.config.audio import BatchNormConvPositionsPart as BatchNormConvPositionsPart
from encoderlens.config.audio import ConvPositionsPart as ConvPositionsPart
from encoderlens.config.audio import FrontendPart as FrontendPart
from encoderlens.config.audio import ProjectionPart as ProjectionPart
from encoderlens.config.audio import SpecAugment as SpecAugment
from encoderlens.config.block import BareFirstPreLNPart as BareFirstPreLNPart
from encoderlens.config.block import BlockPart as BlockPart
from encoderlens.config.block import ConvFirstPostLNPart as ConvFirstPostLNPart
from encoderlens.config.block import ConvolutionPart as ConvolutionPart
from encoderlens.config.block import GatedMLPPart as GatedMLPPart
from encoderlens.config.block import MLPPart as MLPPart
from encoderlens.config.block import PostLNPart as PostLNPart
from encoderlens.config.block import PreLNPart as PreLNPart
from encoderlens.config.embedding import AbsolutePositionsPart as AbsolutePositionsPart
from encoderlens.config.embedding import AttentionPositionsPart as AttentionPositionsPart
from encoderlens.config.embedding import EmbeddingPart as EmbeddingPart
from encoderlens.config.embedding import LayerNormPart as LayerNormPart
from encoderlens.config.embedding import NormPart as NormPart
from encoderlens.config.embedding import PaddedPositionsPart as PaddedPositionsPart
from encoderlens.config.embedding import RMSNormPart as RMSNormPart
from encoderlens.config.embedding import TokenDropoutEmbeddingPart as TokenDropoutEmbeddingPart
from encoderlens.config.encoder_config import EncoderConfig as EncoderConfig
from encoderlens.config.encoder_config import LayerSharing as LayerSharing
from encoderlens.config.heads import AudioClassificationPart as AudioClassificationPart
from encoderlens.config.heads import ContactPart as ContactPart
from encoderlens.config.heads import CTCPart as CTCPart
from encoderlens.config.heads import HeadPart as HeadPart
from encoderlens.config.heads import MaskedLMPart as MaskedLMPart
from encoderlens.config.heads import NextSentencePart as NextSentencePart
from encoderlens.config.heads import PoolerPart as PoolerPart
from encoderlens.config.heads import PreClassifierPart as PreClassifierPart
from encoderlens.config.heads import QuestionAnsweringPart as QuestionAnsweringPart
from encoderlens.config.heads import Reads as Reads
from encoderlens.config.heads import ReplacedTokenPart as ReplacedTokenPart
from encoderlens.config.heads import SentenceOrderPart as SentenceOrderPart
from encoderlens.config.heads import SequenceClassificationPart as SequenceClassificationPart
from encoderlens.config.heads import TokenClassificationPart as TokenClassificationPart
from encoderlens.config.hooked_transformer_config import HasFields as HasFields
from encoderlens.config.hooked_transformer_config import HookedTransformerConfig as HookedTransformerConfig
from encoderlens.config.hooked_transformer_config import fields_of as fields_of
from encoderlens.config.model_config import ModelConfig as ModelConfig
from encoderlens.config.part import AnyPart as AnyPart
from encoderlens.config.part import Part as Part
from encoderlens.config.sentence import SentenceDensePart as SentenceDensePart
from encoderlens.config.sentence import SentenceEmbeddingPart as SentenceEmbeddingPart
from encoderlens.config.sentence import SentenceLayerNormPart as SentenceLayerNormPart
from encoderlens.config.sentence import SentenceModulePart as SentenceModulePart
from encoderlens.config.sentence import SentenceNormalizePart as SentenceNormalizePart
from encoderlens.config.sentence import SentencePoolingPart as SentencePoolingPart

AnyConfig = EncoderConfig | ModelConfig | HookedTransformerConfig | HasFields | dict[str, Any]
