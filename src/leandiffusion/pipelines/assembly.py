"""A pipeline as a set of components: opening, saving, moving."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from ..core.errors import ConfigError
from ..core.registry import did_you_mean
from ..device.capabilities import why_slow
from ..device.host import is_host
from ..device.names import check_device
from ..families.base import detect
from ..families.folder import open_folder, read_index
from ..families.single_file import open_single_file
from ..modules.base import check_dtype, either_dtype
from ..techniques import Technique
from ..techniques.offloading import check_movable, opening_offload
from ..techniques.stack import Stack
from ..techniques.subject import Subject
from ..weights.header import read_header
from ..weights.locate import find_checkpoint
from .given import check_given, open_given
from .options import take_neutral
from .saving import Saving


class Assembly(Saving):
    """Components, each an attribute named as in model_index.json; any may be replaced by hand."""

    component_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, components: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        check_given(type(self).__name__, components)
        self.notice: Callable[[str], str | None] | None = None
        """What to tell a user about a prompt before drawing it, if anything."""
        self._settings = dict(settings)
        self._opened_from: str | None = None
        self._stack = Stack(Subject(self))
        for name, component in components.items():
            setattr(self, name, component)

    # -- components --------------------------------------------------------------------------------------------------

    @property
    def components(self) -> dict[str, Any]:
        """Component by name, absent ones as None: `OtherPipeline(**pipe.components)` shares the weights."""
        return {name: getattr(self, name) for name in self.component_names}

    @property
    def device(self) -> torch.device:
        """Where the networks run: on the device where the UNet's weights lie, or to which they travel.

        Where another network's lie when the UNet is a foreign object without any.
        """
        return self._stack.subject.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the UNet's weights; of another network's when the UNet is a foreign object without any."""
        return self._stack.subject.dtype

    @property
    def _execution_device(self) -> torch.device:
        return self.device  # diffusers' name for it, which scripts use

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move and cast every network: a device, a dtype, or both, also as `device=` and `dtype=`. Returns itself.

        diffusers' keywords `torch_device=`, `torch_dtype=` and `silence_dtype_warnings=` are understood. Raises
        ConfigError for anything else, or a device while weights are offloaded, and BackendUnavailable for a device
        that is not there, before anything moves. Techniques that are on stay on.
        """
        kwargs.pop("silence_dtype_warnings", None)
        wanted = [("dtype" if isinstance(value, torch.dtype) else "device", value) for value in args]
        wanted += [(key.removeprefix("torch_"), value) for key, value in kwargs.items()]
        wanted = [(key, value) for key, value in wanted if value is not None]
        chosen: dict[str, Any] = dict(wanted)
        if len(chosen) < len(wanted) or not chosen.keys() <= {"device", "dtype"}:
            raise ConfigError(
                f"to({', '.join(f'{key}={value}' for key, value in wanted)}): pass a device, a dtype, or both."
            )
        if "dtype" in chosen:
            check_dtype(chosen["dtype"])
        if "device" in chosen:
            chosen["device"] = check_device(chosen["device"])
            check_movable(self._stack, chosen["device"])
            if self._stack.find("offload") is not None:
                del chosen["device"]
        if reason := why_slow(chosen.get("dtype"), chosen.get("device", self.device)):
            warnings.warn(reason, stacklevel=2)
        if chosen:
            self._stack.lifted(lambda: self._move(chosen))
        if "dtype" in chosen and (half := self._stack.find("half_precision")) is not None:
            warnings.warn(f"{half} stays on: pipe.disable('half_precision') makes it {chosen['dtype']}.", stacklevel=2)
        return self

    def _move(self, chosen: Mapping[str, Any]) -> None:
        for network in self._stack.subject.networks.values():
            network.to(**chosen)

    # -- opening and saving ------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: Any = None,
        dtype: Any = None,
        device: str | torch.device | None = None,
        variant: str | None = None,
        revision: str | None = None,
        use_safetensors: bool | None = None,
        local_files_only: bool = False,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        low_cpu_mem_usage: bool = True,
        offload: str | Technique | None = None,
        **components: Any,
    ) -> Self:
        """Open a local folder, a hub id, or 'demo', the small model in this package.

        `dtype` (older name `torch_dtype`) is the type weights get on their way from the file: float32 unless given.
        `device` is where they go, without a copy on the CPU. `variant="fp16"` chooses files; `revision` a branch, tag
        or commit of a hub id. A component by name replaces the checkpoint's, None leaves it out; `vae` may also be a
        path, of a .safetensors file or a folder. Loading never takes much more memory than the weights, whatever
        `low_cpu_mem_usage` says. `offload` is 'model', 'sequential' or such
        a technique: on a CPU weights then stay on disk until they are used, so that the model is never in memory as a
        whole. `DiffusionPipeline.from_pretrained` opens with the class that the checkpoint was made for.

        Raises ConfigError for wrong arguments, WeightsError's kinds for what is wrong with the files.
        """
        name = pretrained_model_name_or_path
        if not cls.component_names:
            from . import open_pipeline

            options = {
                "torch_dtype": torch_dtype, "dtype": dtype, "device": device, "variant": variant, "revision": revision,
                "use_safetensors": use_safetensors, "cache_dir": cache_dir, "token": token, "offload": offload,
            }  # fmt: skip
            given = {key: value for key, value in options.items() if value is not None}
            return open_pipeline(name, local_files_only=local_files_only, **given, **components)
        device = take_neutral(components, device)
        settings = cls._take_settings(components, cls.from_pretrained)
        chosen = either_dtype(dtype, torch_dtype)
        travel, device = opening_offload(offload, None if device is None else check_device(device))
        on_disk = travel is not None and is_host(travel.compute_device)
        found = find_checkpoint(
            packaged(name), revision=revision, variant=variant, use_safetensors=use_safetensors,
            local_files_only=local_files_only, cache_dir=cache_dir, token=token, without=tuple(components),
        )  # fmt: skip
        index = read_index(found.folder)
        cls._check_fit(f"{name}, a {index.pipeline or 'pipeline'},", index.components, components)
        components = open_given(components, cls.__name__, found.folder, dtype=chosen, device=device, on_disk=on_disk)
        opened = open_folder(
            found.folder, dtype=chosen, device=device, variant=found.variant, use_safetensors=use_safetensors,
            components=components, on_disk=on_disk,
        )  # fmt: skip
        stored = {key: value for key, value in index.settings.items() if key in cls._setting_names()}
        parts: dict[str, Any] = {part: opened.get(part) for part in cls.component_names}
        pipe = cls(**parts, **{**stored, **settings})
        pipe._opened_from = str(name)
        if packaged(name) != name:
            from ..demo import notice

            pipe.notice = notice
        return pipe._opened(travel)

    @classmethod
    def from_single_file(
        cls,
        path: str | Path,
        *,
        torch_dtype: Any = None,
        dtype: Any = None,
        device: str | torch.device | None = None,
        prediction_type: str | None = None,
        config: str | Path | None = None,
        original_config: str | Path | None = None,
        local_files_only: bool = True,
        offload: str | Technique | None = None,
        **components: Any,
    ) -> Self:
        """Open a checkpoint of one .safetensors file in the original layout. Nothing is ever downloaded.

        `prediction_type` overrides what SD2 files do not say: 'epsilon' (512 px models) or 'v_prediction' (768 px).
        `config` is a local pipeline folder whose settings replace the built-in ones. Components and `offload` as in
        `from_pretrained`.
        """
        device = take_neutral(components, device)
        settings = cls._take_settings(components, cls.from_single_file)
        chosen = either_dtype(dtype, torch_dtype)
        travel, device = opening_offload(offload, None if device is None else check_device(device))
        on_disk = travel is not None and is_host(travel.compute_device)
        family = detect(read_header(Path(path).expanduser()).tensors, path)
        there = dict.fromkeys([*family.parts, *family.tokenizers, "scheduler"], "")
        cls._check_fit(f"{path}, a {family.title} checkpoint,", there, components)
        folder = None if config is None else Path(config).expanduser()
        components = open_given(components, cls.__name__, folder, dtype=chosen, device=device, on_disk=on_disk)
        opened = open_single_file(
            path, dtype=chosen, device=device, components=components, prediction_type=prediction_type, config=config,
            original_config=original_config, on_disk=on_disk,
        )  # fmt: skip
        parts: dict[str, Any] = {name: opened.get(name) for name in cls.component_names}
        pipe = cls(**parts, **settings)
        pipe._opened_from = str(path)
        return pipe._opened(travel)

    def _opened(self, offload: Technique | None) -> Self:
        """This pipeline, just opened, with its weights travelling if that was asked for."""
        if offload is not None:
            self._stack.enable(offload, "asked for when opening")
        if reason := why_slow(self.dtype, self.device):
            warnings.warn(reason, stacklevel=3)
        return self

    @classmethod
    def _check_fit(cls, source: str, there: Mapping[str, str | None], given: Mapping[str, Any]) -> None:
        """ConfigError when the components that are there, by name, are more or less than this class runs."""
        parameters = inspect.signature(cls.__init__).parameters
        needed = [name for name in cls.component_names if parameters[name].default is inspect.Parameter.empty]
        surplus = [name for name, part in there.items() if part is not None and name not in cls.component_names]
        missing = [name for name in needed if name not in there and name not in given]
        if surplus or missing:
            wrong = f"has {', '.join(surplus)}" if surplus else f"lacks {', '.join(missing)}"
            raise ConfigError(
                f"{source} {wrong}, so {cls.__name__} can not run it: open it with leandiffusion.pipelines."
                "open_pipeline, which picks the class, or pass the components by name."
            )

    @classmethod
    def _setting_names(cls) -> list[str]:
        parameters = list(inspect.signature(cls.__init__).parameters)
        return [name for name in parameters if name != "self" and name not in cls.component_names]

    @classmethod
    def _take_settings(cls, components: dict[str, Any], opening: Callable[..., Any]) -> dict[str, Any]:
        """The plain settings, taken out of the keywords that `opening` got. ConfigError unless components remain."""
        settings = {name: components.pop(name) for name in cls._setting_names() if name in components}
        known = [*cls.component_names, *inspect.signature(opening).parameters, *cls._setting_names()]
        for name in components:
            if name not in cls.component_names:
                raise ConfigError(
                    f"{cls.__name__} does not know the argument {name!r}.{did_you_mean(name, known)} "
                    f"Its components: {', '.join(cls.component_names)}."
                )
        check_given(cls.__name__, components, paths=("vae",))
        return settings

    def __repr__(self) -> str:
        parts = "\n".join(f"  {name}: {type(part).__name__}" for name, part in self.components.items())
        return f"{type(self).__name__} ({self.dtype}, {self.device})\n{parts}"


def packaged(path_or_id: str | Path) -> str | Path:
    """'demo' -> the folder of the packaged model, unless a folder of that name lies here; all else as it is."""
    if str(path_or_id) != "demo" or Path("demo", "model_index.json").exists():
        return path_or_id
    from ..demo import model_folder

    return model_folder()
