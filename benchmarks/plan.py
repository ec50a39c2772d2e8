"""Predicted against measured: peak memory and seconds of each stage, over models, sizes, batches and techniques.

    python -m benchmarks.plan [--out FILE.jsonl] [--models demo shape:sd15 …] [--minutes 35] [--profile]
    python -m benchmarks.plan --report FILE.jsonl
    python -m benchmarks.plan --again FILE.jsonl

Each combination is predicted before anything of it is read, then drawn by a process of its own: a step and a decode to
warm up, then a few steps and a decode whose seconds count, and the peaks of both. What FILE holds already is not drawn
again, so that a run that was cut off goes on. Random weights of the right shapes, 2 GB each, are written to the folder
--work.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

RESULTS = Path(__file__).parent / "plan"
Settings = tuple[tuple[str, dict[str, Any]], ...]


@dataclass(frozen=True)
class Case:
    """What is drawn: `on` are techniques with their settings, `off` those that are on by default and are not to be."""

    model: str
    size: int
    batch: int = 1
    on: Settings = ()
    off: tuple[str, ...] = ()
    steps: int = 2

    @property
    def about(self) -> str:
        """What was switched on or off, in words."""
        words = [f"{name}({', '.join(f'{k}={v}' for k, v in settings.items())})" for name, settings in self.on]
        words = [word.removesuffix("()") for word in words] + [f"without {name}" for name in self.off]
        return ", ".join(words) or "nothing switched on"


SEQUENTIAL, TILING, SLICING, PACKED = "sequential_offload", "vae_tiling", "vae_slicing", "packed_weights"


def _with(name: str, **settings: Any) -> tuple[str, dict[str, Any]]:
    return name, settings


def cases() -> list[Case]:
    """All combinations: what changes much comes first, so that a run that is cut short says the most."""
    sd15, demo = "shape:sd15", "demo"
    plain = Case(sd15, 256)
    low = (_with(SEQUENTIAL), _with(TILING))
    return [
        plain,
        replace(plain, on=(_with(SEQUENTIAL),)),
        replace(plain, off=(PACKED,)),
        replace(plain, size=512),
        replace(plain, size=128),
        replace(plain, size=128, on=(_with(SEQUENTIAL),)),
        replace(plain, size=128, on=(_with("deep_cache"),), steps=6),
        replace(plain, size=128, on=(_with("guidance_interval", stop=0.5),), steps=10),
        replace(plain, size=128, batch=4),
        replace(plain, size=384),
        replace(plain, on=(_with("model_offload"),)),
        replace(plain, on=(_with(TILING),)),
        replace(plain, size=512, on=low),
        replace(plain, on=(_with("attention_backend", backend="plain"),)),
        replace(plain, batch=2),
        replace(plain, size=128, off=(PACKED,)),
        replace(plain, size=128, on=(_with("model_offload"),)),
        replace(plain, size=128, on=(_with(SEQUENTIAL, resident_fraction=0.5),)),
        replace(plain, size=128, batch=4, on=(_with(SLICING),)),
        replace(plain, size=192),
        replace(plain, size=320),
        replace(plain, size=384, on=(_with(TILING),)),
        replace(plain, size=384, on=low),
        replace(plain, size=384, on=(_with(SEQUENTIAL, resident_fraction=0.5), _with(TILING))),
        replace(plain, size=384, off=(PACKED,)),
        replace(plain, batch=2, on=(_with(SEQUENTIAL), _with(SLICING))),
        replace(plain, on=(_with("attention_slicing", size=1),)),
        replace(plain, on=(_with("attention_slicing", size=1), _with("attention_backend", backend="plain"))),
        replace(plain, on=(_with("deep_cache"), _with(SEQUENTIAL)), size=192, steps=6),
        replace(plain, on=(_with("guidance_interval", stop=0.5),), steps=6),
        replace(plain, on=(_with(SEQUENTIAL, granularity="block"),)),
        replace(plain, size=128, batch=2),
        replace(plain, size=128, on=(_with(SEQUENTIAL, resident_fraction=0.9),)),
        replace(plain, size=192, off=(PACKED,)),
        replace(plain, size=192, on=(_with(SEQUENTIAL),)),
        replace(plain, size=512, on=(_with(TILING),)),
        replace(plain, batch=4, on=(_with("unet_slicing"), _with(SLICING))),
        replace(plain, batch=4),
        Case("shape:sd21", 128),
        Case("shape:sd21", 256, on=(_with(SEQUENTIAL),)),
        Case("shape:sd21", 256, on=(_with(TILING),)),
        Case("shape:vega", 256),
        Case("shape:vega", 256, on=low),
        *(Case(demo, size, steps=4) for size in (128, 256, 512)),
        Case(demo, 256, batch=4, steps=4),
        Case(demo, 256, batch=4, on=(_with(SLICING),), steps=4),
        Case(demo, 512, on=(_with(TILING),), steps=4),
        Case(demo, 256, on=(_with("deep_cache"),), steps=6),
        Case(demo, 256, on=(_with("guidance_interval", stop=0.5),), steps=4),
        Case(demo, 512, batch=4, steps=2),
        Case(demo, 512, batch=4, on=(_with(SLICING), _with(TILING)), steps=2),
    ]


# -- measured, in a process of its own -------------------------------------------------------------------------------


def measure(case: Case, checkpoint: str) -> dict[str, Any]:
    """Draw: a step and a decode to warm up, with what reading and packing weights takes, then what counts."""
    import torch

    from leandiffusion.bench.loop import open_for_drawing
    from leandiffusion.bench.run.calibrate import measure_calls
    from leandiffusion.run.size import CallSize

    pipe = open_for_drawing(checkpoint, dtype=torch.float32, device="cpu")
    for name, settings in case.on:
        pipe.enable(name, **settings)
    for name in case.off:
        pipe.disable(name)
    stages = measure_calls(pipe, CallSize(case.size, case.size, case.batch), case.steps)
    return {
        "peaks": {name: stage.peak for name, stage in stages.items()},
        "seconds": {"step" if name == "denoise" else name: stage.seconds for name, stage in stages.items()},
        "on": [str(applied.technique) for applied in pipe.techniques],
    }


# -- predicted -------------------------------------------------------------------------------------------------------


def predict(case: Case, checkpoint: str, profile: Any) -> dict[str, Any]:
    """From the checkpoint's configs."""
    import torch

    from leandiffusion.plan.predict import Predictor
    from leandiffusion.plan.sketch import Blueprint
    from leandiffusion.run.size import CallSize
    from leandiffusion.techniques import techniques
    from leandiffusion.techniques.stack import make, refuse_each_other, techniques_by_default

    blueprint = Blueprint.of_checkpoint(checkpoint, torch.float32, torch.device("cpu"))
    predictor = Predictor(blueprint, CallSize(case.size, case.size, case.batch), case.steps, profile)
    chosen = [make(name, dict(settings)) for name, settings in case.on]
    for name in techniques_by_default():
        default = techniques.get(name)()
        met = any(name == each.name or refuse_each_other(default, each) for each in chosen)
        if name not in case.off and not met and default.by_default(predictor.sketch().subject):
            chosen.append(default)
    stages = predictor.predict(chosen).stages
    seconds = {name: stage.seconds for name, stage in stages.items()}
    seconds["step"] = seconds.pop("denoise") / case.steps
    return {"peaks": {name: stage.peak for name, stage in stages.items()}, "seconds": seconds}


