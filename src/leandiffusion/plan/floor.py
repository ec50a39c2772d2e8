"""What a process of this library has in memory before any weights: interpreter, torch, tokenizer, threads, kernels."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ..core.malloc import trim
from ..device.host import is_host
from ..measure.environment import available_memory
from ..measure.memory import peak_rss, rss
from ..modules.tokenizer import CLIPTokenizer
from ..offload.engine import engine_of
from ..weights.residence import is_on_disk

if TYPE_CHECKING:
    from .profile import DeviceProfile

FRESH = "import leandiffusion.pipelines.stable_diffusion"
"""What a fresh process has imported that draws: a line of Python."""

_PROGRAM = f"""
import sys
import torch
{FRESH}
from leandiffusion.plan.floor import own_floor
print(*own_floor(torch.device(sys.argv[1])))
"""

_ANOTHER = 512 << 20
"""Bytes of host memory that have to be free for a fresh process beside this one."""

_PATIENCE = 60.0  # seconds; a loaded disk may take a dozen to import torch


class Floor(NamedTuple):
    """Bytes of host memory, and those among them that only computing brings: threads, kernels, their workspaces."""

    bytes: int
    computing: int


def own_floor(device: torch.device) -> Floor:
    """Of this process, which has imported what draws and done nothing yet. Zeros where the system does not tell."""
    tokenizer = CLIPTokenizer.standard()
    tokenizer("a photo")
    before = rss() or peak_rss() or 0
    with torch.no_grad():
        x = torch.ones(1, 64, 64, 64, device=device)
        y = torch.nn.functional.conv2d(x, torch.ones(64, 64, 3, 3, device=device), padding=1)
        torch.mm(y.view(64, -1), y.view(-1, 64))
        del x, y
    after = rss() or peak_rss() or 0
    return Floor(after, max(after - before, 0))


def measure_floor(device: torch.device) -> Floor:
    """Asked of a fresh process; of this one, which computes for it, where none can be started or memory is short."""
    available = available_memory()
    if available is not None and available < _ANOTHER:  # a limit on memory would end both
        return own_floor(device)
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(device)],
            check=True, capture_output=True, text=True, timeout=_PATIENCE,
        )  # fmt: skip
        floor, computing = asked.stdout.split()[-2:]
        return Floor(int(floor), int(computing))
    except (OSError, ValueError, subprocess.SubprocessError):
        return own_floor(device)


def floor_here(profile: DeviceProfile, networks: Iterable[nn.Module], *, has_computed: bool) -> int:
    """Bytes of host memory that this process has, or will have once it computes, besides the weights of `networks`
    and what they travel through.

    Programs that import more than this library, the planner itself among them, have more than a fresh process. Not less
    than the profile's.
    """
    trim()
    weights: dict[int, int] = {}
    for network in networks:
        weights |= {id(t): t.nbytes for t in (*network.parameters(), *network.buffers()) if _is_in_host_memory(t)}
        engine = engine_of(network)
        if engine is not None and is_host(engine.policy.device):
            weights[id(engine)] = engine.held_bytes
    mine = (rss() or 0) - sum(weights.values()) + (0 if has_computed else profile.computing)
    return max(profile.floor, mine)


def _is_in_host_memory(tensor: Tensor) -> bool:
    return is_host(tensor.device) and not is_on_disk(tensor)
