"""The function that a caller has run after each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.errors import ConfigError
from . import inputs
from .conditioning import Tensors


@dataclass(frozen=True)
class Callback:
    """`function(pipe, step, timestep, tensors)` sees the tensors named in `wanted` and may return changed ones.

    `known` are the names of all that there are.
    """

    function: Callable[..., Any]
    wanted: Sequence[str]
    known: Sequence[str]

    def __call__(self, pipe: Any, i: int, t: Tensor, tensors: Tensors) -> Mapping[str, Tensor]:
        """What it changed, by name. ConfigError unless it returns None, or a dict of tensors that it may change."""
        changed = self.function(pipe, i, t, {name: tensors[name] for name in self.wanted})
        changed = {} if changed is None else changed
        if not isinstance(changed, Mapping):
            raise ConfigError(f"the callback returned a {type(changed).__name__}: return a dict of tensors, or None.")
        inputs.check_names("what the callback returned", changed, self.known)
        return changed
