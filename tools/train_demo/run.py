"""What both trainings share: learning rate, moving average of the weights, log, checkpoints and resume."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

WARMUP = 200


def rate_at(step: int, steps: int, peak: float, decay: float = 1.0, floor: float = 0.01) -> float:
    """Linear warm-up, `peak`, then over the last share `decay` of the steps a cosine down to `floor` of the peak."""
    start = max(round((1 - decay) * steps), WARMUP)
    progress = min(max(step - start, 0) / max(steps - start, 1), 1.0)
    return peak * min(1.0, (step + 1) / WARMUP) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


class Average:
    """Exponential moving average of the weights; its horizon grows with the steps done until it is `horizon` long."""

    def __init__(self, network: nn.Module, horizon: int = 500) -> None:
        self.horizon = horizon
        self.weights = {name: p.detach().clone() for name, p in network.named_parameters()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        weight = 1 / min(self.horizon, step / 4 + 1)
        parameters = list(network.named_parameters())
        torch._foreach_lerp_(
            [self.weights[name] for name, _ in parameters], [p.detach() for _, p in parameters], weight
        )


class Run:
    """A training that can be stopped at any moment: everything it needs to go on is in `folder`/checkpoint.pt."""

    def __init__(
        self, folder: Path, network: nn.Module, *, peak: float, steps: int, decay: float = 1.0, save_every: int = 100
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.network, self.steps, self.save_every = folder, network, steps, save_every
        self.rate = lambda step: rate_at(step, steps, peak, decay)
        decayed = [p for p in network.parameters() if p.ndim > 1]
        rest = [p for p in network.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=True)
        self.average = Average(network)
        self.step = 0
        self._seconds, self._since, self._sums = 0.0, time.monotonic(), {}
        self._resume()

    def update(self, loss: torch.Tensor, **figures: torch.Tensor) -> None:
        """One optimizer step on `loss`; `figures` are averaged into the log."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.step)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        if torch.isfinite(norm):  # one bad batch in bfloat16 must not end the run
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.network, self.step)
        self.step += 1
        for name, value in {"loss": loss, "norm": norm, **figures}.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value.detach())
        if self.step % 50 == 0:
            self._log()
        if self.step % self.save_every == 0 or self.step == self.steps:
            self.save()

    def _log(self) -> None:
        now = time.monotonic()
        self._seconds, self._since = self._seconds + now - self._since, now
        row = {"step": self.step, "minutes": round(self._seconds / 60, 2), "rate": self.rate(self.step)}
        row |= {name: round(total / 50, 5) for name, total in self._sums.items()}
        self._sums = {}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")

    def save(self) -> None:
        """Write the checkpoint aside and rename it, so that an interruption never leaves half a file."""
        state = {
            "network": self.network.state_dict(),
            "average": self.average.weights,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self._seconds,
        }
        aside = self.folder / "checkpoint.tmp"
        torch.save(state, aside)
        os.replace(aside, self.folder / "checkpoint.pt")

    def _resume(self) -> None:
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average.weights = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self._seconds = state["step"], state["seconds"]

    def rng(self, seed: int) -> np.random.Generator:
        """Randomness for this step alone: a resumed run draws what an uninterrupted one would have drawn."""
        torch.manual_seed((seed << 32) + self.step)
        return np.random.default_rng([seed, self.step])


def average_of(folder: Path) -> Mapping[str, torch.Tensor]:
    """The averaged weights of a run: what is shipped."""
    return torch.load(folder / "checkpoint.pt", weights_only=True, mmap=True)["average"]
