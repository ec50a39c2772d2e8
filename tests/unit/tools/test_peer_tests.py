"""The harness of diffusers' own tests: counts, expected failures, and a run over a small checkout made here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tools.peer_tests import expected, table
from tools.peer_tests.files import CLASSES, FILES
from tools.peer_tests.run import Outcome, copied, run_file

PASSED, FAILED = Outcome("passed", ""), Outcome("failed", "ValueError: 3.5 in /tmp/x")
UNET, DDIM = f"tests/{FILES['unet']}::UNetTests::test_", f"tests/{FILES['ddim']}::DDIMTest::test_"


@pytest.fixture
def pairs() -> table.Pairs:
    theirs = {f"{UNET}shape": PASSED, f"{UNET}lora": PASSED, f"{UNET}hub": FAILED}
    ours = {f"{UNET}shape": PASSED, f"{UNET}lora": FAILED, f"{UNET}hub": FAILED}
    return {"unet": (theirs, ours), "ddim": ({f"{DDIM}step": PASSED}, {f"{DDIM}step": FAILED})}


def test_only_what_passes_with_diffusers_counts(pairs: table.Pairs) -> None:
    assert [line.split() for line in table.rows(pairs).splitlines()[1:]] == [
        ["unet", "2", "1"],
        ["ddim", "1", "0"],
        ["together", "3", "1"],
    ]


def test_expected_failures_are_no_surprise_and_a_pass_of_one_is_told(pairs: table.Pairs) -> None:
    patterns = [("unet::*lora*", "LoRA"), ("unet::UNetTests::test_shape", "private")]
    assert table.surprises(pairs, patterns) == (["ddim::DDIMTest::test_step"], ["unet::UNetTests::test_shape"])


def test_failures_that_differ_in_figures_only_stand_together(pairs: table.Pairs) -> None:
    assert table.by_reason(pairs, []).startswith("2 × ValueError: … in …\n")


def test_every_expected_failure_has_a_kind() -> None:
    assert all(pattern and kind for pattern, kind in expected.read())


def test_names_with_brackets_are_matched_as_written() -> None:
    assert expected.kind_of(f"{UNET}x[a-b]", [("unet::UNetTests::test_x[a-b]", "private")]) == "private"


SWAPPED = f"""
import diffusers

def test_ours():
    assert all(getattr(diffusers, name).__module__.startswith("leandiffusion") for name in {CLASSES!r})
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    assert UNet2DConditionModel is diffusers.UNet2DConditionModel
"""

ENDS = """
import os
import pytest

def test_slow():
    while True: pass

def test_dies():
    os._exit(3)

def test_after():
    pass

def test_skipped():
    pytest.skip("why")
"""


def run(tmp_path: Path, content: str, classes: str) -> dict[str, tuple[str, str]]:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").write_text(content)
    with copied(tmp_path) as folder:
        found = run_file(folder, "test_x.py", classes, limit_s=0.5)
    return {name.partition("::")[2]: (outcome.outcome, outcome.reason) for name, outcome in found.items()}


@pytest.mark.slow  # imports all of diffusers' pipelines in a process of its own
def test_a_run_on_ours_swaps_the_classes(tmp_path: Path) -> None:
    assert run(tmp_path, SWAPPED, "ours") == {"test_ours": ("passed", "")}


def test_a_run_tells_how_each_test_ended(tmp_path: Path) -> None:
    assert run(tmp_path, ENDS, "diffusers") == {
        "test_slow": ("failed", "TimeoutError: took longer than 0 s"),
        "test_dies": ("died", "the process died"),
        "test_after": ("passed", ""),
        "test_skipped": ("skipped", "Skipped: why"),
    }


def test_without_a_checkout_it_says_where_to_get_one() -> None:
    command = [sys.executable, "-m", "tools.peer_tests"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    assert ended.returncode == 2
    assert "git clone" in ended.stderr or "must be installed" in ended.stderr
