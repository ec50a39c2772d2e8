"""Safetensors headers: what the safetensors library writes is read alike, and every way to be broken has its error."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from leandiffusion.core.errors import CheckpointNotFound, LeanError, MalformedFile, UnsafeFormat
from leandiffusion.weights.header import DTYPES, read_header, read_headers


def write(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def one(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"w": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    tensors = {
        name: torch.zeros(2, 3).to(dtype) for name, dtype in DTYPES.items()
    } | {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 4)}  # fmt: skip
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "a.safetensors")
    assert header.metadata == {"format": "pt"}
    assert {n: (e.dtype, e.shape, e.nbytes) for n, e in header.entries.items()} == {
        n: (t.dtype, tuple(t.shape), t.nbytes) for n, t in tensors.items()
    }


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "too few"),
        (b"\x10\0\0", "too few"),
        (struct.pack("<Q", 1 << 60) + b"{}", "limit"),
        (b"PK\x03\x04" + b"x" * 60, "pickle or zip"),
        (struct.pack("<Q", 100) + b"{}", "truncated"),
        (struct.pack("<Q", 2) + b"{]", "JSON"),
        (struct.pack("<Q", 2) + b"\xff\xfe", "JSON"),
        (struct.pack("<Q", 2) + b"[]", "expected a JSON object"),
    ],
    ids=["empty", "short", "absurd length", "zip", "length past the end", "no JSON", "no UTF-8", "no object"],
)
def test_broken_files(tmp_path: Path, content: bytes, told: str) -> None:
    file = tmp_path / "broken.safetensors"
    file.write_bytes(content)
    with pytest.raises(MalformedFile, match=told) as caught:
        read_header(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("header", "size", "told"),
    [
        (one(dtype="F7"), 8, "dtype 'F7'"),
        (one(dtype=7), 8, "dtype 7"),  # type: ignore[arg-type]
        (one(shape=(-2,)), 8, "non-negative"),
        (one(shape=(2.0,)), 8, "non-negative"),
        (one(offsets=(8, 0)), 8, "begin <= end"),
        (one(offsets=(0, 4)), 4, "takes 8 bytes, its offsets .* span 4"),
        (one(offsets=(0, 8)), 6, "describes 7[0-9] bytes, the file holds"),
        (one(offsets=(0, 8)), 9, "1 bytes after its last tensor"),
        (one(offsets=(4, 12)), 12, "leaves a gap after the header"),
        ({"w": {"dtype": "F32"}}, 0, "expected dtype, shape and data_offsets"),
        ({"w": 5}, 0, "expected dtype, shape and data_offsets"),
        ({"v": one()["w"], "w": one(offsets=(4, 12))["w"]}, 12, "'w' overlaps tensor 'v'"),
        (b'{"w":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"w":{}}', 4, "names 'w' twice"),
    ],
)
def test_broken_descriptions(tmp_path: Path, header: Any, size: int, told: str) -> None:
    with pytest.raises(MalformedFile, match=told):
        read_header(write(tmp_path / "broken.safetensors", header, b"\0" * size))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damage_is_found_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any single damaged byte of the header gives a typed error or a header that still covers the file exactly."""
    file = tmp_path_factory.mktemp("damage") / "f.safetensors"
    save_file({"a": torch.ones(3), "b": torch.ones(2, 2)}, file)
    content = bytearray(file.read_bytes())
    end = 8 + struct.unpack("<Q", content[:8])[0]
    content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    try:
        header = read_header(file)
    except LeanError:
        return
    assert sum(entry.nbytes for entry in header.entries.values()) == 28
    assert max(entry.stop for entry in header.entries.values()) == len(content)


W = '"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'


@pytest.mark.parametrize(
    ("header", "library_takes", "taken"),
    [
        (f"{{{W}}}", True, True),
        (f' {{"__metadata__":{{"a":"b"}},{W}}}  ', True, True),
        (f'{{"__metadata__":null,{W}}}', True, True),
        (f'{{{W[:-1]},"extra":[{{}}]}}}}', True, True),
        (f'{{"__metadata__":{{"a":1}},{W}}}', False, False),
        (f'{{"__metadata__":["a"],{W}}}', False, False),
        (f'{{"__metadata__":"a",{W}}}', False, False),
        ("{" + W.replace("[2]", "[2.0]") + "}", False, False),
        ("{" + W.replace("[2]", "[-0,2]") + "}", False, False),
        ("{" + W.replace("[2]", "[true,2]") + "}", False, False),
        ("{" + W.replace('"w"', '"\\ud800"') + "}", False, False),
        (f'{{{W[:-1]},"extra":NaN}}}}', False, False),
        (f'{{{W[:-1]},"extra":1e999}}}}', False, False),
        (f'{{{W[:-1]},"dtype":"F32"}}}}', False, False),
        (f"{{{W}}}x", False, False),
        ("{" + W.replace('"F32"', '"U64"').replace("[2]", "[1]") + "}", True, True),
        ("{" + W.replace('"F32"', '"C64"').replace("[2]", "[1]") + "}", True, True),
        ("{" + W.replace('"F32"', '"F8_E8M0"').replace("[2]", "[8]") + "}", True, True),
        (f"{{{W},{W}}}", True, False),
        ("{" + W.replace("[2]", f"[{'1,' * 64}2]") + "}", True, False),
        ('{"w":["F32",[2],[0,8]]}', True, False),
        ("{" + W.replace('"F32"', '{"F32":null}') + "}", True, False),
        ("{" + W.replace('"F32"', '"F4"').replace("[2]", "[16]") + "}", True, False),
    ],
)
def test_what_the_library_takes_and_what_is_taken_here(
    tmp_path: Path, header: str, library_takes: bool, taken: bool
) -> None:
    """The table in the module's docstring, kind by kind; the library is asked too."""
    file = write(tmp_path / "f.safetensors", header.encode(), bytes(8))
    assert _opens(lambda: safe_open(file, "pt"), Exception) == library_takes
    assert _opens(lambda: read_header(file), MalformedFile) == taken


