"""The checkpoint as the tier below: what a disk may do while weights are read from it."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from leandiffusion import MalformedFile, NonFiniteError, StableDiffusionPipeline, WeightsError
from leandiffusion.weights.stored import StoredTensor


def opened(path: Any = "demo", **options: Any) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(path, offload="sequential", **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any) -> np.ndarray:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return pipe("a red circle", latents=latents, height=64, width=64, num_inference_steps=2, output_type="np").images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    StableDiffusionPipeline.from_pretrained("demo").save_pretrained(tmp_path)
    return tmp_path


def unet_file(folder: Path) -> Path:
    return folder / "unet" / "diffusion_pytorch_model.safetensors"


def overwrite(file: Path, place: int, data: bytes) -> bytes:
    """Change bytes in place and keep the time of change; returns what was there."""
    status = file.stat()
    with file.open("r+b") as stream:
        stream.seek(place)
        before = stream.read(len(data))
        stream.seek(place)
        stream.write(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    return before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_bytes_changed_in_place_with_the_time_kept(folder: Path, dtype: torch.dtype) -> None:
    pipe = opened(folder, dtype=dtype)
    expected = draw(pipe)
    file = unet_file(folder)
    place = file.stat().st_size - 1001
    before = overwrite(file, place, b"\x01\x02\x03")
    for _ in range(2):
        with pytest.raises(WeightsError, match="was changed while its weights were in use"):
            draw(pipe)
    overwrite(file, place, before)
    assert np.array_equal(draw(pipe), expected)


def test_words_that_change_places(folder: Path) -> None:
    """The same bytes in another order add up to the same."""
    pipe = opened(folder)
    draw(pipe)
    file = unet_file(folder)
    size = file.stat().st_size
    rows = [file.read_bytes()[size - 4096 * k : size - 4096 * (k - 1)] for k in (3, 2)]
    overwrite(file, size - 4096 * 3, rows[1])
    overwrite(file, size - 4096 * 2, rows[0])
    with pytest.raises(WeightsError, match="was changed while"):
        draw(pipe)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENODEV])
def test_errors_of_the_disk_name_the_file(folder: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = opened(folder)
    expected = draw(pipe)

    def fail(*_: Any) -> int:
        raise OSError(code, os.strerror(code))

    for function in ("preadv", "fstat"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, fail)
            with pytest.raises(WeightsError, match=r"\.safetensors cannot be read \(" + os.strerror(code)):
                draw(pipe)
        assert np.array_equal(draw(pipe), expected)
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", fail)
        plain = StableDiffusionPipeline.from_pretrained(folder)
        plain.set_progress_bar_config(disable=True)
        with pytest.raises(WeightsError, match="cannot be read"):
            draw(plain)
    assert np.array_equal(draw(plain), expected)


def test_a_signal_during_a_read_and_short_reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = opened(folder)
    expected = draw(pipe)
    inner, count = os.preadv, 0

    def interrupted(descriptor: int, views: list[memoryview], position: int) -> int:
        nonlocal count
        count += 1
        if count % 3 == 0:
            raise InterruptedError(errno.EINTR, "interrupted")
        return inner(descriptor, [views[0][: max(1, len(views[0]) // 2)]], position)

    monkeypatch.setattr(os, "preadv", interrupted)
    assert np.array_equal(draw(pipe), expected)
    assert count > 100


def test_a_system_without_positioned_reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = draw(opened(folder))
    monkeypatch.delattr(os, "preadv")
    assert np.array_equal(draw(opened(folder)), expected)


def test_a_file_that_is_cut_short(folder: Path) -> None:
    pipe = opened(folder)
    file = unet_file(folder)
    status = file.stat()
    whole = file.read_bytes()
    os.truncate(file, status.st_size // 2)
    with pytest.raises(WeightsError, match="was changed"):
        draw(pipe)
    with pytest.raises(MalformedFile):
        StableDiffusionPipeline.from_pretrained(folder)
    file.write_bytes(whole)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    draw(pipe)


def test_saving_tensors_with_other_libraries(tmp_path: Path) -> None:
    pipe, plain = opened(), StableDiffusionPipeline.from_pretrained("demo")
    save_file(pipe.unet.state_dict(), tmp_path / "unet.safetensors")
    torch.save(pipe.vae.state_dict(), tmp_path / "vae.pt")
    unet, vae = load_file(tmp_path / "unet.safetensors"), torch.load(tmp_path / "vae.pt", weights_only=True)
    assert all(torch.equal(unet[name], tensor) for name, tensor in plain.unet.state_dict().items())
    assert all(torch.equal(vae[name], tensor) for name, tensor in plain.vae.state_dict().items())
    plain.set_progress_bar_config(disable=True)
    assert np.array_equal(draw(pipe), draw(plain))


@pytest.mark.parametrize("opening", [True, False], ids=["opened with", "switched on"])
def test_another_dtype_is_what_is_computed_with(opening: bool) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(
        "demo", dtype=torch.bfloat16, **({"offload": "sequential"} if opening else {})
    )
    pipe.set_progress_bar_config(disable=True)
    if not opening:
        pipe.enable_sequential_cpu_offload()
    draw(pipe)
    pipe.to(torch.float32)
    assert {p.dtype for p in pipe.unet.parameters()} == {torch.float32}
    assert np.array_equal(draw(pipe), draw(opened(dtype=torch.float32)))
    pipe.disable("sequential_offload")
    assert {p.dtype for p in pipe.unet.parameters()} == {torch.float32}
    assert np.array_equal(draw(pipe), draw(opened(dtype=torch.float32)))


@torch.no_grad()
@pytest.mark.parametrize("offload", [None, "sequential", "model"])
@pytest.mark.parametrize(("factor", "finite"), [(3e4, True), (float("nan"), False)], ids=["overflows", "NaN"])
def test_a_vae_that_overflows_decodes_wider(offload: str | None, factor: float, finite: bool) -> None:
    """In float16, where 3e4 times the numbers leaves the range; float32 holds them."""
    pipe = StableDiffusionPipeline.from_pretrained(
        "demo", dtype=torch.float16, **({"offload": offload} if offload else {})
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.vae.decoder.conv_in.weight.data.view(-1).mul_(factor)
    if finite:
        assert np.isfinite(draw(pipe)).all()
        assert pipe.vae.dtype == torch.float16
    else:
        with pytest.raises(NonFiniteError, match="decoded picture"):
            draw(pipe)


def test_undoing_half_precision_keeps_what_was_written() -> None:
    pipe, plain = StableDiffusionPipeline.from_pretrained("demo"), StableDiffusionPipeline.from_pretrained("demo")
    pipe.enable("half_precision", dtype=torch.bfloat16)
    with torch.no_grad():
        pipe.unet.conv_in.bias.fill_(0.5)
    pipe.disable("half_precision")
    assert torch.equal(pipe.unet.conv_in.bias, torch.full_like(plain.unet.conv_in.bias, 0.5))
    assert torch.equal(pipe.unet.conv_in.weight, plain.unet.conv_in.weight)


@pytest.mark.skipif(not torch.backends.openmp.is_available(), reason="torch was built without OpenMP")
@pytest.mark.parametrize(("offload", "readers"), [("model", 2), ("sequential", 1)])
def test_whole_networks_are_read_by_all_threads(offload: str, readers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others by the one that reads while layers compute. The first two reads of the UNet wait for each other."""
    plain = draw(StableDiffusionPipeline.from_pretrained("demo"))
    pipe = StableDiffusionPipeline.from_pretrained("demo", offload=offload)
    own, seen, meet = StoredTensor.read_into, set(), threading.Barrier(readers, timeout=10)

    def read_into(self: StoredTensor, *args: Any) -> None:
        if threading.get_ident() not in seen and "down_blocks" in self.entry.name:
            seen.add(threading.get_ident())
            meet.wait()
        own(self, *args)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        monkeypatch.setattr(StoredTensor, "read_into", read_into)
        drawn = draw(pipe)
    finally:
        torch.set_num_threads(before)
    assert len(seen) == readers
    assert np.abs(drawn - plain).max() < 1e-4


def test_whole_networks_are_read_in_inference_mode_too() -> None:
    """What is made in that mode, by several threads, is written to in that mode only."""
    plain = draw(StableDiffusionPipeline.from_pretrained("demo"))
    pipe = StableDiffusionPipeline.from_pretrained("demo", offload="model")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.inference_mode():
            inside = draw(pipe)
        outside = draw(pipe)
    finally:
        torch.set_num_threads(before)
    assert np.abs(inside - plain).max() < 1e-4
    assert np.array_equal(inside, outside)
