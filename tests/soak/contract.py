"""Requests made of the OpenAPI document, right and wrong ones: none is answered by a failure of the server."""

from __future__ import annotations

import base64
import io
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from PIL import Image
from schemathesis.generation import GenerationMode
from tqdm.auto import tqdm

ROUNDS = 50
ENOUGH = 100
"""Requests of an operation, right or wrong, of which some have to be answered so."""

_file = io.BytesIO()
Image.new("RGB", (8, 8), "white").save(_file, "PNG")
PICTURE = base64.b64encode(_file.getvalue()).decode()

ERROR = {"message", "type", "param", "code"}


@dataclass
class Report:
    """Answers by operation and status, and what was wrong with them."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    progress: Any = None

    @property
    def cases(self) -> int:
        return sum(self.answers.values())

    def __str__(self) -> str:
        lines = [f"{operation}: {status} x {count}" for (operation, status), count in sorted(self.answers.items())]
        return "\n".join([*lines, f"{self.cases} cases, {len(self.wrong)} wrong", *self.wrong[:10]])


def explore(url: str, cases: int, first: int = 0) -> Report:
    """At least so many cases, half of them made to be wrong; most of them where there is a body."""
    report = Report(progress=tqdm(total=cases, desc="requests", mininterval=2))
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    drawing = [each for each in operations if "requestBody" in each.definition.raw]
    for operation in operations:
        if operation not in drawing:
            _explore_one(operation, GenerationMode.POSITIVE, cases // (20 * len(operations)) + 1, first, report)
    each = (cases - report.cases) // (2 * len(drawing)) + 1
    for operation in drawing:
        for mode in GenerationMode:
            _explore_one(operation, mode, each, first, report)
    report.progress.close()
    report.wrong += [
        f"{operation.label}: {kind} request was never answered by {status}: this shows nothing of it"
        for operation in drawing
        for status, kind in ((200, "a right"), (400, "a wrong"))
        if each >= ENOUGH and not report.answers[operation.label, status]
    ]
    return report


def _explore_one(operation: Any, mode: GenerationMode, cases: int, first: int, report: Report) -> None:
    """In rounds: now and then schemathesis stumbles over a file in a form that it made itself, which ends a round."""
    end = report.cases + cases
    for number in range(ROUNDS):
        try:
            _round(operation, mode, end - report.cases, first + number, report)
        except ValueError as error:
            if "Unsupported type: 'Binary'" not in str(error):
                raise
        if report.cases >= end:
            return


def _round(operation: Any, mode: GenerationMode, cases: int, first: int, report: Report) -> None:
    @seed(first)
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        if mode is GenerationMode.POSITIVE:
            _give_picture(case.body)
        answer = case.call(timeout=60)
        report.answers[operation.label, answer.status_code] += 1
        report.progress.update()
        if wrong := _wrong_with(answer):
            report.wrong.append(f"{operation.label}: {wrong}: {answer.content[:300]!r} to {repr(case.body)[:1000]}")

    ask()


def _give_picture(body: Any) -> None:
    """A picture in base64, where one belongs: no generator comes upon any, as it does with files of a form."""
    if isinstance(body, dict):
        for name, picture in (("image", PICTURE), ("init_images", [PICTURE])):
            if isinstance(body.get(name), type(picture)):
                body[name] = picture


def _wrong_with(answer: Any) -> str | None:
    if answer.status_code >= 500:
        return f"a failure, {answer.status_code}"
    if answer.status_code >= 400:
        try:
            found = answer.json()["error"]
        except Exception:
            return f"{answer.status_code} without our error"
        return None if set(found) == ERROR else f"an error of {set(found)}"
    return None
