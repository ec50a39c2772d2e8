"""`leandiffusion demo`: draw the demo picture with the packaged model."""

from __future__ import annotations

from pathlib import Path

from .. import demo
from ..drawing.options import DEMO, DrawingOptions
from . import generate
from .report import say


def run(out: Path, *, seed: int | None = None, show: bool = True) -> list[Path]:
    """Draw the demo picture with the packaged model's own settings, seed included; say how to go on."""
    options = DrawingOptions(model=DEMO, seed=seed).filled_from(demo.DEFAULTS)
    say(f"“{options.prompt}”")
    paths = generate.run(options, out, show=show)
    say('With a prompt of your own:  leandiffusion generate "a large yellow star on a blue background" --show')
    return paths
