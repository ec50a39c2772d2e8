"""Pages about the code name what is there: rooms, modules, files, and each other."""

from __future__ import annotations

import importlib
import itertools
import re
import tomllib
from pathlib import Path

import pytest

import leandiffusion

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "benchmarks" / "README.md"])
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROOMS = {path.name for path in Path(leandiffusion.__file__).parent.iterdir() if path.is_dir() and path.name[0] != "_"}
PLACEHOLDER = re.compile(r"NAME|CLASS|foo|…")


def test_the_drawn_rooms_are_the_contracts_rooms() -> None:
    """Further to the right is further below, in steps of the layers that import-linter holds."""
    drawing = ARCHITECTURE.split("```\n")[1]
    columns = {name: len(indent) // 2 for indent, name in re.findall(r"^( *)(\w+) ", drawing, re.MULTILINE)}
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = next(contract for contract in linter["contracts"] if contract["id"] == "rooms")["layers"]
    levels = {name: level for level, names in enumerate(layers) for name in names.split(" | ")}
    assert columns.keys() == levels.keys() == ROOMS
    for one, other in itertools.permutations(columns, 2):
        assert (columns[one] < columns[other]) == (levels[one] < levels[other]), f"{one} and {other}"


def test_modules_that_the_architecture_names_are_there() -> None:
    names = {name for name in re.findall(r"`(\w+(?:\.\w+)+)", ARCHITECTURE) if name.split(".")[0] in ROOMS}
    assert len(names) > 20
    for name in names:
        parts = name.split(".")
        for end in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(f"leandiffusion.{'.'.join(parts[:end])}")
            except ModuleNotFoundError:
                continue
            for attribute in parts[end:]:
                found = getattr(found, attribute)
            break
        else:
            raise AssertionError(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_links_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    files = re.findall(r"`((?:src|tests|docs|tools|benchmarks)/[^`\s]*?)(?:::[^`]*)?`", text)
    links = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", text)
    missing = [name for name in files if not PLACEHOLDER.search(name) and not list(ROOT.glob(name))]
    missing += [link for link in links if "reference/" not in link and not (page.parent / link).exists()]
    assert missing == []  # the API reference is drawn when the site is built
