"""Activation patching under TransformerLens' names.

The functions are not there yet. Until then, ``run_with_hooks`` with a hook that copies an activation of a clean run does the
same for one site at a time.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith(("get_act_patch_", "generic_activation_patch")):
        raise AttributeError(
            f"encoderlens.patching has no {name} yet: patch with run_with_hooks, by a hook that returns the activation of a "
            "clean run"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
