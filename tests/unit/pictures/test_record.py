from __future__ import annotations

import io
import json
import struct
import tempfile
import zlib
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from leandiffusion.core.errors import ConfigError
from leandiffusion.pictures.record import JSON_KEY, PictureRecord, Recipe, read_record

# All that UTF-8 can hold, so no lone surrogates; NUL ends a text in a PNG, and no argument can hold one.
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
recipes = st.builds(
    Recipe,
    model=words,
    prompt=words,
    negative_prompt=words,
    seed=st.integers(0, 2**63 - 1),
    steps=st.integers(1, 1000),
    guidance_scale=st.floats(0, 100),
    scheduler=st.none() | words,
    width=st.integers(1, 512).map(lambda n: 8 * n),
    height=st.integers(1, 512).map(lambda n: 8 * n),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    device=st.sampled_from(["cpu", "cuda:0"]),
)
records = st.builds(
    PictureRecord,
    recipe=recipes,
    sampler=st.sampled_from(["DDIMScheduler", "PNDMScheduler"]),
    karras=st.booleans(),
    seconds=st.dictionaries(words, st.floats(0, 1e6)),
    peak_memory=st.dictionaries(words, st.integers(0, 2**45)),
    versions=st.dictionaries(words, words),
)

RECIPE = Recipe("demo", "a red circle", "", 7, 20, 7.5, None, 128, 64, "float32", "cpu")
RECORD = PictureRecord(RECIPE, "DDIMScheduler", versions={"leandiffusion": "1.2.3"})


def png(record: PictureRecord) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, format="PNG", pnginfo=record.png_info())
    return file.getvalue()


@given(records)
@settings(deadline=None)  # the first example also imports Pillow's PNG plug-in
def test_what_a_picture_says_is_read_back_exactly(record):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        path.write_bytes(png(record))
        assert read_record(path) == record


@given(records)
@settings(deadline=None)
def test_other_programs_find_the_whole_prompt(record):
    with Image.open(io.BytesIO(png(record))) as image:
        text = image.info["parameters"]
    assert text == record.to_a1111()
    assert text.startswith(record.recipe.prompt + "\n")


@pytest.mark.parametrize(
    ("changes", "sampler", "karras", "expected"),
    [
        (
            {},
            "DDIMScheduler",
            False,
            "a red circle\n"
            "Steps: 20, Sampler: DDIM, CFG scale: 7.5, Seed: 7, Size: 128x64, Model: demo, "
            "Version: leandiffusion 1.2.3",
        ),
        (
            {"scheduler": "dpm++-sde-karras"},
            "DPMSolverMultistepScheduler",
            True,
            "a red circle\n"
            "Steps: 20, Sampler: DPM++ 2M SDE, Schedule type: Karras, CFG scale: 7.5, Seed: 7, Size: 128x64, "
            "Model: demo, Version: leandiffusion 1.2.3",
        ),
        (
            {
                "prompt": "one\ntwo",
                "negative_prompt": "blurry, dark",
                "model": "/home/me/sd: 1,5",
                "guidance_scale": 5.0,
            },
            "DPMSolverMultistepScheduler",
            True,
            "one\ntwo\nNegative prompt: blurry, dark\n"
            "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5, Seed: 7, Size: 128x64, "
            'Model: "sd: 1,5", Version: leandiffusion 1.2.3',
        ),
    ],
)
def test_the_text_is_laid_out_as_the_web_ui_does(changes, sampler, karras, expected):
    recipe = Recipe(**{**vars(RECIPE), **changes})
    assert PictureRecord(recipe, sampler, karras, versions=RECORD.versions).to_a1111() == expected


def test_pictures_drawn_before_there_were_all_fields():
    record = PictureRecord(RECIPE, "DDIMScheduler")
    values = json.loads(record.to_json())
    optional = {f.name for f in fields(PictureRecord) if f.default_factory is not MISSING}
    fewer = {name: value for name, value in values.items() if name not in optional}
    fewer["recipe"].pop("vae")
    assert len(fewer) < len(values) - 3
    assert PictureRecord.from_json(json.dumps(fewer)) == record


def test_half_a_surrogate_pair_does_not_stop_a_picture():
    record = PictureRecord(Recipe(**{**vars(RECIPE), "prompt": "a \udcff circle"}), "DDIMScheduler")
    with Image.open(io.BytesIO(png(record))) as image:
        assert PictureRecord.from_json(image.info[JSON_KEY]) == record
        assert image.info["parameters"].startswith("a ? circle\n")


