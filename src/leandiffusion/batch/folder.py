"""The folder of a batch: pictures that are there whole, those that some process is drawing, and writing them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..core.aside import aside, flush, has_dead_owner, is_of_this_host, publish
from ..core.errors import ConfigError, LeanError
from ..core.jsons import BadJSON, parse_json
from ..pictures.files import Destination
from ..pictures.latents import SUFFIX, write_latents
from ..pictures.record import PictureRecord, read_record

MANIFEST = "manifest.jsonl"
UNFINISHED = ".drawing"
"""The folder inside of it for what is being drawn: looking for that takes no longer when there are many pictures."""

_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


class CannotWrite(LeanError):
    """The folder takes no more. What is there is whole, and the same command goes on from it."""


class Folder:
    """Pictures by name. Several processes may work on one folder: a picture appears complete or not at all, and one
    that is being drawn is known by the file aside that will become it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        if self.path.suffix.lower() == ".png" or self.path.is_file():
            raise ConfigError(f"{path} is no folder: a batch draws into one, and names the pictures itself.")

    def prepare(self) -> None:
        """Make it, and see that it can be written to. LeanError with the reason if not."""
        Destination(f"{self.path}{os.sep}").prepare()
        with self._writing():
            (self.path / UNFINISHED).mkdir(exist_ok=True)

    def record(self, name: str) -> PictureRecord | None:
        """The record of a picture that is there whole; None where there is none, or no more than a part of one."""
        path = self.path / name
        try:
            with path.open("rb") as file:
                file.seek(-len(_PNG_END), os.SEEK_END)
                if file.read() != _PNG_END:
                    return None
            return read_record(path)
        except (OSError, ConfigError):
            return None

    def is_in_hand(self, name: str, *, for_sure: bool = False) -> bool:
        """Whether another process is drawing it: one of this host that is alive, or, unless it has to be `for_sure`,
        one of another host that may be."""
        places = [path.name for path in (self.path / UNFINISHED).glob(f".{name}.*.part")]
        return any(not has_dead_owner(each) and (is_of_this_host(each) or not for_sure) for each in places)

    @contextmanager
    def in_hand(self, name: str) -> Iterator[Path]:
        """The place for a picture's file, which tells others that it is being drawn. Nothing of it stays unless `keep`
        gave it its name."""
        with aside(self.path / UNFINISHED / name) as place:
            with self._writing():
                place.touch()
            yield place

    def keep(self, place: Path, name: str, image: Any, record: PictureRecord) -> Path:
        """Write the picture at its place, and give it its name. CannotWrite where the disk is full, say."""
        path = self.path / name
        with self._writing():
            with place.open("wb") as file:
                image.save(file, format="PNG", pnginfo=record.png_info())
            flush(place)
            try:
                publish(place, path)
            except FileExistsError:  # another process's, as good as this one, or a broken file
                if self.record(name) is None:
                    os.replace(place, path)
            flush(self.path)
            self.latents(name).unlink(missing_ok=True)
        return path

    def latents(self, name: str) -> Path:
        """Where the denoised latents of a picture are kept that could not be decoded."""
        return self.path / (name.removesuffix(".png") + SUFFIX)

    def keep_latents(self, name: str, latents: Any, record: PictureRecord) -> Path:
        """Write a picture's latents there. CannotWrite as `keep`."""
        path = self.latents(name)
        with self._writing(), aside(self.path / UNFINISHED / path.name) as place:
            write_latents(latents, record, place)
            os.replace(place, path)
            flush(self.path)
        return path

    def write_manifest(self, entries: Sequence[Mapping[str, Any]]) -> Path:
        """A JSON object a line, in place of the former manifest, at once."""
        path = self.path / MANIFEST
        with self._writing(), aside(self.path / UNFINISHED / MANIFEST) as place:
            place.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries), encoding="utf-8")
            flush(place)
            os.replace(place, path)
        return path

    def read_manifest(self) -> list[Mapping[str, Any]]:
        """Its lines, as far as they can be read."""
        entries = []
        try:
            lines = (self.path / MANIFEST).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return []
        for line in lines:
            try:
                entries.append(parse_json(line))
            except BadJSON:
                continue
        return [entry for entry in entries if isinstance(entry, dict)]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CannotWrite(
                f"{self.path} cannot be written to: {error.strerror or error}. Make room there, and give the same "
                "command again: it goes on with what is left."
            ) from error
