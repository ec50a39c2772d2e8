"""Measures how fast a device is: a CPU in a process of its own, whose memory is gone when it ends.

So whoever plans for a small budget keeps within it, and the floor of a fresh process is measured on the way.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from tqdm.auto import tqdm

from ..core.errors import ConfigError
from ..device.host import is_host
from ..device.threads import compute_aside
from .floor import FRESH, Floor, measure_floor, own_floor
from .points import no_less
from .profile import DeviceProfile
from .rates import Step, measure_dtype, measure_moves, measure_overhead, steps_of

PROGRAM = f"""
{FRESH}
from leandiffusion.plan.measuring import answer
answer()
"""

MEMORY = 512 << 20
"""Bytes that such a process takes beside this one, whose libraries it shares. With 390 MiB it was ended, when the file
that it reads, which may be in memory too, was 64 MiB smaller."""


def measure(
    device: torch.device, dtypes: Sequence[str], identity: Mapping[str, str], known: DeviceProfile | None
) -> DeviceProfile:
    """The dtypes, and what all have in common unless it is known, which shows a bar.

    Where no process can be started it is done here, in a thread that ends with it. Ctrl-C ends both. MemoryError where
    the system ended the process, as it does when memory runs out.
    """
    if is_host(device):
        try:
            return _asked(device, dtypes, identity, known)
        except subprocess.CalledProcessError as error:
            if error.returncode < 0:
                raise MemoryError("the process that measured was ended") from error
        except (OSError, ValueError, ConfigError):
            pass  # no process, or no answer: what follows does without

    def measured(interrupted: threading.Event) -> DeviceProfile:
        return _measured(device, dtypes, identity, known, measure_floor, interrupted)

    return compute_aside(measured)


def _asked(
    device: torch.device, dtypes: Sequence[str], identity: Mapping[str, str], known: DeviceProfile | None
) -> DeviceProfile:
    question = {
        "device": str(device), "dtypes": list(dtypes), "identity": dict(identity), "threads": torch.get_num_threads(),
        "known": None if known is None else known.to_json(),
    }  # fmt: skip
    asked = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps(question), stdout=subprocess.PIPE, text=True, check=True,
        start_new_session=True,  # a terminal's Ctrl-C interrupts this process alone, which ends the other
    )  # fmt: skip
    return DeviceProfile.from_json(json.loads(asked.stdout.splitlines()[-1]))


def answer() -> None:
    """In that process: what `_asked` asks on standard input, answered on standard output."""
    question = json.load(sys.stdin)
    torch.set_num_threads(question["threads"])
    known = None if question["known"] is None else DeviceProfile.from_json(question["known"])
    device, never = torch.device(question["device"]), threading.Event()
    profile = _measured(device, question["dtypes"], question["identity"], known, own_floor, never)
    print(json.dumps(profile.to_json()))


def _measured(
    device: torch.device,
    dtypes: Sequence[str],
    identity: Mapping[str, str],
    known: DeviceProfile | None,
    floor: Callable[[torch.device], Floor],
    interrupted: threading.Event,
) -> DeviceProfile:
    points = steps_of(device, len(dtypes)) + 1
    with tqdm(total=points, delay=2, leave=False, disable=None, desc=f"Measuring {device}", unit="") as bar:

        def step() -> None:
            if interrupted.is_set():
                raise KeyboardInterrupt
            bar.update()

        if known is None:
            own = floor(device)  # before anything else is in memory
            step()
            kept, fresh = (measure_moves(device, step, fresh=fresh) for fresh in (False, True))
            moves = {"kept": no_less(kept, fresh), "fresh": fresh}  # keeping memory costs nothing
            known = DeviceProfile(identity, "", {}, {}, moves, measure_overhead(device, step), {}, {}, *own)
        for name in dtypes:
            known = _with_dtype(known, device, name, step)
    return replace(known, date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))


def _with_dtype(known: DeviceProfile, device: torch.device, name: str, step: Step) -> DeviceProfile:
    """The profile as it is where the device does not compute that dtype."""
    try:
        measured = measure_dtype(device, getattr(torch, name), step)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # "not implemented for 'Half'": an old processor, or an old torch
        return known
    return replace(
        known,
        products={**known.products, name: measured.products},
        reorder={**known.reorder, name: measured.reorder},
        fetch={**known.fetch, name: measured.fetch},
        load={**known.load, name: measured.load},
        busy=max(known.busy, measured.busy),
    )
