"""Every technique with perturbed-attention guidance: the picture that there is without the technique, or a reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.contract.common import USABLE, Draw, enable, state
from tests.contract.test_one_technique import check_parity

from leandiffusion import ConfigError, StableDiffusionPipeline

REFUSED = ("compile",)

SCALE = 10.0
"""Two steps of this small model hardly differ at less."""

LAYERS = {"after the text is attended to": "up_blocks", "before": "down_blocks"}


@pytest.fixture
def pipe() -> Any:
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    pipe.set_progress_bar_config(disable=True)
    yield pipe
    pipe._stack.clear()


@pytest.fixture(scope="module")
def perturbed(draw: Draw, plain: np.ndarray) -> dict[str, np.ndarray]:
    """What the packaged model draws with it, and nothing else on."""
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    pipe.set_progress_bar_config(disable=True)
    found = {}
    for layers in LAYERS.values():
        pipe.enable_perturbed_attention(SCALE, layers)
        found[layers] = draw(pipe)
        assert np.abs(found[layers] - plain).max() > 0.05
    return found


@pytest.mark.parametrize("layers", LAYERS.values(), ids=list(LAYERS))
@pytest.mark.parametrize("name", USABLE)
def test_parity_and_exact_undo(
    name: str, layers: str, pipe: Any, draw: Draw, plain: np.ndarray, perturbed: dict[str, np.ndarray]
) -> None:
    before = state(pipe)
    pipe.enable_perturbed_attention(SCALE, layers)
    enable(pipe, name)
    if name in REFUSED:
        with pytest.raises(ConfigError, match="compiled blocks"):
            draw(pipe)
    else:
        first = draw(pipe)
        check_parity(name, first, perturbed[layers])
        assert np.array_equal(draw(pipe), first)
    pipe.disable(name)
    assert np.array_equal(draw(pipe), perturbed[layers])
    pipe.disable_perturbed_attention()
    assert state(pipe) == before
    assert np.array_equal(draw(pipe), plain)


@pytest.mark.parametrize(
    "name", ["unet_slicing", "deep_cache", "guidance_interval", "traced_unet", "sequential_offload"]
)
@pytest.mark.parametrize(
    "arguments", [{"guidance_scale": 1.0}, {"num_images_per_prompt": 2}], ids=["no guidance", "two images"]
)
def test_other_calls(name: str, arguments: dict[str, Any], pipe: Any, draw: Draw) -> None:
    pipe.enable_perturbed_attention(SCALE, "up_blocks")
    expected = draw(pipe, **arguments)
    enable(pipe, name)
    check_parity(name, draw(pipe, **arguments), expected)


def test_what_is_before_the_text_is_computed_once(pipe: Any, draw: Draw) -> None:
    """As without it, where no layer before the text is perturbed."""
    rows: list[int] = []
    inner = pipe.unet.conv_in.forward

    def forward(x: torch.Tensor, *others: Any) -> torch.Tensor:
        rows.append(len(x))
        return inner(x, *others)

    for layers in LAYERS.values():
        pipe.enable_perturbed_attention(SCALE, layers)
        pipe.unet.conv_in.forward = forward
        draw(pipe)
        del pipe.unet.conv_in.forward
    assert rows == [1, 1, 3, 3]
