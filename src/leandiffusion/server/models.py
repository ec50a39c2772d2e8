"""The models that are served, by name, under one memory budget. Those used last stay open, the others are closed."""

from __future__ import annotations

import gc
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..core.errors import BudgetError
from ..core.registry import did_you_mean
from ..core.wording import show
from .errors import ApiError

if TYPE_CHECKING:
    from ..drawing.opening import Drawer
    from ..plan.budget import Budget
    from ..plan.plan import Plan
    from ..plan.predict import Predictor
    from ..plan.prediction import Prediction
    from ..plan.sketch import Blueprint
    from ..run.size import CallSize

log = logging.getLogger(__name__)

STEPS = 50
"""Of the calls that are planned. More or fewer take the same memory."""

_MOST_PLANS, _MOST_PREDICTORS = 256, 8


@dataclass(frozen=True)
class Settings:
    """How the models are opened: `memory` as `plan_for` takes it, None for what is free."""

    memory: Any = None
    allow: str = "exact"
    dtype: str | None = None
    device: str | None = None


@dataclass
class Open:
    """An opened model: its own pipeline, and those of other tasks on the same weights."""

    pipe: Any
    drawers: dict[str | None, Drawer] = field(default_factory=dict)

    @property
    def resident(self) -> int:
        """Bytes of its weights that are in memory."""
        from ..weights.residence import is_on_disk

        networks = [part for part in self.pipe.components.values() if hasattr(part, "parameters")]
        weights = {id(t): t.nbytes for network in networks for t in network.parameters() if not is_on_disk(t)}
        return sum(weights.values())


