"""The safety checker against diffusers' and its preprocessing against transformers', on random weights and pictures."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from leandiffusion.modules.clip_image_processor import CLIPImageProcessor
from leandiffusion.modules.safety import StableDiffusionSafetyChecker

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip


def their_checker(seed: int) -> Any:
    """diffusers' checker with random weights."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker as Theirs

    torch.manual_seed(seed)
    checker = Theirs(transformers.CLIPConfig(vision_config=VISION, projection_dim=24)).eval()
    with torch.no_grad():
        for parameter in checker.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return checker


def set_thresholds(checker: Any, embeds: torch.Tensor) -> None:
    """Let every concept be closer than its threshold to one picture in 25, every special one to one in 10."""
    unit = torch.nn.functional.normalize
    for name, share in (("concept_embeds", 0.96), ("special_care_embeds", 0.9)):
        cosines = unit(embeds) @ unit(getattr(checker, name)).T
        getattr(checker, f"{name}_weights").copy_(cosines.quantile(share, dim=0))


def our_checker(theirs: Any) -> StableDiffusionSafetyChecker:
    ours = StableDiffusionSafetyChecker(vision_config=VISION, projection_dim=24)
    state = theirs.state_dict()
    names = ours.rename_keys(list(state))
    ours.load_state_dict({names[name]: tensor for name, tensor in state.items()})
    return ours.eval()


@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_same_decisions(seed: int) -> None:
    """Equal, not close: scores are rounded to 0.001 before they are judged, which float32 noise of 1e-6 survives."""
    theirs = their_checker(seed)
    pixels, images = torch.randn(64, 3, 32, 32), np.random.default_rng(seed).random((64, 8, 8, 3), dtype=np.float32)
    embeds = theirs.visual_projection(theirs.vision_model(pixels)[1])
    set_thresholds(theirs, embeds)
    ours = our_checker(theirs)
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    expected_images, expected = theirs(pixels, images.copy())
    with pytest.warns(UserWarning, match=f"withheld {sum(expected)} of 64"):
        got_images, got = ours(pixels, images)
    assert got == expected
    assert 5 < sum(got) < 59, "the weights flag some pictures and pass others"
    np.testing.assert_array_equal(got_images, expected_images)
    assert images.any(axis=(1, 2, 3)).all(), "the caller's pictures are left alone"
    ours_embeds = ours.visual_projection(ours.vision_model(pixels).pooler_output)
    torch.testing.assert_close(ours_embeds, embeds, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_special_care_lowers_the_other_thresholds() -> None:
    """One concept just below its threshold: flagged only when a special concept is close too, on both sides alike."""
    theirs = their_checker(0)
    pixels, images = torch.randn(1, 3, 32, 32), np.ones((1, 4, 4, 3), dtype=np.float32)
    embed = torch.nn.functional.normalize(theirs.visual_projection(theirs.vision_model(pixels)[1]))
    theirs.concept_embeds.copy_(embed.expand(17, -1))
    theirs.special_care_embeds.copy_(embed.expand(3, -1))
    theirs.concept_embeds_weights.fill_(1.005)
    for special_threshold, flagged in ((1.2, False), (0.9, True)):
        theirs.special_care_embeds_weights.fill_(special_threshold)
        ours = our_checker(theirs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert ours(pixels, images)[1] == theirs(pixels, images.copy())[1] == [flagged]


def test_folders_are_exchangeable(tmp_path: Path) -> None:
    theirs = their_checker(5)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = StableDiffusionSafetyChecker.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    again = type(theirs).from_pretrained(tmp_path / "ours")
    state = again.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in theirs.state_dict().items())
    assert again.config.vision_config.patch_size == VISION["patch_size"]


@pytest.mark.parametrize("size", [(512, 512), (300, 700), (641, 223), (64, 50)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_same_preprocessing(tmp_path: Path, size: tuple[int, int], mode: str) -> None:
    """Within 1/255 of the value range after normalising: one rounding of Pillow's 8-bit resampling at most."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    theirs = CLIPImageProcessorPil()
    theirs.save_pretrained(tmp_path)
    ours = CLIPImageProcessor.from_pretrained(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(noise).convert(mode)
    expected = theirs(images=[picture, picture], return_tensors="pt").pixel_values
    got = ours([picture, picture]).pixel_values
    assert got.shape == expected.shape == (2, 3, 224, 224)
    torch.testing.assert_close(got, expected.float(), atol=1 / 255, rtol=0)


def test_transformers_reads_our_preprocessing(tmp_path: Path) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    CLIPImageProcessor(size=64, crop_size=48).save_pretrained(tmp_path)
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 70, 3), dtype=np.uint8))
    expected = CLIPImageProcessorPil.from_pretrained(tmp_path)(images=picture, return_tensors="pt").pixel_values
    got = CLIPImageProcessor.from_pretrained(tmp_path)(picture).pixel_values
    torch.testing.assert_close(got, expected.float(), atol=1 / 255, rtol=0)
