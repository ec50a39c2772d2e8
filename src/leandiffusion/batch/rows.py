"""Lists of pictures to draw: lines of JSON, or CSV -> the options of each row, or what is wrong with them."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TextIO

from ..core.errors import ConfigError
from ..core.jsons import BadJSON, parse_json
from ..core.registry import did_you_mean
from ..core.wording import show
from ..drawing.options import DrawingOptions
from ..drawing.values import parse_size
from ..drawing.wrong import OptionError

STDIN = "-"
JSON_SUFFIXES = (".jsonl", ".ndjson")
CSV_SUFFIXES = {".csv": ",", ".tsv": "\t"}
"""Suffixes of lists of columns, and what stands between columns."""

OTHER_NAMES = {
    "negative": "negative_prompt", "guidance": "guidance_scale", "num_inference_steps": "steps",
    "embedding": "embeddings", "control_start": "control_guidance_start", "control_end": "control_guidance_end",
}  # fmt: skip
"""What options are called elsewhere: on the command line, as arguments of a pipeline's call."""

SIZE = "size"
_KINDS = {each.name: str(each.type).removesuffix(" | None") for each in fields(DrawingOptions)}


@dataclass(frozen=True)
class Row:
    """A row by its number, from 1 and without empty ones: its options, or where they are None what is wrong."""

    number: int
    options: DrawingOptions | None = None
    error: str | None = None


def read_rows(source: str) -> list[Row]:
    """The rows of a file, CSV by its suffix, else a JSON object a line; `source` '-' is JSON from standard input.

    ConfigError for a file that cannot be read as a whole. What is wrong with single rows is told by them.
    """
    if source == STDIN:
        with _told("standard input"):
            return _read(sys.stdin, None)
    path = Path(source).expanduser()
    suffix = path.suffix.lower()
    if suffix not in (*JSON_SUFFIXES, *CSV_SUFFIXES):
        known = ", ".join((*JSON_SUFFIXES, *CSV_SUFFIXES))
        raise ConfigError(
            f"{source} ends in {suffix!r}: a list of pictures is one of {known}, or - for standard input."
        )
    with _told(source), path.open(encoding="utf-8-sig", newline="") as file:
        return _read(file, CSV_SUFFIXES.get(suffix))


@contextmanager
def _told(source: str) -> Iterator[None]:
    """ConfigError for a list that cannot be read."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{source}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source} is not text in UTF-8 (byte {error.start}): save it so.") from error
    except csv.Error as error:
        raise ConfigError(f"{source} is no CSV: {error}.") from error


def _read(file: TextIO, delimiter: str | None) -> list[Row]:
    parsed = _json_lines(file) if delimiter is None else _csv_lines(file, delimiter)
    rows = []
    for number, values in enumerate(parsed, 1):
        try:
            if isinstance(values, ConfigError):
                raise values
            rows.append(Row(number, options_of(values)))
        except ConfigError as error:
            rows.append(Row(number, error=str(error)))
    return rows


def options_of(values: Mapping[str, Any]) -> DrawingOptions:
    """The options that a row's values name; null leaves one out. OptionError for unknown names and wrong values."""
    made: dict[str, Any] = {}
    for name, value in values.items():
        if value is None:
            continue
        field = name.strip().replace("-", "_")
        field = OTHER_NAMES.get(field, field)
        for each, single in _sides(value) if field == SIZE else [(field, value)]:
            if each not in _KINDS:
                known = [*_KINDS, SIZE]
                raise OptionError(show(name), "{reason}", reason=(
                    f"there is no such option.{did_you_mean(field, known)} Known: {', '.join(known)}."
                ))  # fmt: skip
            if each in made:
                raise OptionError(each, "it is said twice, under two names: leave one out.")
            made[each] = (single,) if _is_list(each) and isinstance(single, str) else single
    return DrawingOptions(**made).normal()


def _sides(value: Any) -> list[tuple[str, int]]:
    if isinstance(value, str | int) and not isinstance(value, bool):
        width, height = parse_size(SIZE, str(value))
        return [("width", width), ("height", height)]
    raise OptionError(SIZE, "it is {value}, and has to be a text such as '512x768'.", value=show(value))


def _json_lines(file: TextIO) -> Iterator[Mapping[str, Any] | ConfigError]:
    for line in file:
        if not line.strip():
            continue
        try:
            values = parse_json(line)
        except BadJSON as error:
            yield ConfigError(f"it is not JSON ({error}): write one object a line.")
            continue
        if isinstance(values, dict):
            yield values
        else:
            yield ConfigError(f'it is {show(values)}: write an object, such as {{"prompt": "a red circle"}}.')


def _csv_lines(file: TextIO, delimiter: str) -> Iterator[Mapping[str, Any] | ConfigError]:
    reader = csv.DictReader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
    names = [OTHER_NAMES.get(name.strip(), name.strip()) for name in reader.fieldnames or ()]
    if "prompt" not in names:
        raise csv.Error("its first line has to name the columns, and none is called 'prompt'")
    for cells in reader:
        if None in cells:
            yield ConfigError("it has more cells than there are columns: put texts that hold commas in quotes.")
        elif any(cells.values()):
            yield {name: _from_text(name, cell) for name, cell in cells.items()}


def _from_text(name: str, cell: str | None) -> Any:
    """A cell's value as its option has it; an empty cell is none. What cannot be read stays text, which is told."""
    if not cell:
        return None
    field = OTHER_NAMES.get(name.strip(), name.strip())
    kind = _KINDS.get(field, "str")
    if kind == "bool":
        return {"true": True, "false": False}.get(cell.strip().lower(), cell)
    if kind in ("int", "float") or (_is_list(field) and cell.lstrip().startswith("[")):
        try:
            return json.loads(cell)
        except ValueError:
            return cell
    return cell


def _is_list(field: str) -> bool:
    return _KINDS.get(field, "").startswith("tuple")
