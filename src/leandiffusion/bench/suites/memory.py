"""What offloading, slicing and tiling save, alone and together."""

from __future__ import annotations

from collections.abc import Sequence

from ..workload import Row, Workload
from . import suites
from .base import COST, SCORES, TIME, Enabled, Suite

SLICED: Enabled = (("attention_slicing", {"size": "max"}),)
TILED: Enabled = (("vae_tiling", {}),)
HALF_RESIDENT: Enabled = (("sequential_offload", {"resident_fraction": 0.5}),)


def rows(workload: Workload, declared: Sequence[Row]) -> list[Row]:
    """Everything resident, attention's scores, the single techniques, and combinations that save the most."""
    alone = {row.name: row for row in declared}
    sequential = [row for row in (alone.pop("sequential_offload", None),) if row]  # behind the half that leads to it
    found = [
        Row("resident", "everything resident"),
        Row("resident_fp32", "everything resident, fp32", "float32"),
        Row("plain_attention", "attention that keeps its scores", enable=SCORES),
        Row("attention_slicing", "the same, sliced", enable=SCORES + SLICED, adds="attention_slicing"),
        *alone.values(),
        Row("half_resident", "sequential offload, half of the weights resident", enable=HALF_RESIDENT,
            offload="sequential"),
        *sequential,
        Row("sequential_slicing", "sequential offload, attention slicing", enable=SLICED, offload="sequential"),
        Row("least", "sequential offload, attention slicing, VAE tiling", enable=SLICED + TILED, offload="sequential"),
    ]  # fmt: skip
    return [row for row in found if row.name != "resident_fp32" or workload.half != "float32"]


MEMORY = suites.add(
    "memory",
    Suite(
        name="memory",
        title="Ways of saving memory",
        about="Every way of saving memory: offloading, slicing, tiling, alone and together.",
        example="resident,sequential_offload,least",
        rows=rows,
        columns=(TIME, COST, ("at load", "at text", "at denoise", "at decode")),
    ),
)
