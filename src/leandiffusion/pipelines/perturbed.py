"""Perturbed-attention guidance of a pipeline: whether its calls have it, and how much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.errors import ConfigError
from ..run.perturbation import Perturbation, PerturbedAttention


class PerturbedAttentionGuidance:
    """Mixin of the pipelines."""

    perturbed_attention: PerturbedAttention | None = None
    """What the next calls are guided by besides classifier-free guidance; None for nothing more."""

    _is_perturbed_by_default = False

    def enable_perturbed_attention(
        self: Any, scale: float = 3.0, layers: str | Sequence[str] = "mid", adaptive_scale: float = 0.0
    ) -> None:
        """Guide calls away from what the UNet predicts with less self-attention (Ahn et al. 2024), also without a
        prompt: shapes hold together better, and each step takes a third sample, or a second one without guidance.

        `layers`: parts of the names of the layers that lose it, or regular expressions, as diffusers'
        `pag_applied_layers`. `adaptive_scale` lowers the scale by so much per step of training that is past, as its
        `pag_adaptive_scale`. ConfigError for wrong values, and for layers that this UNet has not.
        """
        patterns = (layers,) if isinstance(layers, str) else tuple(layers)
        settings = PerturbedAttention(scale, patterns, adaptive_scale)
        settings.layers_of(self.unet)
        self.perturbed_attention = settings

    def disable_perturbed_attention(self: Any) -> None:
        """Undo `enable_perturbed_attention`."""
        self.perturbed_attention = None

    def _guided_as(self: Any, pipeline: Any) -> None:
        """As another pipeline is by its own choice, not because its class is."""
        if not getattr(pipeline, "_is_perturbed_by_default", False):
            self.perturbed_attention = getattr(pipeline, "perturbed_attention", None)

    def _perturbation(self: Any) -> Perturbation | None:
        """For one call. ConfigError where blocks are compiled, which would not see it."""
        if self.perturbed_attention is None:
            return None
        if self._stack.find("compile") is not None:
            raise ConfigError(
                "perturbed attention: compiled blocks do not see which samples it concerns. pipe.disable('compile') or "
                "pipe.disable_perturbed_attention() first."
            )
        self.perturbed_attention.layers_of(self.unet)
        return Perturbation(self.perturbed_attention)
