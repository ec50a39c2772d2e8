r"""Prompts that change from step to step, in the notation that AUTOMATIC1111's web UI made common.

    [a|b|c]      a in the first step, b in the second, c in the third, then a again
    [a:b:when]   a before `when`, b from there on; [b:when] and [a::when] begin and end something

`when` is a share of the steps (0.5) or a number of steps (10). These nest, and go together with weights; square
brackets with neither | nor a number at the end stay. A step's text is in the weighted syntax (`emphasis`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import ConfigError
from ..core.wording import show

_MARKS = re.compile(r"\\.|[\[\]()|:]|[^\\\[\]()|:]+|\\", re.DOTALL)


@dataclass
class _Open:
    """A square bracket that is not closed yet: what its separators part, these, and how many round brackets are
    open."""

    parts: list[str] = field(default_factory=lambda: [""])
    separators: str = ""
    round: int = 0


def changes(text: str) -> bool:
    """Whether a prompt may be another one in another step: a quick look, which brackets with weights pass too."""
    return "[" in text and ("|" in text or ":" in text)


def at_step(text: str, step: int, steps: int) -> str:
    """A prompt as it is in `step` (from 0) of so many, without what changes. ConfigError for brackets that are both an
    alternation and a change at a time, and for a time below 0."""
    outer = _Open()
    open_brackets = [outer]
    for mark in _MARKS.findall(text):
        inner = open_brackets[-1]
        if mark == "[":
            open_brackets.append(_Open())
        elif mark == "]" and len(open_brackets) > 1:
            open_brackets.pop()
            open_brackets[-1].parts[-1] += _chosen(inner, step, steps)
        elif mark in "|:" and len(open_brackets) > 1 and not inner.round:
            inner.parts.append("")
            inner.separators += mark
        else:
            inner.round += {"(": 1, ")": -1 if inner.round else 0}.get(mark, 0)
            inner.parts[-1] += mark
    return outer.parts[0] + "".join("[" + _joined(each) for each in open_brackets[1:])  # never closed: no choice


def _chosen(bracket: _Open, step: int, steps: int) -> str:
    """What a bracket that was closed says in this step."""
    parts, separators = bracket.parts, bracket.separators
    when = _number(parts[-1]) if separators.endswith(":") else None
    if separators and set(separators) == {"|"}:
        return parts[step % len(parts)]
    if when is None and "|" not in separators:
        return f"[{_joined(bracket)}]"
    if when is None or len(parts) > 3 or "|" in separators or when < 0:
        raise ConfigError(
            f"{show(f'[{_joined(bracket)}]')} is neither an alternation, [a|b], nor a change at a time, [a:b:0.5] with "
            "a share of the steps or their number: put one into the other, such as [[a|b]:c:0.5], or write what "
            r"belongs to the text as \[ and \]."
        )
    before, after = parts[:2] if len(parts) == 3 else ("", parts[0])
    is_share = "." in parts[-1] and when <= 1
    return before if step < math.floor(round(when * steps, 6) if is_share else when) else after


def _joined(bracket: _Open) -> str:
    first, *others = bracket.parts
    return first + "".join(mark + part for mark, part in zip(bracket.separators, others, strict=True))


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def by_step(arguments: Mapping[str, Any], steps: int) -> list[dict[str, Any]]:
    """A call's arguments that hold prompts, texts or lists of them beside anything else -> those of each of so many
    steps: the same object where they are equal."""

    def said(value: Any, step: int) -> Any:
        if isinstance(value, str):
            return at_step(value, step, steps)
        is_list = isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)
        return [at_step(each, step, steps) for each in value] if is_list else value

    distinct: dict[str, dict[str, Any]] = {}
    rows = []
    for step in range(steps):
        row = {name: said(value, step) for name, value in arguments.items()}
        words = {name: value for name, value in row.items() if isinstance(value, str | list)}
        rows.append(distinct.setdefault(repr(words), row))
    return rows


def any_changes(arguments: Mapping[str, Any]) -> bool:
    """Whether any of the texts among a call's arguments may change from step to step."""
    texts = [each for value in arguments.values() if isinstance(value, str | list | tuple) for each in _texts(value)]
    return any(changes(text) for text in texts)


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [each for each in value if isinstance(each, str)]
