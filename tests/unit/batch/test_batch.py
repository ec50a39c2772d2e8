"""`leandiffusion batch`: each picture once, whatever happens on the way."""

from __future__ import annotations

import errno
import io
import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops
from tests.unit.batch.conftest import QuickModels
from tests.unit.killed import NAMING, killed_at
from typer.testing import CliRunner

from leandiffusion.batch.folder import Folder
from leandiffusion.cli.app import app
from leandiffusion.core import aside
from leandiffusion.core.errors import CheckpointNotFound
from leandiffusion.drawing.options import ResolvedOptions
from leandiffusion.modules.vae import AutoencoderKL
from leandiffusion.pictures.record import read_record

RINGS = [{"prompt": f"ring {number}", "model": "m", "steps": 2, "size": 64} for number in range(4)]
Write = Callable[..., str]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["batch", *arguments, "--out", "out"], prog_name="leandiffusion")


def manifest() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("out/manifest.jsonl").read_text().splitlines()]


def pictures() -> set[str]:
    """Names of the pictures; there is nothing else but the manifest, and each can be read whole."""
    names = {path.name for path in Path("out").iterdir()} - {"manifest.jsonl", ".drawing"}
    assert list(Path("out", ".drawing").iterdir()) == []
    for name in names:
        with Image.open(Path("out", name)) as image:
            image.load()
    return names


def test_each_row_is_drawn_once(models: QuickModels, write_list: Write) -> None:
    rows = write_list(*RINGS)
    result = run(rows, "--guidance", "3")
    assert result.exit_code == 0, result.output
    assert result.stdout == "out/manifest.jsonl\n"
    assert [(line["row"], line["status"]) for line in manifest()] == [(row, "done") for row in (1, 2, 3, 4)]
    assert {line["file"] for line in manifest()} == pictures()
    assert [(options.prompt, options.guidance_scale) for options in models.drawn] == [
        (f"ring {number}", 3.0) for number in range(4)
    ]
    for line in manifest():
        assert read_record(Path("out", line["file"])).recipe.seed == line["seed"]
    before = manifest()
    again = run(rows, "--guidance", "3")
    assert again.exit_code == 0
    assert "0 pictures to draw, 4 rows are done" in again.stderr
    assert (len(models.drawn), len(models.opened)) == (4, 1)
    assert [{**line, "seconds": 0} for line in manifest()] == [{**line, "seconds": 0} for line in before]


def test_what_a_row_says_comes_before_the_command_line(models: QuickModels, write_list: Write) -> None:
    assert run(write_list({"prompt": "a", "steps": 3}, {"prompt": "b"}), "--steps", "9", "--model", "m").exit_code == 0
    assert [options.steps for options in models.drawn] == [3, 9]


def test_rows_alike(models: QuickModels, write_list: Write) -> None:
    """With a seed they are one picture; without, each has a seed of its own, that stays when others come."""
    ring = RINGS[0]
    first = write_list(ring, ring, {**ring, "seed": 7}, {**ring, "seed": 7})
    assert run(first).exit_code == 0
    assert len(pictures()) == len(models.drawn) == 3
    assert manifest()[2]["file"] == manifest()[3]["file"]
    assert len({line["seed"] for line in manifest()}) == 3
    known = {line["file"] for line in manifest()}
    assert run(write_list(RINGS[1], ring, ring, ring, name="longer.jsonl")).exit_code == 0
    assert len(models.drawn) == 5
    assert manifest()[1]["file"] in known
    assert manifest()[2]["file"] in known


def test_rows_of_one_model_are_drawn_together(models: QuickModels, write_list: Write) -> None:
    rows = [{**ring, "model": model} for ring, model in zip(RINGS, "mnmn", strict=True)]
    assert run(write_list(*rows)).exit_code == 0
    assert models.opened == ["m", "n"]
    assert [options.prompt for options in models.drawn] == ["ring 0", "ring 2", "ring 1", "ring 3"]


