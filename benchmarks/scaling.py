"""Pictures per hour and cost of a batch on 1 to 1,000 workers: simulated, and the simulation checked by real workers.

    python -m benchmarks.scaling [--rows 24] [--rounds 3] [--only PART …] [--out FILE]
    python -m benchmarks.scaling --tables [--out FILE]

What is measured here: processes of `leandiffusion batch` that share a folder, of one thread each, drawing with the
packaged model; and threads whose drawing is a pause, of which there may be many, so that what they share shows: the
folder. The model takes a worker's start and the seconds of a picture from the runs of one worker, and what an operation
on the folder takes from drawing nothing; it then has to tell what more workers do. Where Ray is installed, the seconds
that it takes to hand out a job are measured too, by itself and in blocks as those of a long list. `--tables` prints the
tables of docs/scaling.md from a record.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.scaling_model import CLAIM, KEEP, LOOK, Outcome, Setting, Simulation
from PIL import Image
from tools.script_record import RESULTS, write_record
from tqdm.auto import tqdm

from leandiffusion.batch import work
from leandiffusion.batch.folder import Folder
from leandiffusion.batch.jobs import Job
from leandiffusion.batch.on_ray import MOST_BLOCKS
from leandiffusion.core.config import read_json
from leandiffusion.drawing.opening import Drawn
from leandiffusion.drawing.options import ResolvedOptions
from leandiffusion.drawing.techniques import TechniqueOptions
from leandiffusion.pictures.record import PictureRecord, Recipe

OUT = RESULTS / "cpu-scaling.json"
REAL, PAUSING = (1, 2, 4), (1, 8, 32)
PAUSE, PAUSES = 0.5, 4  # seconds, pictures of each thread
PICTURES, DRAWS = 50_000, (2, 20)
FLEETS = (1, 10, 100, 300, 1000)
IN_A_BLOCK = PICTURES // MOST_BLOCKS
"""Jobs that are handed out at once, of a list as long as that."""
STORES = {"a file server": 5000.0, "a fast one": 50_000.0}
"""Operations per second. What is usual differs more than any figure here: measure yours."""


# -- real workers ----------------------------------------------------------------------------------------------------


def batch(folder: Path, workers: int, rows: int, steps: int) -> tuple[float, list[float]]:
    """Seconds of so many processes that draw one list into one folder, and of each picture."""
    folder.mkdir(parents=True)
    lines = (json.dumps({"prompt": "a red circle", "seed": seed}) for seed in range(rows))
    (folder / "list.jsonl").write_text("\n".join(lines))
    command = [sys.executable, "-m", "leandiffusion", "batch", str(folder / "list.jsonl"), "--out", str(folder / "out")]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    quiet["env"] = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    running = [subprocess.Popen([*command, "--steps", str(steps)], **quiet) for _ in range(workers)]
    codes = [each.wait() for each in running]
    seconds = time.monotonic() - start
    assert not any(codes), codes
    there = [json.loads(line) for line in (folder / "out" / "manifest.jsonl").read_text().splitlines()]
    assert [line["status"] for line in there] == ["done"] * rows
    return seconds, [line["seconds"] for line in there]


def real(folder: Path, rows: int, steps: int, rounds: int) -> dict[str, Any]:
    """Seconds of each round by number of workers, in turns; and of a picture and a start with one worker."""
    found: dict[str, list[float]] = {str(count): [] for count in REAL}
    draws, starts = [], []
    for round_ in tqdm(range(rounds), desc="real workers"):
        for count in REAL:
            seconds, each = batch(folder / f"{round_}-{count}", count, rows, steps)
            found[str(count)].append(seconds)
            if count == 1:
                draws.append(statistics.median(each[1:]))  # the first one waited for the model
                starts.append(seconds - sum(each[1:]) - draws[-1])
    return {"rows": rows, "seconds": found, "draw": min(draws), "start": min(starts)}


class Pausing:
    """In place of a pipeline and its drawer."""

    def __init__(self, seconds: float) -> None:
        self.pipe, self._seconds = self, seconds
        self._image = Image.effect_noise((256, 256), 80).convert("RGB")

    def draw(self, options: ResolvedOptions, given: Any) -> Drawn:
        time.sleep(self._seconds)
        recipe = Recipe("pause", options.prompt, "", options.seed, 1, 1.0, None, 256, 256, "float32", "cpu")
        return Drawn(self._image, PictureRecord(recipe, "none"))


def pausing(folder: Path, workers: int, rows: int, pause: float) -> float:
    """Seconds in which so many threads draw the rows by waiting."""
    to_folder = Folder(folder)
    to_folder.prepare()
    jobs = [Job(f"{row:032x}.png", ResolvedOptions(prompt="a", seed=row), (row,)) for row in range(rows)]

    def draw() -> None:
        worker = work.Worker(to_folder, TechniqueOptions(), lambda pipe, job: None)
        worker._drawer = lambda job: Pausing(pause)  # type: ignore[assignment, method-assign, return-value]
        assert all(result.error is None for result in worker.work(jobs))

    threads = [threading.Thread(target=draw) for _ in range(workers)]
    start = time.monotonic()
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len([*folder.glob("*.png")]) == rows
    return time.monotonic() - start


def pauses(folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of each round by number of threads; and of an operation, where nothing is drawn."""
    found: dict[str, list[float]] = {str(count): [] for count in PAUSING}
    idle, rows = [], 200
    for round_ in tqdm(range(rounds), desc="pausing workers"):
        idle.append(pausing(folder / f"idle-{round_}", 1, rows, 0.0) / rows / (LOOK + CLAIM + KEEP))
        for count in PAUSING:
            found[str(count)].append(pausing(folder / f"{round_}-{count}", count, count * PAUSES, PAUSE))
    return {"seconds": found, "operation": min(idle)}


