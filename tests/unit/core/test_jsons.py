"""JSON from untrusted files: what is refused, and that large ones cost linear time."""

from __future__ import annotations

import json
import time

import pytest

from leandiffusion.core.jsons import BadJSON, parse_json


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 100_000, "lists, the limit|nested deeper"),
        ("[" * 100_000 + "]" * 100_000, "nested deeper"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested deeper"),
        ("[" * 41 + "1" + "]" * 41, "nested deeper than 40"),
        ("[" + "[]," * 500_000 + "1]", "500001 lists, the limit is"),
        ("1" * 5000, "a whole number of 5000 digits"),
        ("-" + "1" * 5000, "a whole number of 5001 digits"),
        ("1e999", "'1e999', which is out of range"),
        ("0." + "1" * 100_000, "out of range"),
        ('{"a": 1, "a": 2}', "names 'a' twice"),
        ('"\\ud800"', "half of a surrogate pair"),
        ('{"\\udc00x": 1}', "half of a surrogate pair"),
        (b'"\xed\xa0\x80"', "not UTF-8"),
        (b"\xff", "byte 0 is not UTF-8"),
        ("", "line 1 column 1"),
        ('{"a": }', "line 1 column 7"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_what_is_refused(text: str | bytes, told: str) -> None:
    with pytest.raises(BadJSON, match=told) as caught:
        parse_json(text)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["NaN", "-Infinity", '{"a": 1, "a": 1}'])
def test_what_only_the_strict_refuse(text: str) -> None:
    assert repr(parse_json(text)) == repr(json.loads(text))
    with pytest.raises(BadJSON):
        parse_json(text, strict=True)


@pytest.mark.parametrize("value", [{"a": [1, -2, 0.5, None, True, "\U0001f600 é"], "": {}}, 10**30, "x" * 100_000, []])
def test_everything_else_is_read_as_python_reads_it(value: object) -> None:
    assert parse_json(json.dumps(value), strict=True) == value


def test_a_hundred_thousand_names_take_linear_time() -> None:
    """A name given twice among 100,000: two minutes when each is counted. The limit is generous for a busy machine."""
    names = ",".join(f'"n{i}":[]' for i in range(100_000))
    start = time.perf_counter()
    with pytest.raises(BadJSON, match="names 'n99999' twice"):
        parse_json(f'{{{names},"n99999":[]}}', strict=True)
    assert time.perf_counter() - start < 5
