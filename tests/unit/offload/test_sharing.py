"""Networks whose weights travel, used by several pipelines, threads and forked processes at once."""

from __future__ import annotations

import contextlib
import os
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leandiffusion import BackendUnavailable, ConfigError, StableDiffusionPipeline
from leandiffusion.offload.engine import engine_of
from leandiffusion.weights.residence import names_on_disk

PROMPTS = ("a large yellow star on a blue background", "a small red circle on a white background")
SIZE = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "np"}


def draw(pipe: Any, i: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(i)
    return pipe(PROMPTS[i % 2], generator=generator, **SIZE).images


def opened(**options: Any) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained("demo", **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sharing(pipe: Any) -> StableDiffusionPipeline:
    other = StableDiffusionPipeline(**pipe.components)
    other.set_progress_bar_config(disable=True)
    return other


@pytest.fixture(scope="module")
def expected() -> list[np.ndarray]:
    return [draw(opened(), i) for i in range(4)]


BOTH: dict[str, tuple[str | None, str | None]] = {
    "one travels": ("sequential", None),
    "both travel": ("sequential", "sequential"),
    "components travel": ("model", None),
}


@pytest.mark.parametrize("ways", BOTH.values(), ids=BOTH.keys())
def test_two_pipelines_in_threads(ways: tuple[str | None, str | None], expected: list[np.ndarray]) -> None:
    first = opened(offload=ways[0])
    second = sharing(first)
    if ways[1]:
        second.enable(f"{ways[1]}_offload")
    wrong: list[int] = []
    errors: list[str] = []

    def work(pipe: Any, i: int) -> None:
        try:
            drawn = [draw(pipe, i) for _ in range(2)]
            wrong.extend(i for picture in drawn if not np.array_equal(picture, expected[i]))
        except BaseException:
            errors.append(traceback.format_exc())

    threads = [threading.Thread(target=work, args=((first, second)[i % 2], i)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert not wrong


def test_the_engine_stays_while_somebody_wants_it(expected: list[np.ndarray]) -> None:
    first = opened(offload="sequential")
    second = sharing(first)
    assert second.device == torch.device("cpu")
    second.enable_sequential_cpu_offload()
    engine = engine_of(first.unet)
    assert engine is not None
    assert engine_of(second.unet) is engine
    first.disable("sequential_offload")
    assert engine_of(second.unet) is engine
    assert names_on_disk(second.unet)
    assert np.array_equal(draw(second, 0), expected[0])
    second.disable("sequential_offload")
    assert engine_of(second.unet) is None
    assert not names_on_disk(second.unet)
    assert np.array_equal(draw(first, 1), expected[1])


def test_it_outlives_the_pipeline_that_asked_for_it(expected: list[np.ndarray]) -> None:
    first = opened(offload="sequential")
    second = sharing(first)
    del first
    assert np.array_equal(draw(second, 0), expected[0])
    second.enable_model_cpu_offload()  # another way: nobody wants the first any more
    assert np.array_equal(draw(second, 0), expected[0])
    second.disable("model_offload")
    assert not names_on_disk(second.unet)
    assert np.array_equal(draw(second, 0), expected[0])


def test_two_ways_at_once_are_refused(expected: list[np.ndarray]) -> None:
    first = opened(offload="sequential")
    second = sharing(first)
    with pytest.raises(BackendUnavailable, match="shared with another pipeline, for which its weights travel"):
        second.enable_model_cpu_offload()
    assert np.array_equal(draw(second, 0), expected[0])
    assert np.array_equal(draw(first, 0), expected[0])


def test_a_part_of_the_networks_shared(expected: list[np.ndarray]) -> None:
    first, other = opened(offload="sequential"), opened()
    second = StableDiffusionPipeline(**{**other.components, "unet": first.unet})
    second.set_progress_bar_config(disable=True)
    second.enable_sequential_cpu_offload()
    assert engine_of(second.unet) is engine_of(first.unet)
    assert engine_of(second.vae) is not engine_of(first.unet)
    for pipe in (first, second, first):
        assert np.array_equal(draw(pipe, 0), expected[0])
    second.disable("sequential_offload")
    assert not names_on_disk(second.vae)
    for pipe in (first, second):
        assert np.array_equal(draw(pipe, 0), expected[0])


def test_nothing_changes_under_a_pipeline_that_shares_networks(expected: list[np.ndarray]) -> None:
    """Switched on and off in one thread while another draws with the same networks: refused, or waited for."""
    first = opened()
    second = sharing(first)
    wrong: list[int] = []
    refusals: list[str] = []
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            if not np.array_equal(draw(second, 0), expected[0]):
                wrong.append(0)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(30):
            with contextlib.suppress(ConfigError):
                first.enable("sequential_offload")
                first.disable("sequential_offload")
            try:
                first.enable_attention_slicing("max")
            except ConfigError as error:
                refusals.append(str(error))
    finally:
        stop.set()
        thread.join()
    assert refusals
    assert all("cannot change while a picture is being drawn" in refusal for refusal in refusals)
    assert not wrong


def test_submodules_called_by_hand_in_threads() -> None:
    """Without any pipeline that makes calls take turns."""
    unet = opened(offload="sequential").unet
    x = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        expected = unet.conv_in(x)
    wrong: list[str] = []

    def work() -> None:
        with torch.no_grad():
            for _ in range(50):
                if not torch.equal(unet.conv_in(x), expected):
                    wrong.append("conv_in")
                unet.conv_out(expected)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# -- forked processes --------------------------------------------------------------------------------------------------


def in_children(work: Callable[[int], bool], count: int = 3) -> list[int]:
    """Exit codes of forked children, 0 where `work` returned true; a child that hangs is ended by an alarm."""
    import signal

    children: list[int] = []
    for i in range(count):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python's own word on threads and forks
            child = os.fork()
        if not child:
            signal.alarm(100)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                code = 1
                try:
                    code = int(not work(i))
                finally:
                    os._exit(code)
        children.append(child)
    return [os.waitpid(child, 0)[1] for child in children]


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@needs_fork
@pytest.mark.parametrize("offload", [None, "sequential", "model"])
@pytest.mark.parametrize("drawn", [False, True], ids=["fresh", "after a first draw"])
def test_forked_workers_draw(offload: str | None, drawn: bool, expected: list[np.ndarray]) -> None:
    """Within 1/1000: a child computes with one thread, which may round otherwise."""
    pipe = opened(offload=offload)
    if drawn:
        assert np.array_equal(draw(pipe, 0), expected[0])
    assert in_children(lambda i: np.abs(draw(pipe, i) - expected[i]).max() < 1e-3) == [0, 0, 0]
    assert np.array_equal(draw(pipe, 3), expected[3])


@needs_fork
def test_a_fork_while_another_thread_draws(expected: list[np.ndarray]) -> None:
    pipe = opened(offload="sequential")
    draw(pipe, 0)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            draw(pipe, 0)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert in_children(lambda i: np.abs(draw(pipe, i) - expected[i]).max() < 1e-3) == [0, 0, 0]
        assert in_children(lambda i: pipe.disable("sequential_offload") is None, 1) == [0]
    finally:
        stop.set()
        thread.join()


@needs_fork
def test_a_forked_worker_opens_switches_and_saves(tmp_path: Path, expected: list[np.ndarray]) -> None:
    """Whatever it does first: each would wait for the parent's threads for ever."""
    pipe = opened()
    draw(pipe, 0)

    def work(i: int) -> bool:
        if i == 0:
            pipe.save_pretrained(tmp_path / "saved")
            return np.abs(draw(pipe, i) - expected[i]).max() < 1e-3
        if i == 1:
            pipe.to(torch.bfloat16)
            return pipe.unet.dtype == torch.bfloat16
        if i == 2:
            pipe.enable("sequential_offload")
            return pipe.disable("sequential_offload") is None
        return np.abs(draw(opened(offload="sequential"), i) - expected[i]).max() < 1e-3

    assert in_children(work, 4) == [0, 0, 0, 0]


@needs_fork
def test_a_forked_worker_says_why_it_uses_one_thread() -> None:
    pipe = opened()

    def work(i: int) -> bool:
        torch.set_num_threads(2)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            draw(pipe, 0)
        return torch.get_num_threads() == 1 and any("spawn" in str(warning.message) for warning in said)

    assert in_children(work, 1) == [0]
