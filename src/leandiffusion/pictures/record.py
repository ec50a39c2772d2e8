"""The record in a picture: how to draw it again, how long drawing took and how much memory.

Two texts travel in the PNG. `leandiffusion` is our own JSON, from which the same picture can be drawn again.
`parameters` is the text that AUTOMATIC1111's web UI writes and that galleries and prompt readers understand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from PIL import PngImagePlugin

from ..core.errors import ConfigError
from ..core.jsons import BadJSON, parse_json
from ..core.wording import show
from .png_text import read_png_text
from .ranges import RANGES

JSON_KEY = "leandiffusion"
A1111_KEY = "parameters"
FORMAT = 1

# Our scheduler classes under the names that AUTOMATIC1111's web UI gives the same samplers.
_A1111_SAMPLERS = {
    "PNDMScheduler": "PLMS",
    "EulerDiscreteScheduler": "Euler",
    "EulerAncestralDiscreteScheduler": "Euler a",
    "DPMSolverMultistepScheduler": "DPM++ 2M",
    "DPMSolverSDEScheduler": "DPM++ SDE",
    "KDPM2DiscreteScheduler": "DPM2",
    "KDPM2AncestralDiscreteScheduler": "DPM2 a",
    "UniPCMultistepScheduler": "UniPC",
}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the pixels. `scheduler` is a short name such as 'dpm++-karras', or None for the
    model's own; `dtype` a torch name such as 'bfloat16'; `device` a torch device such as 'cuda:0'; `vae` the path of
    another VAE than the model's; `lora` are LoRAs as PATH or PATH:SCALE. `image` and `mask` are files that were drawn
    on, as `resize` and `padding_mask_crop` say; `strength` is how much of the picture became new, from 0 to 1.
    `prompt_syntax` is 'plain', or 'weighted' for prompts with weights; `embeddings` are textual inversions as PATH or
    PATH:WORD; `controlnet` ControlNets as PATH or PATH:SCALE, and `control_image` the picture that each of them saw.
    `ip_adapter` are files of IP-Adapters, `ip_image` the picture that each saw, as PATH or PATH:SCALE; `pag_scale` and
    `pag_layers` are perturbed attention's, of no layers where it is usual."""

    model: str
    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    guidance_scale: float
    scheduler: str | None
    width: int
    height: int
    dtype: str
    device: str
    vae: str | None = None
    lora: tuple[str, ...] = ()
    image: str | None = None
    mask: str | None = None
    strength: float | None = None
    resize: str | None = None
    padding_mask_crop: int | None = None
    prompt_syntax: str = "plain"
    embeddings: tuple[str, ...] = ()
    controlnet: tuple[str, ...] = ()
    control_image: tuple[str, ...] = ()
    guess_mode: bool | None = None
    control_guidance_start: float | None = None
    control_guidance_end: float | None = None
    ip_adapter: tuple[str, ...] = ()
    ip_image: tuple[str, ...] = ()
    pag_scale: float | None = None
    pag_layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class PictureRecord:
    """A recipe, and the time and memory that drawing took.

    `sampler` is the scheduler class that ran, with `karras` or not; `seconds` per stage; `peak_memory` in bytes by
    where it was ('process', 'cuda:0'); `techniques` that were on, with their settings, by name; `versions` of the
    packages that decide the result. Where techniques were planned for a budget, `plan` has 'budget' and 'settings' in
    words, and `predicted` the 'peak_memory' in bytes and the seconds per stage. `inputs` has the SHA-256 of files that
    were drawn with, by 'image', 'mask', 'lora PATH', 'control_image PATH', 'ip_adapter PATH' and 'ip_image PATH'.
    """

    recipe: Recipe
    sampler: str
    karras: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_memory: Mapping[str, int] = field(default_factory=dict)
    techniques: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    plan: Mapping[str, str] = field(default_factory=dict)
    predicted: Mapping[str, float] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line of ASCII JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> PictureRecord:
        """The record that `to_json` wrote. ConfigError for any other text, naming what is wrong with it."""
        try:
            values = parse_json(text, strict=True, half_pairs=True)  # a mistyped argument may hold some
        except BadJSON as error:
            raise ConfigError(f"its {JSON_KEY!r} text is not valid JSON ({error})") from error
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise ConfigError(f"its {JSON_KEY!r} text is not of format {FORMAT}, the one this version reads")
        recipe = Recipe(**_checked(Recipe, values.pop("recipe", None)))
        return cls(recipe, **_checked(cls, values, without="recipe"))

    def to_a1111(self) -> str:
        """The `parameters` text: prompt, negative prompt, and one line of settings."""
        recipe = self.recipe
        settings = {
            "Steps": recipe.steps,
            "Sampler": self._a1111_sampler(),
            "Schedule type": "Karras" if self.karras else None,
            "CFG scale": f"{recipe.guidance_scale:g}",
            "Seed": recipe.seed,
            "Size": f"{recipe.width}x{recipe.height}",
            "Model": Path(recipe.model).name or recipe.model,
            "Denoising strength": None if recipe.strength is None else f"{recipe.strength:g}",
            "VAE": Path(recipe.vae).name if recipe.vae else None,
            "Version": f"leandiffusion {self.versions['leandiffusion']}" if "leandiffusion" in self.versions else None,
        }
        lines = [recipe.prompt]
        if recipe.negative_prompt:
            lines.append(f"Negative prompt: {recipe.negative_prompt}")
        lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in settings.items() if value is not None))
        return "\n".join(lines)

    def _a1111_sampler(self) -> str:
        name = _A1111_SAMPLERS.get(self.sampler, self.sampler.removesuffix("Scheduler").removesuffix("Discrete"))
        return f"{name} SDE" if name == "DPM++ 2M" and "-sde" in (self.recipe.scheduler or "") else name

    def png_info(self) -> PngImagePlugin.PngInfo:
        """Both texts as PNG chunks, for Pillow's `save(..., pnginfo=)`."""
        info = PngImagePlugin.PngInfo()
        info.add_text(A1111_KEY, _encodable(self.to_a1111()))
        info.add_text(JSON_KEY, self.to_json())
        return info


