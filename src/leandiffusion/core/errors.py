"""Every error that Lean Diffusion raises on purpose.

LeanError
├── ConfigError             a wrong argument or config value (also a ValueError)
│   └── NotSupported        a feature of diffusers that is not there (also a NotImplementedError)
├── WeightsError            a checkpoint that cannot be opened (also an OSError)
│   ├── CheckpointNotFound  no such folder, file or hub id, or offline and not cached
│   │   └── VariantNotFound  weights are there, but not in that variant (also a ValueError)
│   ├── MalformedFile       broken JSON, bad safetensors header, truncated data
│   ├── TensorMismatch      missing, unexpected or wrongly shaped tensors
│   └── UnsafeFormat        pickled weights, refused
├── NonFiniteError          NaN or infinity where a picture should be
├── BudgetError             does not fit the memory that was allowed
└── BackendUnavailable      a backend or library that this machine lacks

Each message says what was found, what was expected and what to do next, in fewer than 500 characters: what is longer,
because a file holds long names or values, loses its middle.
"""

from __future__ import annotations

from .wording import readable


class LeanError(Exception):
    """Root of the tree: `except LeanError` catches everything raised on purpose.

    Messages have bounded length and no control characters, since names in them come from untrusted files.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(readable(each) if isinstance(each, str) else each for each in args))


class ConfigError(LeanError, ValueError):
    """A wrong argument or config value. The message names the value, the rule and the fix."""


class NotSupported(ConfigError, NotImplementedError):
    """A feature of diffusers that is not supported yet. The message says what to do instead."""


class WeightsError(LeanError, OSError):
    """A checkpoint that cannot be opened."""

    def __str__(self) -> str:  # OSError would format (errno, text) pairs its own way
        return Exception.__str__(self)


class CheckpointNotFound(WeightsError, FileNotFoundError):
    """Nothing at that path or hub id, or offline and not in the cache."""


class VariantNotFound(CheckpointNotFound, ValueError):
    """The checkpoint has weights, but none in the variant asked for. The message names the variants that there are."""


class MalformedFile(WeightsError):
    """A file whose bytes are not what its name promises: broken JSON, bad header, truncated data."""


class TensorMismatch(WeightsError):
    """Tensors in the file and parameters of the network do not correspond."""


class UnsafeFormat(WeightsError):
    """Pickled weights: opening them can run any code, so they are refused."""


class NonFiniteError(LeanError, ArithmeticError):
    """NaN or infinity appeared; the message names the stage."""


class BudgetError(LeanError):
    """The work does not fit the memory that was allowed."""


class BackendUnavailable(LeanError, RuntimeError):
    """A backend, library or device that this machine lacks."""
