"""Saving: whole or not at all, in shards, over an earlier save, whatever the tensors' memory looks like."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from tests.unit.killed import NAMING, killed_at
from torch import nn

from leandiffusion.core.config import Configurable
from leandiffusion.core.errors import ConfigError
from leandiffusion.weights.load import open_network
from leandiffusion.weights.save import save_network

STEM = "diffusion_pytorch_model"
STEPS = [*NAMING, (safetensors.torch, "save_file")]


class Net(Configurable, nn.Module):
    def __init__(self, layers: int = 4, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))
        self.conv = nn.Conv2d(width, width, 3)


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("size", ["10GB", "3KB", 1])
def test_round_trip(tmp_path: Path, variant: str | None, size: str | int) -> None:
    net = Net()
    save_network(net, tmp_path, variant=variant, max_shard_size=size)
    assert same(net, open_network(Net, tmp_path, variant=variant))
    assert not [name for name in names(tmp_path) if name.endswith(".part")]


def test_shards_and_index(tmp_path: Path) -> None:
    net = Net()
    save_network(net, tmp_path, max_shard_size="3KB")
    index = json.loads((tmp_path / f"{STEM}.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in net.state_dict().values())
    assert index["weight_map"].keys() == net.state_dict().keys()
    for file in set(index["weight_map"].values()):
        with safe_open(tmp_path / file, "pt") as stream:
            assert stream.metadata() == {"format": "pt"}
            sizes = [stream.get_tensor(key).nbytes for key in stream.keys()]  # noqa: SIM118
            assert sum(sizes) <= 3000 or len(sizes) == 1


def test_saving_again_leaves_nothing_stale(tmp_path: Path) -> None:
    save_network(Net(), tmp_path, max_shard_size="3KB")
    save_network(Net(), tmp_path, variant="fp16", max_shard_size="3KB")
    net = Net()
    save_network(net, tmp_path)
    assert same(net, open_network(Net, tmp_path))
    save_network(net, tmp_path, variant="fp16")
    assert names(tmp_path) == ["config.json", f"{STEM}.fp16.safetensors", f"{STEM}.safetensors"]
    save_network(net, tmp_path, max_shard_size="3KB")
    assert f"{STEM}.safetensors" not in names(tmp_path)
    assert same(net, open_network(Net, tmp_path))


def test_shared_and_strided_memory(tmp_path: Path) -> None:
    net = Net()
    net.conv.to(memory_format=torch.channels_last)
    both = torch.randn(32, 16)
    net.layers[0].weight = nn.Parameter(both[:16])
    net.layers[1].weight = nn.Parameter(both[8:24])
    net.layers[3].weight = net.layers[2].weight
    save_network(net, tmp_path)
    assert same(net, open_network(Net, tmp_path))


def test_an_interruption_leaves_the_earlier_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    save_network(net, tmp_path, max_shard_size="3KB")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    original, calls = safetensors.torch.save_file, []

    def interrupted(*args: object, **kwargs: object) -> None:
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        original(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(safetensors.torch, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_network(Net(), tmp_path, max_shard_size="3KB")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_network_opened_in_part_is_saved_whole(tmp_path: Path) -> None:
    net = Net()
    save_network(net, tmp_path / "a")
    save_network(open_network(Net, tmp_path / "a", leave_out=("conv.",)), tmp_path / "b")
    assert same(net, open_network(Net, tmp_path / "b"))


def test_over_the_files_it_was_opened_from(tmp_path: Path) -> None:
    net = Net()
    save_network(net, tmp_path)
    opened = open_network(Net, tmp_path)
    save_network(opened, tmp_path)
    assert same(net, opened)
    assert same(net, open_network(Net, tmp_path))


def test_weights_without_data(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="meta device"):
        save_network(Net().to("meta"), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_saved_weights_are_as_readable_as_other_files(tmp_path: Path) -> None:
    save_network(nn.Linear(2, 2), tmp_path)
    beside = tmp_path / "beside"
    beside.touch()
    assert (tmp_path / "diffusion_pytorch_model.safetensors").stat().st_mode == beside.stat().st_mode


def versions() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(3)
    return Net(width=16), Net(width=24)  # whose config and weights do not fit each other


@pytest.mark.skipif(os.name != "posix", reason="forks and kills")
@pytest.mark.parametrize(
    ("before", "after", "variant"), [("10GB", "6KB", None), ("6KB", "10GB", "fp16"), ("6KB", "6KB", None)]
)
def test_killed_at_any_step_it_is_the_old_or_the_new(
    tmp_path: Path, before: str, after: str, variant: str | None
) -> None:
    old, new = versions()
    found: list[bool] = []
    for at in range(1, 200):
        folder = tmp_path / str(at)
        save_network(old, folder, variant=variant, max_shard_size=before)
        (folder / "README.md").write_text("mine")
        (folder / f"{STEM}.other.safetensors").write_text("mine")
        killed, _ = killed_at(lambda f=folder: save_network(new, f, variant=variant, max_shard_size=after), at, STEPS)
        opened = open_network(Net, folder, variant=variant)
        found.append(same(opened, new))
        assert found[-1] or same(opened, old), at
        save_network(new, folder, variant=variant, max_shard_size=after)
        assert {"README.md", f"{STEM}.other.safetensors"} < set(names(folder))
        assert not [name for name in names(folder) if name.startswith(".")]
        if not killed:
            break
    assert found == sorted(found)
    assert not found[0]
    assert found[-1]


def test_a_full_disk_leaves_the_earlier_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = versions()
    save_network(old, tmp_path, max_shard_size="3KB")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_network(new, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_over_the_files_whose_weights_stay_on_disk(tmp_path: Path) -> None:
    old, new = versions()
    save_network(old, tmp_path)
    stored = open_network(Net, tmp_path, on_disk=True)
    for size in ("3KB", "10GB"):
        save_network(stored, tmp_path, max_shard_size=size)
        assert same(stored, old)
        assert same(open_network(Net, tmp_path), old)
    save_network(new, tmp_path)
    assert same(stored, old)
