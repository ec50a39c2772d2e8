"""What SDXL's pipelines with ControlNets that draw on a picture have in common."""

from __future__ import annotations

from typing import Any, ClassVar

from .sdxl_with_picture import StableDiffusionXLWithPicture
from .with_controlnet import WithControlNet


class StableDiffusionXLWithPictureAndControlNet(WithControlNet, StableDiffusionXLWithPicture):
    """Base of the two: the components of StableDiffusionXLPipeline, and `controlnet`."""

    component_names: ClassVar[tuple[str, ...]] = (*StableDiffusionXLWithPicture.component_names, "controlnet")

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        text_encoder_2: Any,
        tokenizer: Any,
        tokenizer_2: Any,
        unet: Any,
        controlnet: Any,
        scheduler: Any,
        requires_aesthetics_score: bool = False,
        force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
        feature_extractor: Any = None,
        image_encoder: Any = None,
    ) -> None:
        super().__init__(
            vae, text_encoder, text_encoder_2, tokenizer, tokenizer_2, unet, scheduler, image_encoder,
            feature_extractor, requires_aesthetics_score, force_zeros_for_empty_prompt, add_watermarker,
        )  # fmt: skip
        self.controlnet = self._take_controlnet(controlnet)
