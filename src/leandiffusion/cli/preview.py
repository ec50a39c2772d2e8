"""`generate --preview`: the picture while it is being drawn, in the terminal or in a file that is rewritten."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from ..core.aside import aside
from .report import say

FLAG, TERMINAL = "--preview", "terminal"


@dataclass(frozen=True)
class PreviewOptions:
    """Where to show what is being drawn: 'terminal', or a .png file. `vae` is a path of the VAE that decodes it, the
    model's own unless given; every `every` steps."""

    where: str
    vae: str | None = None
    every: int = 5

    def check(self) -> None:
        """typer.BadParameter for what cannot be shown, before any model opens."""
        path = Path(self.where).expanduser()
        if self.where == TERMINAL:
            from rich.console import Console

            from ..pictures.terminal import why_not

            if reason := why_not(Console()):
                raise typer.BadParameter(f"{reason}: name a .png file instead.", param_hint=FLAG)
        elif path.suffix.lower() != ".png":
            raise typer.BadParameter(f"{self.where!r} is neither {TERMINAL!r} nor a .png file.", param_hint=FLAG)
        elif not path.parent.is_dir():
            raise typer.BadParameter(f"there is no folder {path.parent}: make it first.", param_hint=FLAG)

    def callback(self, pipe: Any) -> Showing:
        """What an opened pipeline is to call after each step. Raises what opening the VAE raises."""
        from ..pipelines.given import open_given

        vae, path = pipe.vae, Path(self.where).expanduser()
        if self.vae is not None:
            given = {"vae": self.vae}
            vae = open_given(given, type(pipe), None, dtype=pipe.dtype, device=pipe.device, on_disk=False)["vae"]
        show = in_terminal() if self.where == TERMINAL else lambda image: rewrite(path, image)
        return Showing(vae, show, self.every)


class Showing:
    """A `callback_on_step_end`. Where the picture cannot be shown, because the disk is full or memory short, it says so
    once and lets the drawing go on."""

    def __init__(self, vae: Any, show: Callable[[Any], object], every: int) -> None:
        from ..pipelines.preview import Preview

        self._preview = Preview(vae, lambda step, images: show(images[0]), every=every)
        self._ended = False

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """What a pipeline calls after each step; changes nothing."""
        from ..device.memory import is_out_of_memory

        if not self._ended:
            try:
                return self._preview(pipe, step, timestep, tensors)
            except (OSError, MemoryError, RuntimeError) as error:
                if not isinstance(error, OSError) and not is_out_of_memory(error):
                    raise
                self._ended = True
                say(f"Note: no more previews, the picture goes on: {error}")
        return {}


def rewrite(path: Path, image: Any) -> None:
    """Write the picture aside and give it the name, so that who looks at it sees a whole one."""
    with aside(path) as place:
        image.save(place, format="PNG")
        place.replace(path)


def in_terminal() -> Callable[[Any], None]:
    """What draws a picture in the terminal, over the one that it drew before."""
    from rich.console import Console
    from rich.control import Control

    from ..pictures import terminal

    console, rows = Console(), 0

    def show(image: Any) -> None:
        nonlocal rows
        if rows:
            console.control(Control.move(0, -rows))
        terminal.show(image, console)
        rows = terminal.fit(image.size, console.width, max(console.height - 2, 1))[1] // 2

    return show
