"""The techniques that are on for one pipeline, in order of their phases."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import Any
from weakref import ref

import torch
from torch import nn

from ..core.errors import BackendUnavailable, ConfigError
from ..core.fork import Lock, renew_in_child
from ..core.malloc import freed_at_once
from ..core.notices import warn
from ..core.registry import did_you_mean
from ..device.host import is_host
from ..device.threads import in_forked_child
from ..offload.engine import engine_of
from ..weights.residence import is_waiting, load_from_disk
from . import techniques
from .base import Technique
from .hooks import Undo
from .subject import Subject
from .traffic import traffic


@dataclass(frozen=True)
class Applied:
    """A technique that is on, and why it is."""

    technique: Technique
    why: str
    default: bool = False
    """Whether a call switched it on by itself."""

    @property
    def name(self) -> str:
        """The technique's name, as `disable` takes it."""
        return self.technique.name

    def __str__(self) -> str:
        return f"{self.technique} [{self.technique.phase.name.lower()}, {self.technique.exactness}]: {self.why}"


class Stack:
    """Applies techniques in the order of their phases and takes them off in reverse.

    A technique of an early phase that comes late is slipped under the later ones: these are taken off and put back.
    Nothing changes while a picture is being drawn, and a change that fails leaves what was on before.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._applied: list[tuple[Applied, Undo]] = []
        self._wanted: tuple[Applied, ...] = ()  # what is on, or while that changes what is being put on
        self._networks: dict[str, ref[nn.Module]] = {}  # those that the techniques were applied to
        self._declined: set[str] = set()  # switched off by hand, which no default switches on again
        self._looked_at: Any = None  # that for which defaults were considered last
        self._lock = Lock()
        self._calls: Counter[int] = Counter()  # under way, by the thread that runs them
        self._turns: dict[int, ExitStack] = {}  # what each such thread's outermost call holds until it ends
        renew_in_child(self)

    # -- what is on --------------------------------------------------------------------------------------------------

    @property
    def applied(self) -> tuple[Applied, ...]:
        """What is on, in order of application."""
        return tuple(entry for entry, _ in self._applied)

    def find(self, group: str) -> Technique | None:
        """The technique of that name or group which is on, if any."""
        return next((e.technique for e in self.applied if group in (e.name, group_of(e.technique))), None)

    def renew(self) -> None:
        """In a forked child: calls in other threads of the parent are not under way here."""
        own = threading.get_ident()
        self._calls = Counter({own: self._calls[own]})

    # -- changing it -------------------------------------------------------------------------------------------------

    def enable(self, technique: Technique, why: str) -> bool:
        """Switch `technique` on in place of one of its group. False, with a warning, if it is optional and unusable.

        Raises BackendUnavailable when this machine or pipeline cannot run it and ConfigError when another technique
        that is on refuses it, both before anything changes.
        """
        with self._changing():
            kept = [entry for entry in self.applied if group_of(entry.technique) != group_of(technique)]
            kept = [entry for entry in kept if not (entry.default and refuse_each_other(entry.technique, technique))]
            # First: what is on may be what is in the way.
            check_together([entry.technique for entry in kept] + [technique])
            if reasons := technique.why_not(self.subject):
                message = f"{technique.name} cannot be used here: {'; '.join(reasons)}."
                if not technique.optional:
                    raise BackendUnavailable(message)
                warn(f"{message} Going on without it.")
                return False
            notes = technique.notes(self.subject)
            self._become([*kept, Applied(technique, why)])
            self._declined.discard(technique.name)
        for note in notes:
            warn(note)
        return True

    def disable(self, name: str) -> None:
        """Switch the technique of that name off; nothing happens if it is not on. ConfigError for unknown names."""
        techniques.get(name)
        with self._changing():
            self._become([entry for entry in self.applied if entry.name != name])
            self._declined.add(name)

    def clear(self) -> None:
        """Switch everything off."""
        with self._changing():
            self._become([])

    def replace(self, wanted: Iterable[Technique], why: str) -> None:
        """Switch on exactly these, in one change: what is on already stays, everything else goes off, defaults too.

        Raises BackendUnavailable and ConfigError as `enable` does, before anything changes.
        """
        with self._changing():
            wanted = list(wanted)
            for technique in wanted:
                if reasons := technique.why_not(self.subject):
                    raise BackendUnavailable(f"{technique.name} cannot be used here: {'; '.join(reasons)}.")
            check_together(wanted)
            defaults = {*techniques_by_default()}
            on = list(self.applied)
            fresh = [Applied(each, why, default=each.name in defaults) for each in wanted]
            self._become([next((was for was in on if was.technique == new.technique), new) for new in fresh])
            self._declined = defaults - {technique.name for technique in wanted}

    def lifted(self, change: Callable[[], None]) -> None:
        """Run `change` on the pipeline's components with everything off, then put back what was on.

        What cannot be used with the components as they are now stays off, with a warning that says why.
        """
        unfit: list[str] = []
        with self._changing():
            wanted = self.applied
            self._unwind(0)
            try:
                change()
            finally:
                why_not = [entry.technique.why_not(self.subject) for entry in wanted]
                for entry, why in zip(wanted, why_not, strict=True):
                    unfit += [f"{entry.name} is switched off: {'; '.join(why)}."] if why and not entry.default else []
                self._wind([entry for entry, why in zip(wanted, why_not, strict=True) if not why])
        for message in unfit:
            warn(message)

    def _become(self, wanted: list[Applied]) -> None:
        """Make `wanted` what is on, touching only what lies above the first difference."""
        wanted.sort(key=lambda entry: entry.technique.phase)
        before = self.applied
        same = next((i for i, pair in enumerate(zip(before, wanted, strict=False)) if pair[0] is not pair[1]), None)
        height = min(len(before), len(wanted)) if same is None else same
        self._unwind(height if _above_cpu(wanted) == _above_cpu(before) else 0)  # kernels are chosen by the device
        try:
            self._wind(wanted)
        except BaseException:
            self._unwind(0)
            self._wind(before)
            raise

    def _want(self, wanted: Iterable[Applied]) -> None:
        self._wanted = tuple(wanted)
        self.subject.destination = _compute_device(self._wanted)

    def _unwind(self, height: int) -> None:
        while len(self._applied) > height:
            self._applied.pop()[1]()

    def _wind(self, wanted: list[Applied] | tuple[Applied, ...]) -> None:
        self._want(wanted)
        try:
            for entry in wanted[len(self._applied) :]:
                self._applied.append((entry, entry.technique.apply(self.subject)))
        except BaseException:
            self._want(self.applied)
            raise
        networks = self.subject.networks
        self._networks = {name: ref(network) for name, network in networks.items()}
        for network in networks.values():
            if engine_of(network) is None and not is_waiting(network):  # what offloading left on disk
                load_from_disk(network)

    # -- calls -------------------------------------------------------------------------------------------------------

    @contextmanager
    def call(self) -> Iterator[None]:
        """Around everything that runs networks: techniques stay as they are, and meet components that were replaced.

        Where networks' weights travel, calls take turns, those of other pipelines that share them included. Where they
        come from disk layer by layer, what is freed is given back from some size on (`Policy.freed_from`).
        """
        in_forked_child()
        own = threading.get_ident()
        with self._lock:
            self._settle()
            self._calls[own] += 1
        try:
            with traffic.running(self.subject.networks.values()), ExitStack() as turns:
                self._turns.setdefault(own, turns)
                self._take_turns(turns)
                yield
        finally:
            with self._lock:
                if self._turns.get(own) is turns:
                    del self._turns[own]
                self._calls[own] -= 1
                if not self._calls.total():
                    self.subject.calls_ended()

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """In the midst of this thread's call, while it runs no network: techniques may change.

        They may not, and changing them raises ConfigError, while other calls run the same networks.
        """
        own = threading.get_ident()
        with self._lock:
            count = self._calls.pop(own, 0)
        try:
            with traffic.resting(self.subject.networks.values()):
                yield
            if own in self._turns:  # weights may travel from now on that did not when the call began
                self._take_turns(self._turns[own])
        finally:
            with self._lock:
                self._calls[own] += count

    def _take_turns(self, turns: ExitStack) -> None:
        engines = {engine_of(network) for network in self.subject.networks.values()} - {None}
        for engine in sorted(engines, key=id):  # in one order: nobody waits for somebody who waits for him
            turns.enter_context(engine.turn)  # type: ignore[union-attr]
        sizes = {engine.policy.freed_from for engine in engines}  # type: ignore[union-attr]
        for size in filter(None, sizes):
            turns.enter_context(freed_at_once(size))

    def _settle(self) -> None:
        """Where a network was replaced by hand, move what is on from the old one to the new one."""
        now = self.subject.networks
        then = {name: network() for name, network in self._networks.items()}
        replaced = any(now.get(name) is not then.get(name) for name in {*now, *then})
        if self._calls.total() or traffic.is_running(now.values()):
            return
        if self._applied and replaced:
            self.lifted(lambda: None)
        looked_at = ({name: id(network) for name, network in now.items()}, self.subject.device, self.subject.dtype)
        if (*looked_at, self.applied) != self._looked_at:
            self._put_on_defaults()
            self._looked_at = (*looked_at, self.applied)

    def _put_on_defaults(self) -> None:
        """Switch on what is on by default, can be used here, and nobody switched off."""
        for name in techniques_by_default():
            if name in self._declined or self.find(name):
                continue
            technique = techniques.get(name)()
            met = any(refuse_each_other(technique, entry.technique) for entry in self.applied)
            if not met and not technique.why_not(self.subject) and technique.by_default(self.subject):
                with self._changing():
                    self._become([*self.applied, Applied(technique, "on by default here", default=True)])

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._lock, traffic.changing(self.subject.networks.values()):
            yield


def techniques_by_default() -> Iterator[str]:
    """Names of those that calls switch on by themselves where they can be used."""
    for name in techniques:
        if techniques.get(name).by_default is not Technique.by_default:
            yield name


def make(technique: Technique | str, settings: dict[str, Any]) -> Technique:
    """A technique from its name and settings, or the one given. ConfigError for unknown names and settings."""
    if isinstance(technique, Technique):
        if settings:
            raise ConfigError(
                f"{technique} has its settings already: pass {', '.join(settings)} to {type(technique).__name__}(…)."
            )
        return technique
    cls = techniques.get(technique)
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    for key in settings:
        if key not in known:
            raise ConfigError(
                f"{technique} has no setting {key!r}.{did_you_mean(key, known)} Its settings: "
                f"{', '.join(known) or 'none'}."
            )
    return cls(**settings)


def check_together(wanted: list[Technique], fix: str = "Switch one off: pipe.disable({0!r}).") -> None:
    """ConfigError for the first two that refuse each other, by name; `fix` says what to do, given the first's name."""
    for i, one in enumerate(wanted):
        for other in wanted[i + 1 :]:
            if refuse_each_other(one, other):
                raise ConfigError(
                    f"{other.name} and {one.name} cannot be on together: {_because(one, other)} {fix.format(one.name)}"
                )


def refuse_each_other(one: Technique, other: Technique) -> bool:
    """Whether the two cannot be on together."""
    return other.name in one.refuses or one.name in other.refuses


def _because(one: Technique, other: Technique) -> str:
    refusing = one if other.name in one.refuses else other
    return refusing.price.refuses


def group_of(technique: Technique) -> str:
    """Techniques of one group replace each other."""
    return technique.group or technique.name


def _compute_device(entries: Iterable[Applied]) -> torch.device | None:
    return next((e.technique.compute_device for e in entries if group_of(e.technique) == "offload"), None)  # type: ignore[attr-defined]


def _above_cpu(entries: Iterable[Applied]) -> torch.device | None:
    """The accelerator that weights travel to; None when they do not, or come from disk to the CPU."""
    device = _compute_device(entries)
    return None if device is None or is_host(device) else device
