"""The process of a job, with the packaged model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leandiffusion import StableDiffusionPipeline
from leandiffusion.bench.loop import starting_noise
from leandiffusion.bench.run import process, worker
from leandiffusion.bench.run.declared import declared_rows
from leandiffusion.bench.run.process import run_task
from leandiffusion.bench.suites import suites
from leandiffusion.bench.workload import GUIDANCE, PROMPT, Job, Row, Workload
from leandiffusion.core import libraries
from leandiffusion.demo import model_folder
from leandiffusion.schedulers import build

LOAD = Workload("demo", 128, 3, 1, "bfloat16", "cpu", 1)


def job(row: Row, picture: Path | None = None, load: Workload = LOAD) -> dict[str, Any]:
    return Job(row, load, str(model_folder()), "", None if picture is None else str(picture)).to_json()


def draw(row: Row, **more: Any) -> dict[str, Any]:
    return worker.answer({"do": "draw", "job": job(row, **more), "timeline": False})


@pytest.fixture(autouse=True)
def _no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of memory is for a process of its own, not for the suite's."""
    monkeypatch.setattr(worker, "_limit_memory", lambda device: None)


def rows_of(suite: str) -> list[Row]:
    return suites.get(suite).rows(LOAD, declared_rows().get(suite, []))


@pytest.mark.parametrize("suite", ["published", "memory"])
def test_every_row_draws_or_says_why_not(suite: str, tmp_path: Path) -> None:
    rows = [row for row in rows_of(suite) if not row.asked]
    answers = {row.name: draw(row, picture=tmp_path / f"{row.name}.npy") for row in rows}
    for name, answer in answers.items():
        why = answer.get("absent", "")  # of what this machine lacks
        assert "result" in answer or "cuDNN" in why or "no instructions that multiply bfloat16" in why, (name, answer)
        if "result" in answer:
            assert {"load", "text", "step", "denoise", "decode", "prepare"} == set(answer["result"]["seconds"])
            assert len(answer["result"]["steps"]) == LOAD.steps


def test_the_picture_is_the_pipelines_own(tmp_path: Path) -> None:
    path = tmp_path / "picture.npy"
    assert "result" in draw(Row("plain", "plain", "float32"), picture=path)
    pipe = StableDiffusionPipeline.from_pretrained(model_folder())
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = build("ddim", pipe.scheduler.config)
    noise = starting_noise(pipe, LOAD, 128)
    expected = pipe(
        PROMPT, width=128, height=128, num_inference_steps=3, guidance_scale=GUIDANCE, latents=noise, output_type="np"
    ).images
    assert np.array_equal(np.load(path), expected)


def test_attention_rows_draw_no_picture() -> None:
    row = next(row for row in rows_of("attention") if row.name == "256_after")
    seconds = draw(row)["result"]["seconds"]
    assert "decode" not in seconds
    assert seconds["step"] > 0


def test_what_does_not_fit_is_refused_before_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    from leandiffusion.bench.run import own

    monkeypatch.setattr(own, "free_now", lambda device: 1000)
    row = next(row for row in rows_of("attention") if row.name == "256_before")
    assert "a step would hold" in draw(row)["absent"]


def test_what_goes_wrong_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    answer = worker.answer({"do": "draw", "job": job(Row("x", "x", enable=(("nothing", {}),))), "timeline": False})
    assert answer["error"].startswith("unknown technique 'nothing'")
    assert answer["wrong"]
    monkey = worker.answer({"do": "model", "name": "shape:sd155", "workdir": "."})
    assert "Did you mean 'shape:sd15'" in monkey["error"]
    assert "Traceback" in capsys.readouterr().err


def test_a_real_process_answers_and_keeps_the_peak_of_its_own() -> None:
    answer = run_task("draw", job=job(Row("plain", "plain", "float32")), timeline=True)
    peaks = answer["result"]["peaks"]
    assert max(peaks.values()) < 2 << 30
    assert {"load", "warm-up", "text", "denoise", "decode"} == set(peaks)
    assert all(len(sample) == 3 for sample in answer["result"]["timeline"])


LIBRARIES = """
import json, os, sys
from leandiffusion.bench.run import worker
asked = worker._read(json.loads(sys.argv[1]))
print(*(os.environ.get(name) for name in ("THP_MEM_ALLOC_ENABLE", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")))
"""


@pytest.mark.parametrize(("peer", "found"), [("diffusers", "None None"), (None, "1 256")])
def test_a_peers_process_has_the_libraries_as_its_users_have_them(peer: str | None, found: str) -> None:
    """Though this process, from which it is started, has ours."""
    asked = json.dumps(job(Row("plain", "plain", "float32", peer=peer)))
    started: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("THP_MEM_ALLOC_ENABLE", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
            patch.delenv(name, raising=False)
        patch.setattr(libraries, "_set", set())
        libraries.set_up_libraries()
        patch.setattr(process.subprocess, "Popen", lambda *args, **how: started.append(how) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_task("draw")
        libraries.leave_libraries_alone()
    done = subprocess.run(
        [sys.executable, "-c", LIBRARIES, asked], env=started[0]["env"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == found


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_memory_beyond_the_limit_is_an_error_of_the_row() -> None:
    code = (
        "from leandiffusion.bench.run import worker; import torch, leandiffusion.measure.environment as e\n"
        "e.available_memory = lambda: 2 << 30\n"
        "worker._limit_memory('cpu')\n"
        "try: torch.zeros(4 << 30, dtype=torch.uint8)\n"
        "except RuntimeError as error: print('caught', error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("caught"), done.stderr


def test_records_hold_no_paths_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(Path("somewhere", "private")))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    environment = worker.answer({"do": "survey", "device": "cpu", "half": None})["result"]["environment"]
    assert environment["variables"]["OMP_NUM_THREADS"] == "2"
    assert "private" not in str(environment)
    assert sys.executable not in str(environment)


def test_survey_refuses_what_is_not_there() -> None:
    assert worker.answer({"do": "survey", "device": "gpu", "half": None})["wrong"]
    if not torch.cuda.is_available():
        assert "absent" in worker.answer({"do": "survey", "device": "cuda", "half": None})
