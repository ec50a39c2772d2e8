"""What the tasks on a picture have in common: its latents, as many as the batch has."""

from __future__ import annotations

import torch
from torch import Tensor

from ...schedulers.noise import Generators
from ..encoding import Encoded
from ..run import Run


def is_latent(picture: Tensor, run: Run) -> bool:
    """Whether what was given as a picture (n, C, H, W) is latents already."""
    return picture.shape[1] == run.shape[1]


def on_device(picture: Tensor, run: Run) -> Tensor:
    """Where the run computes, in its dtype."""
    return picture.to(run.model.device, run.model.dtype)


def fill_batch(rows: Tensor, batch: int) -> Tensor:
    """Rows (n, ...) over and over again until they are `batch`, of which n is a divisor."""
    return torch.cat([rows] * (batch // len(rows))) if len(rows) < batch else rows


def sample_for_all(encoded: Encoded, generator: Generators, batch: int) -> Tensor:
    """Latents (batch, c, h, w) of n pictures. A list of generators has one for each of the batch; a single one draws
    once for each picture."""
    if isinstance(generator, list):
        encoded = encoded.repeated(batch // len(encoded.mean))
    return fill_batch(encoded.sample(generator), batch)


def sample_once(encoded: Encoded, generator: Generators, batch: int) -> Tensor:
    """Latents (batch, c, h, w) of n pictures, for each of which noise is drawn once: of a list by its first n."""
    if isinstance(generator, list):
        generator = generator[: len(encoded.mean)]
    return fill_batch(encoded.sample(generator), batch)
