from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from leandiffusion.core import aside
from leandiffusion.core.errors import ConfigError, LeanError
from leandiffusion.pictures import files
from leandiffusion.pictures.files import Destination, slug
from leandiffusion.pictures.record import PictureRecord, Recipe, read_record

RECIPE = Recipe("demo", "A red circle, on white!", "", 7, 20, 7.5, None, 8, 8, "float32", "cpu")
RECORD = PictureRecord(RECIPE, "DDIMScheduler")
PICTURE = Image.new("RGB", (8, 8), "red")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_numbers_its_pictures_and_replaces_none(tmp_path):
    folder = tmp_path / "new" / "outputs"
    destination = Destination(folder)
    destination.prepare()
    first, second = destination.save(PICTURE, RECORD), destination.save(PICTURE, RECORD)
    assert names(folder) == ["0001-a-red-circle-on-white.png", "0002-a-red-circle-on-white.png"]
    assert [first.name, second.name] == names(folder)
    first.unlink()
    assert destination.save(PICTURE, RECORD).name.startswith("0003-")  # numbers go up, also past gaps
    assert read_record(second) == RECORD


def test_many_at_once_get_a_name_each(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: Destination(tmp_path).save(PICTURE, RECORD), range(32)))
    assert len(set(paths)) == 32
    assert len(names(tmp_path)) == 32


def test_file_systems_without_links_still_replace_nothing(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(files.os, "link", refuse)
    paths = [Destination(tmp_path).save(PICTURE, RECORD) for _ in range(3)]
    assert [path.name[:4] for path in paths] == ["0001", "0002", "0003"]


def test_a_named_file_is_replaced(tmp_path):
    target = tmp_path / "mine.png"
    target.write_text("an older picture")
    assert Destination(target).save(PICTURE, RECORD) == target
    assert names(tmp_path) == ["mine.png"]
    assert read_record(target) == RECORD


def test_a_named_file_for_several_pictures_is_numbered(tmp_path):
    destination = Destination(tmp_path / "mine.PNG", count=2)
    assert [destination.save(PICTURE, RECORD, index=i).name for i in range(2)] == ["mine-1.PNG", "mine-2.PNG"]


@pytest.mark.parametrize("name", ["folder", "folder/", "folder.d/"])
def test_what_looks_like_a_folder_is_one(tmp_path, name):
    destination = Destination(f"{tmp_path}/{name}")
    destination.prepare()
    assert destination.save(PICTURE, RECORD).parent == tmp_path / name


def test_an_existing_folder_with_a_suffix_is_a_folder(tmp_path):
    (tmp_path / "v1.5").mkdir()
    assert Destination(tmp_path / "v1.5").folder == tmp_path / "v1.5"


def test_other_formats_are_refused_because_they_lose_the_record(tmp_path):
    with pytest.raises(ConfigError, match=r"\.jpg"):
        Destination(tmp_path / "mine.jpg")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("name", ["", "mine.png"])
def test_an_interrupted_write_leaves_nothing_and_spoils_nothing(tmp_path, error, name):
    (tmp_path / "mine.png").write_text("an older picture")

    class Interrupted:
        def save(self, file, **_):
            file.write(b"half a pict")
            raise error

    with pytest.raises(error):
        Destination(tmp_path / name).save(Interrupted(), RECORD)  # pyright: ignore[reportArgumentType]
    assert names(tmp_path) == ["mine.png"]
    assert (tmp_path / "mine.png").read_text() == "an older picture"


def test_places_that_cannot_be_written_are_found_before_drawing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LeanError, match="cannot write to"):
        Destination(tmp_path / "file" / "below").prepare()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_others_is_found_before_drawing(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(LeanError, match="cannot write to"):
        Destination(tmp_path).prepare()


def test_a_full_disk_is_found_before_drawing(tmp_path):
    with pytest.raises(LeanError, match="free"):
        Destination(tmp_path).prepare(expected_bytes=2**60)
    assert names(tmp_path) == []


def test_pictures_are_as_readable_as_other_files(tmp_path):
    before = os.umask(0o022)
    try:
        path = Destination(tmp_path / "mine.png").save(PICTURE, RECORD)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("A red circle, on white!", "a-red-circle-on-white"),
        ("../../etc/passwd", "etc-passwd"),
        ("", "picture"),
        ("猫", "picture"),
        ("word " * 40, "word-word-word-word-word-word-word-word-word"),
    ],
)
def test_names_are_made_of_the_first_words(prompt, expected):
    assert slug(prompt) == expected


def test_what_a_killed_run_left_is_taken_away_and_never_a_picture(tmp_path):
    left = [f".drawing.{aside._host()}-999999999-0.part", f".drawing.{aside._host()}-{os.getppid()}-0.part"]
    for name in left:
        (tmp_path / name).write_bytes(b"half a picture")
    assert not list(tmp_path.glob("*.png"))
    path = Destination(tmp_path).save(PICTURE, RECORD)
    assert names(tmp_path) == [left[1], path.name]  # a process that lives may still be at it
