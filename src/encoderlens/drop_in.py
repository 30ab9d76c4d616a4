"""The module paths of TransformerLens, for code that imports a class from the module of its name."""

import sys
from types import ModuleType

from encoderlens import (
    activation_cache,
    bert_next_sentence_prediction,
    config,
    factored_matrix,
    hook_points,
    hooked_audio_encoder,
    hooked_encoder,
    hooked_root_module,
    utils,
)

MODULES: dict[str, ModuleType] = {
    "ActivationCache": activation_cache,
    "BertNextSentencePrediction": bert_next_sentence_prediction,
    "FactoredMatrix": factored_matrix,
    "HookedAudioEncoder": hooked_audio_encoder,
    "HookedEncoder": hooked_encoder,
    "HookedRootModule": hooked_root_module,
    "HookedTransformerConfig": config,
    "utilities": utils,
}

# Python finds these here, and so leaves encoderlens.HookedEncoder the class that it is.
sys.modules |= {f"encoderlens.{path}": module for path, module in MODULES.items()}
hook_points.HookedRootModule = hooked_root_module.HookedRootModule  # type: ignore[attr-defined]
