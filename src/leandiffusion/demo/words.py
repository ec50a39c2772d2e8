"""The words of the captions that the packaged model was trained on, and which words of a prompt it never saw."""

from __future__ import annotations

import re

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")

SIZE_WORDS = {"small": ("small", "tiny", "little"), "large": ("large", "big", "huge")}
RELATION_WORDS = {
    "above": ("above", "over"),
    "below": ("below", "under", "underneath"),
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
}
LEADS = ("", "", "", "a picture of ", "picture of ", "an image of ", "a drawing of ", "there is ", "draw ")
BACKGROUNDS = (
    "{} on {a} background",
    "{} with {a} background",
    "{} in front of {a} background",
    "{} on {plain}",
    "{}, {plain} background",
    "{}, background: {plain}",
    "on {a} background, {}",
    "{plain} background, {}",
)
ARTICLES = ("a", "a", "a", "the", "one", "")

DESCRIPTION = (
    "It knows one shape (circle, square, triangle, star, ring, cross), small or large, in red, orange, yellow, green, "
    "blue, purple, white or black, on a plain background; of two shapes it gets the colours, but places them by chance."
)
"""What the model in the package does reliably, and what not yet."""


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return re.findall(r"[^\W_]+", text.lower())


VOCABULARY: frozenset[str] = frozenset(
    word
    for phrase in (
        *COLOURS,
        *SHAPES,
        *(word for words in SIZE_WORDS.values() for word in words),
        *(word for words in RELATION_WORDS.values() for word in words),
        *LEADS,
        *(template.format("", a="", plain="") for template in BACKGROUNDS),
        *ARTICLES,
        "an and",
    )
    for word in words_of(phrase)
)
"""Every word that occurs in a caption."""


def unknown_words(text: str) -> list[str]:
    """The words of `text` that the demo model has never seen, each once, in order."""
    return [word for word in dict.fromkeys(words_of(text)) if word not in VOCABULARY]