def altered(change) -> str:
    values = json.loads(RECORD.to_json())
    change(values)
    return json.dumps(values)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not valid JSON"),
        ("[]", "format"),
        (altered(lambda v: v.update(format=99)), "format"),
        (altered(lambda v: v["recipe"].pop("seed")), "seed"),
        (altered(lambda v: v["recipe"].update(surprise=1)), "should have"),
        (altered(lambda v: v["recipe"].update(steps="20")), "steps is '20'"),
        (altered(lambda v: v["recipe"].update(seed=True)), "seed is True"),
        (altered(lambda v: v.update(recipe=None)), "should have"),
        (altered(lambda v: v.update(seconds=[1])), "seconds"),
    ],
)
def test_a_broken_record_is_refused_by_name(text, complaint, tmp_path):
    path = tmp_path / "picture.png"
    info = RECORD.png_info()
    info.chunks = [chunk for chunk in info.chunks if JSON_KEY.encode() not in chunk[1]]
    info.add_text(JSON_KEY, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    with pytest.raises(ConfigError, match=complaint) as caught:
        read_record(path)
    assert str(path) in str(caught.value)


def test_pictures_of_others_and_no_pictures_are_told_apart(tmp_path):
    plain = tmp_path / "plain.png"
    Image.new("RGB", (8, 8)).save(plain)
    with pytest.raises(ConfigError, match="not drawn by Lean Diffusion"):
        read_record(plain)
    text = tmp_path / "text.png"
    text.write_text("hello")
    with pytest.raises(ConfigError, match="is not a picture"):
        read_record(text)
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "missing.png")


def chunks(*parts: tuple[bytes, bytes], width: int = 8) -> bytes:
    header = struct.pack(">IIBBBBB", width, 8, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), *parts, (b"IEND", b""))
    made = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"".join((b"\x89PNG\r\n\x1a\n", *made))


TEXT = RECORD.to_json().encode()
KEY = JSON_KEY.encode() + b"\0"
PIXELS = (b"IDAT", zlib.compress(bytes(200)))


@pytest.mark.parametrize(
    "text",
    [
        (b"tEXt", KEY + TEXT),
        (b"zTXt", KEY + b"\0" + zlib.compress(TEXT)),
        (b"iTXt", KEY + b"\0\0en\0\0" + TEXT),
        (b"iTXt", KEY + b"\1\0\0\0" + zlib.compress(TEXT)),
    ],
    ids=["plain", "compressed", "international", "international, compressed"],
)
@pytest.mark.parametrize("width", [8, 13_000, 2**31, 2**32 - 1])
def test_the_record_is_read_without_the_picture(text, width, tmp_path):
    """A picture of 13,000 x 13,000 would take 500 MB, and Pillow refuses one of 2^31: its size does not matter here."""
    path = tmp_path / "picture.png"
    for parts in ((text, PIXELS), (PIXELS, text)):
        path.write_bytes(chunks(*parts, width=width))
        assert read_record(path) == RECORD


def bomb() -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(64)) + packer.flush()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (chunks((b"zTXt", KEY + b"\0" + bomb())), "unpacks to more than"),
        (chunks((b"iTXt", KEY + b"\1\0\0\0" + bomb())), "unpacks to more than"),
        (chunks((b"tEXt", KEY + bytes(5_000_000))), "has 50000[0-9]* bytes, the limit is"),
        (chunks((b"zTXt", KEY + b"\0" + zlib.compress(TEXT)[:-9])), "the end is missing"),
        (chunks((b"zTXt", KEY + b"\7" + TEXT)), "unknown method"),
        (chunks((b"zTXt", KEY + b"\0" + TEXT)), "does not unpack"),
        (chunks((b"iTXt", KEY + b"\0\0")), "ends before its text"),
        (chunks((b"iTXt", KEY + b"\0\0\0\0\xff")), "not UTF-8"),
        (chunks((b"tEXt", KEY + TEXT)).replace(b"red circle", b"red circus"), "checksum"),
        (chunks((b"tEXt", KEY + TEXT))[:200], "passes the end"),
        (chunks((b"tEXt", KEY + TEXT))[:8] + chunks((b"tEXt", KEY + TEXT))[33:], "expected b'IHDR'"),
        (chunks(*[(b"tEXt", b"")] * 500_001), "more than 500000 chunks"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_broken_and_hostile_pictures(content, complaint, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=complaint) as caught:
        read_record(path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "change", [{"seed": -1}, {"seed": 2**63}, {"steps": 0}, {"steps": 10**9}, {"width": 2**31}, {"guidance_scale": -1}]
)
def test_numbers_that_no_command_would_take(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        PictureRecord.from_json(altered(lambda values: values["recipe"].update(change)))
