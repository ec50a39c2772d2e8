"""Settings are checked against their annotations and limits, and messages are short whatever they show."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from leandiffusion.core.config import Configurable
from leandiffusion.core.errors import CheckpointNotFound, ConfigError, LeanError, MalformedFile
from leandiffusion.core.wording import show


class Thing(Configurable):
    def __init__(
        self,
        hidden_size: int = 8,
        block_out_channels: Sequence[int] = (8,),
        eps: float = 1e-5,
        lowest: float = -math.inf,
        name: str | None = None,
        on: bool = False,
        betas: Sequence[float] | None = None,
        sizes: int | Mapping[str, int] = 3,
        any_thing: Any = None,
    ) -> None:
        pass


@pytest.mark.parametrize(
    "good",
    [
        {"hidden_size": 16384},
        {"hidden_size": np.int64(3)},
        {"block_out_channels": [4, 4]},
        {"eps": 1},
        {"lowest": -5.1},
        {"lowest": -math.inf},
        {"on": None},
        {"on": 1},
        {"betas": np.linspace(0, 1, 5)},
        {"betas": [0.1, 1]},
        {"sizes": {"height": 4}},
        {"any_thing": object()},
    ],
)
def test_what_fits(good: dict[str, Any]) -> None:
    assert Thing(**good).config[next(iter(good))] is not False


@pytest.mark.parametrize(
    "bad",
    [
        {"hidden_size": value}
        for value in (None, "8", 8.0, True, [8], {}, 0, -1, 2**31, 10**400, math.nan)
    ]
    + [{"block_out_channels": value} for value in (None, 8, "8", {}, [8.0], [None], [[8]], [8] * 33, [2**31])]
    + [{"eps": value} for value in (None, "1e-5", [], True, math.nan, math.inf, 10**400, 2**63, 1e39)]
    + [{"lowest": math.nan}, {"name": 5}, {"name": "x" * 2000}, {"on": "yes"}, {"on": 2}, {"on": []}]
    + [{"betas": 1.0}, {"betas": [0.1, "x"]}, {"betas": [math.nan]}, {"betas": [0.1] * 200_000}]
    + [{"sizes": {"height": 4.5}}, {"sizes": {3: 4}}, {"sizes": [3]}],
    ids=show,
)  # fmt: skip
def test_what_does_not_fit(bad: dict[str, Any]) -> None:
    key = next(iter(bad))
    for build in (Thing, lambda **values: Thing.from_config(values)):
        with pytest.raises(ConfigError, match=f"Thing: {key}=.* must be") as caught:
            build(**bad)
        assert len(str(caught.value)) < 500


def test_unknown_keys_of_any_length() -> None:
    with pytest.raises(ConfigError, match="does not support the config keys") as caught:
        Thing.from_config({"x" * 10**6: "y" * 10**6, "z" * 10**6: [1] * 10**6})
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("kind", [LeanError, ConfigError, MalformedFile, CheckpointNotFound])
def test_every_error_is_short(kind: type[LeanError]) -> None:
    short, long = "a short message", f"/a/{'b' * 4000}/c.safetensors is broken. " + "word " * 400 + "Do this next."
    assert str(kind(short)) == short
    told = str(kind(long))
    assert len(told) < 500
    assert told.startswith("/a/b")
    assert told.endswith("Do this next.")
    assert str(pickle.loads(pickle.dumps(kind(long)))) == told
    assert len(str(kind("x" * 10**7))) < 500


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a", "'a'"),
        ("it's", '"it\'s"'),
        (None, "None"),
        ([1, 2.5], "[1, 2.5]"),
        ({"a": (1,)}, "{'a': (1,)}"),
        (10**5000, "a whole number of 16610 bits"),
    ],
    ids=show,
)
def test_values_are_shown_as_they_are_written(value: object, shown: str) -> None:
    assert show(value) == shown


@pytest.mark.parametrize(
    "value", ["x" * 10**7, [["y" * 1000] * 1000] * 1000, dict.fromkeys(range(10**5)), b"z" * 10**6], ids=show
)
def test_long_values_are_shown_in_part(value: object) -> None:
    assert len(show(value)) < 300
