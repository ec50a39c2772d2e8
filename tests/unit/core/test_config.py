"""Configs: what an object was built with, read in three ways, written, and read back."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leandiffusion.core.config import Config, Configurable, read_json, write_json
from leandiffusion.core.errors import CheckpointNotFound, ConfigError, LeanError, MalformedFile


class Lamp(Configurable):
    def __init__(self, watts: int = 40, colour: str = "white", shades: tuple[str, ...] = ()) -> None:
        self.watts = watts


class TableLamp(Lamp):
    def __init__(self, watts: int = 20, height: float = 0.5) -> None:
        super().__init__(watts=watts)


def test_a_config_holds_every_argument() -> None:
    config = Lamp(60).config
    assert dict(config) == {"watts": 60, "colour": "white", "shades": ()}
    assert (config.watts, config["watts"], config.get("watts"), config.get("volts", 230)) == (60, 60, 60, 230)
    assert len(config) == 3
    assert "colour" in config
    assert dict(TableLamp().config) == {"watts": 20, "height": 0.5}, "the outermost constructor's"


def test_a_config_cannot_be_changed() -> None:
    config = Lamp().config
    with pytest.raises(AttributeError, match=r"read-only: build a new object with from_config\(config, watts=…\)"):
        config.watts = 5
    with pytest.raises(AttributeError, match=r"no config key 'wats'\. Did you mean 'watts'"):
        _ = config.wats
    changes: list[Callable[[Any], object]] = [
        lambda c: c.__setitem__("watts", 5),
        lambda c: c.__delitem__("watts"),
        lambda c: c.pop("watts"),
        lambda c: c.popitem(),
        lambda c: c.clear(),
        lambda c: c.update(watts=5),
        lambda c: c.setdefault("volts", 5),
        lambda c: c.__ior__({"watts": 5}),
    ]
    for change in changes:
        with pytest.raises(TypeError, match=r"read-only: .*from_config\(config, key=…\)"):
            change(config)
    with pytest.raises(AttributeError, match="read-only"):
        del config.watts
    assert config.watts == 40
    assert not hasattr(config, "use_attention_mask")


def test_a_config_is_a_dict_to_other_libraries() -> None:
    config = Lamp(60).config
    assert isinstance(config, dict)
    assert json.loads(json.dumps(config)) == {"watts": 60, "colour": "white", "shades": []}
    assert {**config, "watts": 5} == dict(config) | {"watts": 5} == config | {"watts": 5}
    assert Lamp.from_config({**config, "watts": 5}).config.watts == 5
    for copied in (config | {"watts": 5}, config.copy()):
        copied["watts"] = 7  # a copy is an ordinary dict


def test_copies_and_pickles() -> None:
    config = Config({"a": [1]})
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == copy.copy(config) == {"a": [1]}


def test_building_from_a_config() -> None:
    lamp = Lamp.from_config({"_class_name": "Lamp", "_note": 1, "watts": 5}, colour="red")
    assert dict(lamp.config) == {"watts": 5, "colour": "red", "shades": ()}
    assert Lamp.from_config(lamp.config).config == lamp.config
    with pytest.raises(ConfigError, match=r"Lamp does not support the config keys volts=230, colr='red'\..*'colour'"):
        Lamp.from_config({"volts": 230, "colr": "red"})
    with pytest.raises(ConfigError, match=r"found 5\. .*Lamp\.load_config\("):
        Lamp.from_config(5)  # type: ignore[arg-type]


def test_building_from_a_folder_is_deprecated(tmp_path: Path) -> None:
    Lamp(7).save_config(tmp_path / "lamp")
    for folder in (tmp_path, str(tmp_path)):
        with pytest.warns(FutureWarning, match=r"Lamp\.from_config with a folder .*Lamp\.load_config") as caught:
            lamp = Lamp.from_config(folder, subfolder="lamp", local_files_only=True, colour="red")
        assert dict(lamp.config) == {"watts": 7, "colour": "red", "shades": []}
        assert caught[0].filename == __file__
    with pytest.warns(FutureWarning, match="deprecated"), pytest.raises(CheckpointNotFound, match="offline"):
        Lamp.from_config("shop/lamp", subfolder="lamp")


def test_saving(tmp_path: Path) -> None:
    Lamp(7, shades=("paper",)).save_config(tmp_path / "new" / "lamp")
    written = json.loads((tmp_path / "new/lamp/config.json").read_text())
    assert written == {"_class_name": "Lamp", "watts": 7, "colour": "white", "shades": ["paper"]}
    loaded = Lamp.load_config(tmp_path, subfolder="new/lamp")
    assert loaded == written
    assert Lamp.from_config(loaded).config.watts == 7
    with pytest.raises(CheckpointNotFound, match=r"new has no config\.json: .*subfolder="):
        Lamp.load_config(tmp_path / "new")


@pytest.mark.parametrize(("text", "told"), [("{", "not valid JSON"), ("[1]", "JSON list"), ("\xff", "not valid JSON")])
def test_broken_files_are_named(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(MalformedFile, match=f"config.json.*{told}"):
        read_json(tmp_path / "config.json")


def test_written_files_are_sorted_and_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": "é", "a": None})
    assert list(read_json(tmp_path / "a.json").items()) == [("a", None), ("b", "é")]


def test_errors_are_caught_as_what_they_are() -> None:
    """One root for all, and the built-in kinds that callers already catch."""
    for error, kinds in ((ConfigError, (LeanError, ValueError)), (MalformedFile, (LeanError, OSError))):
        assert all(issubclass(error, kind) for kind in kinds)
    assert str(MalformedFile(2, "two parts")) == "(2, 'two parts')"
