"""Results that unpack by name and by place, and batches of inputs."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import dataclass
from typing import Any

import pytest

from leandiffusion.core.output import Batch, Output


@dataclass(eq=False)
class Drawn(Output):
    images: list[str]
    flags: list[bool] | None = None
    note: str | None = None


def test_fields_by_name_and_place() -> None:
    out = Drawn(["a"], note="n")
    assert out.images == out["images"] == out[0] == ["a"]
    assert out[-1] == out[1] == "n", "fields that are None take no place"
    assert out[:1] == (["a"],)
    assert out.to_tuple() == (["a"], "n")
    assert list(out) == list(out.keys()) == ["images", "note"]
    assert dict(out) == {"images": ["a"], "note": "n"}
    assert len(out) == 2
    assert "flags" not in out
    assert out.get("flags", 3) == 3
    out["flags"] = [True]
    assert out.flags == out[1] == [True]


def test_absent_fields() -> None:
    out = Drawn([])
    with pytest.raises(KeyError, match="flags"):
        out["flags"]
    with pytest.raises(IndexError):
        out[1]
    with pytest.raises(KeyError, match="flag"):
        out["flag"] = 1


def test_an_output_is_a_dict_to_other_libraries() -> None:
    out = Drawn(["a"], note="n")
    assert isinstance(out, dict)
    assert json.loads(json.dumps(out)) == {"images": ["a"], "note": "n"} == {**out}
    out.flags = [True]
    assert list(out.items()) == [("images", ["a"]), ("flags", [True]), ("note", "n")], "in order of declaration"
    out.note = None
    assert list(out) == ["images", "flags"]


@pytest.mark.parametrize("change", ["clear", "popitem", "pop", "__delitem__", "update", "setdefault", "move_to_end"])
def test_fields_cannot_be_taken_away(change: str) -> None:
    out = Drawn(["a"])
    with pytest.raises(TypeError, match=r"Drawn are fixed: .*dict\(output\)"):
        getattr(out, change)(*["images"] * (change not in ("clear", "popitem")))
    assert out.images == out["images"] == ["a"]


@pytest.mark.parametrize("given", [{"images": ["a"], "note": "n"}, iter([("images", ["a"]), ("note", "n")])])
def test_one_mapping_or_iterator_of_pairs_makes_one(given: Any) -> None:
    assert Drawn(given).to_tuple() == (["a"], "n")


def test_copies_and_pickles() -> None:
    out = Drawn(["a"], note="n")
    for copied in (copy.copy(out), copy.deepcopy(out), pickle.loads(pickle.dumps(out))):
        assert type(copied) is Drawn
        assert copied == out
        assert (copied.images, copied.flags, copied.note) == (["a"], None, "n")


def test_batches() -> None:
    class Tensor:
        def to(self, device: str) -> str:
            return device

    batch = Batch(ids=Tensor(), text="a")
    assert batch.text == batch["text"] == "a"
    assert batch.to("cuda") == {"ids": "cuda", "text": "a"}
    assert isinstance(batch.to("cuda"), Batch)
    with pytest.raises(AttributeError, match="ids, text"):
        _ = batch.masks
