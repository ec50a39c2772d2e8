"""A pipeline that draws in no time, and whose pictures depend on everything it is asked for."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from leandiffusion import demo
from leandiffusion.cli import generate
from leandiffusion.cli.app import app
from leandiffusion.schedulers import build

DEFAULTS = {"prompt": "a red circle", "seed": 7, "steps": 12, "guidance_scale": 3.0}


class QuickPipeline:
    """Noise from the generator, tinted by a hash of the arguments: the same options give the same picture."""

    dtype = torch.float32
    device = torch.device("cpu")
    techniques = ()
    plan = None
    watch: Any = None

    def __init__(self, calls: list[dict[str, Any]]) -> None:
        self.scheduler = build("ddim")
        self.last_times = {"encode": 0.001, "denoise": 0.25, "decode": 0.05}
        self._calls = calls

    def set_progress_bar_config(self, **_: Any) -> None:
        pass

    def __call__(
        self,
        prompt: str,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str | None = None,
        generator: torch.Generator | None = None,
    ) -> SimpleNamespace:
        with (self.watch or nullcontext)("encode"):
            pass
        asked = (prompt, negative_prompt, num_inference_steps, guidance_scale, type(self.scheduler).__name__)
        self._calls.append({"prompt": prompt, "steps": num_inference_steps, "guidance_scale": guidance_scale})
        tint = hashlib.sha256(repr(asked).encode()).digest()[0]
        noise = torch.randint(0, 256, (height or 16, width or 16, 3), generator=generator)
        image = Image.fromarray(((noise + tint) % 256).to(torch.uint8).numpy(), "RGB")
        return SimpleNamespace(images=[image], nsfw_content_detected=None)


@dataclass
class Studio:
    """The command line with quick pipelines behind it: what it opened, what it asked them for."""

    opened: list[Any] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)

    def run(self, *arguments: str) -> Any:
        return CliRunner().invoke(app, list(arguments), prog_name="leandiffusion")

    def open(self, options: Any, technique_options: Any, say: Any = None) -> QuickPipeline:
        self.opened.append(options)
        pipe = QuickPipeline(self.calls)
        if options.scheduler is not None:
            pipe.scheduler = build(options.scheduler)
        return pipe


@pytest.fixture
def studio(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Studio:
    """Quick pipelines, in an empty working folder."""
    studio = Studio()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(generate, "open_model", studio.open)
    monkeypatch.setattr(demo, "DEFAULTS", DEFAULTS, raising=False)
    return studio
