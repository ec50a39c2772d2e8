from __future__ import annotations

import io
import json
import tempfile
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
