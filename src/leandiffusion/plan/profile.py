"""How fast a device is, measured once and kept in the cache folder; see `core.cache`."""

from __future__ import annotations

import datetime
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..core.cache import VARIABLE, cache_folder
from ..core.config import read_json, write_json
from ..core.errors import ConfigError, MalformedFile
from ..core.libraries import pages
from ..core.notices import warn
from ..device.host import is_host
from .points import Points

if TYPE_CHECKING:
    import torch


METHOD = "2"
"""Of measuring, for profiles that earlier ones took: another number whenever `plan.rates` or `plan.reading` measure
something else, or in another way."""

IDENTITY = ("method", "leandiffusion", "torch", "openvino", "device", "flags", "threads", "cores", "pages")
"""What a profile holds for: how it was measured, versions, the device's name behind its type, instruction sets, threads
on cores, and pages of memory."""

BUSY = 0.25
"""Share of the processor that others have on what is called a busy machine."""

PATIENCE = datetime.timedelta(minutes=10)
"""From one measurement on a busy machine to the next."""


@dataclass(frozen=True)
class DeviceProfile:
    """What a device does in a second, under `taken_under`, which tells each of IDENTITY.

    `products`: by dtype name, then by kind ('matmul', 'conv', 'attention'), points of FLOP/s over FLOP per byte read
    and written; 'conv' with packed weights where there are such, 'long attention' where another kernel is faster.
    `reorder`: by dtype name, seconds that plain weights take longer, over the bytes that the convolution moves.
    `moves`: bytes/s of other operations over the bytes of one, 'kept' where the process keeps freed memory, 'fresh'
    where it gives it back (`core.malloc`). `overhead`: seconds of an operation with nothing to do. `fetch`: by dtype
    name, bytes/s of weights from the tier below, `load` those of whole networks, which on a CPU go to memory that
    the system gives anew. `floor`: bytes of host memory that a process has before any weights, `computing` those of
    them that come with the first computation. `busy`: the share of the processor, from 0 to 1, that others had while it
    was measured. `date`: when it was taken, ISO 8601.
    """

    taken_under: Mapping[str, str]
    date: str
    products: Mapping[str, Mapping[str, Points]]
    reorder: Mapping[str, Points]
    moves: Mapping[str, Points]
    overhead: float
    fetch: Mapping[str, float]
    load: Mapping[str, float]
    floor: int
    computing: int
    busy: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads back."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DeviceProfile:
        """The profile that `to_json` wrote. ConfigError for anything else, rates that are no numbers above zero
        included."""
        try:
            taken_under = {"method": "1", **values["taken_under"]}  # the first did not tell
            return cls(
                taken_under={name: str(taken_under[name]) for name in IDENTITY},
                date=_date(values["date"]),
                products={
                    dtype: {kind: _points(kinds[kind]) for kind in {"matmul", "conv", "attention"} | kinds.keys()}
                    for dtype, kinds in values["products"].items()
                },
                reorder={dtype: _points(points, least=0.0) for dtype, points in values["reorder"].items()},
                moves={name: _points(values["moves"][name], fewest=2) for name in ("kept", "fresh")},
                overhead=_number(values["overhead"]),
                fetch={dtype: _number(rate) for dtype, rate in values["fetch"].items()},
                load={dtype: _number(rate) for dtype, rate in values["load"].items()},
                floor=int(_number(values["floor"], least=0.0)),
                computing=int(_number(values["computing"], least=0.0)),
                busy=_number(values["busy"], least=0.0),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"this is no profile of a device ({error!r}): delete it, and it is measured anew."
            ) from error

    @property
    def is_doubtful(self) -> bool:
        """Whether it was taken on a busy machine, which may be quiet by now: it told less than the device can do."""
        taken = datetime.datetime.fromisoformat(self.date)
        return self.busy > BUSY and datetime.datetime.now(datetime.UTC) - taken > PATIENCE

    @property
    def has_idle_cores(self) -> bool:
        """Whether weights are fetched beside the computation without taking a core from it; always for accelerators."""
        told = self.taken_under
        return not is_host(told["device"]) or int(told["cores"]) > int(told["threads"])


def _date(text: str) -> str:
    if datetime.datetime.fromisoformat(text).tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return text


