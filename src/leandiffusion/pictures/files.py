"""Writing pictures: complete or not at all, and never over a file that the user did not name."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from PIL import Image

from ..core.aside import aside, flush, publish
from ..core.errors import ConfigError, LeanError
from ..core.units import format_bytes
from .record import PictureRecord

SUFFIX = ".png"


class Destination:
    """Where pictures go: a folder, in which each gets the next free number; or one named file, which is replaced.

    `path` is a folder if it is one, ends in a slash or has no suffix. Otherwise it is a file, and with `count` above
    1 its pictures are called NAME-1.png, NAME-2.png and so on. ConfigError for a suffix other than .png: only PNG
    carries the record.
    """

    def __init__(self, path: str | Path, count: int = 1) -> None:
        self._file: Path | None = None
        target = Path(path).expanduser()
        if target.is_dir() or str(path).endswith(("/", os.sep)) or not target.suffix:
            self.folder = target
        elif target.suffix.lower() != SUFFIX:
            raise ConfigError(f"{str(path)!r} ends in {target.suffix!r}: pictures are written as {SUFFIX}.")
        else:
            self.folder, self._file = target.parent, target
        self._count = count

    def prepare(self, expected_bytes: int = 0) -> None:
        """Make the folder and check, before any work is done, that it can be written to and has room for
        `expected_bytes`. LeanError with the reason if not."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise LeanError(
                f"cannot write to {self.folder}: {error.strerror or error}. Choose another --out."
            ) from error
        if free < expected_bytes:
            raise LeanError(
                f"{self.folder} has {format_bytes(free)} free, {format_bytes(expected_bytes)} may be needed."
            )

    def save(self, image: Image.Image, record: PictureRecord, index: int = 0) -> Path:
        """Write picture number `index` (from 0) of `count` with its record; returns its path.

        The bytes go to a file aside that gets its name when they are complete: an interrupted or failed write leaves
        nothing behind, and what a killed process left is taken away.
        """
        with aside(self.folder / "drawing") as place:
            with place.open("xb") as file:
                image.save(file, format="PNG", pnginfo=record.png_info())
            flush(place)
            if self._file is None:
                return self._publish_as_next(place, slug(record.recipe.prompt))
            return place.replace(self._named(index))

    def _named(self, index: int) -> Path:
        assert self._file is not None
        return self._file if self._count == 1 else self._file.with_stem(f"{self._file.stem}-{index + 1}")

    def _publish_as_next(self, place: Path, name: str) -> Path:
        """Give the file at `place` the next number of the folder that no other program takes at the same time."""
        number = 1 + max((_number(path.name) for path in self.folder.glob("*" + SUFFIX)), default=0)
        while True:
            path = self.folder / f"{number:04d}-{name}{SUFFIX}"
            try:
                publish(place, path)
                return path
            except FileExistsError:
                number += 1


def slug(prompt: str, length: int = 48) -> str:
    """The first words of a prompt as a part of a file name: 'a-red-circle-on-white'; 'picture' if it has none."""
    words = re.findall(r"[a-z0-9]+", prompt.lower())
    text = ""
    for word in words:
        if len(text) + 1 + len(word) > length:
            break
        text = f"{text}-{word}" if text else word
    return text or "picture"


def _number(name: str) -> int:
    match = re.match(r"(\d+)-", name)
    return int(match[1]) if match else 0
