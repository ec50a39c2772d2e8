"""Weights that stay on disk behave like weights in memory, take none, and notice when their file changes."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from leandiffusion import AutoencoderKL, WeightsError
from leandiffusion.weights import stored as module
from leandiffusion.weights.header import read_header
from leandiffusion.weights.load import open_network, origin_of
from leandiffusion.weights.opened import OpenFile
from leandiffusion.weights.residence import cast, load_from_disk, names_on_disk, release_to_disk
from leandiffusion.weights.stored import StoredTensor

MATRIX = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
KERNEL = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(1))
CONFIG: dict[str, Any] = {
    "block_out_channels": (8, 16), "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 4,
}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file({"matrix": MATRIX, "kernel": KERNEL, "half": MATRIX.half()}, path)
    return path


@pytest.fixture
def stored(file: Path) -> Callable[..., StoredTensor]:
    def make(name: str = "matrix", dtype: torch.dtype = torch.float32) -> StoredTensor:
        return StoredTensor(read_header(file).entries[name], OpenFile.at(file), dtype)

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(2)
    AutoencoderKL(**CONFIG).save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


Make = Callable[..., StoredTensor]


def test_it_looks_like_a_tensor_and_holds_nothing(stored: Make) -> None:
    weight = nn.Parameter(stored(), requires_grad=False)
    assert isinstance(weight, nn.Parameter)
    assert weight.shape == (7, 5)
    assert weight.stride() == (5, 1)
    assert weight.dtype == torch.float32
    assert weight.device.type == "cpu"
    assert weight.nbytes == MATRIX.nbytes
    assert weight.held.value is None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "use",
    [
        lambda w: w + 1,
        lambda w: 2 * w,
        lambda w: w.sum(),
        lambda w: w.t() @ w,
        lambda w: torch.cat([w, w]),
        lambda w: w[3],
        lambda w: w[[1, 5], 2:],
        lambda w: torch.nn.functional.linear(torch.ones(2, 5), w),
        lambda w: w.to(torch.float64).mean(),
        lambda w: w.clone(),
        lambda w: torch.stack([row for row in w]),  # noqa: C416
    ],
)
def test_whatever_is_done_with_it_reads_it(use: Callable[[Any], Any], stored: Make) -> None:
    assert torch.equal(use(stored()), use(MATRIX))
    assert torch.equal(use(nn.Parameter(stored(), requires_grad=False)), use(MATRIX))


def test_layers_compute_with_it(stored: Make) -> None:
    conv, x = nn.Conv2d(4, 6, 3, bias=False), torch.randn(2, 4, 8, 8)
    conv.weight = nn.Parameter(stored("kernel"), requires_grad=False)
    with torch.no_grad():
        assert torch.equal(conv(x), torch.nn.functional.conv2d(x, KERNEL))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_casting_only_changes_how_it_is_read(dtype: torch.dtype, stored: Make) -> None:
    cast_weight = stored().to(dtype)
    assert isinstance(cast_weight, StoredTensor)
    assert torch.equal(cast_weight.read(), MATRIX.to(dtype))
    back = cast_weight.to(torch.float32)  # from the file's numbers: nothing was rounded on the way
    assert isinstance(back, StoredTensor)
    assert torch.equal(back.read(), MATRIX)


def test_so_does_channels_last(stored: Make) -> None:
    conv = nn.Conv2d(4, 6, 3, bias=False)
    conv.weight = nn.Parameter(stored("kernel"), requires_grad=False)
    conv.to(memory_format=torch.channels_last)
    assert isinstance(conv.weight, StoredTensor)
    read = conv.weight.read()
    assert read.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(read, KERNEL)


def test_an_embedding_reads_the_rows_that_it_looks_up(stored: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    table = nn.Embedding(7, 5)
    table.weight = nn.Parameter(stored(), requires_grad=False)
    read: list[int] = []
    inner = module.OpenFile.read
    monkeypatch.setattr(
        module.OpenFile, "read", lambda self, entry, into: (read.append(entry.nbytes), inner(self, entry, into))
    )
    ids = torch.tensor([[1, 6, 1], [0, 6, 6]])
    assert torch.equal(table(ids), MATRIX[ids])
    assert sum(read) == 3 * 5 * 4  # three different rows
    with pytest.raises(IndexError, match="out of range"):
        table(torch.tensor([7]))


@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.__setitem__(2, 5.0),
        lambda w: w.data.__setitem__((slice(None), 1), -1.0),
        lambda w: w.mul_(2),
        lambda w: w.data.copy_(torch.zeros(7, 5)),
        lambda w: w[4].add_(100),
        lambda w: nn.init.constant_(w, 3.0),
    ],
)
def test_what_is_written_to_it_stays(write: Callable[[Any], Any], stored: Make, file: Path) -> None:
    weight, expected = nn.Parameter(stored(), requires_grad=False), MATRIX.clone()
    write(weight)
    write(expected)
    assert torch.equal(weight.read(), expected)  # type: ignore[attr-defined]
    assert torch.equal(weight + 0, expected)
    assert torch.equal(weight.to(torch.float64), expected.double())
    assert torch.equal(read_header(file) and StoredTensor(*_source(file), torch.float32).read(), MATRIX)


def _source(file: Path) -> tuple[Any, OpenFile]:
    return read_header(file).entries["matrix"], OpenFile.at(file)


def test_copies_are_apart(stored: Make) -> None:
    layer = nn.Linear(5, 7, bias=False)
    layer.weight = nn.Parameter(stored(), requires_grad=False)
    twin = copy.deepcopy(layer)
    assert isinstance(twin.weight, StoredTensor)
    assert isinstance(twin.weight, nn.Parameter)
    with torch.no_grad():
        twin.weight.mul_(0)
    assert torch.equal(layer.weight + 0, MATRIX)
    assert float(twin.weight.abs().sum()) == 0


def test_threads_read_at_once(stored: Make) -> None:
    weights, wrong = [stored(), stored("half"), stored("kernel")], []

    def work(i: int) -> None:
        for _ in range(50):
            expected = [MATRIX, MATRIX.half().float(), KERNEL][i]
            if not torch.equal(weights[i].read(), expected):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_file_that_changes_is_noticed(stored: Make, file: Path) -> None:
    weight = stored()
    with file.open("r+b") as stream:
        stream.seek(-4, os.SEEK_END)
        stream.write(b"\0\0\0\0")
    os.utime(file, ns=(1, 1))
    with pytest.raises(WeightsError, match="changed while its weights were in use"):
        weight.read()


def test_a_truncated_file_is_noticed(stored: Make, file: Path) -> None:
    weight = stored()
    os.truncate(file, 100)
    with pytest.raises(WeightsError, match="open the network again"):
        weight.sum()


def test_a_file_that_is_replaced_or_deleted_does_no_harm(stored: Make, file: Path) -> None:
    weight = stored()
    other = file.with_name("other")
    save_file({"matrix": MATRIX * 0}, other)
    other.replace(file)
    assert torch.equal(weight.read(), MATRIX)
    file.unlink()
    assert torch.equal(weight.read(), MATRIX)


def test_a_file_that_is_gone(file: Path) -> None:
    file.unlink()
    with pytest.raises(WeightsError, match="cannot be opened again"):
        OpenFile.at(file)


# -- whole networks --------------------------------------------------------------------------------------------------


def test_opening_on_disk_reads_no_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(module.OpenFile, "read", lambda self, entry, into: read.append(entry.name))
    vae = open_network(AutoencoderKL, folder, on_disk=True)
    assert not read
    assert names_on_disk(vae) == [name for name, _ in vae.named_parameters()]


def test_it_computes_the_same(folder: Path) -> None:
    z = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        expected = open_network(AutoencoderKL, folder).decode(z).sample
        assert torch.equal(open_network(AutoencoderKL, folder, on_disk=True).decode(z).sample, expected)


def test_up_and_down_again(folder: Path) -> None:
    vae = open_network(AutoencoderKL, folder)
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    origin = origin_of(vae)
    assert origin is not None
    done: list[int] = []
    assert release_to_disk(vae, origin.entries, origin.stamps, done.append) == []
    assert sum(done) == sum(tensor.nbytes for tensor in before.values())
    assert len(names_on_disk(vae)) == len(before)
    load_from_disk(vae)
    assert names_on_disk(vae) == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())
    assert all(isinstance(p, nn.Parameter) for p in vae.parameters())


def test_what_was_changed_since_loading_stays_in_memory(folder: Path) -> None:
    vae = open_network(AutoencoderKL, folder)
    with torch.no_grad():
        vae.decoder.conv_in.bias[0] += 1e-3
    origin = origin_of(vae)
    assert origin is not None
    assert release_to_disk(vae, origin.entries, origin.stamps) == ["decoder.conv_in.bias"]
    assert not isinstance(vae.decoder.conv_in.bias, StoredTensor)


def test_a_dtype_that_rounds_is_read_again_as_it_was(folder: Path) -> None:
    vae = open_network(AutoencoderKL, folder, dtype=torch.bfloat16)
    origin = origin_of(vae)
    assert origin is not None
    assert release_to_disk(vae, origin.entries, origin.stamps) == []
    cast(vae, torch.float32)
    load_from_disk(vae)
    exact = open_network(AutoencoderKL, folder)
    assert all(torch.equal(one, other) for one, other in zip(vae.parameters(), exact.parameters(), strict=True))


def test_saving_and_loading(folder: Path, tmp_path: Path) -> None:
    vae = open_network(AutoencoderKL, folder, on_disk=True)
    vae.save_pretrained(tmp_path / "copy")
    name = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes()
    fresh = AutoencoderKL(**CONFIG)
    fresh.load_state_dict(vae.state_dict())
    vae.load_state_dict(fresh.state_dict())
    assert torch.equal(fresh.decoder.conv_in.weight, vae.decoder.conv_in.weight + 0)


@pytest.mark.parametrize("settings", [{}, {"padding_idx": 1}, {"max_norm": 0.5}, {"scale_grad_by_freq": True}])
@pytest.mark.parametrize("grad", [False, True])
def test_embeddings_looked_up_in_every_way(stored: Make, settings: dict[str, Any], grad: bool) -> None:
    indices = torch.tensor([[1, 4], [4, 5]])
    on_disk, plain = (torch.nn.Parameter(each, requires_grad=grad) for each in (stored(), MATRIX.clone()))
    results = []
    for each in (on_disk, plain):
        with torch.set_grad_enabled(grad):
            found = torch.nn.functional.embedding(indices, each, **settings)
        if grad:
            found.sum().backward()
            found = (found.detach(), each.grad)
        results.append(found)
    torch.testing.assert_close(results[0], results[1], atol=0, rtol=0)
