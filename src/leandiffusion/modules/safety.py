"""The safety checker of Stable Diffusion 1: pictures too close to any of 17 withheld concepts are blacked out.

"Red-Teaming the Stable Diffusion Safety Filter", Rando et al. 2022, describes how it works: the picture's CLIP
embedding is compared by cosine with fixed concept embeddings, each with a threshold of its own; closeness to one of
three 'special care' concepts lowers every threshold a little.

Letters in shapes: B pictures, T patches and the class token, C hidden size, P projection size.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from ..core.config import Configurable, write_json
from ..core.errors import ConfigError
from ..core.output import Batch, Output
from ..core.wording import show
from .clip import CLIPEncoder, CLIPNetwork

CONCEPTS, SPECIAL_CONCEPTS = 17, 3
_MOST_PIXELS = 4096  # of a side that pictures are resized to
SPECIAL_MARGIN = 0.01  # how much closeness to a special concept lowers the other thresholds


@dataclass(eq=False)
class CLIPVisionModelOutput(Output):
    """`last_hidden_state` (B, T, C), `pooler_output` (B, C): the class token after the final layer norm."""

    last_hidden_state: torch.Tensor
    pooler_output: torch.Tensor


class CLIPVisionEmbeddings(nn.Module):
    """A class token and one token per square patch, with a learned vector per place."""

    def __init__(self, hidden_size: int, channels: int, image_size: int, patch_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.class_embedding = nn.Parameter(torch.randn(hidden_size))
        self.patch_embedding = nn.Conv2d(channels, hidden_size, patch_size, stride=patch_size, bias=False)
        self.position_embedding = nn.Embedding((image_size // patch_size) ** 2 + 1, hidden_size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if pixels.shape[-2:] != (self.image_size, self.image_size):
            raise ConfigError(
                f"pictures of {tuple(pixels.shape[-2:])} pixels do not fit this model: preprocess them to "
                f"{self.image_size}x{self.image_size}."
            )
        patches = self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(len(pixels), 1, -1), patches], dim=1)  # (B, T, C)
        return tokens + self.position_embedding(torch.arange(tokens.shape[1], device=tokens.device))


class CLIPVisionTransformer(nn.Module):
    """Embeddings, encoder and norms: everything under `vision_model.` in a checkpoint."""

    def __init__(self, embeddings: CLIPVisionEmbeddings, encoder: CLIPEncoder, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.pre_layrnorm = nn.LayerNorm(hidden_size, eps=eps)  # spelt so in every checkpoint
        self.encoder = encoder
        self.post_layernorm = nn.LayerNorm(hidden_size, eps=eps)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, _ = self.encoder(self.pre_layrnorm(self.embeddings(pixels)))
        return tokens, self.post_layernorm(tokens[:, 0])


class CLIPVisionModel(CLIPNetwork):
    """CLIP's vision transformer. The keywords are those of a checkpoint's vision config.

    `projection_dim`, `initializer_range` and `initializer_factor` are kept in the config and change nothing.
    """

    model_type: ClassVar[str] = "clip_vision_model"

    def __init__(
        self,
        hidden_size: int = 768,
        intermediate_size: int = 3072,
        projection_dim: int = 512,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        num_channels: int = 3,
        image_size: int = 224,
        patch_size: int = 32,
        hidden_act: str = "quick_gelu",
        layer_norm_eps: float = 1e-5,
        attention_dropout: float = 0.0,
        initializer_range: float = 0.02,
        initializer_factor: float = 1.0,
    ) -> None:
        super().__init__()
        encoder = CLIPEncoder(
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=num_attention_heads,
            hidden_act=hidden_act,
            layer_norm_eps=layer_norm_eps,
            attention_dropout=attention_dropout,
        )
        embeddings = CLIPVisionEmbeddings(hidden_size, num_channels, image_size, patch_size)
        self.vision_model = CLIPVisionTransformer(embeddings, encoder, hidden_size, layer_norm_eps)

    def forward(self, pixel_values: torch.Tensor) -> CLIPVisionModelOutput:
        """Encode pictures (B, channels, image_size, image_size), normalised as CLIP's preprocessing does."""
        return CLIPVisionModelOutput(*self.vision_model(pixel_values))


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
        self.visual_projection = nn.Linear(hidden_size, projection_dim, bias=False)
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


