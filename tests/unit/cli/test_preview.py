"""`generate --preview`: the packaged model, drawn with and without."""

from __future__ import annotations

import errno
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import rich.console
import torch
from PIL import Image
from typer.testing import CliRunner

from leandiffusion import AutoencoderTiny
from leandiffusion.cli import preview
from leandiffusion.cli.app import app

GENERATE = ("generate", "a red circle", "--steps", "4", "--seed", "3", "--size", "64")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), prog_name="leandiffusion")


def pixels(path: str) -> bytes:
    with Image.open(path) as image:
        assert image.size == (64, 64)
        return image.tobytes()


def test_a_file_is_rewritten_whole_and_the_picture_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    rewrite = preview.rewrite

    def note(path: Path, image: Any) -> None:
        before = path.exists()
        rewrite(path, image)
        assert before == bool(seen)
        seen.append(pixels(str(path)))

    monkeypatch.setattr(preview, "rewrite", note)
    plain = run(*GENERATE, "--out", "plain.png")
    shown = run(*GENERATE, "--out", "shown.png", "--preview", "now.png", "--preview-every", "2")
    assert (plain.exit_code, shown.exit_code) == (0, 0), shown.output
    assert pixels("plain.png") == pixels("shown.png")
    assert len(seen) == len(set(seen)) == 2
    assert seen[-1] == pixels("plain.png")  # after the last step nothing is left of the noise
    assert sorted(path.name for path in Path().iterdir()) == ["now.png", "plain.png", "shown.png"]


def test_a_small_vae_decodes_it() -> None:
    AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
    ).save_pretrained("tiny")  # fmt: skip
    found = run(*GENERATE, "--out", "it.png", "--preview", "now.png", "--preview-vae", "tiny", "--preview-every", "4")
    assert found.exit_code == 0, found.output
    assert pixels("now.png") != pixels("it.png")


def test_a_full_disk_ends_previews_and_not_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(preview, "rewrite", full)
    found = run(*GENERATE, "--out", "it.png", "--preview", "now.png", "--preview-every", "1")
    assert found.exit_code == 0, found.output
    assert found.stderr.count("no more previews, the picture goes on: [Errno 28] No space left on device") == 1
    assert pixels("it.png")


def test_other_errors_are_not_swallowed() -> None:
    def broken(image: Any) -> None:
        raise ValueError("broken")

    showing = preview.Showing(SimpleNamespace(decode=None), broken, 1)
    with pytest.raises(AttributeError):
        showing(None, 0, 0, {"latents": torch.zeros(1)})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--preview", "now.jpg"), "is neither 'terminal' nor a .png file"),
        (("--preview", "absent/now.png"), "there is no folder absent"),
        (("--preview", "terminal"), "not a terminal: name a .png file instead"),
        (("--preview-vae", "tiny"), "it belongs to --preview, and there is none"),
    ],
)
def test_what_cannot_be_shown_is_told_before_a_model_opens(options: tuple[str, ...], told: str) -> None:
    found = run(*GENERATE, "--model", "absent/model", *options)
    assert found.exit_code == 2
    assert told in " ".join(found.stderr.replace("│", "").split())


def test_a_terminal_shows_one_picture_over_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    file, console = io.StringIO(), rich.console.Console
    monkeypatch.setattr(
        rich.console, "Console",
        lambda: console(file=file, force_terminal=True, color_system="truecolor", width=40, height=20),
    )  # fmt: skip
    show = preview.in_terminal()
    show(Image.new("RGB", (8, 8), "red"))
    assert "\x1b[4A" not in file.getvalue()
    show(Image.new("RGB", (8, 8), "blue"))
    assert file.getvalue().count("\x1b[4A") == 1  # up by the four rows of the first
