"""Results that unpack by name and by place, and batches of inputs."""

from __future__ import annotations

from dataclasses import dataclass

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
