"""Saving pipelines over earlier ones: all or nothing, whatever cuts it short."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.killed import NAMING, killed_at

from leandiffusion import DDIMScheduler, UNet2DConditionModel
from leandiffusion.pipelines import open_pipeline

STEPS = [*NAMING, (os, "write")]


def filled(pipe: Any, value: float) -> Any:
    """The pipeline with every weight `value`, and a scheduler that tells it too."""
    with torch.no_grad():
        for network in pipe.components.values():
            for weight in network.parameters() if isinstance(network, torch.nn.Module) else ():
                weight.fill_(value)
    pipe.scheduler = DDIMScheduler(num_train_timesteps=int(1000 * value), clip_sample=False, steps_offset=1)
    return pipe


def values(folder: Path) -> set[float]:
    """The values that are in an opened folder: one, unless saves were mixed."""
    pipe = open_pipeline(folder)
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert len(networks) >= 3
    found = {float(bound) for network in networks for w in network.parameters() for bound in w.data.aminmax()}
    return found | {pipe.scheduler.config.num_train_timesteps / 1000}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.skipif(os.name != "posix", reason="forks and kills")
def test_killed_it_is_the_old_or_the_new(build: Any, tmp_path: Path) -> None:
    filled(build["sd1"](), 1.0).save_pretrained(tmp_path / "old", max_shard_size="100KB")
    new = filled(build["sd1"](), 2.0)
    shutil.copytree(tmp_path / "old", tmp_path / "count")
    _, steps = killed_at(lambda: new.save_pretrained(tmp_path / "count"), 0, STEPS)
    assert values(tmp_path / "count") == {2.0}
    found = []
    for at in sorted({*range(1, steps, 17), *range(steps - 60, steps, 4)}):  # names are given in the last ones
        folder = tmp_path / str(at)
        shutil.copytree(tmp_path / "old", folder)
        (folder / "README.md").write_text("mine")
        killed, _ = killed_at(lambda f=folder: new.save_pretrained(f), at, STEPS)
        assert killed
        if at % 2:  # a component by itself first
            UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
        got = values(folder)
        assert got in ({1.0}, {2.0}), at
        found.append(got.pop())
    assert found == sorted(found)
    assert set(found) == {1.0, 2.0}
    new.save_pretrained(folder)
    assert contents(folder) == {**contents(tmp_path / "count"), "README.md": b"mine"}
    assert not list(folder.rglob(".*"))


def test_a_full_disk_leaves_the_earlier_pipeline(build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(build["sd1"](), 1.0).save_pretrained(tmp_path)
    before = contents(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("leandiffusion.modules.tokenizer.CLIPTokenizer.save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        filled(build["sd1"](), 2.0).save_pretrained(tmp_path)
    assert contents(tmp_path) == before


def test_over_the_folder_from_which_weights_are_still_read(build: Any, tmp_path: Path) -> None:
    build["sd1"]().save_pretrained(tmp_path)
    pipe = open_pipeline(tmp_path, offload="sequential")
    state = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}
    for size in ("100KB", "10GB"):
        pipe.save_pretrained(tmp_path, max_shard_size=size)
        again = open_pipeline(tmp_path).unet.state_dict()
        assert all(torch.equal(again[name], weight) for name, weight in state.items())
        assert all(torch.equal(weight, state[name]) for name, weight in pipe.unet.state_dict().items())
