"""A ControlNet from one .safetensors file: in the original layout, alone or in a whole checkpoint, or in diffusers'.

Which family it was made for is told by comparing its tensors with those of a ControlNet for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..core.errors import TensorMismatch, WeightsError
from ..modules.base import openers
from ..weights.build import build_empty
from ..weights.convert import Entries, convert_controlnet, under
from ..weights.header import TensorEntry, read_header
from ..weights.kinds import CONTROLNET, mistaken
from ..weights.load import fill_network, read_config
from .base import families

PREFIX = "control_model."
_PICTURE = "controlnet_cond_embedding.conv_in.weight"


def open_controlnet(
    cls: type[Any], path: Path, *, config: Path | None = None, dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> Any:  # fmt: skip
    """The ControlNet of a file; `config` is the folder of its config.json, without which the family is found out."""
    settings, named = read_controlnet_file(cls, path, config)
    return fill_network(cls, settings, named, config_source=str(path), dtype=dtype, device=device, on_disk=True)


def read_controlnet_file(
    cls: type[Any], path: Path, config: Path | None = None
) -> tuple[Mapping[str, Any], dict[str, TensorEntry]]:
    """The config of the file's ControlNet, and its tensors by parameter name of `cls`.

    Raises WeightsError for files of another kind, TensorMismatch for a ControlNet of no family that is known, and what
    `read_header` raises.
    """
    entries = read_header(path).entries
    found = under(entries, PREFIX) or dict(entries)
    if not ("input_hint_block.0.weight" in found or _PICTURE in found):
        some = ", ".join(list(entries)[:3]) or "nothing"
        raise WeightsError(
            mistaken(path, entries, CONTROLNET)
            or f"{path} is no ControlNet ({len(entries)} tensors: {some} …): expected names such as "
            f"{PREFIX}input_hint_block.0.weight or {_PICTURE}."
        )
    if config is not None:
        settings = {name: value for name, value in read_config(config).items() if not name.startswith("_")}
        return settings, _named(found, settings)
    nearest: list[tuple[int, str]] = []
    for title, settings in _known(cls):
        named = _named(found, settings)
        if (picture := named.get(_PICTURE)) is not None and len(picture.shape) == 4:
            settings = {**settings, "conditioning_channels": picture.shape[1]}
        wrong = _differences(cls, settings, named)
        if not wrong:
            return settings, named
        nearest.append((len(wrong), f"one for {title} would have other tensors, such as {wrong[0]}"))
    raise TensorMismatch(
        f"{path} is a ControlNet of no family that is known: {min(nearest)[1]}. Pass config=, the folder of its "
        "config.json."
    )


def _known(cls: type[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Title of each family, and the config of a ControlNet for it."""
    for name in families:
        family = families.get(name)
        yield family.title, cls.settings_for(family.networks["unet"].config)


def _named(found: Entries, settings: Mapping[str, Any]) -> dict[str, TensorEntry]:
    return dict(found) if _PICTURE in found else convert_controlnet(found, settings)


def _differences(cls: type[Any], settings: Mapping[str, Any], named: Entries) -> list[str]:
    """Names of tensors that such a network has and the file has not, or the reverse, or in another shape."""
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in build_empty(lambda: cls.from_config(settings)).state_dict().items()
    }
    return [name for name in {**shapes, **named} if name not in named or shapes.get(name) != named[name].shape]


openers.add("ControlNetModel", open_controlnet)
