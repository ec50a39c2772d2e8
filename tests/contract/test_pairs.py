"""Every two techniques: they work together, or one refuses the other by name before anything moves."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from tests.contract.common import USABLE, Draw, enable, state
from tests.contract.test_one_technique import check_parity

from leandiffusion import ConfigError
from leandiffusion.techniques import techniques

TRIPLES = [
    ("sequential_offload", "attention_slicing", "half_precision"),
    ("model_offload", "attention_slicing", "vae_slicing"),
    ("vae_slicing", "attention_slicing", "attention_backend"),
    ("traced_unet", "channels_last", "vae_tiling"),
    ("sequential_offload", "attention_slicing", "vae_tiling"),
    ("compile", "channels_last", "vae_slicing"),
]


def refuse_each_other(one: str, other: str) -> bool:
    return other in techniques.get(one).refuses or one in techniques.get(other).refuses


def same_group(one: str, other: str) -> bool:
    return bool(techniques.get(one).group) and techniques.get(one).group == techniques.get(other).group


# The later phase first: the harder order, in which the second is slipped under what is on.
PAIRS = list(combinations(sorted(USABLE, key=lambda name: -techniques.get(name).phase), 2))


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_pair(first: str, second: str, pipe: Any, draw: Draw, plain: np.ndarray) -> None:
    before = state(pipe)
    enable(pipe, first)
    if refuse_each_other(first, second):
        on = [str(entry) for entry in pipe.techniques]
        with pytest.raises(ConfigError) as caught:
            enable(pipe, second)
        assert first in str(caught.value)
        assert second in str(caught.value)
        assert [str(entry) for entry in pipe.techniques] == on
        check_parity(first, draw(pipe), plain)
    else:
        enable(pipe, second)
        expected = [second] if same_group(first, second) else [second, first]
        names = [entry.name for entry in pipe.techniques]
        assert sorted(names) == sorted(expected)
        phases = [entry.technique.phase for entry in pipe.techniques]
        assert phases == sorted(phases)
        coarser = next((name for name in expected if techniques.get(name).exactness != "exact"), first)
        check_parity(coarser, draw(pipe), plain)
    pipe.disable(first)
    pipe.disable(second)
    assert state(pipe) == before
    assert np.array_equal(draw(pipe), plain)


@pytest.mark.parametrize("names", TRIPLES, ids="+".join)
def test_documented_triple(names: tuple[str, ...], pipe: Any, draw: Draw, plain: np.ndarray) -> None:
    before = state(pipe)
    for name in names:
        enable(pipe, name)
    assert {entry.name for entry in pipe.techniques} == set(names)
    coarser = next((name for name in names if techniques.get(name).exactness != "exact"), names[0])
    assert len({draw(pipe).tobytes() for _ in range(2)}) == 1
    check_parity(coarser, draw(pipe), plain)
    for name in names:
        pipe.disable(name)
    assert state(pipe) == before
    assert np.array_equal(draw(pipe), plain)
