"""Peak against time of every combination, with the budget as a line and the pick marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..core.aside import aside
from ..core.errors import BackendUnavailable
from .explain import headline
from .plan import Plan
from .search import Candidate

GIB = 1 << 30


def draw(plan: Plan, candidates: Sequence[Candidate], path: Path) -> None:
    """Write the plot as a PNG. BackendUnavailable without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise BackendUnavailable(
            "plots are drawn by matplotlib, which is not installed: pip install 'leandiffusion[bench]'."
        ) from None
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    by_placement: dict[str, list[Candidate]] = {}
    for each in candidates:
        by_placement.setdefault(_placement(each), []).append(each)
    for name, some in by_placement.items():
        axes.scatter(
            [each.prediction.peak / GIB for each in some], [each.prediction.seconds for each in some], s=14, alpha=0.6,
            label=name, linewidths=0,
        )  # fmt: skip
    if plan.budget_bytes is not None:
        axes.axvline(plan.budget_bytes / GIB, color="0.3", linestyle="--", linewidth=1, label="budget")
    axes.scatter(
        [plan.prediction.peak / GIB], [plan.prediction.seconds], s=120, marker="*", color="black", zorder=3,
        label=f"chosen: {plan.settings}",
    )  # fmt: skip
    axes.set(xlabel="peak memory, GiB (predicted)", ylabel="time, s (predicted)", title=headline(plan))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    with aside(path) as place:
        figure.savefig(place, format="png", dpi=120)
        place.replace(path)


def _placement(candidate: Candidate) -> str:
    """How its weights lie, in the legend."""
    kinds = [each.name for each in candidate.techniques if each.name in _PLACING]
    return " + ".join(kinds) or "weights in memory"


_PLACING = ("half_precision", "sequential_offload", "model_offload", "packed_weights")
