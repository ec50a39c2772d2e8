"""What every network inherits: dtype, device, config, counting, opening and saving."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from leandiffusion.core.errors import CheckpointNotFound, ConfigError
from leandiffusion.modules.base import Network


class Line(Network):
    """y = ax + b, with an integer parameter before the weights."""

    def __init__(self, width: int = 3, tied: bool = False) -> None:
        super().__init__()
        self.steps = nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False)
        self.first = nn.Linear(width, width)
        self.second = self.first if tied else nn.Linear(width, width)


class Empty(Network):
    def __init__(self) -> None:
        super().__init__()


def test_dtype_and_device() -> None:
    assert Line().half().dtype == torch.float16
    assert Line().to("meta").device.type == "meta"
    assert (Empty().dtype, Empty().device) == (torch.float32, torch.device("cpu"))


def test_num_parameters_counts_shared_ones_once() -> None:
    assert Line().num_parameters() == 1 + 2 * 12
    assert Line(tied=True).num_parameters() == 1 + 12
    assert Line().num_parameters(only_trainable=True) == 2 * 12


def test_saving_and_opening(tmp_path: Path) -> None:
    line = Line(width=5)
    line.save_pretrained(tmp_path / "line", variant="fp16")
    assert (tmp_path / "line" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    opened = Line.from_pretrained(tmp_path, subfolder="line", variant="fp16", torch_dtype=torch.float64)
    assert opened.config.width == 5
    assert not opened.training
    assert opened.first.weight.dtype == torch.float64
    assert opened.steps.dtype == torch.int64
    assert torch.equal(opened.first.weight, line.first.weight.double())
    assert opened.second.weight is not opened.first.weight


def test_opening_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mean the same thing"):
        Line.from_pretrained(tmp_path, dtype=torch.float16, torch_dtype=torch.float32)
    with pytest.raises(CheckpointNotFound):
        Line.from_pretrained(tmp_path, subfolder="unet")
