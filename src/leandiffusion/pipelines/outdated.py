"""Settings of old checkpoints that were wrong when they were written, mended when a pipeline is built from them."""

from __future__ import annotations

import re
import warnings
from typing import Any

from ..core.config import WRITER_VERSION, Config


def mend_unet(unet: Any) -> None:
    """Set `sample_size` to 64, with a warning, where a UNet saved by a diffusers before 0.9 says less.

    Those writers left the default of 32 in the configs of SD1 models, which draw 512 pixels, 64 latents.
    """
    config: Any = getattr(unet, "config", None)
    size = getattr(config, "sample_size", None)
    wrote = re.match(r"(\d+)\.(\d+)", str(getattr(config, WRITER_VERSION, "")))
    if not wrote or (int(wrote[1]), int(wrote[2])) >= (0, 9) or not isinstance(size, int) or size >= 64:
        return
    warnings.warn(
        f"this UNet was saved by diffusers {config[WRITER_VERSION]}, which wrote sample_size={size} for models "
        "of 64: it is taken as 64. To be rid of this warning, save the pipeline again; for other sizes pass height and "
        "width.",
        FutureWarning,
        stacklevel=3,
    )
    amend_config(unet, sample_size=64)


def amend_config(part: Any, **values: Any) -> None:
    """Change settings in the config of a component, ours or one of diffusers."""
    config = part.config
    if isinstance(config, Config):
        object.__setattr__(part, "_config", Config({**config, **values}))
    elif hasattr(part, "_internal_dict"):
        part._internal_dict = type(config)({**config, **values})
