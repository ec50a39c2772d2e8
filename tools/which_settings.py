"""docs/which-settings.md: what the planner picks for the known families, from a record of its plans.

    python -m tools.which_settings    plans anew, with this machine's profile, and writes the record

`make generated` draws the page from the record. Nothing is drawn for it, and no weights are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leandiffusion.core.config import read_json
from leandiffusion.core.units import format_bytes, format_seconds

from .script_record import write_record

RECORD = Path(__file__).parents[1] / "benchmarks" / "which_settings" / "cpu.json"

FAMILIES = {"sd15": "Stable Diffusion 1.5", "sd21": "Stable Diffusion 2.1", "sdxl": "Stable Diffusion XL"}
ALLOWED = {
    "exact": "In float32 (`--dtype float32`), the same picture as without any of them",
    "rounding": "With half precision allowed (`--allow rounding`), which rounds differently",
}
BUDGETS = (1, 2, 3, 4, 6, 8, 12, 24)  # GiB
STEPS = 20

PAGE = """\
# My machine has so much memory: which settings?

Say how much drawing may take; the fastest settings that stay within it are chosen:

<!-- not run: it is for your checkpoint -->

```sh
leandiffusion generate "a lighthouse at dawn" --model ./stable-diffusion-v1-5 --memory 4GiB
```

or in Python `StableDiffusionPipeline.from_pretrained(path, memory="4GiB")`. Leave something to the system and to other
programs: of a machine with 8 GiB, ask for 6. [More on plans](guide/which-settings.md).

On your own machine ask, for a family or for a checkpoint, without weights and without drawing. The first time this
measures the machine for a few seconds.

<!-- not run: it measures the machine -->

```sh
leandiffusion plan sdxl --memory 6GiB
leandiffusion plan sd15 --memory 2GiB --size 512x768 --batch 2 --allow rounding
```

Below is what it answers for one picture with guidance, {steps} steps, on a CPU. Settings are named as in the
[price list](techniques.md), which says what each does; all of them can be switched on one by one too. **Nothing here
was drawn**: peaks are predicted from shapes, of the whole process with Python and libraries; seconds are predicted for
{threads} threads of a processor called {cpu}, with OpenVINO installed, whose attention is used where it is faster. On
another processor seconds differ, and the choice may. Of any budget 40 MiB and 3% stay free. How far predictions
were off where they were measured is told [in the guide](guide/which-settings.md).

There is no table for GPUs: predictions for them follow from the same shapes, but none was ever measured on one.
"""

TABLE = """
## {title}, {side}x{side}

{allowed}:

| Memory | Settings | Predicted peak | Predicted seconds |
|---|---|---|---|
"""


def plans() -> list[dict[str, Any]]:
    """What is planned for each family, exactness and budget: settings, peak in bytes, seconds, or why nothing fits."""
    from leandiffusion.cli.planning import PlanOptions, blueprint_of
    from leandiffusion.core.errors import BudgetError
    from leandiffusion.plan.budget import Budget
    from leandiffusion.plan.make import dtypes_for, make_plan
    from leandiffusion.plan.predict import Predictor
    from leandiffusion.plan.profile import profile_of
    from leandiffusion.run.size import CallSize

    found = []
    for family in FAMILIES:
        blueprint = blueprint_of(PlanOptions(family, dtype="float32", device="cpu"))
        side = blueprint.side
        profile = profile_of("cpu", dtypes_for(blueprint, "rounding"))
        predictor = Predictor(blueprint, CallSize(side, side, 1), STEPS, profile)
        for allow in ALLOWED:
            for budget in BUDGETS:
                told: dict[str, Any] = {"family": family, "side": side, "allow": allow, "budget": budget << 30}
                try:
                    plan = make_plan(predictor, Budget.of(budget << 30, blueprint.device), allow)
                except BudgetError as error:
                    found.append(told | {"refused": str(error)})
                else:
                    techniques = [str(each) for each in plan.techniques]
                    figures = {"peak": plan.prediction.peak, "seconds": round(plan.prediction.seconds, 1)}
                    found.append(told | {"techniques": techniques, **figures})
    return found


def page() -> str:
    """The page, of the record."""
    record = read_json(RECORD)
    environment = record["environment"]
    text = PAGE.format(
        steps=record["settings"]["steps"], cpu=environment["cpu"]["model"], threads=environment["threads"]["intra-op"]
    )
    for family, title in FAMILIES.items():
        for allow, words in ALLOWED.items():
            rows = [each for each in record["results"] if (each["family"], each["allow"]) == (family, allow)]
            head = TABLE.format(title=title, side=rows[0]["side"], allowed=words)
            text += (head if allow == next(iter(ALLOWED)) else head[head.index(words) - 1 :]) + "".join(_lines(rows))
    return text


def _lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each answer, under the least budget that has it."""
    before: Any = None
    for row in rows:
        answer = {name: row[name] for name in ("refused", "techniques", "peak", "seconds") if name in row}
        if answer == before:
            continue
        before, budget = answer, format_bytes(row["budget"])
        if "refused" in row:
            yield f"| {budget} | nothing fits | | |\n"
            continue
        settings = ", ".join(f"`{_short(each)}`" for each in row["techniques"]) or "none: all in memory"
        yield f"| {budget} | {settings} | {format_bytes(row['peak'])} | {format_seconds(row['seconds'])} |\n"


def _short(technique: str) -> str:
    return technique.replace("torch.", "")


if __name__ == "__main__":
    write_record(RECORD, "tools.which_settings", {"steps": STEPS, "budgets": [each << 30 for each in BUDGETS]}, plans())
