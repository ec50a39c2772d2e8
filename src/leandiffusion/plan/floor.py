"""What a process of this library has in memory before any weights: interpreter, torch, tokenizer, threads, kernels."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from ..core.malloc import trim
from ..measure.environment import available_memory
from ..measure.memory import peak_rss, rss
from ..weights.residence import is_on_disk

if TYPE_CHECKING:
    from .profile import DeviceProfile

_PROGRAM = """
import sys
import torch
import leandiffusion.pipelines.stable_diffusion
from leandiffusion.measure.memory import peak_rss, rss
from leandiffusion.modules.tokenizer import CLIPTokenizer
tokenizer = CLIPTokenizer.standard()
tokenizer("a photo")
before = rss() or peak_rss() or 0
with torch.no_grad():
    x = torch.ones(1, 64, 64, 64, device=sys.argv[1])
    y = torch.nn.functional.conv2d(x, torch.ones(64, 64, 3, 3, device=sys.argv[1]), padding=1)
    y = torch.mm(y.view(64, -1), y.view(-1, 64))
    del x, y
after = rss() or peak_rss() or 0
print(after, after - before)
"""

_ANOTHER = 512 << 20
"""Bytes of host memory that have to be free for a fresh process beside this one."""

_PATIENCE = 60.0  # seconds; a loaded disk may take a dozen to import torch


class Floor(NamedTuple):
    """Bytes of host memory, and those among them that only computing brings: threads, kernels, their workspaces."""

    bytes: int
    computing: int


def measure_floor(device: torch.device) -> Floor:
    """Asked of a fresh process; of this one where none can be started or memory is short, zeros where unknown."""
    here, available = Floor(rss() or peak_rss() or 0, 0), available_memory()
    if available is not None and available < _ANOTHER:  # a limit on memory would end both
        return here
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(device)],
            check=True, capture_output=True, text=True, timeout=_PATIENCE,
        )  # fmt: skip
        floor, computing = asked.stdout.split()[-2:]
        return Floor(int(floor), max(int(computing), 0))
    except (OSError, ValueError, subprocess.SubprocessError):
        return here


def floor_here(profile: DeviceProfile, networks: Iterable[nn.Module], *, has_computed: bool) -> int:
    """Bytes of host memory that this process has, or will have once it computes, besides the weights of `networks`.

    Programs that import more than this library, the planner itself among them, have more than a fresh process. Not less
    than the profile's.
    """
    trim()
    weights = {id(t): t.nbytes for network in networks for t in network.parameters() if not is_on_disk(t)}
    mine = (rss() or 0) - sum(weights.values()) + (0 if has_computed else profile.computing)
    return max(profile.floor, mine)
