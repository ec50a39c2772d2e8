"""Tensors of files or of state dicts that are no network's own: they can be had at any dtype, read or left on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .header import TensorEntry
from .opened import OpenFile
from .stored import StoredTensor


@dataclass(frozen=True, eq=False)
class Source:
    """A tensor that can be had at any dtype: in a file, or in memory."""

    entry: TensorEntry | None = None
    file: OpenFile | None = None
    tensor: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.tensor.shape) if self.tensor is not None else self.entry.shape  # type: ignore[union-attr]

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype."""
        return self.tensor.dtype if self.tensor is not None else self.entry.dtype  # type: ignore[union-attr]

    def reshaped(self, shape: tuple[int, ...]) -> Source:
        """The same numbers in another shape."""
        if self.tensor is not None:
            return Source(tensor=self.tensor.reshape(shape))
        return Source(self.entry.reshaped(shape), self.file)  # type: ignore[union-attr]

    def stored(self, dtype: torch.dtype) -> Tensor:
        """As a tensor that stays in its file where it lies in one; else in memory."""
        if self.tensor is not None:
            return self.tensor.detach().to(dtype)
        return StoredTensor(self.entry, self.file, dtype)  # type: ignore[arg-type]

    def read(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """In memory."""
        stored = self.stored(dtype)
        return (stored.read() if isinstance(stored, StoredTensor) else stored).to(device)

    def __reduce__(self) -> Any:
        own = self.tensor if self.tensor is not None else self.read(self.entry.dtype)  # type: ignore[union-attr]
        return Source, (None, None, own)
