"""Networks as OpenVINO's graphs: in bfloat16 as exact as torch, where scores are large and angles are many.

Against float64, or float32 where the network is deep, of the same bfloat16 weights and inputs. Both libraries round
what every layer makes to 2^-9 of itself, in places of their own: OpenVINO's error may be 1.5 times torch's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.unit.modules.test_unet import SDXL, TINY
from torch import Tensor, nn

from leandiffusion.device import openvino as engine
from leandiffusion.device.capabilities import EMULATED
from leandiffusion.modules.openvino import Graph, write_graph
from leandiffusion.modules.unet import UNet2DConditionModel
from leandiffusion.techniques.openvino_graphs import Call, unet_inputs

pytestmark = pytest.mark.skipif(
    bool(engine.why_no_openvino(torch.device("cpu"), torch.float32)), reason="OpenVINO does not compute here"
)
needs_bfloat16 = pytest.mark.skipif(torch.bfloat16 in EMULATED, reason="no instructions for it")


@pytest.fixture(autouse=True)
def without_gradients() -> Any:
    with torch.no_grad():
        yield


def converted(file: Path, network: nn.Module, call: Callable[..., Tensor], inputs: list[Tensor]) -> Tensor:
    """What the graph of it computes, read back from the file."""
    write_graph(file, network, call, inputs, inputs[0].dtype)
    return Graph(file, inputs[0].dtype)(inputs)


def error(out: Tensor, exact: Tensor) -> float:
    return float((out.double() - exact.double()).norm() / exact.double().norm())


class Attending(nn.Module):
    """Layers of attention of several sizes of heads, each to tokens of the picture or of the text."""

    def __init__(self, channels: int, heads: list[int]) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (
            nn.ModuleList(nn.Linear(channels, channels) for _ in heads) for _ in range(3)
        )

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        return torch.cat([self.attend(i, x, each) for i in range(len(self.heads)) for each in (x, text)], dim=1)

    def attend(self, i: int, x: Tensor, other: Tensor) -> Tensor:
        q, k, v = self.projected(i, x, other)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def projected(self, i: int, x: Tensor, other: Tensor) -> list[Tensor]:
        made = self.to_q[i](x), self.to_k[i](other), self.to_v[i](other)
        return [y.unflatten(2, (self.heads[i], -1)).transpose(1, 2) for y in made]


@needs_bfloat16
@pytest.mark.parametrize("largest", [30, 300])
def test_large_scores_are_not_rounded(largest: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, inputs = Attending(320, [8, 4]), [torch.randn(2, 256, 320), torch.randn(2, 77, 320)]
    for i in range(len(network.heads)):
        q, k, _ = network.projected(i, inputs[0], inputs[0])
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        network.to_q[i].get_parameter("weight").mul_(largest / scores.abs().max())
    network, inputs = network.bfloat16(), [x.bfloat16() for x in inputs]
    got = converted(tmp_path / "graph", network, lambda network, *given: network(*given), inputs)
    torchs = network(*inputs)
    exact = network.double()(*(x.double() for x in inputs))
    assert got.dtype == torch.bfloat16
    assert error(got, exact) <= 1.5 * error(torchs, exact)


def tiny(**config: Any) -> UNet2DConditionModel:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**TINY | config).eval()
    for name, p in unet.named_parameters():
        p.mul_(2 if p.dim() > 1 else 1).mul_(3 if "time_emb_proj" in name else 1)  # so that text and time matter
    return unet


def given(unet: UNet2DConditionModel, timestep: float, **added: Tensor) -> dict[str, Any]:
    torch.manual_seed(1)
    kwargs = {"added_cond_kwargs": {"text_embeds": torch.randn(2, 5), **added}} if added else {}
    text = torch.randn(2, 5, unet.config.cross_attention_dim)
    return {"sample": torch.randn(2, 4, 8, 8), "timestep": timestep, "encoder_hidden_states": text, **kwargs}


def run_through(file: Path, unet: UNet2DConditionModel, call: Call | None) -> Tensor:
    assert call is not None
    return converted(file, unet, call.function, list(call.inputs.values()))


@needs_bfloat16
@pytest.mark.parametrize("timestep", [333, 501, 999])
def test_angles_of_the_timestep_are_not_rounded(timestep: int, tmp_path: Path) -> None:
    """bfloat16 holds 500 and 502, between which the fastest sinusoid turns by 2 radians."""
    unet, inputs = tiny().bfloat16(), given(tiny(), timestep)
    half: dict[str, Any] = {name: x.bfloat16() if isinstance(x, Tensor) else x for name, x in inputs.items()}
    got, torchs = run_through(tmp_path / "graph", unet, unet_inputs(unet, **half)), unet(**half).sample
    exact = unet.float()(**{name: x.float() if isinstance(x, Tensor) else x for name, x in half.items()}).sample
    assert error(got, exact) <= 1.5 * error(torchs, exact)


def test_sdxls_sizes_go_in_as_sinusoids(tmp_path: Path) -> None:
    """Within 1e-5 in float32: other orders of the same sums. Another size gives another prediction."""
    unet = tiny(**SDXL)
    sizes = torch.tensor([[1024.0, 1000, 0, 7, 999, 1024]] * 2)
    inputs = given(unet, 501, time_ids=sizes)
    call = unet_inputs(unet, **inputs)
    expected = unet(**inputs).sample
    assert error(run_through(tmp_path / "graph", unet, call), expected) <= 1e-5
    assert error(unet(**given(unet, 501, time_ids=sizes + 50)).sample, expected) > 1e-3


def test_a_timestep_for_each_text(tmp_path: Path) -> None:
    """Within 1e-5 in float32. What comes before the text is not shared then."""
    unet, inputs = tiny(), given(tiny(), 501) | {"timestep": torch.tensor([10, 500])}
    inputs["sample"] = inputs["sample"][:1]
    got = run_through(tmp_path / "graph", unet, unet_inputs(unet, **inputs))
    assert error(got, unet(**inputs).sample) <= 1e-5


def test_attention_that_looks_back_alone_is_left_as_it_is(tmp_path: Path) -> None:
    network = Attending(32, [4]).bfloat16()
    inputs = [torch.randn(1, 64, 32).bfloat16(), torch.randn(1, 64, 32).bfloat16()]

    def causal(network: nn.Module, x: Tensor, text: Tensor) -> Tensor:
        q, k, v = network.projected(0, x, text)  # type: ignore[operator]
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    got = converted(tmp_path / "graph", network, causal, inputs)
    assert error(got, causal(network.double(), *(x.double() for x in inputs))) < 2e-2
