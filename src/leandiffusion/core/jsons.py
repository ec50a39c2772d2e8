"""JSON from untrusted files: limits are checked before values are built, and every defect is one kind of error.

Python's parser takes more than the standard: NaN and Infinity, names that are given twice, halves of surrogate pairs.
It ends in errors of its own for deep nesting and for integers of thousands of digits.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

from .wording import show

MAX_DEPTH = 40
"""How deep lists and objects may be nested. Files of models nest four or five deep."""

_MAX_CONTAINERS = 400_000  # lists and objects of one text: a few dozen megabytes
_MAX_DIGITS = 40  # the longest that are written in practice are those of 10^30
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


class BadJSON(ValueError):
    """A text that is not JSON, or exceeds a limit. The message says what is wrong and where, not in which file."""


def parse_json(
    text: bytes | str, *, strict: bool = False, half_pairs: bool = False, most: int = _MAX_CONTAINERS
) -> Any:
    """The value that a JSON text stands for. Raises BadJSON.

    Refused are: bytes that are not UTF-8, halves of surrogate pairs, integers of more than 40 digits, floats out of
    range, lists and objects nested deeper than MAX_DEPTH or more than `most` of them, and a name that is given two
    different values in one object. `half_pairs` lets halves of surrogate pairs pass. `strict` also refuses names given
    twice with equal values, NaN and Infinity.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadJSON(f"byte {error.start} is not UTF-8") from None
    lists = text.count("[")  # those inside strings too: an upper bound, and a coarse one is enough
    if lists > most:
        raise BadJSON(f"it holds {lists} lists, the limit is {most}")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_Objects(strict, most),
            parse_int=_whole_number,
            parse_float=_number,
            parse_constant=_no_constant if strict else float,
        )
    except RecursionError:
        raise BadJSON(f"it is nested deeper than {MAX_DEPTH} levels") from None
    except json.JSONDecodeError as error:
        raise BadJSON(f"{error.msg}: line {error.lineno} column {error.colno}") from None
    _check_depth_and_text(value, not half_pairs and bool(_HALF_PAIR.search(text)))
    return value


class _Objects:
    """Makes objects of pairs, and counts them."""

    def __init__(self, strict: bool, most: int) -> None:
        self.strict, self.most, self.count = strict, most, 0

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        self.count += 1
        if self.count > self.most:
            raise BadJSON(f"it holds more than {self.most} objects")
        made = dict(pairs)
        if len(made) != len(pairs):
            self._refuse_twice(pairs)
        return made

    def _refuse_twice(self, pairs: Iterable[tuple[str, Any]]) -> None:
        seen: dict[str, Any] = {}
        for name, value in pairs:
            if name in seen and (self.strict or not _same(seen[name], value)):
                raise BadJSON(f"it names {show(name)} twice")
            seen[name] = value


def _same(one: Any, other: Any) -> bool:
    try:
        return type(one) is type(other) and one == other
    except RecursionError:
        return False


def _whole_number(text: str) -> int | float:
    """-0 is a float, as it is to other parsers: no integer has a sign and is zero."""
    if len(text) > _MAX_DIGITS:
        raise BadJSON(f"it holds a whole number of {len(text)} digits")
    return int(text) if text != "-0" else -0.0


def _number(text: str) -> float:
    value = float(text) if len(text) <= 400 else math.inf
    if not math.isfinite(value):
        raise BadJSON(f"it holds the number {show(text)}, which is out of range")
    return value


def _no_constant(text: str) -> float:
    raise BadJSON(f"it holds {text}, which is not JSON")


def _check_depth_and_text(value: Any, texts: bool) -> None:
    """BadJSON for what is nested too deep, and where `texts`, for halves of surrogate pairs."""
    level, depth = [value], 0
    while level:
        if texts and (wrong := next((t for t in level if isinstance(t, str) and not _encodable(t)), None)) is not None:
            raise BadJSON(f"the text {show(wrong)} holds half of a surrogate pair")
        containers = [each for each in level if isinstance(each, dict | list)]
        depth += bool(containers)
        if depth > MAX_DEPTH:
            raise BadJSON(f"it is nested deeper than {MAX_DEPTH} levels")
        level = []
        for each in containers:
            level += each if isinstance(each, list) else [*each.values(), *(each if texts else ())]


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
