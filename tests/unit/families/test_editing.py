"""Prompts that change from step to step, as text."""

from __future__ import annotations

import pytest

from leandiffusion.core.errors import ConfigError
from leandiffusion.families.editing import any_changes, at_step, by_step

UNCHANGED = ["[a]", "[[a]]", "a: b | c", r"\[a|b\]", "[note: a]", "[a|b", "a|b]", "(a:1.2)"]


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("a [cow|horse] b", ["a cow b", "a horse b", "a cow b", "a horse b"]),
        ("[a||c]", ["a", "", "c", "a"]),
        ("[a:b:0.5]", ["a", "a", "b", "b"]),
        ("[a:b:0.6]", ["a", "a", "b", "b"]),  # 2.4 steps: whole ones count
        ("[a:b:3]", ["a", "a", "a", "b"]),
        ("[a:b:1.0]", ["a", "a", "a", "a"]),
        ("[b:1]", ["", "b", "b", "b"]),
        ("[a::1]", ["a", "", "", ""]),
        ("[a:b:0]", ["b", "b", "b", "b"]),
        ("[[x|y]:(z:1.3):3]", ["x", "y", "x", "(z:1.3)"]),
        ("[(a|b:1.2)|c]", ["(a|b:1.2)", "c", "(a|b:1.2)", "c"]),
        ("([a|b]:1.2)", ["(a:1.2)", "(b:1.2)", "(a:1.2)", "(b:1.2)"]),
        *((text, [text] * 4) for text in UNCHANGED),
    ],
)
def test_the_text_of_each_step(text: str, steps: list[str]) -> None:
    assert [at_step(text, i, 4) for i in range(4)] == steps


@pytest.mark.parametrize("text", ["[a|b:0.5]", "[a:b:c:0.5]", "[a:b:-1]", "[a|b:c]"])
def test_neither_one_nor_the_other(text: str) -> None:
    with pytest.raises(ConfigError, match="put one into the other"):
        at_step(text, 0, 4)


def test_a_call_has_as_few_texts_as_it_can() -> None:
    marker = object()
    rows = by_step({"prompt": ["[a|b]", "c"], "negative_prompt": None, "prompt_embeds": marker}, 5)
    assert [row["prompt"][0] for row in rows] == ["a", "b", "a", "b", "a"]
    assert rows[0] is rows[2] is rows[4]
    assert rows[1] is rows[3]
    assert all(row["prompt_embeds"] is marker and row["negative_prompt"] is None for row in rows)
    assert any_changes({"prompt": None, "negative_prompt": ["a", "[b|c]"]})
    assert not any_changes({"prompt": "(a:1.2) | b", "negative_prompt": ["[c]"]})
