"""The UNet in eight bits: which layers, where the exact weights are meanwhile, and who cannot have it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from leandiffusion import BackendUnavailable, StableDiffusionPipeline
from leandiffusion.device import capabilities
from leandiffusion.weights.int8 import Int8Tensor, is_int8
from leandiffusion.weights.residence import is_on_disk


@pytest.fixture
def pipe() -> Any:
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    pipe.set_progress_bar_config(disable=True)
    if reasons := pipe.why_not("int8"):
        pytest.skip("; ".join(reasons))
    return pipe


def draw(pipe: Any, prompt: Any = "a red circle", **options: Any) -> Any:
    generators = [torch.Generator().manual_seed(seed) for seed in range(1 if isinstance(prompt, str) else len(prompt))]
    settings = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "np", "generator": generators}
    return pipe(prompt, **(settings | options)).images


def rounded(pipe: Any) -> dict[str, Int8Tensor]:
    return {name: weight for name, weight in pipe.unet.named_parameters() if is_int8(weight)}


@pytest.mark.parametrize("first", ["draw", "enable"])
def test_exact_weights_are_left_to_the_checkpoint(pipe: Any, first: str) -> None:
    if first == "draw":
        draw(pipe)
    pipe.enable_int8()
    draw(pipe)
    weights = rounded(pipe)
    names = {name for name in dict(pipe.unet.named_parameters()) if name.endswith("weight") and "norm" not in name}
    within = {name for name in names if name.startswith(("down_blocks", "mid_block", "up_blocks"))}
    assert set(weights) == within
    assert all(is_on_disk(weight.file.exact) for weight in weights.values())
    assert all(weight.file.numbers.bytes.dtype == torch.int8 for weight in weights.values())
    assert not any(isinstance(weight, Int8Tensor) for weight in pipe.vae.parameters())


def test_what_sees_text_and_time_keeps_its_inputs(pipe: Any) -> None:
    pipe.enable_int8()
    exact = {name.rpartition(".")[0] for name, weight in rounded(pipe).items() if not weight.file.inputs}
    assert {name.rpartition(".")[2] for name in exact} == {"to_k", "to_v", "time_emb_proj"}
    assert not any("attn1" in name for name in exact)


def test_a_network_made_by_hand_keeps_its_weights_and_says_so(pipe: Any) -> None:
    config = {name: value for name, value in pipe.unet.config.items() if not name.startswith("_")}
    torch.manual_seed(0)
    pipe.unet = type(pipe.unet)(**config).eval()
    before = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    with pytest.warns(UserWarning, match="stay in memory too"):
        pipe.enable_int8()
    draw(pipe)
    assert rounded(pipe)
    pipe.disable("int8")
    after = pipe.unet.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_weight_that_was_written_to_stays_so(pipe: Any) -> None:
    pipe.enable_int8()
    draw(pipe)
    name, weight = next(iter(rounded(pipe).items()))
    with torch.no_grad():
        weight.add_(0.5)
    changed = weight.detach().clone()
    draw(pipe)
    assert name not in rounded(pipe)
    pipe.disable("int8")
    assert torch.equal(pipe.unet.get_parameter(name), changed)


@pytest.mark.parametrize(
    ("what", "answer", "reason"),
    [("machine", "aarch64", "for x86, and this is aarch64"), ("oneDNN", False, "install the one from PyPI")],
)
def test_what_is_missing_is_said(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, what: str, answer: Any, reason: str
) -> None:
    if what == "machine":
        monkeypatch.setattr(capabilities.platform, "machine", lambda: answer)
    else:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: answer)
    with pytest.raises(BackendUnavailable, match=reason):
        pipe.enable_int8()
    assert not rounded(pipe)


def test_it_is_for_cpus() -> None:
    assert "for CPUs" in capabilities.why_no_int8(torch.device("cuda"))[0]
