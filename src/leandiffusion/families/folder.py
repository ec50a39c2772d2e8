"""Open a pipeline folder: model_index.json, and beside it one folder per component."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import CheckpointNotFound, ConfigError, MalformedFile
from ..core.notices import warn
from ..core.registry import did_you_mean
from ..core.replacing import finish_saving
from ..core.wording import show
from ..weights.locate import INDEX_FILE, described_in

if TYPE_CHECKING:
    import torch

# Class names that a model_index.json may hold -> module of ours. Schedulers are looked up in their own registry.
_CLASSES = {
    "UNet2DConditionModel": "modules.unet",
    "AutoencoderKL": "modules.vae",
    "AutoencoderTiny": "modules.vae_tiny",
    "ControlNetModel": "modules.controlnet",
    "MultiControlNetModel": "modules.multicontrolnet",
    "CLIPTextModel": "modules.text",
    "CLIPTextModelWithProjection": "modules.text",
    "CLIPTokenizer": "modules.tokenizer",
    "CLIPVisionModelWithProjection": "modules.vision",
    "StableDiffusionSafetyChecker": "modules.safety",
    "CLIPImageProcessor": "modules.clip_image_processor",
}
_OTHER_NAMES = {
    "CLIPFeatureExtractor": "CLIPImageProcessor",  # before transformers 4.26
    "CLIPImageProcessorFast": "CLIPImageProcessor",
    "CLIPImageProcessorPil": "CLIPImageProcessor",
    "CLIPTokenizerFast": "CLIPTokenizer",
}
# Names of components, without the _2 of second ones -> the classes that one may be of; its scheduler is any.
_KINDS = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "controlnet": ("ControlNetModel", "MultiControlNetModel"),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "tokenizer": ("CLIPTokenizer",),
    "safety_checker": ("StableDiffusionSafetyChecker",),
    "feature_extractor": ("CLIPImageProcessor",),
    "image_encoder": ("CLIPVisionModelWithProjection",),
}

UNNEEDED: Mapping[str, tuple[str, ...]] = {
    "AutoencoderKL": ("encoder.", "quant_conv."),
    "AutoencoderTiny": ("encoder.",),
    "CLIPVisionModelWithProjection": ("",),
}
"""What stays on disk of networks and is read whenever it is used, which is once in a drawing at most: prefixes of
parameter names, by class."""


@dataclass(frozen=True)
class ModelIndex:
    """A model_index.json: the pipeline's class name, class name (or None) per component, and plain settings."""

    folder: Path
    pipeline: str
    components: Mapping[str, str | None]
    settings: Mapping[str, Any]


def read_index(folder: str | Path) -> ModelIndex:
    """Read `folder`/model_index.json.

    Raises CheckpointNotFound when `folder` is not a pipeline folder, MalformedFile when the file is invalid.
    """
    folder = Path(folder)
    path = folder / INDEX_FILE
    finish_saving(folder)
    if not path.is_file():
        raise CheckpointNotFound(_not_a_pipeline(folder))
    components: dict[str, str | None] = {}
    settings: dict[str, Any] = {}
    values = described_in(path)
    for name, value in values.items():
        if name.startswith("_"):
            continue
        if not re.fullmatch(r"\w{1,100}", name):  # it names a folder too
            raise MalformedFile(
                f"{path}: {show(name)} is not the name of a component, expected letters, digits and underscores."
            )
        if isinstance(value, list) and len(value) == 2 and all(v is None or isinstance(v, str) for v in value):
            components[name] = value[1]
        elif isinstance(value, list | dict):
            raise MalformedFile(
                f"{path}: {name!r} is {show(value)}, expected a [library, class] pair or a plain setting."
            )
        else:
            settings[name] = value
    if not any(components.values()):
        raise MalformedFile(f'{path} names no components, expected pairs such as "unet": ["diffusers", …].')
    return ModelIndex(folder, str(values.get("_class_name", "")), components, settings)


