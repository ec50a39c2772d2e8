"""The options that switch techniques on: complete, checked early, recorded in the picture."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from leandiffusion.cli import generate
from leandiffusion.cli.app import app
from leandiffusion.cli.flags import PANEL, techniques_of, words_of
from leandiffusion.cli.options import parse_enable, parse_value
from leandiffusion.cli.technique_flags import FLAGS
from leandiffusion.drawing.techniques import TechniqueOptions
from leandiffusion.pictures.record import PictureRecord, read_record
from leandiffusion.techniques import techniques


def options() -> dict[str, Any]:
    command: Any = get_command(app)
    return {option: p for p in command.commands["generate"].params for option in p.opts}


def test_every_techniques_flag_is_an_option_and_the_other_way_round() -> None:
    declared = {str(cls.flag).split()[0] for name in techniques if (cls := techniques.get(name)).flag}
    panel = {name for name, p in options().items() if getattr(p, "rich_help_panel", None) == PANEL}
    assert declared <= options().keys()
    assert panel == declared - {"--dtype"} | {"--enable", "--memory", "--allow", "--plan"}


def parsed(option: str, text: str) -> Any:
    flag = next(flag for flag in FLAGS.values() if flag.name == option)
    return parse_value(flag, words_of(flag), text)


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("MAX", "max"), ("3", 3)])
def test_slices(text: str, value: str | int) -> None:
    assert parsed("--attention-slicing", text) == value


@pytest.mark.parametrize("text", ["0", "-1", "half", "1.5", ""])
def test_wrong_slices(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="auto, max, or a number of heads"):
        parsed("--attention-slicing", text)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("channels_last", ("channels_last", {})),
        ("vae_tiling:rows=128", ("vae_tiling", {"rows": 128})),
        ("sequential_offload:resident_fraction=0.5,granularity=block",
         ("sequential_offload", {"resident_fraction": 0.5, "granularity": "block"})),
        ("compile:dynamic=None,mode=max-autotune", ("compile", {"dynamic": None, "mode": "max-autotune"})),
    ],
)  # fmt: skip
def test_techniques_by_name(text: str, parsed: tuple[str, dict[str, Any]]) -> None:
    assert parse_enable(text) == parsed


@pytest.mark.parametrize("text", ["vae_tiling:rows", ":rows=1", "vae_tiling:=1", "vae_tiling:rows="])
def test_techniques_written_wrongly(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="NAME:SETTING=VALUE"):
        parse_enable(text)


def test_every_technique_can_be_named() -> None:
    """One that is registered is reached without an option of its own."""
    for name in techniques:
        technique_options = TechniqueOptions(enable=((name, {}),))
        made = technique_options.offloading or name
        assert str(made).startswith(name)
        assert (name in technique_options.to_enable) == (technique_options.offloading is None)


def test_ways_of_offloading() -> None:
    assert [parsed("--offload", "model"), parsed("--offload", "Sequential")] == ["model", "sequential"]
    with pytest.raises(typer.BadParameter, match="use model or sequential"):
        parsed("--offload", "disk")


def test_each_choice_is_a_technique() -> None:
    """Every option that a technique declares as its own switches it on; what opens the model does the rest."""
    everything = {
        flag.name: True if not flag.value else "auto" if flag.setting else flag.value for flag in FLAGS.values()
    }
    asked = TechniqueOptions(tuple(techniques_of(everything)))
    opening = {"model_offload", "sequential_offload", "half_precision"}
    assert set(asked.to_enable) | opening == {name for name in techniques if techniques.get(name).flag}
    assert TechniqueOptions().to_enable == {}


def draw(run: Any, tmp_path: Path, *arguments: str) -> Any:
    return run(
        [
            "generate",
            "a red circle",
            "--steps",
            "2",
            "--seed",
            "1",
            "--size",
            "64",
            "--out",
            str(tmp_path / "a.png"),
            *arguments,
        ]
    )


@pytest.fixture
def run() -> Any:
    from typer.testing import CliRunner

    return lambda arguments: CliRunner().invoke(app, arguments)


def test_what_was_on_is_said_and_recorded(run: Any, tmp_path: Path) -> None:
    result = draw(run, tmp_path, "--offload", "sequential", "--vae-tiling", "--attention-slicing", "2")
    assert result.exit_code == 0, result.output
    assert "With attention_slicing(size=2), vae_tiling, sequential_offload" in result.output
    record = read_record(tmp_path / "a.png")
    assert list(record.techniques) == ["attention_slicing", "vae_tiling", "sequential_offload"]


def test_named_techniques_are_on_with_their_settings(run: Any, tmp_path: Path) -> None:
    named = ["--enable", "sequential_offload:granularity=block", "--enable", "vae_tiling:rows=32"]
    result = draw(run, tmp_path, *named, "--enable", "half_precision:dtype=bf16")
    assert result.exit_code == 0, result.output
    record = read_record(tmp_path / "a.png")
    assert record.techniques["sequential_offload"] == "sequential_offload(granularity='block')"
    assert record.techniques["vae_tiling"] == "vae_tiling(rows=32)"
    assert record.techniques["half_precision"] == "half_precision(dtype=torch.bfloat16)"


def test_the_picture_is_the_same(run: Any, tmp_path: Path) -> None:
    from PIL import Image, ImageChops

    pictures = []
    for arguments in ([], ["--offload", "model", "--vae-slicing", "--attention", "chunked", "--channels-last"]):
        assert draw(run, tmp_path, *arguments).exit_code == 0
        pictures.append(Image.open(tmp_path / "a.png").convert("RGB"))
    extremes = ImageChops.difference(*pictures).getextrema()
    assert max(high for _, high in extremes) <= 1  # of 255: sums in another order


def test_records_without_techniques_are_still_read(run: Any, tmp_path: Path) -> None:
    assert draw(run, tmp_path).exit_code == 0
    text = read_record(tmp_path / "a.png").to_json()
    older = re.sub(r', "techniques": \{\}', "", text)
    assert older != text
    assert PictureRecord.from_json(older).techniques == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attention", "xformers"], "attention_backend cannot be used here"),
        (["--attention-slicing", "99"], "more than the 4 heads of"),
    ],
)
def test_what_cannot_be_is_one_line(run: Any, tmp_path: Path, arguments: list[str], message: str) -> None:
    result = draw(run, tmp_path, *arguments)
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attention", "flsh"], "Did you mean 'flash'?"),
        (["--trace", "--offload", "model"], "model_offload and traced_unet cannot be on together"),
        (["--trace", "--compile"], "Leave one of the two options out."),
        (["--enable", "vae_tilling"], "Did you mean 'vae_tiling'?"),
        (["--enable", "vae_tiling:row=8"], "Did you mean 'rows'?"),
        (["--enable", "half_precision:dtype=int8"], "half precision is"),
        (["--enable", "model_offload", "--offload", "sequential"], "asked for in two ways"),
        (["--enable", "model_offload", "--trace"], "on together"),
    ],
)
def test_wrong_usage_is_found_before_a_model_opens(
    run: Any, tmp_path: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "open_model", None)
    result = draw(run, tmp_path, *arguments)
    assert result.exit_code == 2
    assert message in re.sub(r"[\s│]+", " ", result.output)
    assert not (tmp_path / "a.png").exists()
