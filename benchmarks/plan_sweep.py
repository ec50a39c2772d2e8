"""The planner's pick against the best of an exhaustive small sweep: every combination drawn, each in its own process.

    python benchmarks/plan_sweep.py [--model demo] [--size 384] [--batch 2] [--rounds 3] [--work FOLDER]
                                    [--out FILE.jsonl]
    python benchmarks/plan_sweep.py --report FILE.jsonl

Combined are where weights are (in memory and packed, whole networks in turn, layers in turn with none or half of the
weights kept) with all that the planner knows to switch in the UNet's steps and in the decode. For every budget at which
another combination begins to fit, the pick is the fastest that is predicted to fit; the best is the fastest of those
that measured within the budget. Told is how much longer the pick took.

In each round every combination has a process of its own, which draws several times; the order turns round from one
round to the next. Of a stage's seconds the least counts, since others on the machine only ever make it slower, of the
peaks the largest. How far rounds are apart is told too: smaller differences say nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from leandiffusion.bench.run.models import find_model
from leandiffusion.bench.run.process import run_task
from leandiffusion.plan.plan import Plan, Settings
from leandiffusion.plan.predict import Predictor
from leandiffusion.plan.profile import profile_of
from leandiffusion.plan.search import choices, legal
from leandiffusion.plan.sketch import Blueprint
from leandiffusion.run.size import CallSize
from leandiffusion.techniques.base import Exactness

CPU = torch.device("cpu")
STEPS = 20
MEASURED, REPEATS = 4, 3
"""Steps of a call that is measured, and calls, in one process."""

FRACTIONS = (0.0, 0.5)


def combinations(predictor: Predictor) -> list[Settings]:
    """All of them, with what they are predicted to take."""
    offered = choices(predictor, Exactness.EXACT)
    placed = [
        chosen for chosen in offered.overall if all(getattr(t, "resident_fraction", 0.0) in FRACTIONS for t in chosen)
    ]
    every = [(*p, *d, *v) for p in placed for d in offered.by_scope["denoise"] for v in offered.by_scope["decode"]]
    return [Settings(chosen, predictor.predict(chosen)) for chosen in every if legal(chosen)]


def draw(settings: Settings, predictor: Predictor, checkpoint: str) -> dict[str, Any]:
    """What a process measured: peak bytes, and the seconds of a call by stage."""
    plan = Plan(
        model=checkpoint, device="cpu", dtype="float32", call=predictor.call, steps=STEPS, allow="exact",
        budget="unlimited", budget_bytes=None, settings=settings,
    )  # fmt: skip
    told = run_task("try", checkpoint=checkpoint, plan=plan.to_json(), steps=MEASURED, repeats=REPEATS)
    if "result" not in told:
        raise SystemExit(f"{settings}: {told}")
    stages = told["result"]
    return {
        "peak": max(peak for peak, _ in stages.values()),
        "seconds": {name: seconds for name, (_, seconds) in stages.items()},
    }


def summed_up(settings: Settings, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """One combination, predicted and measured."""
    by_stage = [each["seconds"] for each in rounds]
    return {
        "settings": str(settings),
        "predicted": {"peak": settings.prediction.peak, "seconds": settings.prediction.seconds},
        "measured": {
            "peak": max(each["peak"] for each in rounds),
            "seconds": sum(min(each[name] for each in by_stage) for name in by_stage[0]),
            "rounds": [sum(each.values()) for each in by_stage],
            "stages": by_stage,
        },
    }


def excesses(found: list[dict[str, Any]]) -> list[tuple[float, dict[str, Any], dict[str, Any]]]:
    """For each budget: how much longer the pick took than the best, the pick, the best."""
    told = []
    for budget in sorted({each["predicted"]["peak"] for each in found}):
        pick = min((e for e in found if e["predicted"]["peak"] <= budget), key=lambda e: e["predicted"]["seconds"])
        fitting = [each for each in found if each["measured"]["peak"] <= max(budget, pick["measured"]["peak"])]
        best = min(fitting, key=lambda each: each["measured"]["seconds"])
        told.append((pick["measured"]["seconds"] / best["measured"]["seconds"] - 1, pick, best))
    return told


def report(found: list[dict[str, Any]]) -> None:
    """Print what was found."""
    told, about = excesses(found), found[0]
    print(
        f"{about['model']}, {about['size']} px, batch {about['batch']}: {len(found)} combinations, {len(told)} budgets"
    )
    print(f"pick within 10% of the best: {sum(excess <= 0.1 for excess, *_ in told)} of {len(told)}")
    print(f"median {statistics.median(excess for excess, *_ in told):.1%}")
    excess, pick, best = max(told, key=lambda each: each[0])
    print(f"worst {excess:.1%}: {pick['settings']} instead of {best['settings']}")
    errors = [each["predicted"]["peak"] / each["measured"]["peak"] - 1 for each in found]
    print(f"peaks: predicted {min(errors):+.1%} to {max(errors):+.1%} of what was measured")
    apart = [max(rounds) / min(rounds) - 1 for each in found if (rounds := each["measured"]["rounds"])]
    print(f"rounds of one combination are apart by {statistics.median(apart):.1%} (median), {max(apart):.1%} at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "leandiffusion-bench")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--report", type=Path, help="print anew what this file says")
    asked = parser.parse_args()
    if asked.report is not None:
        report([json.loads(line) for line in asked.report.read_text(encoding="utf-8").splitlines()])
        return
    checkpoint = find_model(asked.model, asked.work)["checkpoint"]
    blueprint = Blueprint.of_checkpoint(checkpoint, torch.float32, CPU)
    predictor = Predictor(blueprint, CallSize(asked.size, asked.size, asked.batch), STEPS, profile_of(CPU))
    every = combinations(predictor)
    drawn: dict[int, list[dict[str, Any]]] = {place: [] for place in range(len(every))}
    with tqdm(total=asked.rounds * len(every), unit="process") as bar:
        for number in range(asked.rounds):
            for place in sorted(drawn, reverse=bool(number % 2)):
                drawn[place].append(draw(every[place], predictor, checkpoint))
                bar.update()
    about = {"model": asked.model, "size": asked.size, "batch": asked.batch}
    found = [{**about, **summed_up(every[place], rounds)} for place, rounds in drawn.items()]
    if asked.out is not None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text("".join(json.dumps(each) + "\n" for each in found), encoding="utf-8")
    report(found)


if __name__ == "__main__":
    main()
