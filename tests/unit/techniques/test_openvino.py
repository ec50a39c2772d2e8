"""UNet and VAE decoder in OpenVINO: what runs there, what stays in torch, and where the weights are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from leandiffusion import ConfigError, StableDiffusionPipeline
from leandiffusion.core.errors import BackendUnavailable
from leandiffusion.device import openvino as engine
from leandiffusion.techniques import openvino_graphs
from leandiffusion.weights.residence import is_on_disk

pytestmark = pytest.mark.skipif(
    bool(engine.why_no_openvino(torch.device("cpu"), torch.float32)), reason="OpenVINO does not compute here"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graphs of the packaged model, so that each is converted once for these tests."""
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture
def pipe(folder: Path) -> Iterator[Any]:
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_openvino(folder)
    yield pipe
    pipe.disable("openvino")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The networks that are converted from here on."""
    converted: list[Any] = []
    write = openvino_graphs.write_graph

    def note(file: Path, network: Any, *others: Any) -> None:
        converted.append(network)
        write(file, network, *others)

    monkeypatch.setattr(openvino_graphs, "write_graph", note)
    return converted


def inputs(unet: Any, texts: int = 2, side: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """As under classifier-free guidance: one sample, a text for each half."""
    torch.manual_seed(0)
    sample = torch.randn(1, 4, side, side).repeat(texts, 1, 1, 1)
    return sample, torch.tensor(300), torch.randn(texts, 77, unet.config.cross_attention_dim)


def predict(unet: Any, *given: Any, **named: Any) -> Tensor:
    with torch.no_grad():
        return unet(*given, **named).sample


def plain() -> Any:
    return StableDiffusionPipeline.from_pretrained("demo").unet


def test_the_prediction_is_torchs_and_its_weights_are_on_disk(pipe: Any) -> None:
    """Within 1e-5 of the largest value in float32: other orders of the same sums."""
    given = inputs(pipe.unet)
    expected = predict(plain(), *given)
    got = predict(pipe.unet, *given)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert all(is_on_disk(p) for p in pipe.unet.parameters())
    assert torch.equal(predict(pipe.unet, *given), got)
    pipe.disable("openvino")
    assert all(torch.equal(a, b) for a, b in zip(pipe.unet.parameters(), plain().parameters(), strict=True))


def test_a_graph_in_the_folder_is_used_by_the_next_pipeline(pipe: Any, folder: Path, made: list[Any]) -> None:
    predict(pipe.unet, *inputs(pipe.unet))
    made.clear()
    other = StableDiffusionPipeline.from_pretrained("demo")
    other.enable_openvino(str(folder))
    predict(other.unet, *inputs(other.unet))
    assert made == []


def test_a_damaged_graph_is_made_anew(pipe: Any, tmp_path: Path, made: list[Any]) -> None:
    given = inputs(pipe.unet, texts=1, side=4)
    pipe.enable_openvino(tmp_path)
    first = predict(pipe.unet, *given)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"\x00" * 100)
    pipe.enable_openvino(tmp_path)
    with pytest.warns(UserWarning, match="not a graph of OpenVINO's"):
        assert torch.equal(predict(pipe.unet, *given), first)
    assert len(made) == 2


def test_only_so_many_graphs_are_kept(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = vars(pipe.unet)["forward"].run.__self__
    monkeypatch.setattr(openvino_graphs, "MOST_KEPT", 1)
    for texts in (2, 1):
        given = inputs(pipe.unet, texts)
        expected = predict(plain(), *given)
        assert (predict(pipe.unet, *given) - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert len(graphs._graphs) == 1


def test_half_precision_keeps_its_dtype(pipe: Any) -> None:
    """bfloat16 holds 8 bits: 2e-2 of the largest value, after the roundings of a whole network."""
    given = inputs(pipe.unet, texts=1)
    expected = predict(plain(), *given)
    pipe.unet.to(torch.bfloat16)
    sample, time, text = given
    got = predict(pipe.unet, sample.bfloat16(), time, text.bfloat16())
    assert got.dtype == torch.bfloat16
    assert (got - expected).abs().max() <= 2e-2 * expected.abs().max()


def test_changed_weights_are_followed(pipe: Any) -> None:
    """As LoRA's are, merged into the weights; those stay in memory, for no checkpoint has them."""
    given = inputs(pipe.unet, texts=1)
    predict(pipe.unet, *given)
    other = plain()
    for unet in (pipe.unet, other):
        with torch.no_grad():
            unet.conv_out.weight.mul_(2)
    expected = predict(other, *given)
    with pytest.warns(UserWarning, match=r"1 weights .* stay there beside OpenVINO's: conv_out.weight"):
        got = predict(pipe.unet, *given)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def residuals(unet: Any) -> dict[str, Any]:
    """A ControlNet's outputs, all zero."""
    skips: list[Tensor] = []
    for block in unet.down_blocks:
        block.register_forward_hook(lambda module, args, out: skips.extend(out[1]))
    unet.conv_in.register_forward_hook(lambda module, args, out: skips.insert(0, out))
    unet.mid_block.register_forward_hook(lambda module, args, out: skips.append(out))
    predict(unet, *inputs(unet))
    return {
        "down_block_additional_residuals": [torch.zeros_like(x) for x in skips[:-1]],
        "mid_block_additional_residual": torch.zeros_like(skips[-1]),
    }


def test_calls_that_no_graph_fits_are_torchs(pipe: Any, made: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    given, unet = inputs(pipe.unet), plain()
    expected = predict(unet, *given)
    assert torch.allclose(predict(pipe.unet, *given, **residuals(plain())), expected, atol=1e-5)
    mask = torch.ones(2, 77)
    assert torch.allclose(predict(pipe.unet, *given, encoder_attention_mask=mask), expected, atol=1e-5)
    seen: list[Any] = []
    hook = pipe.unet.mid_block.register_forward_hook(lambda *args: seen.append(args))
    predict(pipe.unet, *given)
    hook.remove()
    assert seen, "who looks on within sees something"
    sample = given[0].clone().requires_grad_()
    pipe.unet(sample, *given[1:]).sample.sum().backward()
    assert sample.grad is not None
    monkeypatch.setattr(engine.os, "getpid", lambda: -1)  # a forked child
    assert torch.equal(predict(pipe.unet, *given), expected)
    assert made == []


def test_a_failure_while_converting_leaves_the_pipeline_usable(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = inputs(pipe.unet, texts=1, side=4)
    pipe.enable_openvino(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            predict(pipe.unet, *given)
    assert list(tmp_path.iterdir()) == []
    expected = predict(plain(), *given)
    assert (predict(pipe.unet, *given) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_what_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    with pytest.raises(ConfigError, match="cache_dir=5: name a folder"):
        pipe.enable_openvino(5)  # type: ignore[arg-type]
    pipe.enable_openvino()
    with pytest.raises(ConfigError, match="sequential_offload and openvino cannot be on together"):
        pipe.enable("sequential_offload", device="cpu")
    pipe.disable("openvino")
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'leandiffusion\[openvino\]'"):
        pipe.enable_openvino()
