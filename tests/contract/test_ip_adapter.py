"""Every technique with an IP-Adapter loaded: the picture that there is without the technique, no trace of it
afterwards, or a reason. A new one joins by being registered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.contract.common import USABLE, Draw, enable, state
from tests.contract.test_one_technique import check_parity
from tests.parity import ip_adapter_files as files

from leandiffusion import ConfigError, StableDiffusionPipeline

REFUSED = ("compile",)
SOME = ["unet_slicing", "attention_slicing", "guidance_interval", "deep_cache", "sequential_offload", "traced_unet"]
SEEN = Image.new("RGB", (40, 30), "orange")


def opened(file: Path) -> Any:
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    pipe.set_progress_bar_config(disable=True)
    pipe.load_ip_adapter(file)
    return pipe


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for the packaged model, whose random weights say something."""
    unet = StableDiffusionPipeline.from_pretrained("demo").unet
    return files.save_adapter(tmp_path_factory.mktemp("ip"), unet, "plus", gain=2.0)


@pytest.fixture
def pipe(file: Path) -> Any:
    pipe = opened(file)
    yield pipe
    pipe._stack.clear()


@pytest.fixture(scope="module")
def looked(file: Path, draw: Draw, plain: np.ndarray) -> np.ndarray:
    """What the packaged model draws with it, and nothing else on."""
    picture = draw(opened(file), ip_adapter_image=SEEN)
    assert np.abs(picture - plain).max() > 0.05
    return picture


@pytest.mark.parametrize("name", USABLE)
def test_parity_and_exact_undo(name: str, pipe: Any, draw: Draw, plain: np.ndarray, looked: np.ndarray) -> None:
    before = state(pipe)
    enable(pipe, name)
    if name in REFUSED:
        with pytest.raises(ConfigError, match="compiled blocks"):
            draw(pipe, ip_adapter_image=SEEN)
    else:
        first = draw(pipe, ip_adapter_image=SEEN)
        check_parity(name, first, looked)
        assert np.array_equal(draw(pipe, ip_adapter_image=SEEN), first)
    pipe.disable(name)
    assert state(pipe) == before
    assert np.array_equal(draw(pipe, ip_adapter_image=SEEN), looked)
    pipe.unload_ip_adapter()
    assert np.array_equal(draw(pipe), plain)


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize(
    "arguments",
    [{"guidance_scale": 1.0}, {"num_images_per_prompt": 2}, {"prompt": ["a red circle", "a blue square"]}],
    ids=["no guidance", "two images", "two prompts"],
)
def test_other_calls(name: str, arguments: dict[str, Any], pipe: Any, draw: Draw) -> None:
    expected = draw(pipe, ip_adapter_image=SEEN, **arguments)
    enable(pipe, name)
    check_parity(name, draw(pipe, ip_adapter_image=SEEN, **arguments), expected)


@pytest.mark.parametrize("name", USABLE)
def test_loaded_while_it_is_on(name: str, file: Path, pipe: Any, draw: Draw, plain: np.ndarray) -> None:
    pipe.unload_ip_adapter()
    enable(pipe, name)
    before = draw(pipe)
    pipe.load_ip_adapter(file)
    if name not in REFUSED:
        draw(pipe, ip_adapter_image=SEEN)
    pipe.unload_ip_adapter()
    assert np.array_equal(draw(pipe), before)
    pipe.disable(name)
    assert np.array_equal(draw(pipe), plain)


@pytest.mark.parametrize("name", ["sequential_offload", "model_offload", "unet_slicing"])
def test_with_perturbed_attention(name: str, pipe: Any, draw: Draw, looked: np.ndarray) -> None:
    pipe.enable_perturbed_attention(10.0, "up_blocks")
    expected = draw(pipe, ip_adapter_image=SEEN)
    assert np.abs(expected - looked).max() > 0.05
    enable(pipe, name)
    check_parity(name, draw(pipe, ip_adapter_image=SEEN), expected)