def hand_out(rounds: int) -> dict[str, list[float]] | None:
    """Processor seconds that this process takes, by Ray Data, to have an actor do nothing with a job and to get the
    answer back, in each round; by how many jobs are in a block: those of a long list are handed out several at a time.
    On a cluster it has a processor to itself, so that no more can be handed out. None without Ray."""
    if importlib.util.find_spec("ray") is None:
        return None
    import ray

    ray.init(address="local", log_to_driver=False, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False
    found: dict[str, list[float]] = {"1": [], str(IN_A_BLOCK): []}
    for _ in range(rounds):
        for each, seconds in found.items():
            few, many = (_handed_out(blocks, int(each)) for blocks in (200, 2200))
            seconds.append((many - few) / 2000 / int(each))
    ray.shutdown()
    return found


def _handed_out(blocks: int, each: int) -> float:
    """Processor seconds of a list of so many blocks, each of so many jobs."""
    import ray

    class Nothing:
        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            return row

    data = ray.data.from_items([{"number": number} for number in range(blocks * each)], override_num_blocks=blocks)
    pool = ray.data.ActorPoolStrategy(size=2, max_tasks_in_flight_per_actor=2)
    start = time.process_time()
    assert sum(1 for _ in data.map(Nothing, num_cpus=0.1, compute=pool).iter_rows()) == blocks * each
    return time.process_time() - start


# -- simulated ones --------------------------------------------------------------------------------------------------


def local(found: dict[str, Any], workers: int) -> Setting:
    """The setting of the real workers here."""
    own: dict[str, Any] = {"rows": found["rows"], "draw": found["draw"], "start": found["start"]}
    return Setting(workers, **own, checkpoint=0, operations=1e5, hand_out=None, read_list=0, cores=os.cpu_count())


def waiting(found: dict[str, Any], workers: int) -> Setting:
    """The setting of the pausing ones."""
    return Setting(
        workers, workers * PAUSES, PAUSE, jitter=0, start=0, checkpoint=0, operations=1 / found["operation"],
        picture=0, hand_out=None, read_list=0,
    )  # fmt: skip


def fleet(measured: dict[str, Any], draw: float, workers: int, operations: float) -> Setting:
    """A cluster that draws a long list, with 4 GB of weights from a store that gives 1 GB/s."""
    return Setting(workers, PICTURES, draw, operations=operations, hand_out=min(measured["hand_out"][str(IN_A_BLOCK)]))


def simulated(measured: dict[str, Any]) -> dict[str, Any]:
    """By store, seconds of a picture, and workers: of the whole list `seconds` and how long opening took; and when all
    are open pictures per second and how busy each queue is."""
    found: dict[str, Any] = {}
    for store, rate in STORES.items():
        found[store] = {}
        for draw in DRAWS:
            found[store][str(draw)] = {}
            for count in FLEETS:
                setting = fleet(measured, draw, count, rate)
                whole = Simulation(setting).run()
                few = replace(setting, rows=max(1000, 20 * count), checkpoint=0, start=0, read_list=0)
                opened = Simulation(few).run()
                found[store][str(draw)][str(count)] = {
                    "seconds": whole.seconds, "opening": whole.opening, "steady": opened.steady, "busy": opened.busy,
                }  # fmt: skip
    return found


# -- tables ----------------------------------------------------------------------------------------------------------


def tables(results: dict[str, Any]) -> dict[str, str]:
    """In Markdown, by name."""
    return {"check": _check(results), **{store: _fleets(results, store) for store in STORES}}


def _check(results: dict[str, Any]) -> str:
    lines = ["| workers | pictures | measured, pictures/h | simulated | apart |", "|---|---|---|---|---|"]
    for what, found, setting in (("packaged model", "real", local), ("pausing", "pausing", waiting)):
        for count, seconds in sorted(results[found]["seconds"].items(), key=lambda each: int(each[0])):
            asked = setting(results[found], int(count))
            expected = 3600 * asked.rows / Simulation(asked).run().seconds
            measured = 3600 * asked.rows / min(seconds)
            least = 3600 * asked.rows / max(seconds)
            lines.append(
                f"| {count}, {what} | {asked.rows} | {measured:,.0f} ({least:,.0f} at worst) | {expected:,.0f} "
                f"| {expected / measured - 1:+.0%} |"
            )
    return "\n".join(lines)


def _fleets(results: dict[str, Any], store: str) -> str:
    lines = [
        "| a picture takes | workers | pictures/h when all draw | of N times one | busiest queue | all are open after "
        f"| {PICTURES:,} pictures | worker hours for 1,000 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for draw, counts in results["simulated"][store].items():
        for count, values in counts.items():
            asked, outcome = fleet(results, float(draw), int(count), STORES[store]), Outcome(**values)
            busiest = max(outcome.busy, key=lambda name: outcome.busy[name])
            share = outcome.steady * asked.draw / asked.workers
            lines.append(
                f"| {draw} s | {int(count):,} | {3600 * outcome.steady:,.0f} | {share:.0%} "
                f"| {busiest}, {outcome.busy[busiest]:.0%} | {outcome.opening / 60:,.0f} min "
                f"| {outcome.seconds / 3600:,.1f} h | {outcome.cost(asked):.2f} |"
            )
    return "\n".join(lines)


def measure(asked: argparse.Namespace, results: dict[str, Any]) -> None:
    """Each part that is asked for, in place of what the record has of it."""
    with tempfile.TemporaryDirectory(dir=asked.work) as folder:
        parts: dict[str, Callable[[], Any]] = {
            "real": lambda: real(Path(folder, "real"), asked.rows, asked.steps, asked.rounds),
            "pausing": lambda: pauses(Path(folder, "pausing"), asked.rounds),
            "hand_out": lambda: hand_out(asked.rounds) or {str(IN_A_BLOCK): [asked.hand_out]},
            "simulated": lambda: simulated(results),
        }
        for name in asked.only or parts:
            results[name] = parts[name]()
            settings = {"rows": asked.rows, "steps": asked.steps, "rounds": asked.rounds}
            write_record(asked.out, Path(__file__).name, settings, results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="an empty folder; a temporary one unless given")
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hand-out", type=float, default=0.002, help="seconds, assumed where Ray is not installed")
    parser.add_argument("--only", nargs="*", help="parts to measure anew: real, pausing, hand_out, simulated")
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    results = read_json(asked.out)["results"] if asked.tables or asked.only else {}
    if not asked.tables:
        measure(asked, results)
    if not asked.only:
        for name, table in tables(results).items():
            print(f"{name}\n\n{table}\n")


if __name__ == "__main__":
    main()