class CLIPImageProcessor(Configurable):
    """Pictures as CLIP's vision tower wants them: resized, cropped in the centre, normalised.

    The keywords are the keys of preprocessor_config.json. `size` is the shortest edge, as a number or as
    {"shortest_edge": n}, or an exact {"height": h, "width": w}; `crop_size` a number or the latter. `resample` is
    Pillow's number of the filter, 3 being bicubic.
    """

    config_name: ClassVar[str] = "preprocessor_config.json"
    notes: ClassVar[frozenset[str]] = frozenset(
        {"feature_extractor_type", "image_processor_type", "processor_class", "data_format"}
    )

    def __init__(
        self,
        do_resize: bool = True,
        size: int | Mapping[str, int] = 224,
        resample: int = 3,
        do_center_crop: bool = True,
        crop_size: int | Mapping[str, int] = 224,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073),
        image_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711),
        do_convert_rgb: bool = True,
    ) -> None:
        size = {"shortest_edge": size} if isinstance(size, int) else dict(size)
        crop = {"height": crop_size, "width": crop_size} if isinstance(crop_size, int) else dict(crop_size)
        if sorted(size) not in (["shortest_edge"], ["height", "width"]) or sorted(crop) != ["height", "width"]:
            raise ConfigError(
                f"size={show(size)} or crop_size={show(crop)} is unknown: give numbers, or heights and widths."
            )
        if not 0 <= resample <= 5 or max(*size.values(), *crop.values()) > _MOST_PIXELS:
            raise ConfigError(
                f"resample={show(resample)}, size={show(size)}, crop_size={show(crop)}: expected a filter of Pillow's "
                f"from 0 to 5, and sides of up to {_MOST_PIXELS} pixels."
            )
        if len(image_mean) != 3 or len(image_std) != 3 or 0 in image_std:
            raise ConfigError(
                f"image_mean={show(image_mean)}, image_std={show(image_std)}: expected three numbers, one for each of "
                "red, green and blue, and no deviation of 0."
            )
        self._size, self._crop = size, crop

    @classmethod
    def _carry(cls, foreign: dict[str, Any]) -> dict[str, Any]:
        """Files of some versions of transformers list every option of any processor: those that are off ask nothing."""
        asked = {key: value for key, value in foreign.items() if value is not None and value is not False}
        return super()._carry({key: value for key, value in asked.items() if key not in cls.notes})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **where: Any) -> Self:
        """Open a local folder or a hub id; `where` are the keywords of `load_config`, such as `subfolder`.

        CheckpointNotFound when there is no preprocessor_config.json.
        """
        return cls.from_config(cls.load_config(pretrained_model_name_or_path, **where))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write preprocessor_config.json as transformers reads it."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        notes = {"image_processor_type": type(self).__name__, "size": self._size, "crop_size": self._crop}
        write_json(Path(folder) / self.config_name, {**self.config, **notes})

    def __call__(self, images: Image.Image | list[Image.Image], return_tensors: str | None = "pt") -> Batch:
        """Pillow pictures -> `pixel_values` (B, 3, height, width) float32: a tensor ("pt") or an array ("np")."""
        pictures = images if isinstance(images, list | tuple) else [images]
        pixels = np.stack([self._pixels(picture) for picture in pictures])
        if return_tensors not in ("pt", "np"):
            raise ConfigError(f"return_tensors={return_tensors!r} is unknown: use 'pt' or 'np'.")
        return Batch(pixel_values=torch.from_numpy(pixels) if return_tensors == "pt" else pixels)

    def _pixels(self, image: Image.Image) -> np.ndarray:
        if not isinstance(image, Image.Image):
            raise ConfigError(f"expected a Pillow picture, found {type(image).__name__}: convert it first.")
        config = self.config
        image = image.convert("RGB") if config.do_convert_rgb else image
        if config.do_resize:
            image = image.resize(self._resized(image.width, image.height), Image.Resampling(config.resample))
        if config.do_center_crop:
            width, height = self._crop["width"], self._crop["height"]
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        pixels = np.asarray(image, dtype=np.float32) * np.float32(config.rescale_factor if config.do_rescale else 1)
        if config.do_normalize:
            pixels = (pixels - np.float32(config.image_mean)) / np.float32(config.image_std)
        return pixels.transpose(2, 0, 1).astype(np.float32)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if "height" in self._size:
            return self._size["width"], self._size["height"]
        edge, short = self._size["shortest_edge"], min(width, height)
        return edge * width // short, edge * height // short
