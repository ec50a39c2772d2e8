"""The safety checker of Stable Diffusion 1: pictures too close to any of 17 withheld concepts are blacked out.

"Red-Teaming the Stable Diffusion Safety Filter", Rando et al. 2022, describes how it works: the picture's CLIP
embedding is compared by cosine with fixed concept embeddings, each with a threshold of its own; closeness to one of
three 'special care' concepts lowers every threshold a little.

Letters in shapes: B pictures, T patches and the class token, C hidden size, P projection size.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .clip import CLIPNetwork
from .linear import Linear
from .vision import CLIPVisionModel

CONCEPTS, SPECIAL_CONCEPTS = 17, 3
SPECIAL_MARGIN = 0.01  # how much closeness to a special concept lowers the other thresholds


class StableDiffusionSafetyChecker(CLIPNetwork):
    """Tells which pictures to withhold, and blacks them out.

    The keywords are the keys of a checkpoint's config.json: `vision_config` describes the vision tower (and
    `vision_config_dict`, where old files have one, overrules it), `projection_dim` the size of the embeddings that are
    compared. The remaining keys belong to the rest of CLIP and change nothing here.
    """

    model_type: ClassVar[str] = "clip"

    def __init__(
        self,
        vision_config: Mapping[str, Any] | None = None,
        projection_dim: int = 512,
        vision_config_dict: Mapping[str, Any] | None = None,
        text_config: Mapping[str, Any] | None = None,
        text_config_dict: Mapping[str, Any] | None = None,
        logit_scale_init_value: float = 2.6592,
        initializer_factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.vision_model = CLIPVisionModel.from_config({**(vision_config or {}), **(vision_config_dict or {})})
        hidden_size = self.vision_model.config.hidden_size
        self.visual_projection = Linear(hidden_size, projection_dim, bias=False)
        self.concept_embeds = _fixed(CONCEPTS, projection_dim)
        self.special_care_embeds = _fixed(SPECIAL_CONCEPTS, projection_dim)
        self.concept_embeds_weights = _fixed(CONCEPTS)
        self.special_care_embeds_weights = _fixed(SPECIAL_CONCEPTS)

    @torch.no_grad()
    def forward(self, clip_input: torch.Tensor, images: Any) -> tuple[Any, list[bool]]:
        """Judge `clip_input` (B, 3, 224, 224), the pictures as CLIPImageProcessor prepares them.

        `images`, a tensor or array (B, ...) or a list of B of them, are the same pictures as the caller will show
        them. Returns them with zeros in the place of those withheld (a copy if any is), and what was withheld.
        """
        flagged = self.judge(clip_input).tolist()
        if any(flagged):
            warnings.warn(
                f"the safety checker withheld {sum(flagged)} of {len(flagged)} pictures; they are black. Try another "
                "prompt or seed.",
                stacklevel=2,
            )
            images = _blacked_out(images, flagged)
        return images, flagged

    def judge(self, clip_input: torch.Tensor) -> torch.Tensor:
        """(B,) booleans: which pictures come too close to a withheld concept."""
        embeds = self.visual_projection(self.vision_model(clip_input).pooler_output)  # (B, P)
        special = _cosines(embeds, self.special_care_embeds) - self.special_care_embeds_weights.float()
        margin = SPECIAL_MARGIN * _above_zero(special).any(dim=1, keepdim=True)
        concepts = _cosines(embeds, self.concept_embeds) - self.concept_embeds_weights.float()
        return _above_zero(concepts + margin).any(dim=1)

    @classmethod
    def rename_keys(cls, keys: list[str]) -> dict[str, str]:
        """Files of newer transformers lack the second `vision_model.`; they get it."""
        outer, inner = "vision_model.", "vision_model.vision_model."
        bare = [key for key in keys if key.startswith(outer) and not key.startswith(inner)]
        return {key: key for key in keys} | {key: outer + key for key in bare}


def _fixed(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape), requires_grad=False)


def _cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(n, P), (m, P) -> (n, m) cosines of every pair, in float32."""
    return (F.normalize(a) @ F.normalize(b).T).float()


def _above_zero(scores: torch.Tensor) -> torch.Tensor:
    """The checker's thresholds were set for scores rounded to three decimals, so 0.0004 does not count."""
    return (scores * 1000).round() > 0


def _blacked_out(images: Any, flagged: list[bool]) -> Any:
    if isinstance(images, list | tuple):
        return [_black(image) if bad else image for image, bad in zip(images, flagged, strict=True)]
    images = images.clone() if isinstance(images, torch.Tensor) else images.copy()
    images[np.flatnonzero(flagged)] = 0
    return images


def _black(image: Any) -> Any:
    return torch.zeros_like(image) if isinstance(image, torch.Tensor) else np.zeros_like(image)
