r"""Prompts with weights, in the notation that AUTOMATIC1111's web UI made common.

    (word)       1.1 times          (word:1.3)   1.3 times          [word]   1 / 1.1 times
    \( \) \[ \]  the brackets       BREAK        what follows begins a new chunk

Brackets nest, and their weights multiply; one that is never closed reaches to the end. What that program does beyond
weights (several prompts joined by AND, `<lora:…>`) is refused by name; `editing` reads prompts that change from step to
step, and leaves one without such changes for each step.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from ..core.errors import ConfigError, NotSupported
from ..core.wording import show

PLAIN, WEIGHTED = SYNTAXES = ("plain", "weighted")
"""Names of the syntaxes of prompts."""

STEP = 1.1
"""What one pair of round brackets multiplies by."""

HEAVIEST = 1e6
"""Weight beyond which nothing is drawn: embeddings times it leave the numbers that are computed with."""

_MARKS = re.compile(
    r"\\(?P<literal>[()\[\]\\])|\\|:\s*(?P<weight>[+-]?[.\d]+)\s*\)|:\s*[+-]?[.\d]+\s*(?P<schedule>\])"
    r"|\s*\b(?P<word>BREAK|AND)\b\s*|(?P<tag><\w+:[^<>]*>)|(?P<mark>[()\[\]|])|(?P<text>[^\\()\[\]|:<BA]+|.)",
    re.DOTALL,
)

_SCHEDULED = (
    "it changes the prompt from step to step, which a call of the pipeline does and the encoding of one text cannot: "
    "leave it to the call, or write the square brackets as \\[ and \\] if they belong to the text"
)
_JOINED = "several prompts joined by AND are not supported: write 'and' in lower case"
_TAGS = "what stands in <…:…> is no text: load LoRA weights with load_lora_weights or --lora, and leave it out here"


@dataclass(frozen=True)
class Piece:
    """A part of a prompt, and the weight of its tokens."""

    text: str
    weight: float = 1.0


def check_syntax(name: Any) -> str:
    """`name` if it is a syntax of prompts, else ConfigError."""
    if name not in SYNTAXES:
        raise ConfigError(f"prompt_syntax={name!r} is unknown: use 'plain' for text as it is, or 'weighted'.")
    return name


def parse(text: str) -> list[list[Piece]]:
    """A prompt in the weighted syntax -> its sections, which BREAK separates, as pieces of equal weight.

    ConfigError for weights that are no numbers or too large, NotSupported for what else the notation has, both naming
    the place.
    """
    parts: list[tuple[str | None, float]] = []  # None is a BREAK
    open_at: dict[str, list[int]] = {"(": [], "[": []}
    innermost: list[str] = []

    def multiply(start: int, factor: float) -> None:
        parts[start:] = [(part, weight * factor) for part, weight in parts[start:]]

    def close(kind: str, factor: float) -> None:
        innermost.reverse()
        innermost.remove(kind)
        innermost.reverse()
        multiply(open_at[kind].pop(), factor)

    for found in _MARKS.finditer(text):
        mark = found[0]
        _refuse_what_is_no_weight(text, found, innermost)
        if mark in open_at:
            open_at[mark].append(len(parts))
            innermost.append(mark)
        elif found["weight"] and open_at["("]:
            close("(", _number(found["weight"], mark))
        elif mark == ")" and open_at["("]:
            close("(", STEP)
        elif mark == "]" and open_at["["]:
            close("[", 1 / STEP)
        elif found["word"]:
            parts.append((None, 1.0))
        elif mark != "\\":
            parts.append((found["literal"] or mark, 1.0))
    for kind, factor in (("(", STEP), ("[", 1 / STEP)):
        for start in open_at[kind]:
            multiply(start, factor)
    return _sections(parts)


def _refuse_what_is_no_weight(text: str, found: re.Match[str], innermost: list[str]) -> None:
    scheduled = found["schedule"] or (found["mark"] == "|" and innermost[-1:] == ["["])
    if scheduled and "[" in innermost:
        raise NotSupported(f"{show(text)}: {show(found[0])} inside [ ] makes an alternation: {_SCHEDULED}.")
    if found["word"] == "AND" or found["tag"]:
        raise NotSupported(f"{show(text)}: {show(found[0].strip())}: {_TAGS if found['tag'] else _JOINED}.")


def _number(digits: str, mark: str) -> float:
    try:
        weight = float(digits)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise ConfigError(f"{show(mark)} ends a weight that is no number: write one such as (word:1.3).")
    return weight


def _sections(parts: list[tuple[str | None, float]]) -> list[list[Piece]]:
    """Neighbours of equal weight joined, so that their words are read as they would be without brackets."""
    sections: list[list[Piece]] = [[]]
    for text, weight in parts:
        last = sections[-1]
        if not abs(weight) <= HEAVIEST:
            raise ConfigError(
                f"the brackets around {show(text or 'BREAK')} give it a weight of {weight:.3g}: weights go up to "
                f"{HEAVIEST:.0e}, and rarely beyond 1.5 to any good."
            )
        if text is None:
            sections.append([])
        elif last and last[-1].weight == weight:
            last[-1] = Piece(last[-1].text + text, weight)
        else:
            last.append(Piece(text, weight))
    return sections


def without_weights(text: str) -> str:
    """The words of a prompt in the weighted syntax alone."""
    return " ".join("".join(piece.text for piece in section) for section in parse(text))
