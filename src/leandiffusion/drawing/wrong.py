"""The error of an option that cannot be followed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..core.errors import ConfigError
from ..core.wording import readable


class OptionError(ConfigError):
    """An option of a picture that cannot be followed. `field` is its name in `DrawingOptions`.

    `rule` says what is wrong and what to do, with `{name}` for other options, or for one of `values`: who asked may
    know options by other names (`told`).
    """

    def __init__(self, field: str, rule: str, **values: Any) -> None:
        self.field, self._rule, self._values = field, rule, values
        super().__init__(f"{field}: {self.told()}")

    def told(self, name_of: Callable[[str], str] = str) -> str:
        """What is wrong, without the option's own name; others are called as `name_of` says."""
        return readable(self._rule.format_map(_Words(name_of, self._values)))


class _Words(dict[str, Any]):
    def __init__(self, name_of: Callable[[str], str], values: dict[str, Any]) -> None:
        super().__init__(values)
        self._name_of = name_of

    def __missing__(self, name: str) -> str:
        return self._name_of(name)
