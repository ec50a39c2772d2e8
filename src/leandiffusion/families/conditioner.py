"""From a prompt to what the UNet is conditioned on: the base of the families' conditioners."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..run.conditioning import Conditioning, Tensors
from ..run.finite import check_finite
from .prompts import Reading


class Conditioner(ABC):
    """Tokenizers and text encoders of a family; a dataclass whose fields are named as a pipeline's components."""

    callback_tensors: ClassVar[tuple[str, ...]]
    """Names of the tensors that a callback may see and change: the latents, and what `tensors` returns."""

    @classmethod
    def of(cls, components: Any) -> Self:
        """From the components that an object, such as a pipeline, has as attributes now."""
        return cls(*(getattr(components, part.name) for part in fields(cls)))  # type: ignore[arg-type]

    @abstractmethod
    def encode(self, prompt: Any, *, guided: bool, clip_skip: int | None, reading: Reading) -> dict[str, Tensor | None]:
        """A prompt of this kind -> its embeddings under the names of a call's arguments, in `encode_prompt`'s order.

        Those of the negative prompt are None unless `guided`. ConfigError for wrong arguments before anything is
        encoded, and where a component is missing that this prompt needs.
        """

    @abstractmethod
    def length(self, prompt: Any, *, guided: bool, reading: Reading) -> int:
        """How many tokens the embeddings of a prompt of this kind have. ConfigError and NotSupported as of `encode`."""

    @staticmethod
    @abstractmethod
    def tensors(*conditions: Any) -> dict[str, Tensor | None]:
        """The result of `encode_prompt`, and conditions besides text if any, under the names that callbacks use."""

    @staticmethod
    @abstractmethod
    def conditioning(tensors: Tensors) -> Conditioning:
        """The UNet's inputs among these tensors."""

    def require(self, *names: str, otherwise: str) -> None:
        """ConfigError unless these components are there. `otherwise` says how to do without."""
        require(self, *names, otherwise=otherwise)


def require(parts: Any, *names: str, otherwise: str = "") -> None:
    """ConfigError unless these attributes are there, components of a pipeline. `otherwise` says how to do without."""
    missing = [name for name in names if getattr(parts, name) is None]
    if missing:
        fix = f"set pipe.{missing[0]} = …{', or ' * bool(otherwise)}{otherwise}"
        raise ConfigError(f"this pipeline has no {' and no '.join(missing)}, which encoding this prompt needs: {fix}.")


def for_each_picture(
    embeddings: dict[str, Tensor | None], count: int, device: torch.device, dtype: torch.dtype
) -> tuple[Any, ...]:
    """Each of the embeddings `count` times per prompt, on the device and at the dtype.

    NonFiniteError, with their name, for those that hold NaN or infinity at that dtype.
    """
    why = "the text encoder overflowed its dtype, its weights are damaged, or such embeddings were"
    repeated: list[Tensor | None] = []
    for name, given in embeddings.items():
        repeated.append(None if given is None else given.to(device, dtype).repeat_interleave(count, dim=0))
        check_finite(name, repeated[-1], f"{why} passed. Use dtype=torch.bfloat16 or torch.float32.")
    return tuple(repeated)