def read_record(path: Path) -> PictureRecord:
    """The record in a picture that Lean Diffusion drew, read without decoding the picture.

    Raises ConfigError, naming the file, when it is not a PNG picture, carries no record, or carries a broken one;
    OSError when it cannot be read.
    """
    text = read_png_text(path, JSON_KEY)
    if text is None:
        raise ConfigError(
            f"{path} carries no {JSON_KEY!r} text: it was not drawn by Lean Diffusion, or a program removed the text."
        )
    try:
        return PictureRecord.from_json(text)
    except ConfigError as error:
        raise ConfigError(f"{path} cannot be drawn again: {error}.") from error


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str, type(None)),
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "int | None": (int, type(None)),
    "bool": (bool,),
    "bool | None": (bool, type(None)),
}


def _checked(cls: type, values: Any, without: str = "") -> dict[str, Any]:
    """`values` if they are the fields of `cls`, each of its type: they come from a file that anyone may edit.

    Fields with a default may be absent: pictures drawn before they were there do not have them.
    """
    declared = [f for f in fields(cls) if f.name != without]
    kinds = {f.name: str(f.type) for f in declared}
    defaults = {f.name: f.default for f in declared if f.default is not MISSING}
    defaults |= {f.name: f.default_factory() for f in declared if f.default_factory is not MISSING}
    values = defaults | values if isinstance(values, dict) else values
    if not isinstance(values, dict) or set(values) != set(kinds):
        raise ConfigError(f"its {JSON_KEY!r} text should have {', '.join(kinds)} for a {cls.__name__}")
    for name, kind in kinds.items():
        value = values[name]
        if kind == "tuple[str, ...]" and isinstance(value, list):  # as JSON has it
            value = tuple(value)
            values = values | {name: value}
        inner = re.fullmatch(r"Mapping\[str, (\w+)\]", kind)
        fits = (
            isinstance(value, dict) and all(type(each) in _TYPES[inner[1]] for each in value.values())
            if inner
            else all(type(each) is str for each in value)
            if kind == "tuple[str, ...]" and isinstance(value, tuple)
            else type(value) in _TYPES.get(kind, ())  # exact: True is an int to isinstance
        )
        if not fits:
            raise ConfigError(f"its {name} is {show(value)}, expected {kind}")
        if name in RANGES and value is not None:
            number: Any = value
            least, most = RANGES[name]
            if not least <= number <= most:
                raise ConfigError(f"its {name} is {show(value)}, expected {least} to {most}")
    return values


def _quoted(value: Any) -> str:
    """As the web UI does: a value that holds a separator is written as a JSON string."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text


def _encodable(text: str) -> str:
    """Without what UTF-8 has no bytes for: halves of surrogate pairs, which a mistyped argument may hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
