"""What a call takes with given techniques: peak memory and seconds of each stage, before a weight is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from ..core.malloc import HIGHEST, LARGE, MEDIUM
from ..core.wording import dtype_name
from ..device.host import is_host
from ..offload.residency import Residency, all_resident
from ..run.size import CallSize
from ..techniques import Technique
from ..techniques.base import UNetCalls
from .prediction import BESIDES, Prediction, StagePrediction
from .profile import DeviceProfile
from .seconds import fetch_seconds, load_seconds, stage_seconds
from .seeing import Eyes, trace_seeing
from .sketch import Blueprint, Sketch
from .stages import TEXTS, owners_of, stages_of, trace_stage
from .work import StageWork

CASTS = "half_precision"
"""The technique that changes the dtype: networks are made at it, rather than cast."""

MODULE_BYTES = 48 << 10
"""Of host memory, beside a module's weights: its Python objects and the kernels compiled for it. Measured as what a
process had more than the floor after a step, weights and what could be given back left out: 41 MiB with the 911 modules
of Stable Diffusion 1.5."""

Chosen = tuple[Technique, ...]


@dataclass(frozen=True)
class Work:
    """What is computed in a part of a stage `count` times, by the networks of those names."""

    owners: tuple[str, ...]
    work: StageWork
    count: float


@dataclass(eq=False)
class Predictor:
    """Predicts calls of `call`'s size and `steps` steps for one model on one device.

    What was traced once is kept, so that the next prediction with the same parts takes microseconds.
    """

    blueprint: Blueprint
    call: CallSize
    steps: int
    profile: DeviceProfile
    floor: int | None = None
    """Bytes that the process has besides weights; of a fresh one, which the profile knows, unless given."""

    _sketches: dict[torch.dtype | None, Sketch] = field(default_factory=dict)
    _image_encoders: dict[torch.dtype | None, Any] = field(default_factory=dict)
    _with_encoder: dict[torch.dtype | None, Sketch] = field(default_factory=dict)
    _traced: dict[Any, StageWork] = field(default_factory=dict)
    _residencies: dict[Any, Residency] = field(default_factory=dict)
    _libraries: dict[tuple[Technique, torch.dtype], int] = field(default_factory=dict)
    _timed: dict[tuple[str, Chosen], float] = field(default_factory=dict)

    def predict(self, techniques: Iterable[Technique]) -> Prediction:
        """With these techniques on, which must be legal together."""
        return self.part(self.stages, tuple(techniques))

    @property
    def stages(self) -> tuple[str, ...]:
        """Those of the call, in order."""
        return tuple(stage for stage in stages_of(self.call) if stage != "control")

    def resized(self, call: CallSize) -> Predictor:
        """A predictor for calls of another size, with the same networks."""
        return Predictor(self.blueprint, call, self.steps, self.profile, self.floor, self._sketches)

    def peak(self, chosen: Chosen) -> int:
        """Bytes on the device at the worst moment, whether or not the profile has the speed of their dtype."""
        return max(self._stage_peak(name, chosen) for name in self.stages)

    def part(self, stages: Iterable[str], chosen: Chosen) -> Prediction:
        """Some of the stages. Only techniques that concern them matter."""
        found = {name: StagePrediction(self._stage_peak(name, chosen), self._seconds(name, chosen)) for name in stages}
        return Prediction(found, self.host_bytes(chosen))

    def library_bytes(self, chosen: Chosen) -> int:
        """Of libraries that these techniques need."""
        device, dtype = self.blueprint.device, self.cast(chosen) or self.blueprint.dtype
        for key in ((technique, dtype) for technique in chosen):
            if key not in self._libraries:  # looking what is installed takes a while
                self._libraries[key] = key[0].library_bytes(device, dtype)
        return sum(self._libraries[technique, dtype] for technique in chosen)

    def _stage_peak(self, name: str, chosen: Chosen) -> int:
        travel = any(map(moves, chosen))
        others = 0 if travel else self.blueprint.others  # which travel then too, and are not here in these stages
        weights = self.residency(chosen).while_running(self._there(name)) + others
        if name == "picture":  # what opening left on disk is read for it, a weight at a time
            weights += max(weight.nbytes for weight in self._encoder(chosen).parameters())
        if name not in ("encode", "image"):
            weights += self._seen_bytes(name, chosen)
        works, freed_from = self._works(name, chosen), self.residency(chosen).freed_from
        held = max(each.work.peak_where(freed_from) for each in works)
        if name == "denoise" and len(works) > 2:  # the UNet sees a part at a time of what ControlNets gave at once
            held += works[0].work.kept
        around = self._floor + self._around_modules + self.library_bytes(chosen) if self._on_host else 0
        return weights + held + around

    def _seconds(self, name: str, chosen: Chosen) -> float:
        if (name, chosen) not in self._timed:
            self._timed[name, chosen] = self._seconds_of(name, chosen)
        return self._timed[name, chosen]

    def _seconds_of(self, name: str, chosen: Chosen) -> float:
        residency, works = self.residency(chosen), self._works(name, chosen)
        if not works[-1].owners:  # no text encoder: calls are given embeddings
            return 0.0
        dtype = dtype_name(self.cast(chosen) or self.blueprint.networks[works[-1].owners[0]].dtype)
        options: Any = {
            "ahead": residency.ahead,
            "freed_from": self._freed_from(name, chosen),
            "fast_attention": any(technique.name == "attention_backend" for technique in chosen),
        }
        once, turn = 0, residency.fetched_for(self._there(name)) if residency.stays and name not in BESIDES else 0
        if name == "picture":
            once = sum(weight.nbytes for weight in self._encoder(chosen).parameters())
        elif name == "image":
            once = self._eyes.read_bytes(self._image_encoder(chosen), self.cast(chosen) or self.blueprint.dtype)
        seconds = 0.0
        for each in works:
            arrivals, fetched = residency.arriving(each.owners) if name not in BESIDES else (0, 0)
            seconds += each.count * stage_seconds(
                each.work, dtype, self.profile, fetched=fetched, arrivals=arrivals, **options
            )
        seconds *= self.steps if name == "denoise" else 1
        return seconds + fetch_seconds(once, dtype, self.profile) + load_seconds(turn, dtype, self.profile)

    def _freed_from(self, stage: str, chosen: Chosen) -> int:
        """Bytes from which freed blocks go back to the system in that stage (`core.malloc.freed_at_once`)."""
        found = self.residency(chosen).freed_from or HIGHEST
        if not self._on_host or stage not in ("picture", "decode"):
            return found
        names = {technique.name for technique in chosen}
        if "vae_tiling" in names:
            return min(found, MEDIUM)
        return min(found, LARGE) if "vae_slicing" in names else found

    def _works(self, name: str, chosen: Chosen) -> list[Work]:
        """What is computed in the stage, in a step of 'denoise'; the ControlNets' part comes first."""
        calls = {self.call: 1.0} if name != "denoise" else unet_calls(self.call, chosen)
        works = [self._work(name, call, count, chosen) for call, count in calls.items()]
        if name != "denoise" or not self.call.controls:
            return works
        predicted = predictions(self.call, chosen)
        return [*(self._work("control", call, count, chosen) for call, count in predicted.items()), *works]

    def host_bytes(self, chosen: Chosen) -> int:
        """Of host memory, beside an accelerator."""
        return 0 if self._on_host else self._floor + self.residency(chosen).below

    def cast(self, chosen: Chosen) -> torch.dtype | None:
        """The dtype that one of them gives all networks; None where they keep their own."""
        return next((each.dtype for each in chosen if each.name == CASTS), None)  # type: ignore[attr-defined]

    def sketch(self, cast: torch.dtype | None = None) -> Sketch:
        """The networks without weights, at that dtype if one is given."""
        if cast not in self._sketches:
            self._sketches[cast] = Sketch(self.blueprint, cast)
        return self._sketches[cast]

    def residency(self, chosen: Chosen) -> Residency:
        """Where weights are."""
        cast = self.cast(chosen)
        key = cast, tuple(technique for technique in chosen if moves(technique))
        if key not in self._residencies:
            pieces = self.sketch(cast).pieces
            told = (technique.residency(pieces) for technique in chosen)
            moved = next((each for each in told if each is not None), None)
            self._residencies[key] = moved or all_resident(pieces.networks)
        return self._residencies[key]

    @property
    def _floor(self) -> int:
        return self.profile.floor if self.floor is None else self.floor

    @cached_property
    def _around_modules(self) -> int:
        sketch = self._sketch_of("picture" if self.call.pictures else "denoise", None)
        networks = [*sketch.networks.values(), *filter(None, [self._image_encoder(())])]
        return MODULE_BYTES * sum(1 for network in networks for _ in network.modules())

    @cached_property
    def _on_host(self) -> bool:
        return is_host(self.blueprint.device)

    def _there(self, stage: str) -> list[str]:
        """Networks whose weights are on the device in the stage, where they take turns. Encoders of pictures do not
        travel: then those of the stage before still are there."""
        if stage in BESIDES:
            return [name for name in TEXTS if name in self.blueprint.networks][-1:]
        names = {"denoise": ("control", "denoise")}.get(stage, (stage,))
        return [owner for name in names for owner in owners_of(name, self.blueprint.networks)]

    def _encoder(self, chosen: Chosen) -> Any:
        """What opening leaves on disk of the VAE."""
        return self._sketch_of("picture", self.cast(chosen)).networks["vae"].encoder

    @property
    def _eyes(self) -> Eyes:
        return self.blueprint.eyes or Eyes(None, ())

    def _image_encoder(self, chosen: Chosen) -> Any:
        cast = self.cast(chosen)
        if cast not in self._image_encoders:
            self._image_encoders[cast] = self._eyes.open(cast)
        return self._image_encoders[cast]

    def _seen_bytes(self, stage: str, chosen: Chosen) -> int:
        """Of the keys and values of pictures that IP-Adapters see, which the UNet attends to in all steps."""
        if not self.call.image_prompts:
            return 0
        kept, call = self._works("image", chosen)[0].work.kept, self.call
        if stage != "denoise" or not call.perturbed:
            return kept
        return kept + kept * call.predictions // (1 + call.guidance)  # those of the longer batch are further ones

    def _sketch_of(self, stage: str, cast: torch.dtype | None) -> Sketch:
        """The networks for a stage: encoding pictures takes a VAE that has its encoder."""
        if stage != "picture":
            return self.sketch(cast)
        if cast not in self._with_encoder:
            self._with_encoder[cast] = self.sketch(cast).with_encoder(self.blueprint, cast)
        return self._with_encoder[cast]

    def _work(self, stage: str, call: CallSize, count: float, chosen: Chosen) -> Work:
        cast = self.cast(chosen)
        has_heavy_layers = stage in ("control", "denoise")
        part_bytes = self.residency(chosen).part_bytes if has_heavy_layers else None
        traced = tuple(each for each in chosen if each.shows_in(stage) and each.name != CASTS)
        key = stage, call, cast, part_bytes, tuple(map(str, traced))
        if key not in self._traced:
            sketch = self._sketch_of(stage, cast)
            undo = sketch.put_on(traced)
            try:
                self._traced[key] = self._trace(stage, sketch.networks, call, chosen, part_bytes)
            finally:
                undo()
        return Work(tuple(owners_of(stage, self.blueprint.networks)), self._traced[key], count)

    def _trace(
        self, stage: str, networks: Mapping[str, Any], call: CallSize, chosen: Chosen, part_bytes: int | None
    ) -> StageWork:
        device = self.blueprint.device
        if stage == "image":
            return trace_seeing(self._eyes, self._image_encoder(chosen), networks, call, device)
        return trace_stage(stage, networks, call, device, part_bytes=part_bytes)


def predictions(call: CallSize, techniques: Sequence[Technique]) -> UNetCalls:
    """What one step predicts: sizes, and how many of each on average."""
    return _divided({call: 1.0}, [technique.predictions for technique in techniques])


def unet_calls(call: CallSize, techniques: Sequence[Technique]) -> UNetCalls:
    """What one step calls the UNet for: sizes, and how many of each on average."""
    return _divided(predictions(call, techniques), [technique.unet_calls for technique in techniques])


def _divided(calls: UNetCalls, ways: Iterable[Callable[[CallSize], UNetCalls]]) -> UNetCalls:
    """The calls, each divided in one way after the other."""
    for way in ways:
        made: dict[CallSize, float] = {}
        for size, count in calls.items():
            for part, times in way(size).items():
                made[part] = made.get(part, 0.0) + count * times
        calls = made
    return calls


def moves(technique: Technique | type[Technique]) -> bool:
    """Whether it says where weights are."""
    cls = technique if isinstance(technique, type) else type(technique)
    return cls.residency is not Technique.residency