def test_failed_rows_are_kept_with_their_error_and_tried_again(models: QuickModels, write_list: Write) -> None:
    def fail(options: Any) -> None:
        if options.prompt == "ring 2":
            raise RuntimeError("no room\nleft")

    models.before = fail
    rows = write_list(RINGS[0], {"prompt": "a", "steps": 0}, RINGS[2], "{", RINGS[3])
    result = run(rows)
    assert result.exit_code == 1
    assert [line["status"] for line in manifest()] == ["done", "failed", "failed", "failed", "done"]
    assert manifest()[1]["error"] == "steps: 0 is out of range: use 1 to 100000."
    assert manifest()[2]["error"] == "RuntimeError: no room left"
    for told in ("Row 2 failed: steps: 0", "Row 3 failed: RuntimeError: no room left", "3 rows failed"):
        assert told in result.stderr
    assert len(pictures()) == 2

    def interrupt(options: Any) -> None:
        raise KeyboardInterrupt

    models.before = interrupt
    assert run(rows).exit_code == 130
    assert manifest()[2]["error"] == "RuntimeError: no room left"  # not tried again yet
    models.before = lambda options: None
    assert run(rows).exit_code == 1
    assert [line["status"] for line in manifest()] == ["done", "failed", "done", "failed", "done"]
    assert len(models.drawn) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"image": "a\0b"}, {"lora": "a\0b"}, {"embeddings": "\0"}, {"image": "x" * 5000}, {"lora": "x" * 5000},
        {"image": "/"}, {"embeddings": "~nobody-of-that-name/x"}, {"image": "\n\x1b[2J"},
    ],
)  # fmt: skip
def test_a_path_that_cannot_be_costs_its_row_alone(
    models: QuickModels, write_list: Write, wrong: dict[str, str]
) -> None:
    result = run(write_list(RINGS[0], {**RINGS[1], **wrong}, RINGS[2]))
    assert result.exit_code == 1, result.output
    assert [line["status"] for line in manifest()] == ["done", "failed", "done"]
    error = manifest()[1]["error"]
    assert error
    assert len(error) < 500
    assert "\x1b" not in result.output


