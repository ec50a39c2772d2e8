"""Settings of old checkpoints that were wrong when they were written, mended when a pipeline is built from them."""

from __future__ import annotations

import re
from typing import Any

from ..core.config import WRITER_VERSION, Config
from ..core.notices import warn
from ..core.wording import show


def mend_unet(unet: Any) -> None:
    """Set `sample_size` to 64, with a warning, where a UNet saved by a diffusers before 0.9 says less.

    Those writers left the default of 32 in the configs of SD1 models, which draw 512 pixels, 64 latents.
    """
    config: Any = getattr(unet, "config", None)
    size = getattr(config, "sample_size", None)
    wrote = re.match(r"(\d+)\.(\d+)", str(getattr(config, WRITER_VERSION, "")))
    if not wrote or (int(wrote[1]), int(wrote[2])) >= (0, 9) or not isinstance(size, int) or size >= 64:
        return
    warn(
        f"this UNet was saved by diffusers {config[WRITER_VERSION]}, which wrote sample_size={size} for models "
        "of 64: it is taken as 64. To be rid of this warning, save the pipeline again; for other sizes pass height and "
        "width.",
        FutureWarning,
    )
    amend_config(unet, sample_size=64)


def mend_scheduler(scheduler: Any) -> None:
    """Set `steps_offset` to 1 and `clip_sample` to False, with a warning, where a scheduler's config says otherwise.

    Stable Diffusion was trained for both; its configs from before these settings existed, and schedulers that are made
    by hand, have other defaults. Settings that only another scheduler reads, and this one carries, count too.
    """
    config: Any = getattr(scheduler, "config", None)
    wrong = {"steps_offset": (1, getattr(config, "steps_offset", 1) != 1)}
    wrong["clip_sample"] = (False, getattr(config, "clip_sample", False) is True)
    mended = {key: value for key, (value, is_wrong) in wrong.items() if is_wrong}
    if not mended:
        return
    settings = " and ".join(f"{key}={show(config[key])} is taken as {value}" for key, value in mended.items())
    warn(
        f"{type(scheduler).__name__}: {settings}, as Stable Diffusion was trained. To be rid of this warning, pass "
        f"{', '.join(f'{key}={value}' for key, value in mended.items())} when making the scheduler, or save the "
        "pipeline again. To have other settings, assign pipe.scheduler once the pipeline is built.",
        FutureWarning,
    )
    amend_config(scheduler, **mended)


def amend_config(part: Any, **values: Any) -> None:
    """Change settings in the config of a component, ours or one of diffusers."""
    config = part.config
    if isinstance(config, Config):
        object.__setattr__(part, "_config", Config({**config, **values}))
    elif hasattr(part, "_internal_dict"):
        part._internal_dict = type(config)({**config, **values})
