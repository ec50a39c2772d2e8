"""Opening reads no weights; whatever touches them first reads them, once, and sees the same numbers as ever."""

from __future__ import annotations

import copy
import io
import os
import pickle
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from leandiffusion import AutoencoderKL, UNet2DConditionModel, WeightsError
from leandiffusion.weights import read
from leandiffusion.weights.residence import is_waiting
from leandiffusion.weights.stored import StoredTensor

CONFIG: dict[str, Any] = {
    "sample_size": 8, "layers_per_block": 1, "block_out_channels": (16, 32), "norm_num_groups": 8,
    "cross_attention_dim": 32, "attention_head_dim": 4, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
X = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
WORDS = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(2))
INPUTS = (X, torch.tensor(1), WORDS)


@pytest.fixture(scope="module")
def built() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**CONFIG).eval()


@pytest.fixture(scope="module")
def folder(built: UNet2DConditionModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unet")
    built.save_pretrained(folder)
    return folder


@pytest.fixture
def unet(folder: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(folder)


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of tensors that were read, one number per piece."""
    counted: list[int] = []
    fill = read._fill
    monkeypatch.setattr(
        read, "_fill", lambda stream, chunk, *rest: (counted.append(chunk.nbytes), fill(stream, chunk, *rest))
    )
    return counted


def all_in_memory(network: nn.Module) -> bool:
    return not any(isinstance(p, StoredTensor) for p in network.parameters())


def predict(unet: Callable[..., Any]) -> Tensor:
    with torch.no_grad():
        return unet(*INPUTS, return_dict=False)[0]


class Wrapped(nn.Module):
    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.unet(*inputs, return_dict=False)[0]


def test_opening_and_asking_what_it_is_reads_nothing(folder: Path, bytes_read: list[int]) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder, low_cpu_mem_usage=False)
    assert is_waiting(unet)
    first = next(unet.parameters())
    assert isinstance(first, nn.Parameter)
    assert (first.device.type, first.dtype, first.shape) == ("cpu", torch.float32, (16, 4, 3, 3))
    assert (unet.dtype, unet.device.type) == (torch.float32, "cpu")
    assert unet.get_memory_footprint() == 4 * unet.num_parameters() > 0
    unet.to("cpu").half().to(torch.bfloat16).to(memory_format=torch.channels_last).requires_grad_(False)
    copy.deepcopy(unet)
    repr(first)
    unet.to("meta")
    assert bytes_read == []


def test_the_first_call_reads_everything_once(
    built: UNet2DConditionModel, unet: UNet2DConditionModel, folder: Path, bytes_read: list[int]
) -> None:
    parameters = dict(unet.named_parameters())
    for _ in range(2):
        assert torch.equal(predict(unet), predict(built))
        assert sum(bytes_read) == sum(p.nbytes for p in built.parameters())
    assert all_in_memory(unet)
    assert all(unet.get_parameter(name) is p for name, p in parameters.items())  # whoever holds them sees them


def _through_pickle(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


def _through_torch_save(unet: Any) -> Any:
    file = io.BytesIO()
    torch.save(unet.state_dict(), file)
    file.seek(0)
    fresh = UNet2DConditionModel(**CONFIG).eval()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


def _through_safetensors(unet: Any, folder: Path) -> Any:
    save_file(unet.state_dict(), folder / "weights.safetensors")
    fresh = UNet2DConditionModel(**CONFIG).eval()
    fresh.load_state_dict(load_file(folder / "weights.safetensors"))
    return fresh


def _through_save_pretrained(unet: Any, folder: Path) -> Any:
    unet.save_pretrained(folder / "copy")
    assert is_waiting(unet)  # saving holds one weight at a time
    return UNet2DConditionModel.from_pretrained(folder / "copy")


def _traced(unet: Any) -> Any:
    traced, file = torch.jit.trace(Wrapped(unet), INPUTS, check_trace=False), io.BytesIO()
    torch.jit.save(traced, file)
    return lambda *inputs, return_dict: (traced(*inputs),)


TOUCHES: dict[str, Callable[[Any, Path], Any]] = {
    "a call": lambda unet, folder: unet,
    "a copy": lambda unet, folder: copy.deepcopy(unet),
    "pickle": lambda unet, folder: _through_pickle(unet),
    "torch.save": lambda unet, folder: _through_torch_save(unet),
    "safetensors": _through_safetensors,
    "save_pretrained": _through_save_pretrained,
    "state_dict": lambda unet, folder: unet if all_in_memory(unet) or unet.state_dict() else None,
    "torch.compile": lambda unet, folder: torch.compile(unet, backend="eager"),
    "torch.jit.trace": lambda unet, folder: _traced(unet),
    "shared memory": lambda unet, folder: unet.share_memory(),
    "its layers by themselves": lambda unet, folder: (unet.conv_in(X), unet.conv_norm_out(X.repeat(1, 4, 1, 1)), unet)[
        -1
    ],
    "numpy": lambda unet, folder: (unet.conv_in.weight.detach().numpy(), unet)[-1],
    "parameters_to_vector": lambda unet, folder: (nn.utils.parameters_to_vector(unet.parameters()), unet)[-1],
    "a weak reference": lambda unet, folder: (unet.__dict__.update(held=weakref.ref(unet.conv_in.weight)), unet)[-1],
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("touch", TOUCHES.values(), ids=TOUCHES.keys())
@torch.no_grad()
def test_the_numbers_are_the_same_whatever_comes_first(
    built: UNet2DConditionModel, unet: UNet2DConditionModel, touch: Callable[..., Any], tmp_path: Path
) -> None:
    """Graphs of torch.jit and torch.compile run other kernels: 1e-5 of numbers near 1. All else to the last bit."""
    found = predict(touch(unet, tmp_path))
    assert torch.allclose(found, predict(built), atol=1e-5, rtol=0)
    is_graph = touch in (TOUCHES["torch.jit.trace"], TOUCHES["torch.compile"])
    assert is_graph or torch.equal(found, predict(built))


@pytest.mark.parametrize("after_a_call", [False, True])
def test_what_is_written_lasts(built: UNet2DConditionModel, unet: UNet2DConditionModel, after_a_call: bool) -> None:
    if after_a_call:
        predict(unet)
    with torch.no_grad():
        unet.conv_in.weight.data.mul_(2)
        unet.conv_out.bias.fill_(0.5)
        unet.conv_out.weight.data = torch.zeros_like(built.conv_out.weight)
    predict(unet)
    assert torch.equal(unet.conv_in.weight, built.conv_in.weight * 2)
    assert torch.equal(predict(unet), torch.full_like(X, 0.5))


def test_training_starts_from_the_files_numbers(built: UNet2DConditionModel, unet: UNet2DConditionModel) -> None:
    optimizer = torch.optim.SGD(unet.parameters(), 1e-3)
    unet(*INPUTS).sample.square().sum().backward()
    assert torch.equal(unet.conv_in.weight, built.conv_in.weight)
    gradient = unet.conv_in.weight.grad
    assert gradient is not None
    optimizer.step()
    torch.testing.assert_close(unet.conv_in.weight, built.conv_in.weight - 1e-3 * gradient)  # that one rounds twice


@pytest.mark.parametrize("move", [lambda u: u.half(), lambda u: u.to(torch.float16), lambda u: u.to("cpu", torch.half)])
def test_another_dtype_before_the_first_use_is_what_is_read(
    built: UNet2DConditionModel, unet: UNet2DConditionModel, move: Callable[..., Any], bytes_read: list[int]
) -> None:
    move(unet)
    assert bytes_read == []
    weights = unet.state_dict()
    assert sum(bytes_read) == sum(p.nbytes for p in built.parameters())
    assert all(torch.equal(weight, built.state_dict()[name].half()) for name, weight in weights.items())


@pytest.mark.parametrize("touched", [False, True], ids=["waiting", "in memory"])
@pytest.mark.parametrize("first", [torch.float16, torch.bfloat16])
def test_casting_back_and_forth_rounds_as_ever(
    built: UNet2DConditionModel, folder: Path, first: torch.dtype, touched: bool
) -> None:
    """Whether weights were read already changes no number: each dtype on the way rounds."""
    unet = UNet2DConditionModel.from_pretrained(folder, dtype=first)
    if touched:
        unet.state_dict()
    unet.float().to(torch.bfloat16).to(torch.float16).float()
    expected = {n: t.to(first).float().bfloat16().half().float() for n, t in built.state_dict().items()}
    rows = unet.time_embedding.linear_1.weight  # by another way than the rest
    assert torch.equal(rows + 0, expected["time_embedding.linear_1.weight"])
    assert all(torch.equal(t, expected[n]) for n, t in unet.state_dict().items())


def test_threads_that_come_first_together(
    built: UNet2DConditionModel, unet: UNet2DConditionModel, bytes_read: list[int]
) -> None:
    found: list[Tensor] = []
    threads = [threading.Thread(target=lambda: found.append(predict(unet))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert all(torch.equal(each, predict(built)) for each in found)
    assert sum(bytes_read) == sum(p.nbytes for p in built.parameters())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_reads_for_itself(built: UNet2DConditionModel, unet: UNet2DConditionModel) -> None:
    expected = built.conv_in.weight.detach()
    child = os.fork()
    if child == 0:
        same = all_in_memory(unet) is False and torch.equal(unet.state_dict()["conv_in.weight"], expected)
        os._exit(0 if same else 1)
    assert torch.equal(unet.state_dict()["conv_in.weight"], expected)
    assert os.waitpid(child, 0)[1] == 0


def test_a_folder_that_is_gone_by_then(built: UNet2DConditionModel, tmp_path: Path) -> None:
    built.save_pretrained(tmp_path / "short-lived")
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "short-lived")
    for file in (tmp_path / "short-lived").iterdir():
        file.unlink()
    (tmp_path / "short-lived").rmdir()
    assert torch.equal(predict(unet), predict(built))


def test_a_file_that_is_damaged_by_then_and_mended(built: UNet2DConditionModel, tmp_path: Path) -> None:
    built.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    whole, status = file.read_bytes(), file.stat()
    unet = UNet2DConditionModel.from_pretrained(tmp_path)
    os.truncate(file, len(whole) // 2)
    for _ in range(2):
        with pytest.raises(WeightsError, match="was changed while its weights were in use: open the network again"):
            predict(unet)
    file.write_bytes(whole)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert torch.equal(predict(unet), predict(built))


def test_an_error_on_the_way_is_no_harm(
    built: UNet2DConditionModel, unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill, count = read._fill, 0

    def fail(*args: Any) -> None:
        nonlocal count
        count += 1
        if count == 9:
            raise MemoryError
        fill(*args)

    monkeypatch.setattr(read, "_fill", fail)
    with pytest.raises(MemoryError):
        predict(unet)
    assert torch.equal(predict(unet), predict(built))


def test_a_vae_that_decodes_first(tmp_path: Path) -> None:
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=8).eval()
    vae.save_pretrained(tmp_path)
    opened = AutoencoderKL.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(opened.decode(X).sample, vae.decode(X).sample)
    assert all_in_memory(opened)
