"""A LoRA file or state dict -> its tensors by network, layer and factor. Only the header is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.errors import ConfigError, MalformedFile, TensorMismatch
from ..core.jsons import BadJSON, parse_json
from ..core.wording import show
from ..weights.header import read_header
from ..weights.kinds import LORA, mistaken
from ..weights.opened import OpenFile, stamp_of
from ..weights.source import Source
from .names import OTHER_FAMILIES, place_of

METADATA = "lora_adapter_metadata"
"""Under which diffusers writes PEFT's settings into a file's metadata, as JSON."""

Layers = dict[str, dict[str, Source]]
"""Factors by name, `alpha` among them, by the name that the file has for their layer."""


@dataclass(frozen=True, eq=False)
class LoraFile:
    """What a file holds: layers by network, and where it came from. `settings`: PEFT's, by network."""

    where: str
    networks: dict[str, Layers]
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def default_alpha(self, network: str, layer: str, rank: int) -> float:
        """`alpha` of a layer whose file has none beside its factors: PEFT's setting if there is one, else the rank."""
        settings = self.settings.get(network, {})
        alpha = settings.get("lora_alpha") or rank
        for pattern, value in (settings.get("alpha_pattern") or {}).items():
            if layer == pattern or layer.endswith(f".{pattern}") or fnmatchcase(layer, f"*{pattern}"):
                alpha = value
        if settings.get("use_rslora"):  # alpha / sqrt(r) instead of alpha / r: Kalajdzievski 2023
            alpha = alpha * rank**0.5
        return float(alpha)


def read_lora(source: Path | Mapping[str, Tensor]) -> LoraFile:
    """The adapter in a .safetensors file, or in a state dict that is in memory.

    Raises UnsafeFormat for pickles, MalformedFile, and TensorMismatch for tensors that are no LoRA's: of a checkpoint,
    of another family, of DoRA, or unknown ones, by name.
    """
    if isinstance(source, Mapping):
        where, settings = "the state dict", {}
        if wrong := next((n for n, t in source.items() if not isinstance(n, str) or not isinstance(t, Tensor)), None):
            raise ConfigError(f"a state dict of LoRA weights has tensors by name; {wrong!r} is none of them.")
        tensors = {name: Source(tensor=tensor) for name, tensor in source.items()}
    else:
        header = read_header(source)
        file = OpenFile.at(source, stamp_of(source))
        where, settings = str(source), _settings(str(source), header.metadata)
        tensors = {name: Source(entry, file) for name, entry in header.entries.items()}
    networks: dict[str, Layers] = {}
    unknown: list[str] = []
    for name, tensor in tensors.items():
        place = place_of(name)
        if place is None:
            unknown.append(name)
        else:
            networks.setdefault(place.network, {}).setdefault(place.layer, {})[place.factor] = tensor
    _refuse(where, list(tensors), unknown)
    return LoraFile(where, networks, settings)


def _refuse(where: str, names: list[str], unknown: list[str]) -> None:
    if not names:
        raise TensorMismatch(f"{where} holds no tensors: expected the factors of a LoRA.")
    for pattern, family in OTHER_FAMILIES:
        if found := next((name for name in names if pattern.search(name)), None):
            raise TensorMismatch(
                f"{where} is for {family}, as its tensor {found} tells; supported are LoRAs for Stable Diffusion 1, 2 "
                "and XL."
            )
    if not unknown:
        return
    if other := mistaken(where, names, LORA):
        raise TensorMismatch(other)
    some = ", ".join(unknown[:3]) + (" …" if len(unknown) > 3 else "")
    raise TensorMismatch(
        f"{where} is no LoRA that can be read here: {len(unknown)} of its {len(names)} tensors are unknown: {some}. "
        "Expected names such as unet.….lora_A.weight (diffusers, PEFT) or lora_unet_….lora_down.weight (kohya)."
    )


def _settings(where: str, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """PEFT's settings by network; none where the file has none that can be read."""
    try:
        flat = parse_json(metadata.get(METADATA, "{}"))
    except BadJSON as error:
        raise MalformedFile(
            f"{where}: its metadata {METADATA!r} are not JSON ({error}). Save the LoRA again."
        ) from error
    settings: dict[str, dict[str, Any]] = {}
    for key, value in flat.items() if isinstance(flat, dict) else ():
        network, _, name = key.partition(".")
        if name in _FITS and value is not None and not _FITS[name](value):
            raise MalformedFile(
                f"{where}: its metadata {METADATA!r} have {show(value)} for {key}. Save the LoRA again."
            )
        settings.setdefault(network, {})[name] = value
    return settings


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


_FITS: dict[str, Callable[[Any], bool]] = {
    "lora_alpha": _is_number,
    "alpha_pattern": lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
    "use_rslora": lambda value: isinstance(value, bool),
}
"""What the settings that are heeded have to be."""
