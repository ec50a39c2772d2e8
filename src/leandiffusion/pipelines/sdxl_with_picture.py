"""What SDXL's pipelines that draw on a picture have in common: refiners, and going on from a first model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.notices import warn
from ..families.two_encoders import Size
from ..run import inputs
from ..run.run import Run
from .from_pictures import FromPictures
from .picture_requests import MaskRequestXL, PictureRequestXL
from .stable_diffusion_xl import StableDiffusionXLPipeline


class StableDiffusionXLWithPicture(FromPictures, StableDiffusionXLPipeline):
    """Base of the two. `requires_aesthetics_score`: the UNet is told how pretty a picture is to be, as refiners are."""

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        text_encoder_2: Any,
        tokenizer: Any,
        tokenizer_2: Any,
        unet: Any,
        scheduler: Any,
        image_encoder: Any = None,
        feature_extractor: Any = None,
        requires_aesthetics_score: bool = False,
        force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
    ) -> None:
        super().__init__(
            vae, text_encoder, text_encoder_2, tokenizer, tokenizer_2, unet, scheduler, image_encoder,
            feature_extractor, force_zeros_for_empty_prompt, add_watermarker,
        )  # fmt: skip
        self.register_to_config(requires_aesthetics_score=requires_aesthetics_score)

    @property
    def denoising_start(self) -> float | None:
        """The share of the noise schedule after which the call began."""
        return self._denoising_start

    def _conditions_besides_text(self, request: Any, run: Run) -> tuple[Tensor, ...]:
        height, width = (side * self.vae_scale_factor for side in run.shape[2:])
        scored = bool(self.config.requires_aesthetics_score)
        self._check_conditions(request, 5 if scored else 6)
        rows = (_scored if scored else _sized)(request, (height, width))
        return tuple(
            torch.tensor([row]).repeat(run.shape[0], 1).to(self.device, self.dtype) for row in rows
        )  # fmt: skip

    def _check_conditions(self, request: Any, numbers: int) -> None:
        """ConfigError where the UNet reads another number of conditions than it would be told."""
        config, encoder = getattr(self.unet, "config", None), getattr(self.text_encoder_2, "config", None)
        expected = getattr(config, "projection_class_embeddings_input_dim", None)
        each: Any = getattr(config, "addition_time_embed_dim", None)
        pooled: Any = getattr(encoder, "projection_dim", None)
        if None in (expected, each, pooled) or expected == pooled + numbers * each:
            return
        other = 11 - numbers
        if expected == pooled + other * each:
            raise ConfigError(
                f"this UNet reads {other} numbers of each picture and is told {numbers}: it is "
                f"{'a refiner' if other == 5 else 'no refiner'}, so pass requires_aesthetics_score={other == 5} when "
                "opening."
            )
        raise ConfigError(
            f"this UNet reads {expected} numbers of pooled text and sizes, and text_encoder_2 gives {pooled} and "
            f"{numbers} times {each}: they belong to different models."
        )


def _sized(request: PictureRequestXL | MaskRequestXL, own: Size) -> tuple[list[float], list[float]]:
    """Original size, crop and target size, and those of the unconditional half: the same where none are given."""
    original, target = request.original_size or own, request.target_size or own
    corner, negative = request.crops_coords_top_left, request.negative_crops_coords_top_left
    away = (
        request.negative_original_size or original, corner if tuple(negative) == (0, 0) else negative,
        request.negative_target_size or target,
    )  # fmt: skip
    return _row("", original, corner, target), _row("negative_", *away)


def _scored(request: PictureRequestXL | MaskRequestXL, own: Size) -> tuple[list[float], list[float]]:
    """Original size, crop and score, and those of the unconditional half. A refiner is told no target size, and a
    warning says so of one that is given, which diffusers leaves out without a word."""
    original = request.original_size or own
    away = request.negative_original_size or original
    targets = {"target_size": request.target_size, "negative_target_size": request.negative_target_size}
    if given := [name for name, pair in targets.items() if pair is not None]:
        warn(f"{' and '.join(given)} changes nothing here: a refiner is told an aesthetic_score instead.")
    return (
        [*_row("", original, request.crops_coords_top_left), request.aesthetic_score],
        [*_row("negative_", away, request.negative_crops_coords_top_left), request.negative_aesthetic_score],
    )


def _row(prefix: str, original: Size, corner: Size, target: Size | None = None) -> list[float]:
    named = {"original_size": original, "crops_coords_top_left": corner, "target_size": target}
    given = {name: pair for name, pair in named.items() if pair is not None}
    for name, pair in given.items():
        inputs.check_pair(f"{prefix}{name}", pair)
    return [float(value) for pair in given.values() for value in pair]
