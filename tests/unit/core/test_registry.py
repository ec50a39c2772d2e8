"""Registries: names, hints, folders that register themselves on the first look-up, threads."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from leandiffusion.core.errors import ConfigError
from leandiffusion.core.registry import Registry, did_you_mean


def test_names_and_hints() -> None:
    fruits: Registry[int] = Registry("fruit")
    fruits.add("apple", 1)
    assert fruits.register("Banana")(2) == 2
    assert (fruits.get("apple"), fruits.names(), list(fruits)) == (1, ["apple", "Banana"], ["apple", "Banana"])
    assert "apple" in fruits
    assert "pear" not in fruits
    with pytest.raises(ConfigError, match=r"unknown fruit 'banan'\. Did you mean 'Banana'\? Known: Banana, apple\."):
        fruits.get("banan")
    with pytest.raises(ConfigError, match=r"unknown fruit 'xyz'\. Known:"):
        fruits.get("xyz")
    with pytest.raises(ValueError, match="fruit 'apple' is registered twice"):
        fruits.add("apple", 3)
    assert did_you_mean("x", []) == ""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a registry and two files that add to it."""
    package = tmp_path / "orchard"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from leandiffusion.core.registry import Registry\nfruits = Registry('fruit', __name__)\n"
    )
    for name in ("apple", "cherry"):
        (package / f"{name}.py").write_text(f"from . import fruits\nfruits.add({name!r}, {name.upper()!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield package
    for name in [name for name in sys.modules if name.split(".")[0] == "orchard"]:
        del sys.modules[name]


def test_a_folder_is_read_on_the_first_look_up(folder: Path) -> None:
    from orchard import fruits  # type: ignore[import-not-found]

    assert "orchard.apple" not in sys.modules
    assert fruits.names() == ["apple", "cherry"]
    assert fruits.get("cherry") == "CHERRY"


def test_threads_that_look_up_first_at_once_all_find_everything(folder: Path) -> None:
    from orchard import fruits  # type: ignore[import-not-found]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: fruits.get("cherry"), range(64)))
    assert found == ["CHERRY"] * 64


def test_a_file_that_fails_can_be_mended(folder: Path) -> None:
    """The error is the file's own, and the next look-up tries again."""
    (folder / "broken.py").write_text("raise ImportError('no such library')")
    from orchard import fruits  # type: ignore[import-not-found]

    with pytest.raises(ImportError, match="no such library"):
        fruits.get("apple")
    (folder / "broken.py").unlink()
    assert fruits.names() == ["apple", "cherry"]
