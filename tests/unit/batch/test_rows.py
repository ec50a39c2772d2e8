"""Lists as people write them, and what is told of rows that are wrong."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from leandiffusion.batch.rows import options_of, read_rows
from leandiffusion.core.errors import ConfigError
from leandiffusion.drawing.wrong import OptionError


def test_options_under_the_names_that_people_know() -> None:
    asked = {
        "prompt": "a",
        "negative": "b",
        "num_inference_steps": 3,
        "guidance": 7,
        "size": "64x32",
        "lora": "night:2",
    }
    options = options_of(asked)
    assert (options.negative_prompt, options.steps, options.guidance_scale) == ("b", 3, 7.0)
    assert (options.width, options.height, options.lora) == (64, 32, ("night:2",))
    assert options_of({"control-start": 0.5, "seed": None}).control_guidance_start == 0.5
    assert options_of({"size": 64}).height == 64


@pytest.mark.parametrize(
    ("values", "field", "told"),
    [
        ({"stepz": 3}, "'stepz'", "Did you mean 'steps'?"),
        ({"steps": "3"}, "steps", "a whole number"),
        ({"steps": 3, "num_inference_steps": 3}, "steps", "said twice"),
        ({"size": "64", "width": 64}, "width", "said twice"),
        ({"size": [64, 64]}, "size", "such as '512x768'"),
        ({"size": "60x64"}, "size", "use 56 or 64"),
        ({"lora": [3]}, "lora", "a list of texts"),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, Any], field: str, told: str) -> None:
    with pytest.raises(OptionError) as caught:
        options_of(values)
    assert caught.value.field == field
    assert told in str(caught.value)


def test_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "list.jsonl"
    file.write_text('\ufeff{"prompt": "ä"}\n\n[1]\n{"prompt": \n{"prompt": "b", "seed": 3}', encoding="utf-8")
    rows = read_rows(str(file))
    assert [row.number for row in rows] == [1, 2, 3, 4]
    assert [row.options and row.options.prompt for row in rows] == ["ä", None, None, "b"]
    assert "write an object" in str(rows[1].error)
    assert "not JSON" in str(rows[2].error)


def test_csv(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text(
        "prompt, steps,guidance,guess_mode,lora,seed\n"
        '"a, b",3,7.5,,night:0.5,\n'
        "\n"
        "123,3,7,TRUE,\"[\"\"a\"\",\"\"b\"\"]\",9\n"
        "c,many,,,,\n"
        "d,3,7,,,1,more\n"
    )  # fmt: skip
    first, second, third, fourth = read_rows(str(file))
    assert first.options is not None
    assert (first.options.prompt, first.options.steps, first.options.guidance_scale) == ("a, b", 3, 7.5)
    assert (first.options.lora, first.options.seed, first.options.guess_mode) == (("night:0.5",), None, None)
    assert second.options is not None
    assert (second.options.prompt, second.options.lora, second.options.guess_mode) == ("123", ("a", "b"), True)
    assert "steps: it is 'many', and has to be a whole number" in str(third.error)
    assert "more cells" in str(fourth.error)


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('{"prompt": "a"}\n'))
    assert [row.options and row.options.prompt for row in read_rows("-")] == ["a"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"prompt": "\xff"}\n'), "utf-8"))
    with pytest.raises(ConfigError, match="standard input is not text in UTF-8"):
        read_rows("-")


def test_a_number_of_hundreds_of_digits(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text(f"prompt,guidance\na,{'9' * 400}\nb,7\n")
    first, second = read_rows(str(file))
    assert "far out of range" in str(first.error)
    assert second.options is not None


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("list.txt", b"a", ".jsonl"),
        ("none.jsonl", None, "No such file"),
        ("list.jsonl", b"\xff\xfe", "UTF-8"),
        ("list.csv", b"steps\n3\n", "none is called 'prompt'"),
        ("list.csv", b'prompt\n"a\n', "no CSV"),
    ],
)
def test_a_file_that_is_no_list(tmp_path: Path, name: str, content: bytes | None, told: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=told):
        read_rows(str(tmp_path / name))