class Models:
    """`sources` are what the server was started with: a name, and the checkpoint that it stands for.

    `plan` may be asked in any thread, `drawer` in the worker's alone. `evicted` is told the name of each that is
    closed.
    """

    def __init__(
        self, sources: Mapping[str, str], settings: Settings = Settings(),
        evicted: Callable[[str], None] = lambda name: None,
    ) -> None:  # fmt: skip
        self.sources, self.settings, self._evicted = dict(sources), settings, evicted
        self._open: OrderedDict[str, Open] = OrderedDict()  # the one used last comes last
        self._blueprints: dict[str, Blueprint] = {}
        self._dtypes: dict[str, Any] = {}  # by checkpoint
        self._plans: OrderedDict[Any, Plan] = OrderedDict()  # those made first are forgotten first
        self._predictors: OrderedDict[Any, Predictor] = OrderedDict()
        self._together: dict[Any, int] = {}
        self._trying: threading.Thread | None = None
        self.reading = threading.Lock()  # of pictures that clients send: each takes memory
        self._planning = threading.Lock()
        self._floor_bytes: int | None = None

    def source(self, name: str | None) -> tuple[str, str]:
        """A model's name, the first one's unless given, and its checkpoint. ApiError for one that is not served."""
        name = next(iter(self.sources)) if name is None else name
        if name not in self.sources:
            known = list(self.sources)
            raise ApiError(
                f"there is no model {show(name)}.{did_you_mean(name, known)} Served: {', '.join(known)}.",
                param="model", code="model_not_found", status=404,
            )  # fmt: skip
        return name, self.sources[name]

    @property
    def opened(self) -> list[str]:
        """Names of those that are open, the one used last at the end."""
        return list(self._open)

    # -- before anything is read ------------------------------------------------------------------------------------

    def blueprint(self, name: str) -> Blueprint:
        """What is known of the model from its JSON files."""
        from ..pipelines.from_folder import packaged
        from ..plan.sketch import Blueprint

        if (known := self._blueprints.get(name)) is not None:
            return known
        with self._planning:
            if name not in self._blueprints:
                made = Blueprint.of_checkpoint(packaged(self.sources[name]), self._dtype_of(name), self._device)
                self._blueprints[name] = made.called(name)
            return self._blueprints[name]

    def plan(self, name: str, call: CallSize, memory: int | None = None) -> Plan:
        """The fastest settings for such a call within the budget, or within `memory` bytes of it. What is known is told
        at once, whatever is being planned meanwhile. BudgetError, with the least that would do, where none fit."""
        from ..plan.make import make_plan

        key = name, call, memory
        if (known := self._plans.get(key)) is not None:
            return known
        blueprint = self.blueprint(name)
        with self._planning:
            if key not in self._plans:
                predictor = self._predictor(name, blueprint, call)
                self._plans[key] = make_plan(predictor, self._within(memory), self.settings.allow)
                _keep_newest(self._plans, _MOST_PLANS)
            return self._plans[key]

    def _predictor(self, name: str, blueprint: Blueprint, call: CallSize) -> Predictor:
        """It knows from the first plan what it takes to make another for the same call. Those of a model share its
        networks without weights, whose objects take memory too."""
        from ..plan.make import dtypes_for
        from ..plan.predict import Predictor
        from ..plan.profile import profile_of

        key = name, call
        if key not in self._predictors:
            alike = next((known for (model, _), known in self._predictors.items() if model == name), None)
            profile = profile_of(self._device, dtypes_for(blueprint, self.settings.allow))
            made = Predictor(blueprint, call, STEPS, profile) if alike is None else alike.resized(call)
            made.floor = self._floor(made)
            self._predictors[key] = made
            _keep_newest(self._predictors, _MOST_PREDICTORS)
        return self._predictors[key]

    def _within(self, memory: int | None) -> Budget:
        own = self._budget
        if memory is None or (own.device is not None and own.device <= memory):
            return own
        return replace(own, device=memory, given=True)

    def together(self, name: str, call: CallSize, memory: int | None = None) -> int:
        """`worth_together` as far as it is known. Where it is not, one picture, and a thread finds out: planning takes
        seconds, and whoever asks goes on."""
        key = name, call, memory
        if key not in self._together and (self._trying is None or not self._trying.is_alive()):
            self._trying = threading.Thread(target=self._try_together, args=key, name="planning", daemon=True)
            self._trying.start()
        return self._together.get(key, 1)

    def _try_together(self, *key: Any) -> None:
        found = self.worth_together(*key)
        if len(self._together) >= _MOST_PLANS:
            self._together.clear()
        self._together[key] = found
        log.info("together", extra={"model": key[0], "pictures": found})

    def worth_together(self, name: str, call: CallSize, memory: int | None = None) -> int:
        """How many pictures of such calls are best drawn at once: as long as twice as many take less time for each."""
        best, seconds = 1, self.plan(name, call, memory).prediction.seconds
        for count in TOGETHER:
            try:
                each = self.plan(name, replace(call, batch=count), memory).prediction.seconds / count
            except BudgetError:
                break
            if each > PAYS * seconds:
                break
            best, seconds = count, each
        return best

    @cached_property
    def _device(self) -> Any:
        from ..device.names import check_device, default_device

        return default_device() if self.settings.device is None else check_device(self.settings.device)

    def _dtype_of(self, name: str) -> Any:
        """As `generate` takes it for such settings."""
        from ..drawing.opening import dtype_for

        model, settings = self.sources[name], self.settings
        if model not in self._dtypes:
            self._dtypes[model] = dtype_for(
                settings.dtype, model, self._device, planned=settings.memory is not None, say=log.info
            )
        return self._dtypes[model]

    @cached_property
    def _budget(self) -> Budget:
        """What drawing may take, fixed when it is first asked for: what is free changes with what is open."""
        from ..plan.budget import Budget

        return Budget.of(self.settings.memory, self._device)

    def _floor(self, predictor: Predictor) -> int:
        """Bytes of this process besides weights, as they were when the first call had been traced, whose code and
        objects stay, and before the first model was opened."""
        from ..plan.floor import floor_here
        from ..plan.make import check_allow
        from ..plan.search import choices, leanest

        if self._floor_bytes is None:
            leanest(predictor, choices(predictor, check_allow(self.settings.allow)))
            networks = [opened.pipe.unet for opened in self._open.values()]
            self._floor_bytes = floor_here(predictor.profile, networks, has_computed=False)
        return self._floor_bytes

    # -- in the worker ----------------------------------------------------------------------------------------------

    def drawer(self, name: str, task: str | None, plan: Plan) -> Drawer:
        """What draws `task` with the model, as `plan` says. Others are closed as far as both do not fit the budget."""
        self._make_room(name, plan)
        opened = self._open.get(name) or self._opened(name)
        self._open[name] = opened
        self._open.move_to_end(name)
        if task not in opened.drawers:
            opened.drawers[task] = self._drawer_for(task, opened.pipe)
        drawer = opened.drawers[task]
        if {entry.technique for entry in drawer.pipe.techniques} != {*plan.techniques}:
            drawer.pipe.apply(plan)  # also where the last drawing fell back to another
        drawer.pipe.plan = plan
        return drawer

    def _opened(self, name: str) -> Open:
        """The model with its weights in its files still: a plan says where they go."""
        from ..pipelines import open_pipeline

        log.info("opening", extra={"model": name})
        pipe = open_pipeline(self.sources[name], dtype=self._dtype_of(name))
        pipe.set_progress_bar_config(disable=True)
        return Open(pipe)

    @staticmethod
    def _drawer_for(task: str | None, pipe: Any) -> Drawer:
        from ..drawing.opening import Drawer
        from ..pipelines import classes
        from ..pipelines.tasks import pipeline_for

        if task is None:
            return Drawer(pipe)
        cls = classes()[pipeline_for(task, type(pipe))]
        other = pipe if type(pipe) is cls else cls.from_pipe(pipe)
        other.set_progress_bar_config(disable=True)
        other.share_settings(pipe)
        return Drawer(other)

    def _make_room(self, name: str, plan: Plan) -> None:
        limit = self._budget.device
        for other in [each for each in self._open if each != name]:
            beside = sum(opened.resident for key, opened in self._open.items() if key != name)
            if limit is None or self._budget.to_ask_for(plan.prediction.peak + beside) <= limit:
                return
            self.close(other)

    def close(self, name: str) -> None:
        """Give its memory back; the next request for it opens it again."""
        from ..device.memory import release

        del self._open[name]
        gc.collect()
        release()
        log.info("closed", extra={"model": name})
        self._evicted(name)


def seconds_for(prediction: Prediction, steps: int) -> float:
    """What a call of so many steps takes, as a plan of STEPS predicts."""
    each = prediction.stages.items()
    return sum(stage.seconds * (steps / STEPS if name == "denoise" else 1) for name, stage in each)


TOGETHER = (2, 4, 8)
PAYS = 0.95
"""Of the time of a picture, at most, for which twice as many are drawn at once."""


def _keep_newest(kept: OrderedDict[Any, Any], most: int) -> None:
    while len(kept) > most:
        kept.popitem(last=False)
