"""Every error that EncoderLens raises on purpose. Each message says what is wrong, where, and the remedy.

EncoderLensError
├── ConfigError (ValueError)              a configuration that asks for something unknown or not implemented
│   ├── UnknownArchitectureError          a checkpoint of a family or class that is not in the registry
│   └── DeviceError                       a device that is not there; an InputError too
├── CheckpointNotFoundError (FileNotFoundError)   no such folder, file, shard or hub id
├── WeightsError (ValueError)             tensors that are missing, left over, misshapen, damaged or unequal, or cannot be set
├── HookError
│   ├── HookNameError (KeyError)          a name or filter that selects no hook point
│   ├── HookUnreachableError (ValueError) a named hook point that this run does not compute
│   └── HookResultError (ValueError)      a hook returned something that cannot stand in for the activation
├── GradientError (RuntimeError)          backward hooks or gradients asked for where there are none
├── InputError (ValueError)               text, tokens, masks, labels or options that do not fit the model
│   ├── TokenizerMissingError             text given to a model that has no tokenizer
│   └── WordsUnknownError                 a method that masks whole words, where words are not known
├── PackageMissingError (ImportError)     an optional package that is not installed
├── TaskError (ValueError)                a head that the model does not have
└── AnalysisError (ValueError)            an analysis that would not be exact on this model, in this state
"""


class EncoderLensError(Exception):
    """Base of every error that EncoderLens raises on purpose."""


class ConfigError(EncoderLensError, ValueError):
    """A configuration that asks for something unknown or not implemented."""


class UnknownArchitectureError(ConfigError):
    """A checkpoint of a family or class that is not in the registry."""


class CheckpointNotFoundError(EncoderLensError, FileNotFoundError):
    """No such folder, file, shard or hub id."""


class WeightsError(EncoderLensError, ValueError):
    """Tensors that are missing, left over, misshapen, damaged, or different in the place of one; weights that cannot be set."""


class HookError(EncoderLensError):
    """Something is wrong with a hook."""


class HookNameError(HookError, KeyError):
    """A name or filter that selects no hook point."""

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0])


class HookUnreachableError(HookError, ValueError):
    """A named hook point that this run does not compute."""


class HookResultError(HookError, ValueError):
    """A hook returned something that cannot stand in for the activation."""


class GradientError(EncoderLensError, RuntimeError):
    """Backward hooks or gradients asked for where there are none."""


class InputError(EncoderLensError, ValueError):
    """Text, tokens, masks, labels or options that do not fit the model."""


class DeviceError(ConfigError, InputError):
    """A device that is not there, of a model or of a cache."""


class TokenizerMissingError(InputError):
    """Text given to a model that has no tokenizer."""


class WordsUnknownError(InputError):
    """A method that masks whole words, where the tokenizer does not say which tokens make a word."""


class PackageMissingError(EncoderLensError, ImportError):
    """An optional package that is not installed."""


class TaskError(EncoderLensError, ValueError):
    """A head that the model does not have."""


class AnalysisError(EncoderLensError, ValueError):
    """An analysis that would not be exact on this model, in this state."""