def open_folder(
    folder: str | Path,
    *,
    dtype: torch.dtype | Mapping[str, torch.dtype] | None = None,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    components: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
    leave_out: Mapping[str, tuple[str, ...]] = UNNEEDED,
    progress: Callable[[str], None] | None = None,
    on_disk: bool = False,
) -> dict[str, Any]:
    """Every component that the folder's model_index.json names, by name; absent ones are None.

    `components` holds objects to use as given, and None for those to leave out: neither is looked for on disk. `dtype`
    is for all networks, or by component name with "default" for the rest. Weights that `leave_out` names, by class and
    the beginning of their names, stay on disk and are read whenever they are used: the VAE's encoder unless told
    otherwise. `progress` is called with each component's name before it is opened. `on_disk` leaves all weights in
    their files until they are used. A component without the variant asked for gets its plain weights, with a warning.

    Raises ConfigError for classes and settings that are not supported, and the kinds of WeightsError. Everything that
    can be seen from names and configs is checked before the first weights are read.
    """
    index = read_index(folder)
    given = dict(components or {})
    classes = {n: _class_of(index, n, c) for n, c in index.components.items() if c is not None and n not in given}
    for name in classes:
        if not (index.folder / name).is_dir():
            raise CheckpointNotFound(
                f"{index.folder} has no folder {name!r}, which its {INDEX_FILE} names: download it again, or pass "
                f"{name}=… (an object, or None to go without)."
            )
    groups = {name: cls for name, cls in classes.items() if hasattr(cls, "member_folders")}
    owners: dict[str, str] = {}  # folder of a network -> the component that it is a part of
    for name, cls in groups.items():
        owners |= {path.name: name for path in cls.member_folders(index.folder / name)}
        classes |= {each: cls.member for each, owner in owners.items() if owner == name}
    networks = {name: cls for name, cls in classes.items() if _is_network(cls)}
    variants = _variants(index.folder, networks, variant, use_safetensors)
    opened: dict[str, Any] = dict.fromkeys(index.components) | given
    for name, cls in classes.items():
        if progress is not None:
            progress(name)
        if name not in networks:
            opened[name] = cls.from_pretrained(index.folder / name)
            continue
        from ..weights.load import open_network

        opened[name] = open_network(
            cls,
            index.folder / name,
            dtype=dtype.get(owners.get(name, name), dtype.get("default")) if isinstance(dtype, Mapping) else dtype,
            device=device,
            variant=variants[name],
            use_safetensors=use_safetensors,
            leave_out=leave_out.get(cls.__name__),
            on_disk=on_disk,
        )
    for name, cls in groups.items():
        nets = [opened[each] if each == name else opened.pop(each) for each, owner in owners.items() if owner == name]
        opened[name] = cls(nets)
    return opened


def component_class(class_name: str) -> type[Any]:
    """Our class for a class name in a model_index.json; ConfigError for those that are not supported."""
    name = _OTHER_NAMES.get(class_name, class_name)
    if name in _CLASSES:
        return getattr(importlib.import_module(f"leandiffusion.{_CLASSES[name]}"), name)
    from ..schedulers import schedulers

    if name in schedulers:
        return schedulers.get(name)
    known = [*_CLASSES, *_OTHER_NAMES, *schedulers]
    raise ConfigError(f"{show(class_name)} is not supported.{did_you_mean(name, known)} Supported: {', '.join(known)}.")


def _class_of(index: ModelIndex, name: str, class_name: str) -> type[Any]:
    from ..schedulers import schedulers

    fitting = list(schedulers) if name == "scheduler" else _KINDS.get(name.removesuffix("_2"))
    try:
        cls = component_class(class_name)
        if fitting is not None and cls.__name__ not in fitting:
            raise ConfigError(f"{show(class_name)} is another kind of component. Expected: {', '.join(fitting)}.")
    except ConfigError as error:
        raise ConfigError(
            f"{index.folder / INDEX_FILE}, component {name!r}: {error} Or pass {name}=… yourself."
        ) from None
    return cls


def _is_network(cls: type[Any]) -> bool:
    return hasattr(cls, "weights_stem")


def _variants(
    folder: Path, networks: Mapping[str, type[Any]], variant: str | None, use_safetensors: bool | None
) -> dict[str, str | None]:
    """Which variant each network is opened in: the one asked for where it has it, which at least one must."""
    from ..weights.files import weight_files

    without: dict[str, CheckpointNotFound] = {}
    for name, cls in networks.items():
        try:
            weight_files(folder / name, cls.weights_stem, variant=variant, use_safetensors=use_safetensors)
        except CheckpointNotFound as error:
            without[name] = error
    if without and (variant is None or len(without) == len(networks)):
        raise next(iter(without.values()))
    for name in without:  # raises when there are no plain weights either
        weight_files(folder / name, networks[name].weights_stem, use_safetensors=use_safetensors)
    if without:
        plain = ", ".join(without)
        warn(f"{folder} has no {variant!r} variant of {plain}: the plain weights are used.")
    return {name: None if name in without else variant for name in networks}


def _not_a_pipeline(folder: Path) -> str:
    if not folder.is_dir():
        return f"no such folder: {folder}"
    present = sorted(path.name for path in folder.iterdir())
    found = f"{folder} has no {INDEX_FILE}, so it is not a pipeline folder. "
    if "config.json" in present:
        return found + "It holds one component: open it with that class's from_pretrained and pass it to a pipeline."
    if single := [name for name in present if name.endswith((".safetensors", ".ckpt"))]:
        return found + f"It holds {single[0]}: open a file in the original layout with from_single_file."
    return found + f"It holds: {', '.join(present[:8]) or 'nothing'}{' …' * (len(present) > 8)}."
