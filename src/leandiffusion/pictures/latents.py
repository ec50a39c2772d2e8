"""Denoised latents on disk, for when they could not be decoded: with the record that their picture would have had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.aside import aside, flush, publish
from ..core.errors import ConfigError
from .record import JSON_KEY, PictureRecord

SUFFIX = ".latents.safetensors"
NAME = "latents"


def save_latents(latents: Any, record: PictureRecord, folder: Path, name: str) -> Path:
    """Write a tensor (B, C, h, w) into the folder under a name that is free yet; returns its path."""
    with aside(folder / "latents") as place:
        write_latents(latents, record, place)
        number = 0
        while True:
            number += 1
            path = folder / (name + (f"-{number}" if number > 1 else "") + SUFFIX)
            try:
                publish(place, path)
                return path
            except FileExistsError:
                continue


def write_latents(latents: Any, record: PictureRecord, path: Path) -> None:
    """Write a tensor (B, C, h, w) to that file, to the disk. OSError where it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({NAME: latents.cpu().contiguous()}, path, metadata={JSON_KEY: record.to_json()})
    except SafetensorError as error:  # what it makes of a full disk
        raise OSError(str(error)) from error
    flush(path)


def read_latents(path: Path) -> tuple[Any, PictureRecord]:
    """What `save_latents` wrote. ConfigError, naming the file, when it is none; OSError when it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if NAME not in file.keys() or JSON_KEY not in metadata:  # noqa: SIM118 - no mapping
                raise ConfigError(f"{path} holds no latents that `leandiffusion generate` kept.")
            return file.get_tensor(NAME), PictureRecord.from_json(metadata[JSON_KEY])
    except SafetensorError as error:
        raise ConfigError(f"{path} is no safetensors file, or a damaged one: {error}") from error
