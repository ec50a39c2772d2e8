"""The engine on whole networks: the same numbers, whatever travels, from disk and from host memory."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from leandiffusion import AutoencoderKL, UNet2DConditionModel, WeightsError
from leandiffusion.device import pinning
from leandiffusion.offload import host
from leandiffusion.offload.engine import Engine
from leandiffusion.offload.host import HostStore
from leandiffusion.offload.policy import Policy
from leandiffusion.offload.units import GRANULARITIES, cut
from leandiffusion.techniques.offloading import run_through
from leandiffusion.weights.load import open_network
from leandiffusion.weights.residence import names_on_disk
from leandiffusion.weights.stored import StoredTensor

CPU = torch.device("cpu")
UNET: dict[str, Any] = {
    "sample_size": 8, "layers_per_block": 1, "block_out_channels": (16, 32), "norm_num_groups": 8,
    "cross_attention_dim": 32, "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
VAE: dict[str, Any] = {
    "block_out_channels": (8, 16), "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 4,
}  # fmt: skip
INPUTS = (torch.randn(2, 4, 8, 8), torch.tensor(7), torch.randn(2, 5, 32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    UNet2DConditionModel(**UNET).save_pretrained(folder / "unet")
    AutoencoderKL(**VAE).save_pretrained(folder / "vae")
    return folder


def open_both(folder: Path, **options: Any) -> dict[str, Any]:
    return {
        "unet": open_network(UNet2DConditionModel, folder / "unet", **options),
        "vae": open_network(AutoencoderKL, folder / "vae", **options),
    }


@torch.no_grad()
def compute(networks: dict[str, Any]) -> list[Tensor]:
    dtype = networks["unet"].dtype
    sample, t, context = INPUTS
    x = networks["unet"](sample.to(dtype), t, context.to(dtype)).sample
    return [
        x,
        networks["vae"].decode(x).sample,
        networks["vae"].encode(networks["vae"].decode(x).sample).latent_dist.mean,
    ]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("fraction", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("on_disk", [False, True], ids=["opened in memory", "opened on disk"])
def test_the_same_numbers(folder: Path, granularity: str, fraction: float, slots: int, on_disk: bool) -> None:
    expected = compute(open_both(folder))
    networks = open_both(folder, on_disk=on_disk)
    engine = Engine(networks, Policy(CPU, granularity, fraction, slots))
    undo = run_through(engine, CPU)
    for _ in range(3):
        assert same(compute(networks), expected)
    undo()
    engine.close()
    assert engine.kept == []
    if on_disk or not fraction:  # what stayed in memory, and was there before, is there still
        assert all(len(names_on_disk(network)) == len(list(network.parameters())) for network in networks.values())
    assert same(compute(networks), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_and_orders(folder: Path, dtype: torch.dtype) -> None:
    plain, networks = (open_both(folder, dtype=dtype) for _ in range(2))
    for network in (*plain.values(), *networks.values()):
        network.to(memory_format=torch.channels_last)
    engine = Engine(networks, Policy(CPU))
    undo = run_through(engine, CPU)
    assert same(compute(networks), compute(plain))
    undo()
    engine.close()


def test_a_file_that_breaks_and_is_mended(folder: Path, tmp_path: Path) -> None:
    networks = open_both(folder)
    expected = compute(networks)
    unet = networks["unet"]
    unet.save_pretrained(tmp_path / "unet")
    networks["unet"] = open_network(UNet2DConditionModel, tmp_path / "unet", on_disk=True)
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    engine = Engine(networks, Policy(CPU))
    undo = run_through(engine, CPU)
    assert same(compute(networks), expected)
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    os.utime(file, ns=(1, 1))
    for _ in range(2):
        with pytest.raises(WeightsError, match="changed while"):
            compute(networks)
    os.utime(file, ns=times)
    assert same(compute(networks), expected)
    undo()
    engine.close()


@pytest.mark.parametrize("failure", [RuntimeError(), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
@pytest.mark.parametrize("nth", [1, 4, 11])
def test_a_failure_between_two_layers(
    folder: Path, nth: int, failure: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = open_both(folder)
    expected = compute(networks)
    engine = Engine(networks, Policy(CPU))
    undo = run_through(engine, CPU)
    seen, inner = 0, nn.functional.group_norm

    def fail(*args: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == nth:
            raise failure
        return inner(*args)

    with monkeypatch.context() as patch:
        patch.setattr(nn.functional, "group_norm", fail)
        with pytest.raises(type(failure)):
            compute(networks)
    assert same(compute(networks), expected)
    undo()
    engine.close()
    assert same(compute(networks), expected)


def test_weights_are_there_between_forwards(folder: Path) -> None:
    networks = open_both(folder)
    engine = Engine(networks, Policy(CPU))
    undo = run_through(engine, CPU)
    compute(networks)
    engine.rest()
    exact = open_both(folder)["unet"]
    for (name, one), other in zip(networks["unet"].named_parameters(), exact.parameters(), strict=True):
        assert isinstance(one, StoredTensor), name
        assert torch.equal(one + 0, other)
    undo()
    engine.close()


def test_what_was_changed_in_memory_is_heeded(folder: Path) -> None:
    networks = open_both(folder)
    with torch.no_grad():
        networks["unet"].conv_in.weight.mul_(1.5)
    expected = compute(networks)
    engine = Engine(networks, Policy(CPU))
    undo = run_through(engine, CPU)
    assert engine.kept == ["unet.conv_in.weight"]
    assert same(compute(networks), expected)
    undo()
    engine.close()
    assert same(compute(networks), expected)


@torch.no_grad()
@pytest.mark.parametrize("failure", [RuntimeError(), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_masters_are_back_whatever_happens_in_a_layer(
    folder: Path, failure: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside a layer's own forward nobody sees anything else."""
    networks = open_both(folder)
    engine = Engine(networks, Policy(CPU))
    undo = run_through(engine, CPU)
    layer = networks["unet"].conv_in
    masters = dict(layer.named_parameters())
    seen: list[bool] = []

    def fail(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
        seen.append(isinstance(weight, StoredTensor))
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(nn.Conv2d, "_conv_forward", lambda self, x, weight, bias: fail(x, weight, bias))
        with pytest.raises(type(failure)):
            layer(torch.zeros(1, 4, 8, 8))
    assert seen == [False]
    assert all(layer._parameters[name] is master for name, master in masters.items())
    assert all(isinstance(master, StoredTensor) for master in masters.values())
    undo()
    assert "forward" not in vars(layer)
    engine.close()


# -- host memory as the tier below: its packing does not need an accelerator -------------------------------------------


class Mixed(nn.Module):
    """Layers of several dtypes and orders, a buffer, an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 3)
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.half = nn.Linear(3, 3).half()
        self.norm = nn.BatchNorm2d(4)
        self.empty = nn.Linear(3, 0)


@pytest.fixture(params=[64 << 20, 100], ids=["one block", "many blocks"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(host, "BLOCK_BYTES", request.param)
    return


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.usefixtures("block")
def test_packing_and_unpacking() -> None:
    net = Mixed()
    before = {name: t.detach().clone() for name, t in net.state_dict().items()}
    objects = dict(net.named_parameters())
    strides = {name: t.stride() for name, t in net.state_dict().items()}
    pieces = cut({"net": net}, "leaf")
    store = HostStore(pieces.units, pieces.looked_up, CPU)
    for unit in pieces.units:
        memory = torch.zeros(unit.nbytes, dtype=torch.uint8)
        unit.read_into(memory)
        for weight, begin in unit.places:
            assert torch.equal(weight.view(memory, begin), weight.master)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert all(p is objects[name] for name, p in net.named_parameters())
    store.close()
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.stride() == strides[name]
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
    assert all(p is objects[name] for name, p in net.named_parameters())


def test_no_more_is_pinned_than_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(*(nn.Linear(16, 16) for _ in range(8)))
    pinned: dict[int, int] = {}
    unpinned: list[int] = []

    class Runtime:
        def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:  # noqa: N802
            pinned[address] = nbytes
            return 0

        def cudaHostUnregister(self, address: int) -> None:  # noqa: N802
            unpinned.append(address)

    page = mmap.PAGESIZE
    monkeypatch.setattr(host, "BLOCK_BYTES", 3000)  # two layers, which may touch two pages
    monkeypatch.setattr(host, "available_memory", lambda: 8 * page + 2)
    monkeypatch.setattr(pinning, "_runtime", Runtime)
    pieces = cut({"net": net}, "leaf")
    store = HostStore(pieces.units, pieces.looked_up, torch.device("cuda", 0))
    whole = sum(unit.nbytes for unit in pieces.units)
    assert list(pinned.values()) == [whole // 4] * 2  # four pages are half of what is free
    blocks = {weight.master.untyped_storage().data_ptr(): weight.master.untyped_storage().nbytes()
              for unit in pieces.units for weight in unit.weights}  # fmt: skip
    assert sum(blocks.values()) == whole  # one copy, pinned or not
    store.close()
    assert unpinned == list(pinned)[::-1]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_running_out_of_memory_while_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Mixed()
    before = {name: t.detach().clone() for name, t in net.state_dict().items()}
    monkeypatch.setattr(host, "BLOCK_BYTES", 100)
    pieces, count, empty = cut({"net": net}, "leaf"), 0, torch.empty

    def fail(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal count
        count += 1
        if count == 3:
            raise MemoryError
        return empty(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", fail)
        with pytest.raises(MemoryError):
            HostStore(pieces.units, pieces.looked_up, CPU)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in net.state_dict().values())
    assert all(unit.packed is None for unit in pieces.units)
