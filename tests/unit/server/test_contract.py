"""Requests made of the OpenAPI document are answered without a failure; `make soak` makes thousands."""

from __future__ import annotations

import sys

import pytest
from tests.soak.contract import explore
from tests.soak.ending import end_under_load
from tests.soak.endure import endure
from tests.soak.quick import Running, quick_server
from tests.unit.server.test_process import COMMAND


def test_requests_made_of_the_document_are_answered():
    with quick_server() as running:
        report = explore(running.url, 120)
    assert report.cases >= 120
    assert not report.wrong, str(report)
    posted = {status for (operation, status) in report.answers if operation.startswith("POST")}
    assert posted >= {200, 400}


def test_many_requests_are_all_answered_though_some_leave(running: Running):
    report = endure(running.url, 30, leaving=0.3)
    assert set(report.ended) == {"answered", "left"}, str(report)
    assert not report.left_over
    assert report.cancelled == report.ended["left"]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM to drain on")
def test_sigterm_under_load_leaves_nobody_without_an_answer():
    report = end_under_load(clients=12, after=0.5, drain=0.5, command=COMMAND)
    assert not report.wrong, str(report)