def _points(values: Any, least: float = math.ulp(0), fewest: int = 0) -> Points:
    points = tuple((_number(x), _number(y, least)) for x, y in values)
    if list(points) != sorted(points) or len(points) < fewest:
        raise ValueError("points are too few, or not in order")
    return points


def _number(value: Any, least: float = math.ulp(0)) -> float:
    if not math.isfinite(value) or value < least:
        raise ValueError(f"{value!r} is out of range")
    return float(value)


def profile_of(
    device: torch.device | str, dtypes: Sequence[str] = ("float32",), *, anew: bool = False
) -> DeviceProfile:
    """The device's profile with at least these dtypes ('float32', 'bfloat16', 'float16').

    It is read from the cache folder where one was taken there under the same versions, processor or GPU and number of
    threads. Otherwise, or with `anew`, it is measured, which takes a few seconds and shows a bar, and written there;
    a CPU by another process, so that this one takes no more memory for it.
    One that was taken on a busy machine is measured again after ten minutes, a damaged file at once. A folder that
    cannot be written to is told in a warning, and does no harm. A dtype that the device does not compute is left out.
    Where memory is too short for measuring, typical figures take its place, with a warning. ConfigError for devices
    whose time cannot be told.
    """
    import torch

    from ..device.streams import can_be_timed

    place = torch.device(device)
    if not can_be_timed(place):
        raise ConfigError(f"device={str(device)!r}: work is timed on 'cpu' or 'cuda', or where events tell time.")
    if anew:
        _remembered.cache_clear()
    return _remembered(place, tuple(dtypes), tuple(identity_of(place).items()), anew)


@functools.cache
def _remembered(
    device: torch.device, dtypes: tuple[str, ...], identity: tuple[tuple[str, str], ...], anew: bool
) -> DeviceProfile:
    """Once in a process for the same question: where nothing can be kept on disk, it is not measured for each plan."""
    from .typical import too_little_memory, typical_profile

    path = cache_folder() / f"profile-{str(device).replace(':', '-')}.json"
    known = None if anew else _read(path, dict(identity))
    if known is not None and known.is_doubtful:
        known, dtypes = None, tuple(dict.fromkeys((*known.products, *dtypes)))
    missing = [name for name in dtypes if known is None or name not in known.products]
    if known is not None and not missing:
        return known
    if too_little_memory(device):
        return typical_profile(device, dtypes, dict(identity))
    try:
        profile = _measure(device, missing, dict(identity), known)
    except MemoryError:
        return typical_profile(device, dtypes, dict(identity))
    except OSError as error:
        return typical_profile(device, dtypes, dict(identity), error)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, profile.to_json())
    except OSError as error:
        warn(
            f"{path.parent} cannot be written to ({error.strerror or error}), so the speed of {device} is measured in "
            f"each process: make room there, or name another folder in {VARIABLE}."
        )
    return profile


def _read(path: Any, identity: Mapping[str, str]) -> DeviceProfile | None:
    """The profile in the file, None where there is none, it is damaged, or was taken under something else."""
    try:
        profile = DeviceProfile.from_json(read_json(path))
    except (OSError, MalformedFile, ConfigError):
        return None
    return profile if profile.taken_under == identity else None


def identity_of(device: torch.device) -> dict[str, str]:
    """What speed depends on: a profile that was taken under something else says nothing."""
    import torch

    from ..device.capabilities import name_of
    from ..measure.environment import describe_cpu, package_version

    cpu = describe_cpu()
    name = str(cpu["model"]) if is_host(device) else name_of(device)
    return {
        "method": METHOD,
        "leandiffusion": __version__,
        "torch": str(torch.__version__),
        "openvino": package_version("openvino") or "",
        "device": f"{device.type}: {name}",
        "flags": " ".join(cpu["flags"]),
        "threads": str(torch.get_num_threads()),
        "cores": str(cpu["usable cores"] or cpu["logical cores"]),
        "pages": pages(),
    }


def _measure(
    device: torch.device, dtypes: Sequence[str], identity: Mapping[str, str], known: DeviceProfile | None
) -> DeviceProfile:
    from .measuring import measure

    return measure(device, dtypes, identity, known)
