"""Mechanistic interpretability for encoders: hooks on every activation of BERT- and HuBERT-style models, at the speed of a
forward pass.
"""

from encoderlens import drop_in as drop_in
from encoderlens import errors as errors
from encoderlens import hook_points as hook_points
from encoderlens import patching as patching
from encoderlens import utils as utils
from encoderlens.activation_cache import ActivationCache as ActivationCache
from encoderlens.bert_next_sentence_prediction import BertNextSentencePrediction as BertNextSentencePrediction
from encoderlens.config import EncoderConfig as EncoderConfig
from encoderlens.config import HookedTransformerConfig as HookedTransformerConfig
from encoderlens.factored_matrix import FactoredMatrix as FactoredMatrix
from encoderlens.hook_points import HookPoint as HookPoint
from encoderlens.hooked_audio_encoder import HookedAudioEncoder as HookedAudioEncoder
from encoderlens.hooked_encoder import HookedEncoder as HookedEncoder
from encoderlens.hooked_root_module import HookedRootModule as HookedRootModule

utilities = utils  # as TransformerLens calls it too
__version__ = "0.1.0"
