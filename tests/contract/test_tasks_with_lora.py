"""Every technique in the tasks that `test_lora` does not have, along ControlNets too, with a LoRA on; and with all at
once that draws otherwise: the picture that there is without the technique, no trace of it afterwards, or a reason. A
new one joins by being registered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.contract.common import ON_A_PICTURE, USABLE, enable, redraw, state
from tests.contract.test_one_technique import check_parity
from tests.parity import controlnet_files, ip_adapter_files, lora_files

from leandiffusion import AutoPipelineForText2Image, ConfigError, ControlNetModel, StableDiffusionPipeline

pytestmark = pytest.mark.usefixtures("same_noise")

SEEN = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
LOOKED_AT = Image.new("RGB", (40, 30), "orange")
TEXT = "text to image"
ALONG = " along a ControlNet"
TASKS: dict[str, tuple[Any, dict[str, Any]]] = {
    TEXT: (AutoPipelineForText2Image, {"height": 64, "width": 64}),
    **ON_A_PICTURE,
}
EVERYTHING = f"inpainting{ALONG}, with all else"
CASES = [EVERYTHING, *ON_A_PICTURE, TEXT + ALONG, f"image to image{ALONG}"]
REFUSED = {"compile": EVERYTHING}
"""By technique: with what it does not go, which it says by name."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA, an IP-Adapter and a ControlNet for the packaged model, with random weights that say something."""
    folder = tmp_path_factory.mktemp("files")
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    factors = lora_files.kohya("lora_unet", pipe.unet, which=lora_files.EVERYTHING, alpha=3.0)
    factors |= lora_files.kohya("lora_te", pipe.text_encoder, seed=1, alpha=3.0)
    save_file(factors, folder / "lora.safetensors")
    ip_adapter_files.save_adapter(folder, pipe.unet, "plain", gain=2.0)
    controlnet_files.save_controlnet(folder / "controlnet", pipe.unet)
    return folder


@pytest.fixture(scope="module")
def open_for(files: Path) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """The pipeline of a task with the LoRA on, or without, and what its call is given."""

    def make(case: str, *, lora: bool = True) -> tuple[Any, dict[str, Any]]:
        task, along, rest = case.partition(ALONG)
        auto, given = TASKS[task]
        pipe, given = AutoPipelineForText2Image.from_pretrained("demo"), dict(given)
        if along:
            pipe = auto.from_pipe(pipe, controlnet=ControlNetModel.from_pretrained(files / "controlnet"))
            given["control_image" if task in ON_A_PICTURE else "image"] = SEEN
        else:
            pipe = auto.from_pipe(pipe)
        pipe.set_progress_bar_config(disable=True)
        if lora:
            pipe.load_lora_weights(files / "lora.safetensors", adapter_name="any")
        if rest:
            pipe.load_ip_adapter(files / "models" / "plain.safetensors")
            pipe.enable_perturbed_attention(5.0, "up_blocks")
            given["ip_adapter_image"] = LOOKED_AT
        return pipe, given

    return make


@pytest.fixture(scope="module")
def expected(open_for: Callable[..., tuple[Any, dict[str, Any]]]) -> Callable[[str], np.ndarray]:
    """By task: the picture with nothing switched on; another one than without the LoRA."""
    found: dict[str, np.ndarray] = {}

    def look(case: str) -> np.ndarray:
        if case not in found:
            found[case] = redraw(*open_for(case))
            assert np.abs(found[case] - redraw(*open_for(case, lora=False))).max() > 0.05
        return found[case]

    return look


@pytest.fixture
def opened(request: pytest.FixtureRequest, open_for: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    pipe, given = open_for(request.param)
    yield pipe, given
    pipe._stack.clear()


@pytest.mark.parametrize(("opened", "case"), [(case, case) for case in CASES], indirect=["opened"], ids=CASES)
@pytest.mark.parametrize("name", USABLE)
def test_parity_and_exact_undo(
    name: str, case: str, opened: tuple[Any, dict[str, Any]], expected: Callable[[str], np.ndarray]
) -> None:
    pipe, given = opened
    before = state(pipe)
    enable(pipe, name)
    if REFUSED.get(name) == case:
        with pytest.raises(ConfigError, match="compiled blocks"):
            redraw(pipe, given)
    else:
        check_parity(name, redraw(pipe, given), expected(case))
    pipe.disable(name)
    assert state(pipe) == before
    assert np.array_equal(redraw(pipe, given), expected(case))
