"""Opening networks: values, dtypes, what is computed rather than stored, parts left out, and mismatches."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from leandiffusion.core.config import Configurable
from leandiffusion.core.errors import CheckpointNotFound, ConfigError, MalformedFile, TensorMismatch, WeightsError
from leandiffusion.weights import read
from leandiffusion.weights.header import read_header
from leandiffusion.weights.load import open_network, origin_of
from leandiffusion.weights.read import TensorReader
from leandiffusion.weights.save import save_network
from leandiffusion.weights.stored import StoredTensor


class Half(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.register_buffer("table", torch.linspace(0, 1, width), persistent=False)


class Net(Configurable, nn.Module):
    """Everything that loading must get right: computed buffers, stored buffers, a tie, norms, random weights."""

    ignored_keys = (r"\.ignored$",)

    def __init__(self, width: int = 8, bias: bool = True) -> None:
        super().__init__()
        self.encoder = Half(width)
        self.decoder = Half(width)
        self.quant = nn.Conv2d(width, width, 1)
        self.norm = nn.BatchNorm1d(width)
        self.embed = nn.Embedding(5, width)
        self.scale = nn.Parameter(torch.randn(width) * width**-0.5)
        self.head = nn.Linear(width, 5, bias=bias)
        self.head.weight = self.embed.weight
        self.register_buffer("position_ids", torch.arange(7)[None], persistent=False)

    @classmethod
    def rename_keys(cls, keys: list[str]) -> dict[str, str]:
        return {key: key.replace("old_decoder", "decoder") for key in keys}


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Net]:
    torch.manual_seed(0)
    net = Net()
    net.norm.running_mean = torch.rand(8)
    save_network(net, tmp_path / "net")
    return tmp_path / "net", net.eval()


def edit(folder: Path, **changes: torch.Tensor | None) -> None:
    """Rewrite the weights with some tensors replaced, added or (None) taken away; '__' stands for '.'."""
    file = folder / "diffusion_pytorch_model.safetensors"
    state = load_file(file) | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, file)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_values_and_dtypes(saved: tuple[Path, Net], dtype: torch.dtype | None) -> None:
    """Equal bit for bit to casting the original: a file is read, never computed with."""
    folder, net = saved
    opened = open_network(Net, folder, dtype=dtype)
    expected = copy.deepcopy(net).to(dtype or torch.float32)
    assert not opened.training
    tensors = dict(expected.named_parameters()) | dict(expected.named_buffers())
    ours = dict(opened.named_parameters()) | dict(opened.named_buffers())
    assert tensors.keys() == ours.keys()
    for name, tensor in tensors.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name
    assert opened.head.weight is opened.embed.weight
    assert all(p.requires_grad for p in opened.parameters())


def test_no_random_number_is_drawn(saved: tuple[Path, Net], monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_rng_state()
    touched: list[torch.Tensor] = []
    original = nn.init.kaiming_uniform_

    def watched(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        touched.append(tensor)
        return original(tensor, *args, **kwargs)

    monkeypatch.setattr(nn.init, "kaiming_uniform_", watched)
    open_network(Net, saved[0])
    assert touched  # the constructors do ask for it …
    assert all(tensor.is_meta for tensor in touched)  # … of nothing
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_default_device_changes_nothing(saved: tuple[Path, Net], dtype: torch.dtype | None) -> None:
    with torch.device("meta"):
        opened = open_network(Net, saved[0], dtype=dtype)
    assert torch.equal(opened.scale, saved[1].scale.to(dtype or torch.float32))
    assert opened.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 6]]


def test_mixed_dtypes_in_the_file(saved: tuple[Path, Net]) -> None:
    folder, net = saved
    edit(folder, scale=net.scale.detach().half())
    assert open_network(Net, folder).scale.dtype == torch.float16
    assert torch.equal(open_network(Net, folder, dtype=torch.float32).scale, net.scale.half().float())


def test_renamed_ignored_and_reshaped(saved: tuple[Path, Net]) -> None:
    folder, net = saved
    weight = net.decoder.linear.weight.detach()
    edit(
        folder,
        decoder__linear__weight=None,
        old_decoder__linear__weight=weight[:, :, None, None].clone(),  # a 1x1 convolution of old
        quant__weight=net.quant.weight.detach()[:, :, 0, 0].clone(),
        some__ignored=torch.ones(3),
    )
    opened = open_network(Net, folder)
    assert torch.equal(opened.decoder.linear.weight, weight)
    assert torch.equal(opened.quant.weight, net.quant.weight)


def test_two_tensors_for_one_name(saved: tuple[Path, Net]) -> None:
    edit(saved[0], old_decoder__linear__bias=torch.zeros(8))
    with pytest.raises(TensorMismatch, match=r"both 'decoder\.linear\.bias'"):
        open_network(Net, saved[0])


def test_one_entry_is_enough_for_a_tie(saved: tuple[Path, Net]) -> None:
    folder, net = saved
    edit(folder, head__weight=None)
    opened = open_network(Net, folder)
    assert opened.head.weight is opened.embed.weight
    assert torch.equal(opened.head.weight, net.head.weight)


@pytest.mark.parametrize("skip", [("encoder.", "quant."), lambda name: name.startswith(("encoder", "quant"))])
def test_parts_left_out_come_when_anything_asks_for_them(saved: tuple[Path, Net], skip: Any) -> None:
    folder, net = saved
    opened = open_network(Net, folder, dtype=torch.bfloat16, leave_out=skip)
    parts = {name for name, p in opened.named_parameters() if isinstance(p, StoredTensor)}
    assert parts == {name for name, _ in net.named_parameters() if name.startswith(("encoder", "quant"))}
    assert opened.state_dict().keys() == net.state_dict().keys()
    assert opened.encoder.linear.weight.dtype == torch.bfloat16
    assert torch.equal(opened.encoder.linear.weight + 0, net.encoder.linear.weight.bfloat16())
    assert torch.equal(opened.encoder.table, net.encoder.table.bfloat16())
    x = torch.ones(1, net.encoder.linear.in_features)
    with torch.no_grad():
        assert torch.equal(opened.float().encoder.linear(x), net.encoder.linear(x))


def test_other_weights_are_written_to_parts_left_out(saved: tuple[Path, Net]) -> None:
    folder, net = saved
    opened = open_network(Net, folder, leave_out=("encoder.",))
    opened.load_state_dict({name: tensor + 1 for name, tensor in net.state_dict().items()})
    assert torch.equal(opened.encoder.linear.weight + 0, net.encoder.linear.weight + 1)
    save_network(opened, folder / "copy")
    again = open_network(Net, folder / "copy")
    assert all(torch.equal(t, net.state_dict()[name] + 1) for name, t in again.state_dict().items())


def test_a_part_left_out_of_a_file_that_changed(saved: tuple[Path, Net]) -> None:
    folder, _ = saved
    opened = open_network(Net, folder, leave_out=("encoder.",))
    file = folder / "diffusion_pytorch_model.safetensors"
    os.truncate(file, file.stat().st_size - 8)
    with pytest.raises(WeightsError, match="was changed while"):
        opened.encoder.linear.weight.sum()
    file.unlink()  # an open file outlives its name, so that this alone would do no harm


def test_an_opened_network_copies_and_pickles(saved: tuple[Path, Net]) -> None:
    opened = open_network(Net, saved[0], leave_out=("encoder.",))
    for copied in (copy.deepcopy(opened), pickle.loads(pickle.dumps(opened))):
        assert torch.equal(copied.encoder.linear.weight, saved[1].encoder.linear.weight)
    assert origin_of(opened) is not None
    assert origin_of(saved[1]) is None


def test_mismatches_are_listed(saved: tuple[Path, Net], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved[0].parent)
    folder = Path(saved[0].name)  # of a length that leaves room for all of them
    edit(
        folder, scale=torch.ones(9), quant__bias=None, extra=torch.ones(2, 3), embed__weight=torch.ones(5, 8).long(),
        head__weight=None,
    )  # fmt: skip
    with pytest.raises(TensorMismatch) as caught:
        open_network(Net, folder)
    message = str(caught.value)
    assert str(folder / "diffusion_pytorch_model.safetensors") in message
    assert "1 missing, 1 unexpected, 2 of another shape or kind" in message
    assert "quant.bias: expected float32 (8,)" in message
    assert "extra: found float32 (2, 3)" in message
    assert "scale: expected float32 (8,), found float32 (9,)" in message
    assert "embed.weight: expected float32 (5, 8), found int64 (5, 8)" in message


def test_only_a_few_mismatches_are_listed(saved: tuple[Path, Net]) -> None:
    edit(saved[0], scale=None, **{f"extra{i}{'x' * 100_000 * i}": torch.ones(1) for i in range(9)})
    with pytest.raises(TensorMismatch, match=r"1 missing, 9 unexpected[\s\S]*… and [4-8] more") as caught:
        open_network(Net, saved[0])
    assert len(str(caught.value)) < 500


def test_stray_tensors_are_named_and_left_out(saved: tuple[Path, Net]) -> None:
    folder, net = saved
    edit(folder, **{f"optimizer__{i}": torch.ones(1) for i in range(9)})
    with pytest.warns(UserWarning, match=r"9 tensors that this Net has no weights for: .* and 6 more"):
        opened = open_network(Net, folder)
    assert torch.equal(opened.scale, net.scale)
    assert not [name for name in origin_of(opened).entries if name.startswith("optimizer")]  # type: ignore[union-attr]


def test_nothing_is_read_when_names_differ(saved: tuple[Path, Net], monkeypatch: pytest.MonkeyPatch) -> None:
    edit(saved[0], scale=None)
    monkeypatch.setattr(TensorReader, "_read", lambda *_: pytest.fail("data was read"))
    with pytest.raises(TensorMismatch):
        open_network(Net, saved[0])


def test_truncated_data(saved: tuple[Path, Net], monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved[0] / "diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-5])
    with pytest.raises(MalformedFile, match=f"describes {len(content)} bytes, the file holds {len(content) - 5}"):
        open_network(Net, saved[0])


def test_a_file_that_shrinks_while_it_is_read(saved: tuple[Path, Net]) -> None:
    file = saved[0] / "diffusion_pytorch_model.safetensors"
    entries = read_header(file).entries
    file.write_bytes(file.read_bytes()[:-5])
    for dtype in (None, torch.bfloat16):
        with pytest.raises(MalformedFile, match="ends 5 bytes before"):
            list(TensorReader(dtype, torch.device("cpu")).read_all(entries))


def test_configs(saved: tuple[Path, Net], tmp_path: Path) -> None:
    folder, _ = saved
    with pytest.raises(TensorMismatch, match="different models"):
        open_network(Net, folder, config_overrides={"width": 16})
    with pytest.raises(ConfigError, match=r"config\.json does not describe a Net.*widht"):
        open_network(Net, folder, config_overrides={"widht": 16})
    with pytest.raises(ConfigError, match="does not describe"):
        open_network(Net, folder, config_overrides={"width": "eight"})
    (folder / "config.json").write_text('{"width": 8,')
    with pytest.raises(MalformedFile, match=r"config\.json is not valid JSON"):
        open_network(Net, folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointNotFound, match=r"has no config\.json"):
        open_network(Net, folder)
    with pytest.raises(CheckpointNotFound, match="no such folder"):
        open_network(Net, tmp_path / "nowhere")


def test_slices_and_transposes_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal to slicing and transposing the whole tensor, also when it passes through the buffer in many pieces."""
    tensor = torch.randn(12, 7)
    save_file({"w": tensor}, tmp_path / "w.safetensors")
    entry = read_header(tmp_path / "w.safetensors").entries["w"]
    entries = {
        "rows": entry.rows(4, 8),
        "t": entry.transposed(),
        "shape": entry.reshaped((3, 4, 7)),
        "back": entry.transposed().transposed(),
    }
    expected = {"rows": tensor[4:8], "t": tensor.t(), "shape": tensor.view(3, 4, 7), "back": tensor}
    for chunk in (1, 60, 1 << 20):
        monkeypatch.setattr(read, "CHUNK_BYTES", chunk)
        for dtype in (None, torch.float64):
            for name, value in TensorReader(dtype, torch.device("cpu")).read_all(entries):
                assert torch.equal(value, expected[name].to(dtype or torch.float32)), (name, chunk)
                assert value.is_contiguous()
