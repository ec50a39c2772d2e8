"""What is printed: a row per file, the tests that do not pass by reason, and which of these were not expected."""

from __future__ import annotations

import re
from collections import defaultdict

from .expected import kind_of, short
from .run import Outcomes

Pairs = dict[str, tuple[Outcomes, Outcomes]]
"""Short name of a file -> how its tests ended with diffusers and with ours."""


def rows(pairs: Pairs) -> str:
    """A line per file: how many pass with diffusers, and of those with ours; their sum."""
    counts = {
        name: (len(passing(theirs)), len(passing(theirs) & passing(ours))) for name, (theirs, ours) in pairs.items()
    }
    counts["together"] = tuple(sum(column) for column in zip(*counts.values(), strict=True))  # type: ignore[assignment]
    width = max(map(len, counts))
    lines = [f"{'':{width}}  diffusers  ours"]
    lines += [f"{name:{width}}  {theirs:9}  {ours:4}" for name, (theirs, ours) in counts.items()]
    return "\n".join(lines)


def passing(outcomes: Outcomes) -> set[str]:
    return {test for test, outcome in outcomes.items() if outcome.passed}


def lost(theirs: Outcomes, ours: Outcomes) -> dict[str, str]:
    """Tests that pass with diffusers, ran with ours and did not pass -> why."""
    return {
        test: f"skipped: {ours[test].reason}" if ours[test].outcome == "skipped" else ours[test].reason
        for test in sorted(passing(theirs))
        if test in ours and not ours[test].passed
    }


def by_reason(pairs: Pairs, patterns: list[tuple[str, str]]) -> str:
    """The lost tests under their reasons, the commonest reason first; expected ones with their kind."""
    groups: dict[str, list[str]] = defaultdict(list)
    for theirs, ours in pairs.values():
        for test, reason in lost(theirs, ours).items():
            kind = kind_of(test, patterns)
            groups[_alike(reason)].append(short(test) + (f"  [{kind}]" if kind else ""))
    lines = []
    for reason, tests in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        lines += [f"{len(tests)} × {reason}", *(f"    {test}" for test in tests)]
    return "\n".join(lines)


def _alike(reason: str) -> str:
    """A reason without what differs from test to test: numbers, addresses, temporary folders."""
    return re.sub(r"/tmp/\S+|0x[0-9a-f]+|\d+\.\d+(e-?\d+)?", "…", reason)


def surprises(pairs: Pairs, patterns: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Tests that should pass and do not; names in the list of expected failures (no patterns) that do pass."""
    failing = [
        short(test) for theirs, ours in pairs.values() for test in lost(theirs, ours) if kind_of(test, patterns) is None
    ]
    named = {pattern for pattern, _ in patterns if "*" not in pattern}
    mended = [short(test) for theirs, ours in pairs.values() for test in passing(ours) if short(test) in named]
    return failing, sorted(mended)
