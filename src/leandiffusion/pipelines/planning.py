"""Settings chosen for a pipeline: plans, the budget that it keeps, and what is done when memory runs out anyway."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import torch

from ..core.errors import BudgetError, ConfigError
from ..core.notices import warn
from ..device.host import is_host
from ..device.memory import is_out_of_memory, release
from ..device.names import check_device
from ..plan.budget import Budget
from ..plan.explain import takes
from ..plan.floor import floor_here
from ..plan.make import check_allow, dtypes_for, make_plan
from ..plan.plan import Plan
from ..plan.predict import Predictor
from ..plan.profile import profile_of
from ..plan.search import choices, leanest
from ..plan.sketch import Blueprint
from ..plan.stages import tokens_read
from ..run import inputs
from ..run.run import Run, always, call_unet
from ..run.size import CallSize
from ..techniques.stack import Stack
from .request import Request

T = TypeVar("T")


STEPS = 50
"""Of a call whose schedule is given by timesteps or sigmas, for predicting its time."""


@dataclass(frozen=True)
class Kept:
    """The budget that a pipeline was opened with, as `plan_for` takes it."""

    memory: Any
    allow: str
    device: torch.device


class Planning:
    """Mixin of the pipelines."""

    begins_with_pictures: ClassVar[bool] = False
    """Whether a call encodes pictures before its first step."""

    _stack: Stack
    _kept: Kept | None = None
    _drawn_as_planned: bool = False
    _planned_numbers: int = 0
    """What the networks held when the budget was last planned for; a LoRA that is loaded later adds to it."""

    _own_dtypes: Mapping[str, torch.dtype] = MappingProxyType({})
    plan: Plan | None = None
    """The plan that was applied last; None when techniques were chosen by hand."""

    def plan_for(
        self: Any,
        memory: Any = None,
        *,
        height: int | None = None,
        width: int | None = None,
        batch: int = 1,
        steps: int = 50,
        guidance: bool = True,
        chunks: int = 1,
        pictures: int | None = None,
        image_prompts: int = 1,
        allow: str = "exact",
        device: torch.device | str | None = None,
    ) -> Plan:
        """The fastest settings for calls of that size which fit into `memory`. Nothing is read, moved or switched.

        `memory` is a size ('2GiB', bytes) of the device that computes, on a CPU of the whole process; or sizes by type
        of device ({'cuda': '6GiB', 'cpu': '8GiB'}); None for what is free now, less 5%. Pixels are the model's own
        unless given. `chunks`: the length of prompts in the weighted syntax, in multiples of what a text encoder
        reads at once. `pictures`: how many are encoded to begin with; one in pipelines that draw on pictures.
        `image_prompts`: how many each IP-Adapter sees, where some are loaded. ControlNets, LoRAs and perturbed
        attention count as they are. `allow`: 'exact' for settings that draw the same picture, 'rounding' for half
        precision too, 'approximate' for those that draw another one.
        `print(plan)` shows it, `apply` switches it on.

        BudgetError when nothing fits: it says the least that would do. ConfigError for wrong arguments, and for
        networks that are not this library's.
        """
        check_allow(allow)
        counts = {"batch": batch, "steps": steps, "chunks": chunks, "image_prompts": image_prompts}
        for name, value in counts.items():
            inputs.check_count(name, value)
        where = self.device if device is None else torch.device(device)
        name = str(self._opened_from or type(self).__name__)
        blueprint = Blueprint.of_networks(name, self._stack.subject.networks, where, self._dtypes())
        factor = self.vae_scale_factor
        height, width = (blueprint.side if side is None else side for side in (height, width))
        inputs.check_side("height", height, factor)
        inputs.check_side("width", width, factor)
        pictures = int(self.begins_with_pictures) if pictures is None else pictures
        inputs.check_count("pictures", pictures, least=0)
        guided = guidance and not blueprint.is_distilled
        perturbed = self.perturbed_attention is not None
        blueprint = replace(blueprint, eyes=self._eyes())
        seen = image_prompts if blueprint.eyes else 0
        call = CallSize(height, width, batch, guided, chunks, pictures, blueprint.controls, perturbed, seen)
        profile = profile_of(where, dtypes_for(blueprint, allow))
        predictor = Predictor(blueprint, call, steps, profile)
        leanest(predictor, choices(predictor, check_allow(allow)))  # traces all: the code and objects of that stay
        networks = self._stack.subject.networks.values()
        predictor.floor = floor_here(profile, networks, has_computed=bool(self.last_times))
        return make_plan(predictor, Budget.of(memory, where), allow)

    def _dtypes(self: Any) -> Mapping[str, torch.dtype]:
        """Of the networks without half precision, which an applied plan may have switched on: a plan starts from them.

        ConfigError where it was switched on by hand, before there was a plan.
        """
        if self._stack.find("half_precision") is None:
            networks = self._stack.subject.networks
            self._own_dtypes = {name: getattr(network, "dtype", torch.float32) for name, network in networks.items()}
        elif not self._own_dtypes:
            raise ConfigError(
                "half_precision was switched on by hand, and a plan decides on it too: pipe.disable('half_precision') "
                "first, and let allow='rounding' choose it."
            )
        return self._own_dtypes

    def apply(self: Any, plan: Plan) -> None:
        """Switch on what the plan says, and everything else off. What was on stays on if that cannot be done.

        ConfigError for what is no plan, or one made for another kind of device, another model or another dtype, and
        where there is no UNet. BackendUnavailable for a device that is not here, and for techniques that this pipeline
        or machine cannot run.
        """
        if not isinstance(plan, Plan):
            raise ConfigError(f"apply takes a plan, of plan_for or Plan.load, not a {type(plan).__name__}.")
        device = check_device(plan.device)
        if device.type != self.device.type and not is_host(self.device):
            raise ConfigError(f"this plan is for {plan.device}, and the pipeline is on {self.device}: plan again here.")
        unet, is_cast = self._stack.subject.networks.get("unet"), self._stack.find("half_precision") is not None
        if unet is None:
            raise ConfigError("this pipeline has no UNet, which a plan is for: open it with one, or set pipe.unet.")
        plan.check_for(unet, self._own_dtypes.get("unet") if is_cast else getattr(unet, "dtype", None))
        self._stack.replace(plan.techniques, why=f"planned for {plan.budget}")
        if self._stack.find("offload") is None and device != self.device:
            self.to(device)
        self.plan = plan

    def share_settings(self: Any, other: Any) -> None:
        """From now on techniques are on for both: what is planned for, or switched on, here is there too, and the other
        way round. `other` is one whose networks these are, as `from_pipe` makes of it. ConfigError for others."""
        if self._stack.subject.networks != other._stack.subject.networks:
            raise ConfigError("settings are shared by pipelines of the same networks: make one by from_pipe.")
        self._stack, self._shared_with = other._stack, other  # which a stack does not keep alive

    def _keep_within(self: Any, memory: Any, allow: str, device: torch.device) -> None:
        """Plan and apply, now for a picture of the model's own size and again for each call that is larger.

        Where that does not fit, the first call says whether what it asks for does.
        """
        self._kept, self._planned_numbers = Kept(memory, allow, device), self._numbers()
        with suppress(BudgetError):
            self.apply(self.plan_for(memory, allow=allow, device=device))

    def _plan_request(
        self: Any, request: Request, shape: tuple[int, int, int, int], *, guided: bool, tokens: int, pictures: int
    ) -> None:
        """Where a budget is to be kept, plan anew if this call takes more than what was planned for, or the networks
        hold more."""
        kept, plan = self._kept, self.plan
        if kept is None:
            return
        factor = self.vae_scale_factor
        chunks = math.ceil(tokens / tokens_read(self._stack.subject.networks))
        controls, perturbed = len(self._stack.subject.controls), self.perturbed_attention is not None
        seen = self._seen_by_each(request)
        call = CallSize(
            shape[2] * factor, shape[3] * factor, shape[0], guided, chunks, pictures, controls, perturbed, seen
        )
        drawn, self._drawn_as_planned = self._drawn_as_planned, True
        numbers = self._numbers()
        same = plan is not None and (plan.call == call or (drawn and _covers(plan.call, call)))
        if same and numbers <= self._planned_numbers:
            return  # before the first call another plan is free: nothing was read yet
        made = self.plan_for(
            kept.memory, height=call.height, width=call.width, batch=call.batch, guidance=call.guidance,
            chunks=call.chunks, pictures=call.pictures, image_prompts=max(seen, 1),
            steps=request.num_inference_steps or STEPS, allow=kept.allow, device=kept.device,
        )  # fmt: skip
        try:
            with self._stack.between_steps():
                self.apply(made)
            self._planned_numbers = numbers
        except ConfigError:  # other calls run these networks: this one goes as they do
            if plan is None:
                raise

    def _numbers(self: Any) -> int:
        """Parameters and buffers of all networks, adapters included."""
        networks = self._stack.subject.networks.values()
        return sum(tensor.numel() for each in networks for tensor in (*each.parameters(), *each.buffers()))

    def _with_room(self: Any, work: Callable[[], T]) -> T:
        """What `work` returns; where a plan is on and memory runs out, tried again with the next lower one."""
        while True:
            try:
                return work()
            except (MemoryError, RuntimeError) as error:
                if self.plan is None or not is_out_of_memory(error):
                    raise
                reason = str(error)
            if not self._fall_back():  # only here: in the handler above the failed attempt's tensors are still held
                raise BudgetError(f"memory ran out, and no settings take less: {reason}")

    def _fall_back(self: Any, run: Run | None = None) -> bool:
        """Memory ran out: release what can be, and go on with the next lower plan. False where there is none."""
        release()
        lower = self.plan and self.plan.next_lower()
        if not lower:
            return False
        try:
            with self._stack.between_steps():
                self.apply(lower)
        except ConfigError:  # other calls run these networks
            return False
        warn(f"memory ran out: going on with {lower.settings} ({takes(lower.settings)} predicted).")
        if run is not None:
            run.guides, run.call = always, call_unet
            self._stack.subject.prepare(run)
        release()
        return True


def _covers(planned: CallSize, call: CallSize) -> bool:
    """Whether a call of the second size takes no more than one of the first."""
    same_shape = call.height * call.width <= planned.height * planned.width
    counts = ("batch", "guidance", "chunks", "pictures", "controls", "perturbed", "image_prompts")
    return same_shape and all(getattr(call, name) <= getattr(planned, name) for name in counts)
