"""The checker finds what tells device types apart, leaves alone what does not, and finds nothing in the package."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools import device_names


@pytest.mark.parametrize(
    "line",
    [
        'if device.type == "cuda": pass',
        'if x.device.type in ("cpu", "mps"): pass',
        'name = f"cuda:{index}"',
        'place = torch.device("xpu", 1)',
        'sizes = {"cuda": 2}',
        "torch.cuda.synchronize()",
        "torch.backends.mps.is_available()",
        'getattr(torch, "cuda")',
        "from torch import cuda",
        "from torch.cuda import Stream",
        "import torch.xpu",
        "if weight.is_cuda: pass",
        "weight.cuda()",
        'if device.type != "cpu": pass',
        'if device.startswith("cpu"): pass',
        "match device.type:\n    case 'cpu': pass",
        "match device.type:\n    case 'cuda': pass",
    ],
)
def test_what_tells_types_apart_is_found(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "planted.py"
    file.write_text(f"import torch\n{line}\n", encoding="utf-8")
    assert device_names.main([str(file)]) == 1
    assert f"{file}:" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line",
    [
        '"""Runs on cuda."""',
        "cuda = 1",
        'help = "Such as cpu or cuda:1."',
        'host = torch.device("cpu")',
        'def f(device="cpu"): "cuda"',
        "if device.type == other.type: pass",
        "torch.accelerator.synchronize()",
    ],
)
def test_what_does_not_is_left_alone(line: str) -> None:
    assert device_names.found_in(line) == []


def test_the_package_names_devices_in_one_room_only() -> None:
    assert device_names.main([]) == 0


def test_the_room_itself_would_be_found() -> None:
    assert any(device_names.found_in(file.read_text(encoding="utf-8")) for file in device_names.ALLOWED[0].glob("*.py"))
