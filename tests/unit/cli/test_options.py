from __future__ import annotations

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from leandiffusion.cli.options import parse_dtype, parse_guidance, parse_size
from leandiffusion.cli.report import describe_cost

sides = st.integers(1, 1024).map(lambda n: 8 * n)


@given(sides, sides, st.sampled_from("xX×"))
def test_any_size_in_multiples_of_8(width, height, mark):
    assert parse_size(f"{width}{mark}{height}") == (width, height)
    assert parse_size(str(width)) == (width, width)


@given(st.text())
def test_any_other_text_is_wrong_usage(text):
    try:
        width, height = parse_size(text)
    except typer.BadParameter:
        return
    assert width % 8 == height % 8 == 0
    assert min(width, height) >= 8


@given(st.integers(1, 4096).filter(lambda n: n % 8))
def test_the_sizes_it_suggests_are_right(side):
    with pytest.raises(typer.BadParameter) as caught:
        parse_size(f"{side}x512")
    for suggestion in str(caught.value).rpartition("use ")[2].rstrip(".").split(" or "):
        assert parse_size(suggestion)[0] == pytest.approx(side, abs=8)


def test_guidance_and_dtype():
    assert parse_guidance("7.5") == 7.5
    assert parse_guidance("0") == 0
    for text in ("inf", "-1", "", "strong"):
        with pytest.raises(typer.BadParameter):
            parse_guidance(text)
    assert parse_dtype("BF16") == parse_dtype("bfloat16") == "bfloat16"
    with pytest.raises(typer.BadParameter):
        parse_dtype("float8")


def test_the_cost_is_told_in_one_line():
    told = describe_cost({"load": 0.2, "denoise": 1.3}, {"process": 2**30, "cuda:0": 2**20})
    assert told == "load 200 ms · denoise 1.3 s · 1.5 s in all · peak memory 1 GiB · peak memory 1 MiB on cuda:0"
