"""What scripts written for diffusers ask of a pipeline besides drawing, under diffusers' names."""

from __future__ import annotations

import copy
import json
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..core.config import read_json, write_json
from ..core.hub import settings_folder
from ..modules.base import either_dtype
from ..run import inputs
from ..run.guidance import embed_guidance
from ..run.schedule import accepted_by
from ..schedulers import randn
from ..techniques.stack import Stack
from ..techniques.subject import Subject
from ..weights.locate import INDEX_FILE, find_checkpoint
from .image_processor import VaeImageProcessor
from .images import numpy_to_pil


class ForScripts:
    """Mixin of the pipelines: pieces of a call for those who write the loop themselves, and the config as a file."""

    config_name = INDEX_FILE
    has_compatibles = False
    ignore_for_config: ClassVar[list[str]] = []
    hf_device_map: dict[str, Any] | None = None
    model_cpu_offload_seq: ClassVar[str | None] = None
    _exclude_from_cpu_offload: ClassVar[list[str]] = ["safety_checker"]

    # -- pieces of a call --------------------------------------------------------------------------------------------

    @cached_property
    def image_processor(self: Any) -> VaeImageProcessor:
        """Pictures to tensors and back, for this pipeline's VAE."""
        return VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    numpy_to_pil = staticmethod(numpy_to_pil)

    def prepare_latents(
        self: Any,
        batch_size: int,
        num_channels_latents: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device | str,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: Tensor | None = None,
    ) -> Tensor:
        """Starting noise (B, C, h, w) for pictures of that size, or `latents`, at the scheduler's scale."""
        inputs.check_generators(generator, batch_size)
        shape = (
            batch_size,
            num_channels_latents,
            int(height) // self.vae_scale_factor,
            int(width) // self.vae_scale_factor,
        )
        if latents is None:
            latents = randn(shape, generator=generator, device=torch.device(device), dtype=dtype)
        return latents.to(device) * self.scheduler.init_noise_sigma

    def prepare_extra_step_kwargs(self: Any, generator: Any, eta: float) -> dict[str, Any]:
        """`eta` and `generator`, if this scheduler's `step` takes them."""
        return accepted_by(self.scheduler.step, {"eta": eta, "generator": generator})

    def get_guidance_scale_embedding(
        self, w: Tensor, embedding_dim: int = 512, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Guidance scales less one (B,) as inputs (B, embedding_dim) of a distilled UNet."""
        return embed_guidance(w + 1, embedding_dim, dtype)

    def maybe_free_model_hooks(self) -> None:
        """Does nothing: offloading frees the memory of weights on the device by itself."""

    def reset_device_map(self) -> None:
        """Does nothing: there is no device map, weights are on one device or travel to it."""

    def set_attention_slice(self: Any, slice_size: str | int | list[int] | None) -> None:
        """`enable_attention_slicing` under its older name."""
        self.enable_attention_slicing(slice_size)

    def set_use_memory_efficient_attention_xformers(self: Any, valid: bool, attention_op: Any = None) -> None:
        """`enable_xformers_memory_efficient_attention`, or the opposite, under their older name."""
        if valid:
            self.enable_xformers_memory_efficient_attention(attention_op)
        else:
            self.disable_xformers_memory_efficient_attention()

    # -- components and settings -------------------------------------------------------------------------------------

    @property
    def name_or_path(self: Any) -> str | None:
        """What the pipeline was opened from; None when it was put together from components."""
        return self._opened_from

    @property
    def parameters(self: Any) -> dict[str, Any]:
        """The plain settings, as the class takes them beside `components`."""
        return {name: value for name, value in self._settings.items() if name in self._setting_names()}

    def register_modules(self, **components: Any) -> None:
        """Set components by name."""
        for name, component in components.items():
            setattr(self, name, component)

    def register_to_config(self: Any, **settings: Any) -> None:
        """Change plain settings, which `config` shows and `save_pretrained` writes."""
        self._settings.update(settings)

    @classmethod
    def from_pipe(cls, pipeline: Any, **changes: Any) -> Self:
        """A pipeline of this class on the components of another, ours or diffusers', except for those in `changes`.

        Weights are shared; the syntax of prompts and perturbed attention are kept. `dtype` (or `torch_dtype`) casts
        them, for both. ConfigError when this class needs a component that neither has. Called on DiffusionPipeline, the
        class is the other pipeline's, or the one that the components are for.
        """
        if not cls.component_names:  # type: ignore[attr-defined]
            from . import classes

            known, parts = classes(), pipeline.components.keys()
            fits = max(known.values(), key=lambda cls: len(parts & {*cls.component_names}))
            return known.get(type(pipeline).__name__, fits).from_pipe(pipeline, **changes)
        casts = any(changes.get(name) is not None for name in ("dtype", "torch_dtype"))
        dtype = either_dtype(changes.pop("dtype", None), changes.pop("torch_dtype", None))
        made: Any = cls
        settings = {**getattr(pipeline, "parameters", {}), **made._take_settings(changes, cls.from_pipe)}
        parts = {name: part for name, part in pipeline.components.items() if name in made.component_names} | changes
        there = {name: type(part).__name__ for name, part in parts.items() if part is not None}
        made._check_fit(f"the {type(pipeline).__name__}", there, parts)
        new: Any = cls(**parts, **{name: value for name, value in settings.items() if name in made._setting_names()})
        new._opened_from, new.notice = (getattr(pipeline, name, None) for name in ("_opened_from", "notice"))
        new.prompt_syntax = getattr(pipeline, "prompt_syntax", new.prompt_syntax)
        new._guided_as(pipeline)
        return new.to(dtype=dtype) if casts else new  # type: ignore[attr-defined]

    def __deepcopy__(self: Any, memo: dict[int, Any]) -> Any:
        """A pipeline with copies of everything, and the same techniques on."""
        new, techniques = object.__new__(type(self)), self._stack.applied
        memo[id(self)] = new

        def fill() -> None:
            own = {"_stack": None, "_under_way": [], "_origin": None}
            new.__dict__.update(own)
            for name, value in self.__dict__.items():
                if name not in own:
                    new.__dict__[name] = copy.deepcopy(value, memo)

        if techniques:
            self._stack.lifted(fill)
        else:
            fill()
        new.__dict__["_stack"] = Stack(Subject(new, has_runs=True))
        for applied in techniques:
            if not applied.default:
                new._stack.enable(applied.technique, applied.why)
        return new

    # -- the config as a file ----------------------------------------------------------------------------------------

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | Path, **where: Any) -> dict[str, Any]:
        """The model_index.json of a folder or hub id; `where`: revision, cache_dir, local_files_only, token."""
        return read_json(settings_folder(pretrained_model_name_or_path, [INDEX_FILE], **where) / INDEX_FILE)

    get_config_dict = load_config

    def save_config(self: Any, save_directory: str | Path) -> None:
        """Write model_index.json alone into a folder."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / INDEX_FILE, dict(self.config))

    def to_json_string(self: Any) -> str:
        """What `save_config` writes."""
        return json.dumps(dict(self.config), indent=2, sort_keys=True) + "\n"

    def to_json_file(self: Any, json_file_path: str | Path) -> None:
        """Write what `save_config` writes to a file of any name."""
        write_json(Path(json_file_path), dict(self.config))

    @classmethod
    def download(
        cls,
        pretrained_model_name: str | Path,
        *,
        revision: str | None = None,
        variant: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        use_safetensors: bool | None = None,
    ) -> str:
        """Fetch what opening the hub id needs into the hub's cache, and return the folder. WeightsError's kinds."""
        found = find_checkpoint(
            pretrained_model_name, revision=revision, variant=variant, cache_dir=cache_dir, token=token,
            local_files_only=local_files_only, use_safetensors=use_safetensors,
        )  # fmt: skip
        return str(found.folder)


def deprecated(name: str, instead: str, decorators: int = 0) -> None:
    """A FutureWarning at the caller of the method that calls this, past that many decorators of it."""
    warnings.warn(f"{name} is deprecated: use {instead}.", FutureWarning, stacklevel=3 + decorators)
