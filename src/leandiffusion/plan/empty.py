"""Networks without weights, on the meta device: of a family, of a checkpoint's configs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..families.base import Family
from ..families.controlnet_file import read_controlnet_file
from ..families.folder import component_class, read_index
from ..families.single_file import family_of_file
from ..modules.controlnet import ControlNetModel
from ..weights.build import build_empty
from ..weights.locate import find_index

Described = dict[str, tuple[Any, Mapping[str, Any]]]
"""Class and config of networks, by component name."""


def empty_networks(
    source: Family | str | Path, dtype: torch.dtype | Mapping[str, torch.dtype] = torch.float32, *,
    only: Collection[str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The networks of a family, a pipeline folder or a single file by component name, without weights: on the meta
    device.

    `only` are the names of those wanted, all unless given. `dtype` is for all of them, or by name with "default" for
    the rest. Raises as `described` does.
    """
    networks: dict[str, Any] = {}
    for name, (cls, config) in described(source, only).items():
        own = dtype.get(name, dtype["default"]) if isinstance(dtype, Mapping) else dtype
        networks[name] = empty_network(cls, config, own)
    return networks


def empty_network(cls: Any, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """One network without weights, on the meta device."""
    network = build_empty(lambda: cls.from_config(config)).requires_grad_(False).eval()
    _cast(network, dtype)
    return network


def described(source: Family | str | Path, only: Collection[str] | None = None) -> Described:
    """Class and config of the networks of a family, a pipeline folder or hub id, or a single file; all, or `only` some.

    Of a folder or a hub id only JSON files are read, of a file only the header. Raises what reading these raises, and
    ConfigError for what is not supported.
    """
    if not isinstance(source, Family):
        path = Path(source).expanduser()
        if not path.is_file():
            index = read_index(find_index(source))
            there = {name: cls for name, cls in index.components.items() if cls is not None}
            classes = {name: component_class(cls) for name, cls in there.items() if only is None or name in only}
            found = {name: (cls, name) for name, cls in classes.items() if hasattr(cls, "weights_stem")}
            for name, cls in classes.items():
                if hasattr(cls, "member_folders"):  # several as one
                    folders = cls.member_folders(index.folder / name)
                    found |= {f"{name}.{place}": (cls.member, path.name) for place, path in enumerate(folders)}
            return {name: (cls, cls.load_config(source, subfolder=sub)) for name, (cls, sub) in found.items()}
        source = family_of_file(path)
    specs = {name: spec for name, spec in source.networks.items() if only is None or name in only}
    return {name: (component_class(spec.class_name), spec.config) for name, spec in specs.items()}


def described_control(source: Family | str | Path) -> tuple[Any, Mapping[str, Any]]:
    """Class and config of a ControlNet: of its folder, hub id or file, or of one such as a family's UNet has at full
    size.

    Raises what reading a config raises.
    """
    if not isinstance(source, Family):
        path = Path(source).expanduser()
        config = read_controlnet_file(ControlNetModel, path)[0] if path.is_file() else None
        return ControlNetModel, config or ControlNetModel.load_config(source)
    return ControlNetModel, ControlNetModel.settings_for(source.networks["unet"].config)


def _cast(network: nn.Module, dtype: torch.dtype) -> None:
    """Parameters of that dtype. `network.to(dtype)` and `empty_like` would have torch import its compiler."""
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None and weight.dtype != dtype:
                fresh = torch.empty(weight.shape, dtype=dtype, device="meta")
                module._parameters[name] = nn.Parameter(fresh, weight.requires_grad)
