"""Options of `generate` that each switch a technique on, from what techniques declare. Imports no torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial, wraps
from typing import Annotated, Any

import typer

from ..core.flag import Flag
from .options import parse_value
from .technique_flags import FLAGS

POSITIONAL_OR_KEYWORD = inspect.Parameter.POSITIONAL_OR_KEYWORD
PANEL = "Memory and speed"
"""The part of the help about how much memory and time a picture takes; see docs/techniques.md."""


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with an option for each flag in the place of its argument `flags`.

    That argument gets the techniques that the options ask for: pairs of a name and its settings.
    """
    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        parameters += _options() if parameter.name == "flags" else [parameter]

    @wraps(command)
    def run(**given: Any) -> None:
        values = {option: given.pop(_argument(option)) for option in _by_option()}
        command(**given, flags=tuple(techniques_of(values)))

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def techniques_of(values: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Techniques and their settings, of what was given for each option."""
    for technique, flag in FLAGS.items():
        value = values[flag.name]
        if flag.setting and value is not None:
            yield technique, {flag.setting: value}
        elif not flag.setting and value == (flag.value or True):
            yield technique, {}


def _options() -> Iterator[inspect.Parameter]:
    """The options as arguments of a typer command."""
    for name, flag in _by_option().items():
        words = words_of(flag)
        about: dict[str, Any] = {"help": flag.help, "rich_help_panel": PANEL}
        if not flag.value:
            kind, default = Annotated[bool, typer.Option(name, **about)], False  # alone, so that there is no --no-NAME
        else:
            about["metavar"] = "|".join([*words, "N"] if flag.number else words) or flag.value
            about["parser"] = partial(parse_value, flag, words)
            kind, default = Annotated[Any, typer.Option(name, **about)], None
        yield inspect.Parameter(_argument(name), POSITIONAL_OR_KEYWORD, default=default, annotation=kind)


def words_of(flag: Flag) -> tuple[str, ...]:
    """The words that its option takes: those of the setting, or one for each technique that shares the option."""
    sharing = (each.value for each in FLAGS.values() if each.name == flag.name and each.value)
    return flag.words if flag.setting else tuple(sharing)


def _by_option() -> dict[str, Flag]:
    """A flag for each option; others that share it differ in their value only."""
    return {flag.name: flag for flag in FLAGS.values()}


def _argument(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")
