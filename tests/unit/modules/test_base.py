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
    for dtype in ("float16", torch.int8):
        with pytest.raises(ConfigError, match=r"pass torch\.float32"):
            Line.from_pretrained(tmp_path, torch_dtype=dtype)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="use_safetensors=False asks for pickled"):
        Line.from_pretrained(tmp_path, use_safetensors=False)
    with pytest.raises(ConfigError, match=r"found 3\. .*Line\.from_pretrained"):
        Line.from_config(3)  # type: ignore[arg-type]


def test_the_keywords_of_diffusers_scripts(tmp_path: Path) -> None:
    Line().save_pretrained(save_directory=tmp_path / "line", safe_serialization=True, variant="fp16")
    opened = Line.from_pretrained(
        pretrained_model_name_or_path=tmp_path / "line", revision="fp16", low_cpu_mem_usage=True, use_safetensors=True
    )
    assert opened.dtype == torch.float32, "revision 'fp16' chooses files, as the early branches of that name did"
    with pytest.raises(ConfigError, match="safe_serialization=False asks for pickled"):
        Line().save_pretrained(tmp_path, safe_serialization=False)