def _opens(read: Callable[[], object], errors: type[Exception]) -> bool:
    try:
        read()
    except errors:
        return False
    return True


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("{" + ",".join(f'"n{i}":{{}}' for i in range(100_000)) + ',"n99999":{}}', "names 'n99999' twice"),
        ("{" + W.replace("[2]", f"[1{',999999999' * 200_000}]") + "}", "shape"),
        ("{" + W.replace("[2]", f"[{'9' * 5000}]") + "}", "whole number of 5000 digits"),
        ("{" + W.replace("[2]", f"[{'[' * 100_000}{']' * 100_000}]") + "}", "nested deeper"),
        ("{" + ",".join(f'"n{i}":{{}}' for i in range(100_001)) + "}", "100001 tensors, the limit is 100000"),
        (f'{{"{"x" * 10_000_000}":{{"dtype":"{"y" * 10_000_000}","shape":[],"data_offsets":[0,4]}}}}', "has dtype"),
        (" " * 32_000_000 + "{}", "the limit is 32000000"),
    ],
    ids=["a double", "a shape", "digits", "depth", "tensors", "names", "size"],
)
def test_large_headers_are_refused_in_linear_time(tmp_path: Path, header: str, told: str) -> None:
    """Each took minutes, or gave a message of megabytes. The limit of time is generous for a busy machine."""
    file = write(tmp_path / "f.safetensors", header.encode(), bytes(8))
    start = time.perf_counter()
    with pytest.raises(MalformedFile, match=told) as caught:
        read_header(file)
    assert time.perf_counter() - start < 10
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "a web page .*/resolve/"),
        (b"\n  <HTML>" + b" " * 100, "a web page"),
        (b'{"error":"Repository not found"}', "JSON text, such as a server's answer"),
        (b"Entry not found", r"plain text \('Entry not found'\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4265\n", "git-lfs pointer.*git lfs pull"),
        (b"PK\x03\x04" + b"x" * 60, "pickle or zip.*can run any code"),
        (b"\x80\x02}q\x00.", "a pickle"),
        (b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00}\x94." + b"x" * 90, "a pickle"),
        (b"GGUF\x03\0\0\0" + b"x" * 90, "a GGUF file"),
        (bytes(4096), "zeros, as an interrupted download"),
    ],
    ids=["page", "page2", "json", "text", "lfs", "zip", "pickle2", "pickle4", "gguf", "zeros"],
)
def test_files_of_other_kinds_are_recognised(tmp_path: Path, content: bytes, told: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(MalformedFile, match=told) as caught:
        read_header(file)
    assert len(str(caught.value)) < 500


def test_missing_and_pickled_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match=r"nowhere\.safetensors"):
        read_header(tmp_path / "nowhere.safetensors")
    for suffix in ("bin", "ckpt", "pt"):
        with pytest.raises(UnsafeFormat, match="weights_only=True"):
            read_header(tmp_path / f"model.{suffix}")


def test_the_conversion_that_is_advised_works(tmp_path: Path) -> None:
    """The command in the message turns a pickled checkpoint into a file that opens."""
    import re
    import subprocess
    import sys

    torch.save({"state_dict": {"w": torch.arange(3.0), "step": 7}}, tmp_path / "m.ckpt")
    with pytest.raises(UnsafeFormat) as caught:
        read_header(tmp_path / "m.ckpt")
    code = re.search(r'python -c "(.*)"', str(caught.value))
    assert code is not None
    script = code[1].replace("'IN'", repr(str(tmp_path / "m.ckpt"))).replace("OUT", str(tmp_path / "m"))
    subprocess.run([sys.executable, "-c", script], check=True)
    assert read_header(tmp_path / "m.safetensors").entries["w"].shape == (3,)


def test_a_name_in_two_shards(tmp_path: Path) -> None:
    for name in "ab":
        save_file({"w": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(MalformedFile, match="in both"):
        read_headers([tmp_path / "a.safetensors", tmp_path / "b.safetensors"])
