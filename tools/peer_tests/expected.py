"""What is known not to pass: expected.txt, one `kind  pattern` a line, the pattern matching names of tests."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from .files import FILES

_NAMES = {f"tests/{file}": name for name, file in FILES.items()}
FILE = Path(__file__).with_name("expected.txt")


def short(test: str) -> str:
    """'tests/models/…/test_models_unet_2d_condition.py::Class::test' -> 'unet::Class::test'."""
    file, _, name = test.partition("::")
    return f"{_NAMES.get(file, file)}::{name}"


def read(path: Path = FILE) -> list[tuple[str, str]]:
    """(pattern, kind), in order of the file; what follows '#' is a remark."""
    lines = [line.partition("#")[0].split(None, 1) for line in path.read_text("utf-8").splitlines()]
    return [(pattern.strip(), kind) for kind, pattern in (line for line in lines if line)]


def kind_of(test: str, patterns: list[tuple[str, str]]) -> str | None:
    """The kind of the first pattern that the test's short name matches; None where it has to pass."""
    return next((kind for pattern, kind in patterns if fnmatchcase(short(test), pattern.replace("[", "[[]"))), None)
