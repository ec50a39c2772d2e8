"""What a process of this library has in memory before any weights: interpreter, torch, tokenizer, threads, kernels."""

from __future__ import annotations

import subprocess
import sys

import torch

from ..measure.memory import peak_rss, rss

_PROGRAM = """
import sys
import torch
import leandiffusion.pipelines.stable_diffusion
from leandiffusion.measure.memory import peak_rss, rss
from leandiffusion.modules.tokenizer import CLIPTokenizer
tokenizer = CLIPTokenizer.standard()
tokenizer("a photo")
with torch.no_grad():
    x = torch.ones(1, 64, 64, 64, device=sys.argv[1])
    y = torch.nn.functional.conv2d(x, torch.ones(64, 64, 3, 3, device=sys.argv[1]), padding=1)
    y = torch.mm(y.view(64, -1), y.view(-1, 64))
    del x, y
print(rss() or peak_rss() or 0)
"""

_PATIENCE = 60.0  # seconds; a loaded disk may take a dozen to import torch


def measure_floor(device: torch.device) -> int:
    """Bytes of host memory, asked of a fresh process; of this one where none can be started, 0 where unknown."""
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(device)],
            check=True, capture_output=True, text=True, timeout=_PATIENCE,
        )  # fmt: skip
        return int(asked.stdout.split()[-1])
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return rss() or peak_rss() or 0
