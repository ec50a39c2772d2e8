"""ControlNets in single files, made here from the original constructor's numbering, against diffusers' converter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders import single_file_utils as oracle
from safetensors.torch import save_file
from tests.parity.test_single_file import Shapes, dense, entries, original, prefixed

from leandiffusion import ControlNetModel
from leandiffusion.core.errors import TensorMismatch, UnsafeFormat, WeightsError
from leandiffusion.families import families
from leandiffusion.families.controlnet_file import read_controlnet_file
from leandiffusion.plan.empty import described_control
from leandiffusion.weights.convert import convert_controlnet, under

HINT = (16, 16, 32, 32, 96, 96, 256)
UNET = "model.diffusion_model."


def original_controlnet(kind: str, *, tiny: bool = False, seen: int = 3) -> Shapes:
    """Every tensor of a family's ControlNet: the UNet's up to its middle, a convolution behind each block, and those of
    the picture."""
    unet = {name.removeprefix(UNET): s for name, s in original(kind, tiny=tiny).items() if name.startswith(UNET)}
    shapes = {name: shape for name, shape in unet.items() if not name.startswith(("output_blocks.", "out."))}
    ends = ("0.0.weight", "0.out_layers.3.weight", "0.op.weight")
    for n in range(len({name.split(".")[1] for name in shapes if name.startswith("input_blocks.")})):
        behind = [f"input_blocks.{n}.{end}" for end in (("0.weight",) if n == 0 else ends[1:])]
        channels = next(shapes[name][0] for name in behind if name in shapes)
        shapes |= dense(f"zero_convs.{n}.0", channels, channels, 1, 1)
    shapes |= dense("middle_block_out.0", channels, channels, 1, 1)
    for i, (inside, out) in enumerate(zip((seen, *HINT), (*HINT, shapes["input_blocks.0.0.weight"][0]), strict=True)):
        shapes |= dense(f"input_hint_block.{2 * i}", out, inside, 3, 3)
    return shapes


def sparse(path: Path, shapes: Shapes) -> Path:
    """A file of noughts that takes no disk: of the header alone the kind is told."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    told = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(told).to_bytes(8, "little") + told)
        file.truncate(8 + len(told) + end)
    return path


@pytest.mark.parametrize("kind", sorted(families))
def test_names_agree_with_diffusers(kind: str) -> None:
    """The full list of names: each tensor, known by a number, goes where diffusers sends it."""
    config = ControlNetModel.settings_for(families.get(kind).networks["unet"].config)
    shapes = prefixed("control_model.", original_controlnet(kind))
    numbered = {name: torch.tensor([i]) for i, name in enumerate(shapes)}
    told = oracle.convert_controlnet_checkpoint(numbered, {"layers_per_block": 2, **config})
    expected = {name: list(shapes)[int(tensor)] for name, tensor in told.items() if tensor is not None}
    ours = convert_controlnet(under(entries(shapes), "control_model."), config)
    forgotten = {name for name in ours if name not in expected and name.startswith("add_embedding.")}  # SDXL's sizes
    assert {name: entry.name for name, entry in ours.items() if name not in forgotten} == expected


@pytest.mark.parametrize("prefix", ["control_model.", ""])
@pytest.mark.parametrize("kind", sorted(families))
def test_the_family_is_told_by_the_shapes(kind: str, prefix: str, tmp_path: Path) -> None:
    path = sparse(tmp_path / "x.safetensors", prefixed(prefix, original_controlnet(kind, seen=4)))
    settings, named = read_controlnet_file(ControlNetModel, path)
    unet = families.get(kind).networks["unet"].config
    assert settings == {**ControlNetModel.settings_for(unet), "conditioning_channels": 4}
    with torch.device("meta"):
        network = diffusers.ControlNetModel(**settings)
    assert {name: tuple(t.shape) for name, t in network.state_dict().items()} == {n: e.shape for n, e in named.items()}
    assert described_control(path)[1] == settings


def test_values_and_pictures_agree(tmp_path: Path) -> None:
    """A small one, bit for bit, opened with its config; and the same in diffusers' layout."""
    config = ControlNetModel.settings_for(
        {**families.get("sd1").networks["unet"].config, "block_out_channels": [32, 64, 128, 128]}
    )
    generator = torch.Generator().manual_seed(0)
    shapes = prefixed("control_model.", original_controlnet("sd1", tiny=True))
    state = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(state, tmp_path / "original.safetensors")
    theirs = diffusers.ControlNetModel(**config).eval()
    theirs.load_state_dict(oracle.convert_controlnet_checkpoint(dict(state), config), strict=True)
    theirs.save_pretrained(tmp_path / "folder")
    opened = [
        ControlNetModel.from_single_file(path, config=tmp_path / "folder")
        for path in (tmp_path / "original.safetensors", tmp_path / "folder" / "diffusion_pytorch_model.safetensors")
    ]
    inputs: dict[str, Any] = {
        "sample": torch.randn(1, 4, 8, 8, generator=generator), "timestep": 7,
        "encoder_hidden_states": torch.randn(1, 5, 768, generator=generator),
        "controlnet_cond": torch.rand(1, 3, 64, 64, generator=generator),
    }  # fmt: skip
    with torch.no_grad():
        expected = theirs(**inputs).mid_block_res_sample
        for net in opened:
            assert (net(**inputs).mid_block_res_sample - expected).abs().max() < 1e-5 * expected.abs().max()
    assert opened[0].state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(tensor, opened[0].state_dict()[name]) for name, tensor in theirs.state_dict().items())


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"down_blocks.0.resnets.0.norm1.weight": torch.zeros(1)}, tmp_path / "unet.safetensors")
    with pytest.raises(WeightsError, match="is a UNet in the diffusers layout, expected a ControlNet"):
        ControlNetModel.from_single_file(tmp_path / "unet.safetensors")
    sparse(tmp_path / "small.safetensors", prefixed("control_model.", original_controlnet("sd1", tiny=True)))
    with pytest.raises(TensorMismatch, match="of no family that is known: one for Stable Diffusion"):
        ControlNetModel.from_single_file(tmp_path / "small.safetensors")
    (tmp_path / "x.pth").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(UnsafeFormat):
        ControlNetModel.from_single_file(tmp_path / "x.pth")
