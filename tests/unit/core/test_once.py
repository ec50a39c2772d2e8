"""What is read while a checkpoint is opened is read once, and forgotten when it is open."""

from __future__ import annotations

from threading import Thread

import pytest

from leandiffusion.core.once import once, opening

asked: list[str] = []


@once
def read(name: str, *, variant: str | None = None) -> list[str]:
    asked.append(name)
    if name == "bad":
        raise ValueError(name)
    return [name]


@pytest.fixture(autouse=True)
def nothing_asked() -> None:
    asked.clear()


def test_outside_every_question_is_read_anew() -> None:
    assert read("a") is not read("a")
    assert asked == ["a", "a"]


def test_inside_the_same_question_is_read_once() -> None:
    with opening():
        first = read("a")
        with opening():  # one opening may use another
            assert read("a") is first
        assert read("a") is first, "the inner one's end forgets nothing"
        read("a", variant="fp16")
    assert asked == ["a", "a"]
    with opening():
        assert read("a") is not first


def test_an_error_is_not_remembered() -> None:
    with opening():
        for _ in range(2):
            with pytest.raises(ValueError, match="bad"):
                read("bad")
    assert asked == ["bad", "bad"]


def test_threads_open_by_themselves() -> None:
    with opening():
        read("a")
        thread = Thread(target=read, args=("a",))
        thread.start()
        thread.join()
    assert asked == ["a", "a"]


def test_as_a_decorator() -> None:
    @opening()
    def twice() -> bool:
        return read("a") is read("a")

    assert twice()
    assert twice()
    assert asked == ["a", "a"]