# -- beside each other -----------------------------------------------------------------------------------------------


def run(out: Path, work: Path, models: list[str], minutes: float, anew: bool) -> None:
    """Predict and draw what the file does not hold yet, a line for each, until time is up."""
    from leandiffusion.bench.run.models import find_model
    from leandiffusion.core.errors import LeanError
    from leandiffusion.measure.environment import describe_environment
    from leandiffusion.plan.profile import profile_of

    until = time.monotonic() + 60 * minutes
    done = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    known = [values["case"] for values in done if values["kind"] == "combination"]
    wanted = [case for case in cases() if case.model in models and _plain(case) not in known]
    profile = profile_of("cpu", anew=anew)
    environment = describe_environment()
    facts = {name: environment[name] for name in ("cpu", "memory", "threads")}
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8") as file:

        def write(**values: Any) -> None:
            print(json.dumps(values), file=file, flush=True)

        if not done:
            started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            versions = {name: environment["versions"][name] for name in ("leandiffusion", "torch", "python")}
            write(kind="run", started=started, versions=versions, machine=facts, profile=profile.to_json())
        for case in tqdm(wanted, unit="combination"):
            if time.monotonic() > until:
                print(f"time is up: {out} goes on where this stopped when it is run again.", file=sys.stderr)
                return
            try:
                checkpoint = find_model(case.model, work)["checkpoint"]
                predicted = predict(case, checkpoint, profile)
            except LeanError as error:
                write(kind="failure", case=_plain(case), error=str(error))
                continue
            command = [sys.executable, __file__, "--measure", json.dumps([_plain(case), checkpoint])]
            ran = subprocess.run(command, capture_output=True, text=True)
            if ran.returncode:
                write(kind="failure", case=_plain(case), error=ran.stderr.strip()[-500:])
                continue
            told = {"model": case.model, "size": case.size, "batch": case.batch, "about": case.about}
            measured = json.loads(ran.stdout.splitlines()[-1])
            write(kind="combination", case=_plain(case), **told, predicted=predicted, measured=measured)


def again(path: Path, work: Path) -> None:
    """Predict anew, with the profile of the run, what the file holds measurements of."""
    from leandiffusion.bench.run.models import find_model
    from leandiffusion.plan.profile import DeviceProfile

    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    profile = next(DeviceProfile.from_json(line["profile"]) for line in lines if line["kind"] == "run")
    for line in tqdm(lines, unit="combination"):
        if line["kind"] == "combination":
            case = _case(line["case"])
            line["predicted"] = predict(case, find_model(case.model, work)["checkpoint"], profile)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _case(values: dict[str, Any]) -> Case:
    on = tuple((name, settings) for name, settings in values["on"])
    return Case(**{**values, "on": on, "off": tuple(values["off"])})


def _plain(case: Case) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(case)))


def report(path: Path) -> None:
    """Print what the file says, and draw it beside it."""
    from tools.predictions import draw, headline, markdown, read_predictions

    described, combinations = read_predictions(path)
    print(markdown(combinations))
    draw(combinations, path.with_suffix(".png"), headline(described))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu.jsonl")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "leandiffusion-bench")
    parser.add_argument("--models", nargs="*", default=list(dict.fromkeys(case.model for case in cases())))
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--profile", action="store_true", help="measure the device anew first")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--again", type=Path, help="predict anew what this file holds measurements of")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        values, checkpoint = json.loads(asked.measure)
        print(json.dumps(measure(_case(values), checkpoint)))
        return
    if asked.again:
        again(asked.again, asked.work)
    if asked.report is None and asked.again is None:
        run(asked.out, asked.work, asked.models, asked.minutes, asked.profile)
    report(asked.report or asked.again or asked.out)


if __name__ == "__main__":
    main()
