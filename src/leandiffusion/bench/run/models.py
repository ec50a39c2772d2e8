"""The model that a run draws with: the packaged one, a checkpoint, or a full-size network with random weights."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...core.aside import aside
from ...core.config import read_json, write_json
from ...core.errors import ConfigError
from ...core.registry import did_you_mean
from ...core.units import format_bytes
from ...core.wording import dtype_name
from ...families.base import Family, families, family_names
from ...families.folder import INDEX_FILE, component_class
from ...families.single_file import family_of_file
from ...modules.controlnet import ControlNetModel
from ...modules.tokenizer import CLIPTokenizer
from ...pipelines.from_folder import packaged
from ...weights.build import build_empty
from ...weights.locate import find_checkpoint

SHAPE = "shape:"


def find_model(name: str, workdir: Path) -> dict[str, Any]:
    """The checkpoint called `name`, ready on disk: {'checkpoint': path, 'size': side of its pictures in pixels}.

    'shape:sd15' and its like are made in `workdir`, once. ConfigError for unknown shapes and for a full disk,
    WeightsError's kinds for checkpoints that are not there.
    """
    if name.startswith(SHAPE):
        family = shape_of(name)
        folder = workdir / f"{name.removeprefix(SHAPE)}-bfloat16"
        if not folder.exists():
            write_random_checkpoint(family, folder, torch.bfloat16)
        return {"checkpoint": str(folder), "size": family.size}
    path = Path(name).expanduser()
    if path.is_file():
        networks = family_of_file(path).networks
        return {"checkpoint": str(path), "size": _picture_size(networks["unet"].config, networks["vae"].config)}
    folder = find_checkpoint(packaged(name)).folder
    unet, vae = (read_json(folder / part / "config.json") for part in ("unet", "vae"))
    return {"checkpoint": str(folder), "size": _picture_size(unet, vae)}


def find_controlnet(name: str, workdir: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """The folder of a ControlNet for 'shape:sd15' and its like, with random weights, made in `workdir` once.

    Its weights have the variance of any layer's, those of a real one begin with zeros where they join the UNet's.
    """
    family, name = shape_of(name), name.removeprefix(SHAPE)
    folder = workdir / f"{name}-controlnet-{dtype_name(dtype)}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        config = ControlNetModel.settings_for(family.networks["unet"].config)
        with aside(folder) as place:
            _random_network(ControlNetModel, config, dtype).save_pretrained(place)
            os.replace(place, folder)
    return folder


def _picture_size(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> int:
    """Side in pixels of the pictures that a UNet of this config was trained on."""
    levels = len(vae.get("block_out_channels", (0,) * 4))
    return int(unet.get("sample_size", 64)) * 2 ** (levels - 1)


def shape_of(name: str) -> Family:
    """The family behind 'shape:sd15' and its like; ConfigError for others."""
    names = family_names()
    shape = name.removeprefix(SHAPE)
    if shape not in names:
        known = [SHAPE + known for known in names]
        raise ConfigError(f"unknown model {name!r}.{did_you_mean(name, known)} Shapes: {', '.join(known)}.")
    return families.get(names[shape])


def write_random_checkpoint(family: Family, folder: Path, dtype: torch.dtype, *, seed: int = 0) -> None:
    """A pipeline folder of the family at full size with random weights, one network at a time in memory.

    Weights keep the variance of what passes through them (LeCun et al. 1998), so that pictures are noise of an
    ordinary range in every dtype. The same seed gives the same weights. ConfigError when the disk has no room. The
    folder appears when it is complete.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _check_room(family, folder.parent, dtype)
    with aside(folder) as place:
        _write(family, place, dtype, seed)
        os.replace(place, folder)


def _write(family: Family, folder: Path, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    index: dict[str, Any] = {"_class_name": family.pipeline, "_diffusers_version": "0.30.0"}
    for name, part in family.networks.items():
        network = _random_network(component_class(part.class_name), part.config, dtype)
        network.save_pretrained(folder / name)
        del network
        index[name] = ["transformers" if name.startswith("text_encoder") else "diffusers", part.class_name]
    for name, settings in family.tokenizers.items():
        CLIPTokenizer.standard(**settings).save_pretrained(folder / name)
        index[name] = ["transformers", "CLIPTokenizer"]
    class_name, settings = family.scheduler
    component_class(class_name).from_config(settings).save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", class_name]
    write_json(folder / INDEX_FILE, index)


def _random_network(cls: type[Any], config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    network = build_empty(lambda: cls.from_config(config)).requires_grad_(False)
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                filled = torch.empty(weight.shape, dtype=dtype)
                _fill(module, name, filled)
                module._parameters[name] = nn.Parameter(filled, requires_grad=False)
    return network


def _fill(module: nn.Module, name: str, weight: torch.Tensor) -> None:
    if isinstance(module, nn.GroupNorm | nn.LayerNorm):
        weight.fill_(1.0 if name == "weight" else 0.0)
    elif name == "bias":
        weight.zero_()
    elif isinstance(module, nn.Embedding) or weight.dim() < 2:
        weight.normal_(std=0.02)
    else:
        weight.normal_(std=1 / math.sqrt(weight[0].numel()))


def _check_room(family: Family, folder: Path, dtype: torch.dtype) -> None:
    needed, free = sum(family.footprint(dtype).values()), shutil.disk_usage(folder).free
    if needed * 1.05 > free:
        raise ConfigError(
            f"{family.title} with random weights takes {format_bytes(needed)} on disk and {folder} has "
            f"{format_bytes(free)} free: choose another folder with --work."
        )
