"""What the contract tests share: settings, what this machine cannot run, all that a technique may leave behind."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from leandiffusion import AutoPipelineForImage2Image, AutoPipelineForInpainting, StableDiffusionPipeline
from leandiffusion.techniques import techniques
from leandiffusion.weights.residence import read_weights

Draw = Callable[..., np.ndarray]

_GRAPHS = tempfile.TemporaryDirectory(prefix="openvino-graphs-")

SETTINGS: dict[str, dict[str, Any]] = {
    "half_precision": {"dtype": torch.float16},
    "compile": {"backend": "eager", "parts": ("vae",)},  # all of it, and with a compiler: test_compile.py
    "vae_tiling": {"rows": 16},  # small pictures would be one strip
    "attention_slicing": {"size": "max"},
    "attention_backend": {"backend": "plain"},
    "deep_cache": {"interval": 2, "branch": 4},  # two steps differ more than fifty do
    "openvino": {"cache_dir": _GRAPHS.name},  # converting takes seconds, which each test would
}
"""What makes a technique do something to the small packaged model, where its defaults would not."""

UNUSABLE = {
    name: reasons
    for name in techniques
    if (reasons := StableDiffusionPipeline.from_pretrained("demo").why_not(name, **SETTINGS.get(name, {})))
}
"""Techniques that this machine lacks something for, and what."""

USABLE = [name for name in techniques if name not in UNUSABLE]


@contextmanager
def quietly() -> Iterator[None]:
    """Without torch's own warnings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torch.*")
        yield


def noise(prompt: str | list[str], options: dict[str, Any]) -> torch.Tensor:
    """Starting latents, drawn in float32: a generator gives other numbers for each dtype."""
    count = options.get("num_images_per_prompt", 1) * (1 if isinstance(prompt, str) else len(prompt))
    shape = (count, 4, options["height"] // 8, options["width"] // 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def _circle(mode: str) -> Image.Image:
    picture = Image.new(mode, (64, 64), "black")
    ImageDraw.Draw(picture).ellipse((8, 8, 40, 40), fill="white" if mode == "L" else "yellow")
    return picture


ON_A_PICTURE: dict[str, tuple[Any, dict[str, Any]]] = {
    "image to image": (AutoPipelineForImage2Image, {"image": _circle("RGB")}),
    "inpainting": (
        AutoPipelineForInpainting,
        {"image": _circle("RGB"), "mask_image": _circle("L"), "height": 64, "width": 64},
    ),
}
"""The tasks that begin with a picture: who finds the pipeline, and what it is given."""


def redraw(pipe: Any, given: dict[str, Any]) -> np.ndarray:
    """What a pipeline makes of a picture in two steps of three; without one, in two."""
    steps = {"num_inference_steps": 3, "strength": 0.7} if pipe.begins_with_pictures else {"num_inference_steps": 2}
    with quietly():
        return pipe(
            "a red circle", output_type="np", **steps, **given, generator=torch.Generator().manual_seed(7)
        ).images


def enable(pipe: Any, name: str) -> None:
    """Switch a technique on with the settings above."""
    with quietly():
        pipe.enable(name, **SETTINGS.get(name, {}))


def state(pipe: Any) -> dict[str, Any]:
    """All that undoing has to bring back: objects, attributes, hooks, weights and how they lie, torch's settings.

    Weights are read first, if nothing did yet: the first picture would do so.
    """
    read_weights(pipe._stack.subject.networks.values())
    found: dict[str, Any] = {
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "fp32_precision": [
            torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision,
            torch.backends.mkldnn.matmul.fp32_precision, torch.backends.mkldnn.conv.fp32_precision,
        ],
        "recompile_limit": torch._dynamo.config.recompile_limit,
        "components": {name: id(part) for name, part in pipe.components.items()},
    }  # fmt: skip
    for component, network in pipe._stack.subject.networks.items():
        for name, module in network.named_modules():
            where = f"{component}.{name}"
            found[where] = {key: _plain(value) for key, value in vars(module).items() if key not in _TABLES}
            found[f"{where} hooks"] = [len(value) for key, value in vars(module).items() if key.endswith("_hooks")]
        for name, tensor in network.state_dict(keep_vars=True).items():
            looks = (type(tensor), tensor.dtype, tensor.device, tensor.stride(), tensor.requires_grad)
            found[f"{component}.{name}"] = (looks, tensor.detach().double().sum().item(), tensor.detach().norm().item())
    return found


_TABLES = {"_parameters", "_buffers", "_modules"}


def _plain(value: Any) -> Any:
    simple = isinstance(value, bool | int | float | str | tuple | type(None))
    return value if simple else type(value).__name__
