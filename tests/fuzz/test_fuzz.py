"""Damaged files end in an error of ours, soon, with a short message, and leave no memory behind."""

from __future__ import annotations

from .watch import fuzz


def test_five_hundred_damaged_files() -> None:
    """The same as `make fuzz`, which opens 20,000. Takes seconds, for networks are built and weights are read."""
    report = fuzz(500)
    assert report.cases >= 490  # hypothesis draws few numbers twice
    assert not report.wrong, str(report)
