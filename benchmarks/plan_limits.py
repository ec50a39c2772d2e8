"""Budgets, kept: pictures drawn with `memory=…` in a process that may not take more.

    python benchmarks/plan_limits.py --work FOLDER [--model shape:sd15] [--size 256] [--budgets 1GiB …] [--out FILE]

Each budget is given to a fresh process, which plans, opens and draws. Where this user may make control groups (root, on
most machines) the process is in one whose limit is the budget: what takes more is ended by the kernel. Told are the
plan, its prediction, and the measured peak (VmHWM, libraries and Python included). Models are made in FOLDER, once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from leandiffusion.bench.run.models import find_model
from leandiffusion.core.units import format_bytes, format_seconds, parse_bytes

BUDGETS = (
    "512MiB", "544MiB", "576MiB", "600MiB", "640MiB", "672MiB", "768MiB", "1GiB", "1.5GiB", "2GiB", "3GiB", "4GiB",
    "6GiB", "16GiB",
)  # fmt: skip
GROUPS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))
FILES = ("memory.limit_in_bytes", "memory.max")

PROGRAM = """
import json, os, sys
asked = json.loads(sys.argv[1])
if asked["group"]:
    with open(os.path.join(asked["group"], "cgroup.procs"), "w") as file:
        file.write(str(os.getpid()))
from leandiffusion import DiffusionPipeline
from leandiffusion.core.errors import BudgetError
from leandiffusion.measure.memory import peak_rss
try:
    pipe = DiffusionPipeline.from_pretrained(asked["model"], memory=asked["budget"], allow=asked["allow"])
    pipe.set_progress_bar_config(disable=True)
    pipe("a red circle", height=asked["size"], width=asked["size"], num_inference_steps=asked["steps"])
    told = {"plan": str(pipe.plan.settings), "predicted": pipe.plan.prediction.peak, "measured": peak_rss(),
            "seconds": pipe.last_times}
except BudgetError as error:
    told = {"refused": str(error)}
print(json.dumps(told))
"""


@contextmanager
def limited(budget: int) -> Iterator[str]:
    """The folder of a control group with that limit; an empty name where none can be made."""
    for root, file in zip(GROUPS, FILES, strict=True):
        group = root / "leandiffusion-budget"
        try:
            group.mkdir()
            (group / file).write_text(str(budget))
        except OSError:
            with suppress(OSError):
                group.rmdir()
            continue
        try:
            yield str(group)
        finally:
            with suppress(OSError):
                group.rmdir()
        return
    yield ""


def draw(model: str, budget: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What became of one budget."""
    with limited(parse_bytes(budget)) as group:
        asked = {"model": model, "budget": budget, "group": group, "size": arguments.size, "steps": arguments.steps}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps({**asked, "allow": arguments.allow})],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    told: dict[str, Any] = {"budget": parse_bytes(budget), "limited": bool(group)}
    if done.returncode:
        return {**told, "failed": f"code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"}
    found = json.loads(done.stdout.replace(model, arguments.model))  # and not where it was made
    return {**told, **found}


def row(told: dict[str, Any]) -> str:
    """Its line of the table."""
    budget = format_bytes(told["budget"])
    if "plan" not in told:
        return f"| {budget} | {told.get('refused') or told['failed']} | | | | |"
    error = told["predicted"] / told["measured"] - 1
    kept = "yes" if told["measured"] <= told["budget"] else f"over by {told['measured'] / told['budget'] - 1:.1%}"
    seconds = format_seconds(sum(told["seconds"].values()))
    return (
        f"| {budget} | {told['plan']} | {format_bytes(told['predicted'])} | {format_bytes(told['measured'])} | "
        f"{error:+.1%} | {kept} | {seconds} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default="shape:sd15")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--allow", default="exact")
    parser.add_argument("--budgets", nargs="+", default=BUDGETS)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    model = find_model(asked.model, asked.work)["checkpoint"]
    found = [draw(model, budget, asked) for budget in tqdm(asked.budgets, desc="budgets")]
    print(f"{asked.model}, {asked.size} px, {asked.steps} steps, allow={asked.allow!r}")
    print("| budget | settings | predicted | measured | error | kept | call |\n|---|---|---:|---:|---:|---|---:|")
    print("\n".join(map(row, found)))
    if asked.out is not None:
        settings = {"model": asked.model, "size": asked.size, "steps": asked.steps, "allow": asked.allow}
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text("".join(json.dumps({**settings, **told}) + "\n" for told in found), encoding="utf-8")


if __name__ == "__main__":
    main()
