"""What pipelines are given for IP-Adapters to see: lists, pictures and embeddings, checked; and the image encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.errors import CheckpointNotFound, ConfigError
from ..core.hub import local_path
from ..families.ip_adapter import IPAdapter
from ..lora.weights import Weights, weight_in
from ..modules.image_projection import Projection
from ..modules.vision import CLIPVisionModelWithProjection
from ..run.inputs import refuse
from ..weights.load import open_network
from ..weights.locate import find_checkpoint
from .images import numpy_to_pil

ENCODER_FOLDER = "image_encoder"
"""Where an adapter's image encoder usually is, beside its file or in the folder above."""


@dataclass(eq=False)
class Loaded:
    """The adapters of a UNet, with the projection of each without its weights, and what they weigh."""

    adapters: list[IPAdapter]
    projections: list[Projection]
    weights: list[Weights] = field(default_factory=list)

    def weight(self, number: int, layer: str) -> float:
        """What adapter `number` counts in a layer."""
        return weight_in(layer, self.weights[number], otherwise=0.0)


def check_image_prompt(image: Any, embeds: Any) -> None:
    """ConfigError for both, and for embeddings that are no list of tensors."""
    if image is not None:
        refuse({"ip_adapter_image_embeds": embeds}, "ip_adapter_image says the same thing: pass one of them")
    if embeds is None:
        return
    tensors = isinstance(embeds, list) and all(isinstance(each, Tensor) and each.ndim in (3, 4) for each in embeds)
    if not tensors or not embeds:
        raise ConfigError(
            "ip_adapter_image_embeds must be a list of tensors, one for each IP-Adapter, (B, images, channels) or "
            "(B, images, tokens, channels): pass what prepare_ip_adapter_image_embeds returns."
        )


def open_encoder(
    source: Any,
    subfolder: str | None,
    folder: str,
    hub: Mapping[str, Any],
    dtype: torch.dtype,
    device: torch.device | str,
) -> Any:
    """An adapter's image encoder, whose weights stay on disk. CheckpointNotFound where there is none."""
    return open_network(
        CLIPVisionModelWithProjection, find_encoder(source, subfolder, folder, hub), dtype=dtype, device=device,
        leave_out=("",), on_disk=True,
    )  # fmt: skip


def find_encoder(
    source: Any,
    subfolder: str | None = None,
    folder: str = ENCODER_FOLDER,
    hub: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """The folder of an adapter's image encoder. CheckpointNotFound where there is none."""
    if isinstance(source, Mapping):
        raise ConfigError(
            "an image encoder cannot be found for a state dict: set pipe.image_encoder first, or pass "
            "image_encoder_folder=None and draw with ip_adapter_image_embeds."
        )
    path = local_path(source)
    if path.is_file():
        places = [path.parent / folder, path.parent.parent / folder]
    else:
        inside = folder if "/" in folder or not subfolder else f"{subfolder}/{folder}"
        root = find_checkpoint(source, subfolders=[inside], **hub).folder
        places = [root / inside]
    place = next((each for each in places if each.is_dir()), None)
    if place is None:
        raise CheckpointNotFound(
            f"there is no image encoder in {' nor in '.join(map(str, places))}: say where by image_encoder_folder, set "
            "pipe.image_encoder before, or pass None and draw with ip_adapter_image_embeds."
        )
    return place


def aligned(sources: Any, subfolders: Any, names: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """Each as a list, as many of one as of the others."""
    lists = [list(each) if isinstance(each, list | tuple) else [each] for each in (sources, subfolders, names)]
    count = max(map(len, lists))
    lists = [each * count if len(each) == 1 else each for each in lists]
    if any(len(each) != count for each in lists):
        raise ConfigError(
            f"{len(lists[0])} IP-Adapters, {len(lists[1])} subfolders and {len(lists[2])} weight_names: give as many "
            "of each, or one."
        )
    return lists[0], lists[1], lists[2]


def for_each(images: Any, count: int) -> list[Any]:
    """What each adapter sees. ConfigError for another number of pictures than of adapters."""
    found = list(images) if isinstance(images, list) else [images]
    if len(found) != count:
        raise ConfigError(
            f"ip_adapter_image has {len(found)} pictures for {count} IP-Adapter{'s' * (count > 1)}: give one for each, "
            "or for one adapter to see several a list in the list, [[first, second]]."
        )
    return found


def pictures_of(image: Any) -> Tensor | list[Image.Image]:
    """One picture or several as the feature extractor takes them; a tensor (n, 3, H, W) is prepared already.

    Arrays are (H, W, 3) or (n, H, W, 3), of bytes or in [0, 1]. ConfigError for anything else.
    """
    found = list(image) if isinstance(image, list | tuple) else [image]
    if found and all(isinstance(each, Image.Image) for each in found):
        return found
    if isinstance(image, Tensor) and image.ndim == 4:
        return image
    if isinstance(image, np.ndarray) and image.ndim in (3, 4):
        whole = image if image.ndim == 4 else image[None]
        return [Image.fromarray(each) for each in whole] if whole.dtype == np.uint8 else numpy_to_pil(whole)
    raise ConfigError(
        f"ip_adapter_image holds a {type(found[0] if found else image).__name__}: pass a Pillow picture, an array "
        "(H, W, 3), or a tensor (n, 3, H, W) that is prepared for the image encoder; for several adapters a list."
    )
