"""Values and messages made readable: what a file holds may be of any size and hold any characters."""

from __future__ import annotations

import re
import reprlib
import unicodedata

LONGEST_MESSAGE = 499
_LONG_WORD = 120  # characters without white space: a path, a name, a number


class _Brief(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.fillvalue = "…"
        self.maxstring, self.maxother, self.maxlong = 80, 80, 40
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 6
        self.maxdict = 4
        self.maxlevel = 3

    def repr_int(self, x: int, level: int) -> str:
        """Python refuses to write integers of thousands of digits, and takes long for them."""
        return repr(x) if x.bit_length() <= 128 else f"a whole number of {x.bit_length()} bits"

    def repr_str(self, x: str, level: int) -> str:
        return repr(x) if len(x) <= self.maxstring else repr(x[:50])[:-1] + self.fillvalue + repr(x[-20:])[1:]


_BRIEF = _Brief()


def show(value: object) -> str:
    """`repr(value)`, cut short where it is long: at most a few hundred characters, made in as little time."""
    text = _BRIEF.repr(value)
    return text if len(text) <= 240 else f"{text[:160]}…{text[-60:]}"


def dtype_name(dtype: object) -> str:
    """torch.float16, or what prints so, -> 'float16'."""
    return str(dtype).removeprefix("torch.")


_CONTROLS = ("Cc", "Zl", "Zp", "Cs")  # C0 and C1 controls, line and paragraph separators, lone surrogates
_BIDI = {*"\u061c\u200e\u200f", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}
"""Bidirectional controls: with them a text can be made to look like another."""


def printable(text: str, keep: str = "\n\t") -> str:
    """`text` with its control characters written out (`\\x1b`), but for those of `keep`.

    Names from checkpoints, pictures and folders may hold sequences that move a terminal's cursor, change its title or
    fill its clipboard (ECMA-48); written out they only show.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        each.encode("unicode_escape").decode()
        if each not in keep and (unicodedata.category(each) in _CONTROLS or each in _BIDI)
        else each
        for each in text
    )


def to_length(text: str, limit: int = LONGEST_MESSAGE) -> str:
    """`text` in at most `limit` characters: first long words are shortened in the middle, then the whole."""
    if len(text) <= limit:
        return text
    if len(text) < 100_000:  # beyond that it is not worth a search
        text = re.sub(rf"\S{{{_LONG_WORD},}}", lambda word: f"{word[0][:40]}…{word[0][-60:]}", text)
    if len(text) <= limit:
        return text
    tail = limit * 2 // 5
    return f"{text[: limit - tail - 3]} … {text[-tail:]}"


def readable(text: str) -> str:
    """`text` as a message: printable, in at most LONGEST_MESSAGE characters."""
    return to_length(printable(to_length(text)))  # written out, characters take more room
