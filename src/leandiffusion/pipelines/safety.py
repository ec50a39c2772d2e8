"""The safety checker's part in drawing, where a pipeline has one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..run.decoding import to_unit
from .images import numpy_to_pil, to_output


class SafetyChecking:
    """Mixin of pipelines with a `safety_checker` and a `feature_extractor`, either of which may be None."""

    safety_checker: Any
    feature_extractor: Any
    device: Any
    dtype: Any

    def run_safety_checker(
        self, image: Any, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> tuple[Any, Any]:
        """Pictures as the VAE decodes them, (B, 3, H, W) in [-1, 1], or an array (B, H, W, 3) in [0, 1] -> what the
        safety checker makes of them, and what it flagged: one bool per picture, None if there is no checker.

        It is called as `checker(images=…, clip_input=…)`, on its own device and dtype unless they are given; any
        callable will do. `clip_input` is what the `feature_extractor` makes of the pictures, None if there is none.
        """
        checker, pixels = self.safety_checker, None
        if checker is None:
            return image, None
        if self.feature_extractor is not None:
            array = image if isinstance(image, np.ndarray) else to_output(to_unit(image.clone()), "np")
            pixels = self.feature_extractor(numpy_to_pil(array), return_tensors="pt").pixel_values.to(
                getattr(checker, "device", self.device) if device is None else device,
                getattr(checker, "dtype", self.dtype) if dtype is None else dtype,
            )
        return checker(images=image, clip_input=pixels)

    def _withhold(self, pictures: Tensor) -> tuple[Tensor, list[bool]]:
        """Decoded pictures (B, 3, H, W) as the safety checker leaves them, and which it flagged.

        What it puts in the place of a flagged picture is in [0, 1], as in diffusers: it comes back in [-1, 1].
        """
        checked, flagged = self.run_safety_checker(pictures)
        flags = [bool(each) for each in flagged] if isinstance(flagged, Iterable) else [bool(flagged)] * len(pictures)
        checked = torch.as_tensor(checked, dtype=torch.float32).clone()
        if len(checked) != len(pictures) or len(flags) != len(pictures):
            raise ConfigError(
                f"the safety checker returned {len(checked)} pictures and {len(flags)} flags for {len(pictures)}: it "
                "must return all pictures and a flag for each, or None for the flags."
            )
        for i, flag in enumerate(flags):
            if flag:
                checked[i] = checked[i] * 2 - 1
        return checked, flags
