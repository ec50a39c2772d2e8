"""Pictures of a drawing that is under way."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from leandiffusion import AutoencoderTiny, ConfigError, Preview
from leandiffusion.run.decoding import decode
from leandiffusion.schedulers import build

SMALL = {
    "encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4,
    "num_encoder_blocks": (1,) * 4, "num_decoder_blocks": (1,) * 4,
}  # fmt: skip


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm++", "heun"])
def test_each_few_steps_are_shown_and_change_nothing(
    scheduler: str, sd1: Any, draw: Callable[..., torch.Tensor]
) -> None:
    sd1.scheduler = build(scheduler, sd1.scheduler.config)
    plain = draw(sd1, output_type="latent", num_images_per_prompt=2)
    vae, seen = AutoencoderTiny(**SMALL), {}
    preview = Preview(vae, seen.__setitem__, every=2, output_type="pt")
    assert torch.equal(draw(sd1, output_type="latent", num_images_per_prompt=2, callback_on_step_end=preview), plain)
    steps = sorted(seen)
    assert steps == list(range(1, sd1.num_timesteps, 2))
    assert all(each.shape == (2, 3, 64, 64) for each in seen.values())
    if (sd1.num_timesteps - 1) in seen:  # nothing is left of the noise: it is the picture
        with torch.no_grad():
            torch.testing.assert_close(seen[sd1.num_timesteps - 1], decode(vae, plain))


def test_pictures_are_pillows_unless_asked_otherwise(sd1: Any, draw: Callable[..., torch.Tensor]) -> None:
    seen: dict[int, Any] = {}
    draw(sd1, callback_on_step_end=Preview(AutoencoderTiny(**SMALL), seen.__setitem__))
    assert [images[0].size for images in seen.values()] == [(64, 64)] * 4


@torch.no_grad()
@pytest.mark.parametrize(("sides", "fewer"), [((16, 24), (5, 8)), ((8, 8), (8, 8)), ((3, 40), (1, 8))])
def test_large_latents_are_averaged_before_they_are_decoded(sides: tuple[int, int], fewer: tuple[int, int]) -> None:
    vae, seen = AutoencoderTiny(**SMALL), {}
    latents = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, *sides)  # the mean of equal ones is the same
    pipe = SimpleNamespace(scheduler=build("ddim"))
    Preview(vae, seen.__setitem__, output_type="pt", longest=8)(pipe, 0, None, {"latents": latents})
    torch.testing.assert_close(seen[0], decode(vae, latents[..., : fewer[0], : fewer[1]]))
    with pytest.raises(ConfigError, match="longest=0"):
        Preview(vae, print, longest=0)


def test_every_counts_from_one(sd1: Any) -> None:
    with pytest.raises(ConfigError, match="every=0"):
        Preview(sd1.vae, print, every=0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"output_type": "gif"}, "output_type='gif' is unknown"),
        ({"show": None}, "a AutoencoderKL and a NoneType"),
        ({"vae": None}, "a NoneType and a builtin_function_or_method"),
    ],
    ids=str,
)
def test_what_cannot_be_shown_is_refused_at_once(given: dict[str, Any], said: str, sd1: Any) -> None:
    with pytest.raises(ConfigError, match=said):
        Preview(**{"vae": sd1.vae, "show": print} | given)
