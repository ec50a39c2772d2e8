"""The folder for what can be made again: measurements of this machine."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "LEANDIFFUSION_CACHE"


def cache_folder() -> Path:
    """Where this user's programs keep such files, or what the environment variable LEANDIFFUSION_CACHE names. It need
    not exist. Checkpoints are kept elsewhere, by huggingface_hub."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("leandiffusion")
