"""A model that draws in no time, and whose pictures depend on everything that it is asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from leandiffusion.batch import work
from leandiffusion.drawing.opening import Drawn
from leandiffusion.drawing.options import ResolvedOptions
from leandiffusion.pictures.record import PictureRecord, Recipe


@dataclass
class QuickModels:
    """Stands in for opening models: what was opened, what was drawn. `before` is called before each drawing."""

    opened: list[str] = field(default_factory=list)
    drawn: list[ResolvedOptions] = field(default_factory=list)
    before: Callable[[ResolvedOptions], object] = lambda options: None

    def open(self, options: ResolvedOptions, techniques: Any) -> Any:
        self.opened.append(options.model)
        return self

    def set_progress_bar_config(self, **_: Any) -> None:
        pass

    def draw(self, options: ResolvedOptions, given: Any) -> Drawn:
        self.before(options)
        self.drawn.append(options)
        seen = hashlib.sha256(repr(options).encode()).digest()
        recipe = Recipe(options.model, options.prompt, "", options.seed, 1, 1.0, None, 8, 8, "float32", "cpu")
        return Drawn(Image.frombytes("RGB", (8, 8), seen * 6), PictureRecord(recipe, "DDIMScheduler"))


class QuickDrawer:
    def __init__(self, pipe: QuickModels) -> None:
        self.pipe = pipe
        self.draw = pipe.draw

    def latents_of(self, error: Exception, *_: Any) -> None:
        assert not hasattr(error, "latents")


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> QuickModels:
    """Quick models, in an empty working folder."""
    models = QuickModels()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(work, "open_model", models.open)
    monkeypatch.setattr(work, "Drawer", QuickDrawer)
    return models


@pytest.fixture
def write_list() -> Callable[..., str]:
    def write(*rows: Any, name: str = "list.jsonl") -> str:
        Path(name).write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
        return name

    return write
