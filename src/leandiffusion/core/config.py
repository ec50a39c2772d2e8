"""Objects that are described by a JSON config: networks and schedulers.

The constructor's keywords *are* the config keys. A class that inherits `Configurable` gets `.config` filled with the
arguments it was built with, `from_config`, and `save_config`.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from .aside import aside, flush
from .errors import CheckpointNotFound, ConfigError, MalformedFile
from .hub import settings_folder
from .jsons import BadJSON, parse_json
from .limits import check_settings
from .registry import did_you_mean
from .replacing import finish_saving
from .wording import show

WRITER_VERSION = "_diffusers_version"  # the note in a config that says which diffusers wrote it


class Config(dict[str, Any]):
    """Read-only settings, reachable as `config["key"]`, `config.key` and `config.get("key")`.

    A real dict: `json.dumps(config)`, `{**config}` and other libraries' `from_config` work. Changing an entry raises
    TypeError, assigning an attribute AttributeError.
    """

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(f"no config key {key!r}.{did_you_mean(key, list(self))}") from None

    def __setattr__(self, key: str, value: Any) -> None:
        raise AttributeError(f"config is read-only: build a new object with from_config(config, {key}=…)")

    def __delattr__(self, key: str) -> None:
        raise AttributeError("config is read-only: build a new object with from_config, without the key.")

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            "config is read-only: build a new object with from_config(config, key=…), or take a copy with dict(config)."
        )

    __setitem__ = __delitem__ = __ior__ = _refuse  # type: ignore[assignment]
    clear = pop = popitem = setdefault = update = _refuse  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type[Config], tuple[dict[str, Any]]]:
        return Config, (dict(self),)

    def __repr__(self) -> str:
        return f"Config({dict(self)!r})"


class Configurable:
    """Base of everything built from a config.json. Subclasses write an ordinary keyword constructor."""

    config_name: ClassVar[str] = "config.json"
    has_compatibles: ClassVar[bool] = False
    ignore_for_config: ClassVar[list[str]] = []
    _config: Config
    _passed: frozenset[str]  # the keywords that the caller gave, the rest being defaults

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = _recording(cls.__init__)  # type: ignore[method-assign]

    @property
    def config(self) -> Config:
        """The settings this object was built with, plus carried keys (see `from_config`)."""
        return self._config

    def register_to_config(self, **settings: Any) -> None:
        """Add settings to `config`, or change them there; the object itself is not rebuilt."""
        object.__setattr__(self, "_config", Config({**self._config, **settings}))

    def __getattr__(self, name: str) -> Any:
        """A setting under its own name, with a FutureWarning, as diffusers has it for scripts of its first year."""
        try:
            return super().__getattr__(name)  # type: ignore[misc]  # a network's layers; in a form that torch compiles
        except AttributeError:
            pass
        config = self.__dict__.get("_config", ())
        if name not in config or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        warnings.warn(f"{name} is a setting: read it as config.{name}.", FutureWarning, stacklevel=2)
        return config[name]

    @classmethod
    def config_keys(cls) -> list[str]:
        """The constructor's keywords: the config keys that this class understands."""
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    @classmethod
    def load_config(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> dict[str, Any]:
        """The settings in a local folder or at a hub id, or in a `subfolder` of one, for `from_config`.

        Raises CheckpointNotFound when there are none, MalformedFile when they are not a JSON object.
        """
        folder = settings_folder(
            pretrained_model_name_or_path,
            [cls.config_name],
            subfolder=subfolder,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
        )
        if not (folder / cls.config_name).is_file():
            raise CheckpointNotFound(
                f"{folder} has no {cls.config_name}: name a folder that holds one, with subfolder= if it lies deeper."
            )
        return read_json(folder / cls.config_name)

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | str | Path, **overrides: Any) -> Self:
        """Build from a config mapping, or from that of a folder or hub id, which is deprecated.

        Of keys that start with '_', which the writing library adds, its version is kept. Raises ConfigError for keys
        this class does not understand: a setting is never silently ignored.
        """
        config = take_config(cls, config, overrides)
        values = {**config, **overrides}
        known = cls.config_keys()
        foreign = {key: value for key, value in values.items() if key not in known}
        carried = cls._carry(foreign)
        built = cls(**{key: value for key, value in values.items() if key in known})
        if carried:
            object.__setattr__(built, "_config", Config({**built.config, **carried}))
        return built

    @classmethod
    def _carry(cls, foreign: dict[str, Any]) -> dict[str, Any]:
        """Which keys that the constructor lacks may stay in `.config`. The rest is refused."""
        refused = [key for key in foreign if not key.startswith("_")]
        if refused:
            hints = "".join(did_you_mean(key, cls.config_keys()) for key in refused[:2])
            raise ConfigError(
                f"{cls.__name__} does not support the config key{'s' * (len(refused) > 1)} "
                f"{', '.join(f'{show(key)[1:-1]}={show(foreign[key])}' for key in refused[:5])}.{hints}"
            )
        return {key: value for key, value in foreign.items() if key == WRITER_VERSION}

    def save_config(self, save_directory: str | Path) -> None:
        """Write `save_directory`/`config_name` in the layout that diffusers reads."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.to_json_file(folder / self.config_name)

    def to_json_file(self, json_file_path: str | Path) -> None:
        """Write the settings, with the name of the class, as JSON."""
        write_json(Path(json_file_path), self._written())

    def to_json_string(self) -> str:
        """What `to_json_file` writes."""
        return json_text(self._written())

    def _written(self) -> dict[str, Any]:
        return {"_class_name": type(self).__name__, **{k: v for k, v in self.config.items() if k != "_class_name"}}


_WHERE = ("subfolder", "revision", "cache_dir", "local_files_only", "token")


def take_config(cls: type[Configurable], config: object, overrides: dict[str, Any]) -> Mapping[str, Any]:
    """Settings by name: `config`, or those of the folder or hub id that it names, with a FutureWarning as in diffusers.

    The keywords that say where (`subfolder`, `revision` …) are then taken out of `overrides`. ConfigError for anything
    else, and the errors of `load_config`.
    """
    if isinstance(config, Mapping):
        return config
    if not isinstance(config, str | Path):
        raise ConfigError(
            f"{cls.__name__}.from_config takes settings by name, found {show(config)}. Of a folder or hub id, pass "
            f"{cls.__name__}.load_config(…, subfolder=…), or open it with {cls.__name__}.from_pretrained."
        )
    warnings.warn(
        f"{cls.__name__}.from_config with a folder or hub id is deprecated: pass {cls.__name__}.load_config(…), or use "
        "from_pretrained to have its weights too.",
        FutureWarning,
        stacklevel=3,
    )
    return cls.load_config(config, **{name: overrides.pop(name) for name in _WHERE if name in overrides})


def _recording(init: Any) -> Any:
    """Wrap a constructor so that the outermost one leaves its bound arguments in `_config`."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        kwargs = {key: value for key, value in kwargs.items() if not key.startswith("_")}  # notes: cls(**other.config)
        if "_config" not in self.__dict__:
            bound = signature.bind(self, *args, **kwargs)
            object.__setattr__(self, "_passed", frozenset(bound.arguments) - {"self"})
            bound.apply_defaults()
            check_settings(init, type(self).__name__, {k: v for k, v in bound.arguments.items() if k != "self"})
            object.__setattr__(self, "_config", Config({k: v for k, v in bound.arguments.items() if k != "self"}))
        init(self, *args, **kwargs)

    return wrapped


_MOST_BYTES = 16_000_000  # of a JSON file. The largest that belongs to a model is a tokenizer.json of 3 MB


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; MalformedFile with the file and position of what is wrong (see `jsons.parse_json`).

    An interrupted save into its folder is completed first.
    """
    finish_saving(path.parent)
    with path.open("rb") as stream:
        text = stream.read(_MOST_BYTES + 1)
    if len(text) > _MOST_BYTES:
        raise MalformedFile(f"{path} is larger than {_MOST_BYTES} bytes, the most that settings may take.")
    try:
        value = parse_json(text)
    except BadJSON as error:
        raise MalformedFile(f"{path} is not valid JSON ({error}). Download or save the checkpoint again.") from error
    if not isinstance(value, dict):
        raise MalformedFile(f"{path} holds a JSON {type(value).__name__}, expected an object with named settings.")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, sorted, with a final newline, atomically."""
    with aside(path) as place:
        place.write_text(json_text(value), encoding="utf-8")
        flush(place)
        os.replace(place, path)


def json_text(value: Mapping[str, Any]) -> str:
    """A JSON object as it is written to files."""
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
