"""What peers offer to draw, and what asking them does: nothing is loaded, nobody is told."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from leandiffusion.bench.peers import peers
from leandiffusion.bench.workload import Job, Workload
from leandiffusion.core.errors import BackendUnavailable


def workload(half: str = "bfloat16", device: str = "cpu") -> Workload:
    return Workload(model="demo", size=128, steps=2, batch=1, half=half, device=device, repeat=1)


def names(peer: str, **options: Any) -> list[str]:
    return [row.name for row in peers.get(peer).rows(workload(**options)) if not row.asked]


def test_rows_fit_the_device() -> None:
    assert names("diffusers") == names("diffusers", device="cuda") == ["diffusers_fp32", "diffusers_half"]
    assert names("diffusers", half="float32") == ["diffusers_fp32"]
    assert names("openvino") == ["openvino_f32", "openvino_bf16"]
    assert names("openvino", half="float32") == ["openvino_f32"]


def test_openvino_says_that_it_draws_on_the_cpu() -> None:
    load = workload(device="cuda")
    row = peers.get("openvino").rows(load)[0]
    with pytest.raises(BackendUnavailable, match="--device cpu"):
        peers.get("openvino").prepare(Job(row, load, "nowhere", "nowhere", None))


def test_compiling_has_to_be_asked_for() -> None:
    assert {row.name for row in peers.get("diffusers").rows(workload()) if row.asked} == {"diffusers_compile"}


def test_looking_at_rows_loads_neither_peers_nor_torch() -> None:
    code = (
        "import sys; from leandiffusion.bench.peers import peers; from leandiffusion.bench.workload import Workload;"
        "load = Workload('demo', 128, 2, 1, 'bfloat16', 'cpu', 1);"
        "assert sum(len(peers.get(name).rows(load)) for name in peers) >= 5;"
        "print({'torch', 'diffusers', 'transformers', 'openvino'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_settings_of_diffusers_are_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    from leandiffusion.bench.peers.diffusers import _switch_on

    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda what, **options: compiled.append(options) or what)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    vae = torch.nn.Conv2d(4, 4, 3)
    vae.decode = vae.forward  # type: ignore[assignment]
    pipe = SimpleNamespace(unet=torch.nn.Conv2d(4, 4, 3), vae=vae)
    _switch_on(pipe, {})
    assert not compiled
    assert pipe.unet.weight.is_contiguous()
    settings = peers.get("diffusers").rows(workload(device="cuda"))[-1].settings
    assert settings == {"channels_last": True, "cudnn_benchmark": True, "compile": "max-autotune", "fullgraph": True}
    _switch_on(pipe, settings)
    assert compiled == [{"mode": "max-autotune", "fullgraph": True}] * 2
    assert torch.backends.cudnn.benchmark
    for network in (pipe.unet, pipe.vae):
        assert network.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(find_spec("openvino") is None, reason="needs openvino")
def test_openvino_tells_nobody() -> None:
    code = (
        "import sys; from leandiffusion.device.openvino import openvino; openvino();"
        "from openvino.tools.ovc import telemetry_utils; print(telemetry_utils.tm.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "openvino.tools.ovc.telemetry_stub"