@pytest.mark.filterwarnings("ignore:decoding did not fit in memory")
def test_what_cannot_be_decoded_is_kept_and_decoded_by_the_command_that_is_told(
    write_list: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = write_list({"prompt": "a red circle", "seed": 1, "steps": 2, "size": 64})

    def fails(*_: Any, **__: Any) -> Any:
        raise MemoryError("no room")

    with monkeypatch.context() as broken:
        broken.setattr(AutoencoderKL, "decode", fails)
        for _ in range(2):
            assert run(rows).exit_code == 1
    (line,) = manifest()
    (kept,) = Path("out").glob("*.latents.safetensors")
    assert line["status"] == "failed"
    assert line["error"].startswith("decoding failed (MemoryError: no room). What was denoised is kept; to go on: ")
    command = shlex.split(line["error"].partition("leandiffusion ")[2])
    assert command == ["decode", str(kept), "--out", f"out/{line['file']}"]
    assert CliRunner().invoke(app, command).exit_code == 0
    decoded = Path("out", line["file"]).read_bytes()
    assert run(rows).exit_code == 0
    assert [line["status"] for line in manifest()] == ["done"]
    assert Path("out", line["file"]).read_bytes() == decoded
    Path("out", line["file"]).unlink()
    assert run(rows).exit_code == 0
    assert pictures() == {line["file"]}  # without the latents, which nobody needs any more
    with Image.open(Path("out", line["file"])) as drawn, Image.open(io.BytesIO(decoded)) as before:
        assert drawn.tobytes() == before.tobytes()


def test_a_model_that_cannot_be_opened_fails_its_rows_only(
    models: QuickModels, write_list: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def open_model(options: Any, techniques: Any) -> Any:
        if options.model == "n":
            tried.append(options)
            raise CheckpointNotFound("no such folder: n")
        return models.open(options, techniques)

    monkeypatch.setattr("leandiffusion.batch.work.open_model", open_model)
    rows = [{**ring, "model": model} for ring, model in zip(RINGS, "nnmm", strict=True)]
    assert run(write_list(*rows)).exit_code == 1
    assert [line.get("error") for line in manifest()] == ["no such folder: n"] * 2 + [None] * 2
    assert len(tried) == 1


def test_ctrl_c_keeps_what_is_there_and_says_how_to_go_on(models: QuickModels, write_list: Write) -> None:
    def interrupt(options: Any) -> None:
        if options.prompt == "ring 2":
            raise KeyboardInterrupt

    models.before = interrupt
    rows = write_list(*RINGS)
    result = run(rows)
    assert result.exit_code == 130
    assert "2 rows are done, 2 left. To go on, give the same command again" in result.stderr
    assert [line["status"] for line in manifest()] == ["done", "done", "waiting", "waiting"]
    assert len(pictures()) == 2
    models.before = lambda options: None
    assert run(rows).exit_code == 0
    assert [options.prompt for options in models.drawn] == [f"ring {number}" for number in range(4)]


def test_a_full_disk_ends_the_batch(models: QuickModels, write_list: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write_list(*RINGS)
    with monkeypatch.context() as patched:
        saved: list[Any] = []
        save = Image.Image.save

        def full(image: Any, file: Any, **options: Any) -> None:
            saved.append(file)
            if len(saved) == 3:
                file.write(b"half a pict")
                raise OSError(errno.ENOSPC, "No space left on device")
            save(image, file, **options)

        patched.setattr(Image.Image, "save", full)
        result = run(rows)
    assert result.exit_code == 1
    assert "out cannot be written to: No space left on device. Make room there" in " ".join(result.stderr.split())
    assert len(pictures()) == 2
    assert run(rows).exit_code == 0
    assert len(pictures()) == 4


def test_a_broken_file_is_drawn_again(models: QuickModels, write_list: Write) -> None:
    rows = write_list(*RINGS)
    run(rows)
    path = Path("out", manifest()[1]["file"])
    whole = path.read_bytes()
    for broken in (whole[:-20], b"", whole[: len(whole) // 2] + whole[-12:]):
        path.write_bytes(broken)
        assert run(rows).exit_code == 0
        assert path.read_bytes() == whole
    assert len(models.drawn) == 7


def test_killed_at_any_step_nothing_is_lost_doubled_or_broken(models: QuickModels, write_list: Write) -> None:
    """Before each call that gives or takes a file's name; what is left is drawn by the next call, and no more."""
    rows = write_list(*RINGS[:2])

    def work() -> None:
        assert run(rows).exit_code == 0

    killed, calls = killed_at(work, 0, NAMING)
    assert not killed
    expected = pictures()
    assert len(expected) == 2
    for at in range(1, calls + 1):
        shutil.rmtree("out")
        killed, _ = killed_at(work, at, NAMING)
        assert killed
        there = {name for name in (path.name for path in Path("out").glob("*.png")) if Folder("out").record(name)}
        assert there == {path.name for path in Path("out").glob("*.png")} <= expected
        models.drawn.clear()
        assert run(rows).exit_code == 0
        assert pictures() == expected
        assert len(models.drawn) == 2 - len(there)
        assert [line["status"] for line in manifest()] == ["done", "done"]


def test_what_another_process_has_in_hand_is_left_to_it(models: QuickModels, write_list: Write) -> None:
    """And drawn last: by the other one, or where that ended without a picture, or is not to be asked, by this one."""
    rows = write_list(*RINGS)
    assert run(rows).exit_code == 0
    names = [line["file"] for line in manifest()]
    bytes_of = {name: Path("out", name).read_bytes() for name in names}
    for name in names:
        Path("out", name).unlink()
    models.drawn.clear()

    def part(name: str, host: str, pid: int) -> Path:
        return Path("out", ".drawing", f".{name}.{host}-{pid}-0.part")

    host = aside._host()
    alive, gone, elsewhere = (
        part(names[0], host, os.getppid()),
        part(names[1], host, 2**22 + 1),
        part(names[2], "0" * 8, 1),
    )
    for place in (alive, gone, elsewhere):
        place.touch()

    def other_one_ends(options: Any) -> None:
        if options.prompt == "ring 3":
            Path("out", names[0]).write_bytes(bytes_of[names[0]])
            alive.unlink()

    models.before = other_one_ends
    assert run(rows).exit_code == 0
    assert [options.prompt for options in models.drawn] == ["ring 1", "ring 3", "ring 2"]
    assert {name: Path("out", name).read_bytes() for name in names} == bytes_of
    assert not gone.exists()


def test_two_at_once_write_each_picture_whole(models: QuickModels) -> None:
    """Both began the same picture before either saw the other: the second finds it there, and leaves it."""
    one, other = Folder("out"), Folder("out")
    one.prepare()
    drawn = models.draw(ResolvedOptions(prompt="a"), None)
    with one.in_hand("a.png") as place, other.in_hand("a.png") as another:
        assert place != another
        one.keep(place, "a.png", drawn.image, drawn.record)
        first = Path("out/a.png").stat()
        other.keep(another, "a.png", drawn.image, drawn.record)
        assert Path("out/a.png").stat().st_ino == first.st_ino
    assert pictures() == {"a.png"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["none.jsonl"], "none.jsonl: No such file"),
        (["list.jsonl", "--scheduler", "eulr"], "'euler'"),
        (["list.jsonl", "--enable", "vae_tilling"], "Did you mean"),
        (["list.jsonl", "--enable", "deep_cache", "--memory", "2GiB"], "--memory chooses"),
    ],
)
def test_wrong_usage_draws_nothing(models: QuickModels, write_list: Write, arguments: list[str], told: str) -> None:
    write_list(*RINGS)
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert told in " ".join(result.output.replace("│", " ").split())
    assert not Path("out").exists()


def test_the_folder_is_a_folder(models: QuickModels, write_list: Write) -> None:
    Path("out").write_text("a file")
    result = run(write_list(*RINGS))
    assert result.exit_code == 2
    assert "no folder" in result.output


def test_the_packaged_model_draws_a_list_with_pictures_and_techniques(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_list: Write
) -> None:
    """No quick models: opened once for text, once for pictures; the same pixels as `generate` draws."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "navy").save("photo.png")
    rows = write_list(
        {"prompt": "a red circle", "seed": 5},
        {"prompt": "a red circle", "seed": 5, "image": "photo.png", "strength": 0.6},
        {"prompt": "a blue ring", "seed": 6, "scheduler": "euler-a"},
    )
    result = run(rows, "--steps", "2", "--size", "64", "--vae-tiling", "--offload", "model")
    assert result.exit_code == 0, result.output
    single = ["generate", "a blue ring", "--seed", "6", "--scheduler", "euler-a", "--steps", "2", "--size", "64"]
    assert CliRunner().invoke(app, [*single, "--out", "one.png"]).exit_code == 0
    with Image.open("one.png") as one, Image.open(Path("out", manifest()[2]["file"])) as of_batch:
        difference = ImageChops.difference(one, of_batch).getextrema()
    assert max(high for _, high in difference) <= 1  # of 255: tiles add in another order
    record = read_record(Path("out", manifest()[1]["file"]))
    assert (record.recipe.image, list(record.inputs)) == ("photo.png", ["image"])
    assert "vae_tiling" in record.techniques
    Image.new("RGB", (64, 64), "green").save("photo.png")
    assert run(rows, "--steps", "2", "--size", "64").exit_code == 0
    assert len(pictures()) == 4  # another picture to draw from is another picture
