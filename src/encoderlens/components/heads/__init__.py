"""Heads, and the modules that they are made of."""

from encoderlens.components.heads.audio_classification import AudioClassificationHead as AudioClassificationHead
from encoderlens.components.heads.classification import NextSentenceHead as NextSentenceHead
from encoderlens.components.heads.classification import ReplacedTokenHead as ReplacedTokenHead
from encoderlens.components.heads.classification import SentenceOrderHead as SentenceOrderHead
from encoderlens.components.heads.classification import TokenClassificationHead as TokenClassificationHead
from encoderlens.components.heads.ctc import CTCHead as CTCHead
from encoderlens.components.heads.ctc import frames_needed as frames_needed
from encoderlens.components.heads.head import AudioContext as AudioContext
from encoderlens.components.heads.head import Head as Head
from encoderlens.components.heads.head import LinearHead as LinearHead
from encoderlens.components.heads.head import NamedOutputs as NamedOutputs
from encoderlens.components.heads.head import Readout as Readout
from encoderlens.components.heads.head import TextContext as TextContext
from encoderlens.components.heads.head import owned_labels as owned_labels
from encoderlens.components.heads.masked_lm import MaskedLMHead as MaskedLMHead
from encoderlens.components.heads.modules import Pooler as Pooler
from encoderlens.components.heads.modules import PreClassifier as PreClassifier
from encoderlens.components.heads.question_answering import QuestionAnsweringHead as QuestionAnsweringHead
from encoderlens.components.heads.sentence_embedding import SentenceEmbedding as SentenceEmbedding
from encoderlens.components.heads.sentence_embedding import SentenceModule as SentenceModule
from encoderlens.components.heads.sequence_classification import SequenceClassificationHead as SequenceClassificationHead
