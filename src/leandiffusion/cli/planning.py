"""`leandiffusion plan`: the fastest settings that fit a budget."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer

from ..core.errors import ConfigError, LeanError
from .report import say


@dataclass(frozen=True)
class PlanOptions:
    """What the command line says. None leaves the choice to the model or the machine."""

    model: str
    memory: Any = None
    size: tuple[int, int] | None = None
    batch: int = 1
    steps: int = 50
    guidance: bool = True
    pictures: int = 0
    controlnet: tuple[str, ...] = ()
    ip_adapter: tuple[str, ...] = ()
    image_prompts: int | None = None
    dtype: str | None = None
    device: str | None = None
    allow: str = "exact"


def run(
    options: PlanOptions,
    *,
    as_json: bool = False,
    plot: Path | None = None,
    save_plan: Path | None = None,
    measure_anew: bool = False,
    calibrate: bool = False,
    work: Path | None = None,
) -> None:
    """Print the plan as tables or JSON; draw and write what was asked for. LeanError for what cannot be planned."""
    from ..plan.budget import Budget
    from ..plan.make import check_allow, dtypes_for, make_plan
    from ..plan.predict import Predictor
    from ..plan.profile import profile_of
    from ..run.size import CallSize

    for option, path in (("--plot", plot), ("--save-plan", save_plan)):
        if path is not None and not path.parent.is_dir():
            raise typer.BadParameter(f"there is no folder {path.parent}: make it first.", param_hint=option)
    if options.image_prompts and not options.ip_adapter:
        raise typer.BadParameter("there is no --ip-adapter that would see pictures.", param_hint="--image-prompts")
    exactness = check_allow(options.allow)
    blueprint = blueprint_of(options)
    width, height = options.size or (blueprint.side, blueprint.side)
    guided = options.guidance and not blueprint.is_distilled
    call = CallSize(
        height, width, options.batch, guided, pictures=options.pictures, controls=len(options.controlnet),
        image_prompts=(options.image_prompts or 1) if options.ip_adapter else 0,
    )  # fmt: skip
    profile = profile_of(blueprint.device, dtypes_for(blueprint, options.allow), anew=measure_anew)
    predictor = Predictor(blueprint, call, options.steps, profile)
    plan = make_plan(predictor, Budget.of(options.memory, blueprint.device), options.allow)
    if calibrate:
        plan = _tried(plan, options, work)
    if as_json:
        typer.echo(json.dumps(plan.to_json(), indent=2))
    else:
        _print(plan)
    if save_plan is not None:
        with _writing(save_plan):
            plan.save(save_plan)
        say(f"Saved as {save_plan}: leandiffusion generate … --plan {save_plan}")
    if plot is not None:
        from ..plan.plot import draw
        from ..plan.search import choices, everything

        with _writing(plot):
            draw(plan, everything(predictor, choices(predictor, exactness)), plot)
        say(f"Drawn as {plot}")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """LeanError where the file cannot be written."""
    try:
        yield
    except OSError as error:
        raise LeanError(
            f"{path} cannot be written ({error.strerror or error}): make room there, or name another file."
        ) from error


def _tried(plan: Any, options: PlanOptions, work: Path | None) -> Any:
    """The plan with its settings tried for real."""
    from ..bench.run.calibrate import calibrate
    from ..bench.run.models import SHAPE
    from ..bench.run.plan import working_folder
    from ..demo import packaged_controlnet
    from ..families.base import family_names

    shapes, controls = family_names(), map(packaged_controlnet, options.controlnet)
    model, *nets = (SHAPE + name if name in shapes else name for name in (options.model, *controls))
    with working_folder(work) as workdir:
        return calibrate(
            plan, model, workdir, controlnets=nets, ip_adapters=options.ip_adapter,
            progress=lambda title: say(f"Trying {title} …"),
        )  # fmt: skip


def blueprint_of(options: PlanOptions) -> Any:
    """What is known of the model: of a family at full size, which 'shape:NAME' is too, or of a checkpoint. ConfigError
    for names of neither."""
    from ..bench.run.models import SHAPE, shape_of
    from ..core.registry import did_you_mean
    from ..demo import packaged_controlnet
    from ..device.names import check_device, default_device
    from ..families.base import families, family_names
    from ..pipelines.from_folder import packaged
    from ..plan.sketch import Blueprint

    device = default_device() if options.device is None else check_device(options.device)
    names = family_names()

    def family_of(name: str) -> Any:
        if name.startswith(SHAPE):
            return shape_of(name)
        return families.get(names[name]) if name in names else None

    controls = [family_of(name) or packaged_controlnet(name) for name in options.controlnet]
    if family := family_of(options.model):
        blueprint = Blueprint.of_family(family, _dtype(options, device), device)
        return _with_eyes(blueprint.controlled_by(controls), options)
    here = Path(options.model).expanduser().exists() or packaged(options.model) != options.model
    if not here and "/" not in options.model:
        known = ["demo", *names]
        raise ConfigError(
            f"{options.model!r} is no model that is known, and nothing of that name is here."
            f"{did_you_mean(options.model, known)} Known: {', '.join(known)}; or a folder, a file, or a hub id."
        )
    blueprint = Blueprint.of_checkpoint(packaged(options.model), _dtype(options, device), device)
    return _with_eyes(blueprint.called(options.model).controlled_by(controls), options)


def _with_eyes(blueprint: Any, options: PlanOptions) -> Any:
    """With the IP-Adapters. Raises what loading them into a pipeline raises."""
    if not options.ip_adapter:
        return blueprint
    from ..families.ip_adapter import find_ip_adapter, read_ip_adapter
    from ..pipelines.image_prompts import find_encoder
    from ..plan.seeing import Eyes

    adapters = [read_ip_adapter(find_ip_adapter(path)) for path in options.ip_adapter]
    eyes = Eyes.of_files(adapters, find_encoder(options.ip_adapter[0]), blueprint.networks["unet"])
    return replace(blueprint, eyes=eyes)


def _dtype(options: PlanOptions, device: Any) -> Any:
    """As `generate` takes it for the same options."""
    from ..drawing.opening import dtype_for

    return dtype_for(options.dtype, options.model, device, planned=options.memory is not None, say=say)


def _print(plan: Any) -> None:
    from rich.console import Console

    from ..plan.explain import rich_tables

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 160
    for part in rich_tables(plan):
        console.print(part)
