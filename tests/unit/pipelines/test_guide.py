"""The guide is true: its Python runs, its commands work, its figures stand in the benchmarks' page.

A page's snippets run in order, as one script, in a folder where `./stable-diffusion-v1-5` is a tiny random model. Those
that cannot (a GPU, a download) say so in a comment before them, `<!-- not run: why -->`, and have to be Python still.
"""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import shutil
from pathlib import Path

import pytest
from tests.unit.plan.profiles import a_profile
from typer.testing import CliRunner

from leandiffusion import ControlNetModel, UNet2DConditionModel
from leandiffusion.cli.app import app
from leandiffusion.pipelines import planning
from leandiffusion.pipelines.absent import Absent

ROOT = Path(__file__).parents[3]
PAGES = sorted((ROOT / "docs" / "guide").glob("*.md"))
SNIPPET = re.compile(r"(<!-- not run: .+ -->\n\n)?```(python|sh)\n(.*?)```", re.DOTALL)
RUN = ("generate", "batch", "env")  # of the commands: `bench` measures for minutes, `demo` has its own test


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path]) -> None:
    """A working folder with the checkpoints that the guide names, and the list of its page on many pictures."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folders["sd1"], "stable-diffusion-v1-5")
    shutil.copytree(folders["sd1"] / "vae", "my-vae")
    rows = re.search(
        r"```json\n(.*?)```", (PAGES[0].parent / "many-pictures.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert rows
    Path("prompts.jsonl").write_text(rows[1])
    unet = UNet2DConditionModel.from_pretrained(folders["sd1"], subfolder="unet").config
    known = inspect.signature(ControlNetModel).parameters
    ControlNetModel(**{name: unet[name] for name in known if name in unet}).save_pretrained("my-controlnet")
    # The budgets that the pages name are for a process of its own, and not for what other tests left in this one.
    monkeypatch.setattr(planning, "profile_of", lambda *args, **options: a_profile())
    monkeypatch.setattr(planning, "floor_here", lambda profile, networks, has_computed: profile.floor)


@pytest.mark.filterwarnings("ignore")  # what a machine without a GPU, and the other library, have to say
@pytest.mark.usefixtures("checkpoints")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_snippets_run(page: Path) -> None:
    names: dict[str, object] = {}
    for not_run, language, text in SNIPPET.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            code = compile(ast.parse(text), f"{page.name}: {text.splitlines()[0]} …", "exec")
            if not not_run:
                exec(code, names)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("checkpoints")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_work(page: Path) -> None:
    for not_run, language, text in SNIPPET.findall(page.read_text(encoding="utf-8")):
        for line in text.splitlines() if language == "sh" and not not_run else ():
            words = shlex.split(line, comments=True)
            if words[0] == "leandiffusion" and words[1] in RUN:
                result = CliRunner().invoke(app, words[1:], prog_name="leandiffusion")
                assert result.exit_code == 0, f"{line}\n{result.output}"


def test_figures_are_those_measured() -> None:
    """Every cell of a table about rows of the benchmarks stands in one line of that row there."""
    measured = [cells(line) for line in (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8").splitlines()]
    shown = [
        cells(line) for page in PAGES for table in tables(page) if table[0].startswith("| row |") for line in table
    ]
    assert shown
    for row in (row for row in shown if row[0] not in ("row", "---")):
        there = [{cell.split(" (")[0] for cell in line} for line in measured if line[:1] == row[:1]]
        assert any(set(row) <= line for line in there), f"{row}: not in the records"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []


def tables(page: Path) -> list[list[str]]:
    parts = re.findall(r"(?:^\|.*\n)+", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [part.splitlines() for part in parts]


def test_what_is_absent_is_told() -> None:
    text = (ROOT / "docs" / "guide" / "from-diffusers.md").read_text(encoding="utf-8")
    refusing = [
        name for name in vars(Absent) if (getattr(Absent, name).__doc__ or "").startswith("Raises NotSupported")
    ]
    assert refusing
    assert [name for name in refusing if f"`{name}`" not in text] == []
