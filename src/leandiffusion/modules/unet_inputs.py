"""Inputs of a UNet beside sample, time and text: what it refuses, masks of the text, and a ControlNet's residuals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..core.errors import ConfigError
from .blocks import repeat_rows


def refuse_unused(inputs: Mapping[str, object], added: Mapping[str, object] | None, heeded: Sequence[str]) -> None:
    """ConfigError names those of `inputs` that are given, and the added conditions that are not `heeded`."""
    given = [name for name, value in inputs.items() if value is not None]
    given += [f"added_cond_kwargs[{k!r}]" for k, v in (added or {}).items() if k not in heeded and v is not None]
    if given:
        raise ConfigError(f"this UNet makes no use of {', '.join(given)}: leave out what it would ignore.")


def text_bias(mask: Tensor | None, text: Tensor) -> Tensor | None:
    """1 for tokens to attend to, else 0 (B, S) -> what is added to scores (B, 1, S). ConfigError for other shapes."""
    if mask is None:
        return None
    if mask.shape != text.shape[:2]:
        raise ConfigError(
            f"encoder_attention_mask has shape {tuple(mask.shape)}: expected {tuple(text.shape[:2])}, one entry for "
            "each token of encoder_hidden_states, 1 to attend to it."
        )
    return ((1 - mask.to(text.dtype)) * -10000.0)[:, None]


def check_residuals(down: Sequence[Tensor] | None, middle: Tensor | None, count: int) -> None:
    """ConfigError for one of a ControlNet's two outputs without the other, and for another number than `count`."""
    if (down is None) != (middle is None):
        raise ConfigError(
            "down_block_additional_residuals and mid_block_additional_residual are the two outputs of a "
            "ControlNet: pass both. (An adapter's residuals are not supported.)"
        )
    if down is not None and len(down) != count:
        raise ConfigError(
            f"{len(down)} down_block_additional_residuals for the {count} skip connections of this UNet: "
            "take them from a ControlNet made for it."
        )


def with_residuals(skips: list[Tensor], residuals: Sequence[Tensor] | None) -> list[Tensor]:
    """The outermost skip connections (B, C, H, W) plus a ControlNet's outputs, where there are any."""
    if residuals is None:
        return skips
    return [repeat_rows(skip, len(residual)) + residual for skip, residual in zip(skips, residuals, strict=False)]
