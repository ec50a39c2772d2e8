"""What decides a picture's pixels, files by their content, and the name that follows from it."""

from __future__ import annotations

import errno
import hashlib
import json
import stat
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..core.hub import local_path
from ..drawing.given import pictures_of
from ..drawing.lora import path_and_scale
from ..drawing.options import DrawingOptions, ResolvedOptions, embedding_and_word
from ..drawing.techniques import TechniqueOptions
from ..drawing.wrong import OptionError

FORMAT = 1
"""Of what names are made from; another one means other names for the same pictures."""

LENGTH = 32
"""Characters of a name: 128 bits of the hash, so that a billion pictures share none."""

_SAMPLES, _SAMPLE = 64, 4096
_NO_PART = ("device", "image", "mask", "control_image", "lora", "embeddings", "controlnet", "model", "vae",
            "ip_adapter", "ip_image")  # fmt: skip
"""Options that count by their files, and the device, which changes no more than the last bits."""


class Fingerprints:
    """Of files, each of which is read once as long as it stays the same."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], str] = {}

    def whole(self, path: str | Path) -> str:
        """SHA-256 of a file. OSError where it cannot be read."""
        return self._once(Path(path), _whole)

    def sampled(self, name: str | Path) -> str:
        """Of a model's file or folder: names, sizes, and samples of large files' bytes, because reading checkpoints
        whole would take as long as opening them. A hub id counts by its name."""
        from ..pipelines.from_folder import packaged

        path = local_path(packaged(name))
        if not path.exists():
            return f"hub {name}"
        files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if _counts(each, path))
        digest = hashlib.sha256()
        for file in files:
            inside = "" if file == path else file.relative_to(path).as_posix()
            digest.update(f"{inside} {file.stat().st_size} {self._once(file, _sampled)}\n".encode())
        return digest.hexdigest()

    def _once(self, path: Path, make: Callable[[Path], str]) -> str:
        about = path.stat()
        if stat.S_ISCHR(about.st_mode) or stat.S_ISFIFO(about.st_mode):  # which might never end
            raise OSError(errno.EINVAL, "it is a device or a pipe, and has to be a file")
        key = (str(path), make, about.st_size, about.st_mtime_ns, about.st_ino)
        if key not in self._known:
            self._known[key] = make(path)
        return self._known[key]


def what_decides(options: ResolvedOptions, techniques: TechniqueOptions, files: Fingerprints) -> dict[str, Any]:
    """Everything that decides the pixels, ready for JSON; what was left to the model is left out.

    OptionError, naming the option, for files that cannot be read.
    """
    said = {
        each.name: getattr(options, each.name)
        for each in fields(DrawingOptions)
        if each.name not in _NO_PART and getattr(options, each.name) not in (None, "")
    }
    said["model"] = _read("model", options.model, files.sampled)
    if options.vae is not None:
        said["vae"] = _read("vae", options.vae, files.sampled)
    for name, path in pictures_of(options).items():
        field = name.partition(" ")[0]
        digest = _read(field, path, files.whole)
        said[field] = [*said.get(field, []), digest] if field == "control_image" else digest
    for field in ("lora", "controlnet", "ip_adapter", "ip_image"):
        if texts := getattr(options, field):
            parts = [path_and_scale(text, field) for text in texts]
            ways = {"lora": _lora(files), "controlnet": _controlnet(files), "ip_image": files.whole}
            of_file = ways.get(field, files.sampled)
            said[field] = [[_read(field, path, of_file), scale] for path, scale in parts]
    if options.embeddings:
        parts = [embedding_and_word(text) for text in options.embeddings]
        said["embeddings"] = [
            [_read("embeddings", path, files.sampled), word or Path(path).stem] for path, word in parts
        ]
    changing = techniques.changing_pixels()
    return {"format": FORMAT, **said, **({"techniques": changing} if changing else {})}


def digest_of(decides: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON: names in order, no white space, ASCII."""
    text = json.dumps(decides, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def name_of(decides: Mapping[str, Any]) -> str:
    """The picture's file name."""
    return f"{digest_of(decides)[:LENGTH]}.png"


def seed_for(decides: Mapping[str, Any], occurrence: int) -> int:
    """The seed of a row that names none: 32 bits of a hash of what else decides its pixels, and of how many rows like
    it came before. A list that is drawn again, longer or in another order, has the same seeds."""
    others = {name: value for name, value in decides.items() if name != "seed"}
    return int(hashlib.sha256(f"{digest_of(others)} {occurrence}".encode()).hexdigest()[:8], 16)


def _read(field: str, path: str | Path, make: Callable[[str | Path], str]) -> str:
    try:
        return make(path)
    except OSError as error:
        reason = f"{path}: {error.strerror}." if error.strerror else str(error)
        raise OptionError(field, "{reason}", reason=reason) from error


def _lora(files: Fingerprints) -> Callable[[str | Path], str]:
    from ..lora.find import find_lora

    return lambda path: files.whole(find_lora(path))


def _controlnet(files: Fingerprints) -> Callable[[str | Path], str]:
    from ..demo import packaged_controlnet

    return lambda path: files.sampled(packaged_controlnet(str(path)))


def _counts(file: Path, folder: Path) -> bool:
    """Whether a file of a model's folder may decide anything: not what is hidden, such as a repository's own files."""
    return file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)


def _whole(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sampled(path: Path) -> str:
    """Of a small file the whole; of a large one its beginning, its end, and what lies evenly between."""
    size = path.stat().st_size
    if size <= _SAMPLES * _SAMPLE:
        return _whole(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for number in range(_SAMPLES):
            file.seek((size - _SAMPLE) * number // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()
