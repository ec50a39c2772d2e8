"""What reaches a terminal, and terminals that cannot print it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from leandiffusion import ConfigError, WeightsError, demo
from leandiffusion.core.wording import printable

from .test_app import SLOW_DRAWING

HOSTILE = "\x1b]0;title\x07\x1b[2J\x1b]52;c;aGk=\x07\x9b31m\u202egnp.exe\u2066\r\x08[bold]"


def harmless(text: str) -> bool:
    return not any((unicodedata.category(c) == "Cc" and c not in "\n\t") or c in "\u202e\u2066" for c in text)


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "leandiffusion", *map(str, arguments)],
        capture_output=True, env={**os.environ, **environment}, timeout=120, check=False,
    )  # fmt: skip


def test_control_characters_are_written_out() -> None:
    text = printable(HOSTILE)
    assert harmless(text)
    assert r"\x1b]0;title\x07" in text
    assert r"\u202egnp.exe" in text
    assert printable("a photo — “ü” 漢字 👩\u200d🚀\n\tnext") == "a photo — “ü” 漢字 👩\u200d🚀\n\tnext"
    assert printable("lone \ud800") == r"lone \ud800"


def test_errors_hold_none_whoever_prints_them() -> None:
    for error in (ConfigError(f"no {HOSTILE}"), WeightsError(f"{HOSTILE} is gone"), ConfigError(HOSTILE * 20)):
        assert harmless(str(error))
        assert harmless(repr(error))
        assert len(str(error)) < 500


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint whose folder has such a name, and such names inside."""
    folder = tmp_path / HOSTILE.replace("/", "")
    folder.mkdir()
    index = json.loads((demo.model_folder() / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, HOSTILE: [HOSTILE, HOSTILE]}))
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        (folder / part).symlink_to(demo.model_folder() / part)
    return folder


def test_names_in_folders_and_settings(folder: Path) -> None:
    for arguments in (
        ("generate", "a ring", "--model", folder),
        ("generate", "a ring", "--model", folder / "none.safetensors"),
        ("generate", "a ring", "--out", folder / "model_index.json" / "x"),
        ("bench", "published", "--model", folder, "--out", folder / "x.txt"),
    ):
        done = command(*arguments)
        assert done.returncode, done
        assert harmless(done.stderr.decode())


def test_a_picture_that_says_so(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_itxt("leandiffusion", json.dumps({HOSTILE: HOSTILE, "prompt": HOSTILE, "model": HOSTILE}))
    path = tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    done = command("generate", "--like", path)
    assert done.returncode
    assert harmless(done.stderr.decode())


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "cp437"])
def test_consoles_that_lack_characters(encoding: str, tmp_path: Path) -> None:
    done = command("generate", "ein Stern — 漢字 “ü”", "--count", 2, "--steps", 1, "--out", tmp_path / "漢字",
                   PYTHONIOENCODING=encoding)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "漢字").iterdir())) == 2
    assert len(done.stdout.splitlines()) == 2
    for name in ("env", "--help"):
        assert command(name, PYTHONIOENCODING=encoding).returncode == 0


def test_a_reader_that_leaves(tmp_path: Path) -> None:
    """As `leandiffusion env | head -0`: the end, and no trace."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "leandiffusion", "env"], stdout=write, stderr=subprocess.PIPE, timeout=120, check=False
    )
    os.close(write)
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_asked_to_end_while_drawing(number: signal.Signals, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", SLOW_DRAWING, str(tmp_path / "ring.png")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "drawing\n", process.communicate()
        time.sleep(0.1)
        process.send_signal(number)
        _, told = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert "Interrupted." in told
    assert "Traceback" not in told
    assert list(tmp_path.iterdir()) == []


def test_a_record_of_somebody_else(tmp_path: Path) -> None:
    source = next(Path("benchmarks/results").resolve().glob("*.jsonl"))
    lines = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    for values in lines:
        for name in ("title", "row", "model", "error"):
            if isinstance(values.get(name), str):
                values[name] += HOSTILE
    path = tmp_path / "theirs.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    done = command("bench", "compare", path, path)
    assert harmless(done.stdout.decode())
    assert harmless(done.stderr.decode())
