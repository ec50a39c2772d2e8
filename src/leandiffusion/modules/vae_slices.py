"""VAEs picture by picture: working memory is that of one, whatever the batch."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ..core.shapes import alike


class SlicingMixin(nn.Module):
    """Mixin of VAEs that slice their batches where that is switched on."""

    use_slicing: bool

    def enable_slicing(self) -> None:
        """Decode and encode one picture of a batch after the other: working memory is that of one."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Undo `enable_slicing`."""
        self.use_slicing = False

    def each_alone(self, function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        """`function` of the batch (B, …), with slicing of one of it after the other, straight into one result."""
        if not self.use_slicing or len(batch) <= 1:
            return function(batch)
        first = function(batch[:1])
        result = first.new_empty((len(batch), *first.shape[1:]))
        result[0] = first[0]
        for i in alike(range(1, len(batch))):
            result[i] = function(batch[i : i + 1])[0]
        return result
