"""The safety checker and its preprocessing: configs, layouts, what they return and refuse."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from leandiffusion.core.errors import CheckpointNotFound, ConfigError
from leandiffusion.modules.clip_image_processor import CLIPImageProcessor
from leandiffusion.modules.safety import StableDiffusionSafetyChecker

VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
PUBLISHED = {
    "_name_or_path": "", "architectures": ["StableDiffusionSafetyChecker"], "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592, "model_type": "clip", "projection_dim": 12, "torch_dtype": "float32",
    "transformers_version": None, "text_config": {"hidden_size": 8}, "text_config_dict": {"hidden_size": 8},
    "vision_config": {"patch_size": 4, "is_decoder": False, "top_k": 50, "eos_token_id": None, **VISION},
    "vision_config_dict": VISION,
}  # fmt: skip


def checker_that_flags(bright: bool) -> StableDiffusionSafetyChecker:
    """A checker whose thresholds lie below (flag all) or above (pass all) every possible cosine."""
    checker = StableDiffusionSafetyChecker(vision_config=VISION, projection_dim=12).eval()
    torch.nn.init.constant_(checker.concept_embeds_weights, -2.0 if bright else 2.0)
    torch.nn.init.constant_(checker.special_care_embeds_weights, 2.0)
    return checker


def test_published_config_and_names(tmp_path: Path) -> None:
    made = StableDiffusionSafetyChecker.from_config(PUBLISHED)
    names = set(made.state_dict())
    assert "vision_model.vision_model.embeddings.class_embedding" in names
    assert "vision_model.vision_model.pre_layrnorm.weight" in names
    assert {"visual_projection.weight", "concept_embeds", "special_care_embeds_weights"} <= names
    assert made.vision_model.config.patch_size == 8, "vision_config_dict overrules"
    old = made.state_dict() | {"vision_model.vision_model.embeddings.position_ids": torch.arange(5)[None]}
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    opened = StableDiffusionSafetyChecker.from_pretrained(tmp_path, dtype=torch.float16)
    assert opened.dtype == torch.float16
    assert not any(tensor.is_meta for tensor in opened.state_dict().values())
    assert opened(torch.zeros(1, 3, 16, 16), [np.ones(3)])[1] in ([True], [False])


def test_foreign_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="hidden_sise"):
        StableDiffusionSafetyChecker(vision_config={**VISION, "hidden_sise": 1})
    with pytest.raises(ConfigError, match="gate"):
        StableDiffusionSafetyChecker.from_config({**PUBLISHED, "gate": 1})


@pytest.mark.parametrize(
    "images",
    [
        np.ones((2, 4, 4, 3), np.float32),
        torch.full((2, 3, 4, 4), torch.nan),
        [np.ones((4, 4, 3)), torch.ones(3, 4, 4)],
    ],
)
def test_flagged_pictures_turn_black(images: Any) -> None:
    pixels = torch.randn(2, 3, 16, 16)
    with pytest.warns(UserWarning, match="withheld 2 of 2"):
        black, flagged = checker_that_flags(True)(pixels, images)
    assert flagged == [True, True]
    assert len(black) == 2
    assert all(float(picture.sum()) == 0 for picture in black)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same, flagged = checker_that_flags(False)(pixels, images)
    assert flagged == [False, False]
    assert same is images


def test_wrong_picture_size_is_named() -> None:
    with pytest.raises(ConfigError, match="16x16"):
        checker_that_flags(True)(torch.zeros(1, 3, 8, 8), [])


def test_old_preprocessing_config(tmp_path: Path) -> None:
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224, "do_resize": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    processor = CLIPImageProcessor.from_pretrained(tmp_path)
    grey = processor(Image.new("RGB", (320, 240), (128, 128, 128)), return_tensors="np").pixel_values
    assert grey.shape == (1, 3, 224, 224)
    expected = (128 / 255 - np.array(processor.config.image_mean)) / np.array(processor.config.image_std)
    np.testing.assert_allclose(grey[0, :, 100, 100], expected, rtol=1e-5)  # float32 arithmetic
    exact = CLIPImageProcessor(size={"height": 20, "width": 30}, do_center_crop=False, do_normalize=False)
    assert exact(Image.new("RGB", (64, 64))).pixel_values.shape == (1, 3, 20, 30)


@pytest.mark.parametrize(
    "written",
    [
        {"use_square_size": False, "feature_extractor_type": "CLIPFeatureExtractor", "size": {"shortest_edge": 24}},
        {"default_to_square": False, "data_format": "channels_first", "device": None, "do_pad": None, "pad_size": None,
         "return_tensors": None, "image_processor_type": "CLIPImageProcessorFast", "size": {"shortest_edge": 24}},
    ],
    ids=["transformers 4.25", "transformers 4.50"],
)  # fmt: skip
def test_options_that_are_off_ask_nothing(written: dict[str, Any]) -> None:
    assert CLIPImageProcessor.from_config(written).config.size == {"shortest_edge": 24}


def test_preprocessing_errors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match="preprocessor_config"):
        CLIPImageProcessor.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="longest_edge"):
        CLIPImageProcessor(size={"longest_edge": 3})
    with pytest.raises(ConfigError, match="ndarray"):
        CLIPImageProcessor()([np.zeros((4, 4, 3))])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="'tf'"):
        CLIPImageProcessor()(Image.new("RGB", (8, 8)), return_tensors="tf")
    with pytest.raises(ConfigError, match="do_pad"):
        CLIPImageProcessor.from_config({"do_pad": True})
