"""Several ControlNets in folders side by side: all are written, or none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tests.unit.killed import NAMING, killed_at

from leandiffusion import ControlNetModel, MultiControlNetModel

STEPS = [*NAMING, (os, "write")]


def filled(value: float) -> MultiControlNetModel:
    """Two, with every weight `value`."""
    nets = [
        ControlNetModel(
            block_out_channels=(32,), down_block_types=("DownBlock2D",), layers_per_block=1, cross_attention_dim=8,
            conditioning_embedding_out_channels=(8,), norm_num_groups=8, attention_head_dim=4,
        )
        for _ in range(2)
    ]  # fmt: skip
    several = MultiControlNetModel(nets)
    with torch.no_grad():
        for weight in several.parameters():
            weight.fill_(value)
    return several


def values(folder: Path) -> set[float]:
    opened = MultiControlNetModel.from_pretrained(folder)
    assert len(opened.nets) == 2
    return {float(bound) for weight in opened.parameters() for bound in weight.data.aminmax()}


@pytest.mark.skipif(os.name != "posix", reason="forks and kills")
def test_killed_it_is_the_old_or_the_new(tmp_path: Path) -> None:
    old, new = filled(1.0), filled(2.0)
    found = []
    for at in range(1, 200):
        folder = tmp_path / str(at) / "controlnet"
        old.save_pretrained(folder)
        (folder.parent / "README.md").write_text("mine")
        killed, _ = killed_at(lambda f=folder: new.save_pretrained(f), at, STEPS)
        got = values(folder)
        assert got in ({1.0}, {2.0}), at
        found.append(got.pop())
        assert (folder.parent / "README.md").read_text() == "mine"
        if not killed:
            break
    assert found == sorted(found)
    assert set(found) == {1.0, 2.0}
    names = ["README.md", "controlnet", "controlnet_1"]
    assert sorted(path.name for path in folder.parent.iterdir()) == names
