"""Requests made of the OpenAPI document are answered without a failure; `make soak` makes thousands."""

from __future__ import annotations

from tests.soak.contract import explore
from tests.soak.endure import endure
from tests.soak.quick import Running, quick_server


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
