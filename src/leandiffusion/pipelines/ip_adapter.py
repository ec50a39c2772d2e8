"""IP-Adapters of a pipeline: pictures as prompts, under diffusers' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..families.ip_adapter import (
    check_encoder,
    check_fit,
    find_ip_adapter,
    look,
    read_ip_adapter,
    text_layers,
)
from ..lora.weights import by_block, check_weight
from ..modules.clip_image_processor import CLIPImageProcessor
from ..modules.processors import CustomProcessor
from ..modules.vision import CLIPVisionModelWithProjection
from ..plan.seeing import Eyes
from ..plan.sketch import Part
from ..run.guidance import Guidance, embedding_width
from ..run.image_prompt import ImagePrompt, rows_of, see
from ..run.inputs import refuse
from ..techniques.traced_unet import Traced
from .image_prompts import Loaded, aligned, for_each, open_encoder, pictures_of


class IPAdapters:
    """Mixin of the pipelines.

    Adapters belong to the UNet: pipelines that share it share them. Their weights stay in their files, and the UNet's
    are not touched. The image encoder is a component, whose weights are read while it looks at a picture.
    """

    image_encoder: Any

    def load_ip_adapter(
        self: Any,
        pretrained_model_name_or_path_or_dict: Any,
        subfolder: str | Sequence[str] | None = None,
        weight_name: str | Sequence[str] | None = None,
        image_encoder_folder: str | None = "image_encoder",
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        low_cpu_mem_usage: bool = True,
    ) -> None:
        """Let calls take `ip_adapter_image`: a .safetensors file, a folder or hub id with `subfolder` and
        `weight_name`, a state dict; or lists, for several adapters at once. They take the place of what is loaded.

        Plain adapters, Plus and full face are read. Unless the pipeline has an `image_encoder`, it is opened from
        `image_encoder_folder` inside `subfolder` (of the whole repository if it has a slash; beside a file, or in the
        folder above); None for none, where calls get `ip_adapter_image_embeds`. Each adapter weighs 1, see
        `set_ip_adapter_scale`.

        Raises UnsafeFormat for pickles, CheckpointNotFound, TensorMismatch for another family's adapter or image
        encoder, NotSupported for Face ID. If it fails the pipeline is as it was.
        """
        sources, folders, names = aligned(pretrained_model_name_or_path_or_dict, subfolder, weight_name)
        hub = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        adapters = [
            read_ip_adapter(
                source if isinstance(source, Mapping)
                else find_ip_adapter(source, weight_name=name, subfolder=folder, **hub)
            )
            for source, folder, name in zip(sources, folders, names, strict=True)
        ]  # fmt: skip
        unet = self._own_unet()
        projections = [check_fit(adapter, unet) for adapter in adapters]
        encoder = self.image_encoder
        if encoder is None and image_encoder_folder is not None:
            device = self.device if self._stack.subject.travels_to is None else "cpu"
            encoder = open_encoder(sources[0], folders[0], image_encoder_folder, hub, self.dtype, device)
        loaded = Loaded(adapters, projections, [1.0] * len(adapters))
        if image_encoder_folder is not None:  # without one, pictures may come as embeddings alone
            _check_encoder(loaded, encoder)
        with self._stack.between_steps():
            self._own_unet()._image_adapters = loaded
            self.image_encoder = encoder
            if self.feature_extractor is None and encoder is not None:
                side = encoder.config.image_size
                self.feature_extractor = CLIPImageProcessor(size=side, crop_size=side)

    def set_ip_adapter_scale(self: Any, scale: Any) -> None:
        """How much adapters count: a number, or a dict by the UNet's blocks, such as `{"up": {"block_0": [0, 1, 0]}}`,
        in which what is not named counts 0; a list of these for several adapters. A callback may change it.

        ConfigError where none is loaded, for another number of scales, and for blocks that there are not.
        """
        loaded = self._adapters_loaded()
        if loaded is None:
            raise ConfigError("no IP-Adapter is loaded, so there is nothing to scale: load_ip_adapter first.")
        scales = list(scale) if isinstance(scale, list) else [scale]
        if len(scales) == 1:
            scales *= len(loaded.adapters)
        if len(scales) != len(loaded.adapters):
            raise ConfigError(
                f"{len(scales)} scales for {len(loaded.adapters)} IP-Adapters: give one for each, or one."
            )
        names = [adapter.where for adapter in loaded.adapters]
        loaded.weights = [
            by_block(self._own_unet(), each, name)
            if isinstance(each, Mapping) else check_weight(each, f"the scale of {name}")
            for each, name in zip(scales, names, strict=True)
        ]  # fmt: skip

    def unload_ip_adapter(self: Any) -> None:
        """Undo `load_ip_adapter`: the image encoder goes too. Nothing happens where none is loaded."""
        unet = self._own_unet()
        if not hasattr(unet, "_image_adapters"):
            return
        with self._stack.between_steps():
            del unet._image_adapters
            self.image_encoder = None
            if getattr(self, "safety_checker", None) is None:
                self.feature_extractor = None

    def encode_image(
        self: Any,
        image: Any,
        device: torch.device | str | None = None,
        num_images_per_prompt: int = 1,
        output_hidden_states: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        """A picture or several -> what the image encoder makes of them, each so many times, and of nothing:
        embeddings (n, P), or with `output_hidden_states` the last layer's input (n, T, C)."""
        encoder = self.image_encoder
        if encoder is None:
            raise ConfigError(
                "this pipeline has no image_encoder: load_ip_adapter with image_encoder_folder, or set it."
            )
        given = pictures_of(image)
        pixels = given if isinstance(given, Tensor) else self.feature_extractor(given, return_tensors="pt").pixel_values
        pixels = pixels.to(self.device, self.dtype)
        positive, negative = see(encoder, pixels, tokens=bool(output_hidden_states))
        return tuple(each.repeat_interleave(num_images_per_prompt, dim=0) for each in (positive, negative))  # type: ignore[return-value]

    def prepare_ip_adapter_image_embeds(
        self: Any,
        ip_adapter_image: Any,
        ip_adapter_image_embeds: list[Tensor] | None,
        device: torch.device | str | None,
        num_images_per_prompt: int,
        do_classifier_free_guidance: bool,
    ) -> list[Tensor]:
        """For each adapter the embeddings of its picture, or of its list of them, `num_images_per_prompt` times: (R, n,
        P) or (R, n, T, C), under guidance those of nothing first; or of the embeddings that are given."""
        where = self.device if device is None else torch.device(device)
        embeds: list[Tensor] = []
        if ip_adapter_image_embeds is None:
            loaded = self._adapters_loaded()
            assert loaded is not None
            images = for_each(ip_adapter_image, len(loaded.adapters))
            for image, projection in zip(images, loaded.projections, strict=True):
                found = self.encode_image(image, where, 1, projection.sees_tokens)
                pair = [each[None] for each in found]
                embeds.append(rows_of(pair[0], pair[1] if do_classifier_free_guidance else None, num_images_per_prompt))
        for given in ip_adapter_image_embeds or ():
            negative, positive = given.chunk(2) if do_classifier_free_guidance else (None, given)
            embeds.append(rows_of(positive, negative, num_images_per_prompt))
        return [each.to(where) for each in embeds]

    # -- within ------------------------------------------------------------------------------------------------------

    def _own_unet(self: Any) -> Any:
        unet = self.unet.unet if isinstance(self.unet, Traced) else self.unet
        return getattr(unet, "_orig_mod", unet)

    def _adapters_loaded(self: Any) -> Loaded | None:
        return getattr(self._own_unet(), "_image_adapters", None)

    def _sees(self: Any, request: Any) -> bool:
        return request.ip_adapter_image is not None or request.ip_adapter_image_embeds is not None

    def _eyes(self: Any) -> Eyes | None:
        """What planning is to know of the adapters; None where none is loaded."""
        loaded, encoder = self._adapters_loaded(), self.image_encoder
        if loaded is None:
            return None
        part = Part.of(encoder) if isinstance(encoder, CLIPVisionModelWithProjection) else None
        return Eyes(part, tuple(loaded.adapters))

    def _seen_by_each(self: Any, request: Any) -> int:
        """Pictures that an IP-Adapter sees in the call, the one that sees most."""
        if request.ip_adapter_image_embeds is not None:
            return max(each.shape[1] for each in request.ip_adapter_image_embeds)
        images = (
            []
            if request.ip_adapter_image is None
            else for_each(request.ip_adapter_image, len(self._adapters_loaded().adapters))
        )
        return max((len(pictures_of(image)) for image in images), default=0)

    def _check_image_prompt(self: Any, request: Any) -> None:
        """ConfigError where pictures or embeddings do not belong to what is loaded, before anything is computed."""
        loaded, embeds = self._adapters_loaded(), request.ip_adapter_image_embeds
        if loaded is None:
            refuse(
                {"ip_adapter_image": request.ip_adapter_image, "ip_adapter_image_embeds": embeds},
                "no IP-Adapter is loaded that would see it: load_ip_adapter first",
            )
            return
        if not self._sees(request):
            raise ConfigError(
                "an IP-Adapter is loaded and has nothing to see: pass ip_adapter_image (or ip_adapter_image_embeds), "
                "or unload_ip_adapter()."
            )
        if self._stack.find("compile") is not None:
            raise ConfigError(
                "IP-Adapters: compiled blocks do not see what is given to single layers. pipe.disable('compile') or "
                "unload_ip_adapter() first."
            )
        for name, layer in text_layers(self._own_unet()).items():
            if isinstance(layer.backend, CustomProcessor):
                raise ConfigError(
                    f"{name} computes with {layer.backend.name}, a processor of your own, which would not see the "
                    "picture: set_default_attn_processor(), or unload_ip_adapter()."
                )
        if embeds is None:
            for image in for_each(request.ip_adapter_image, len(loaded.adapters)):
                pictures_of(image)
            if self.image_encoder is None:
                raise ConfigError(
                    "ip_adapter_image: this pipeline has no image_encoder. Set it, or pass ip_adapter_image_embeds."
                )
            _check_encoder(loaded, self.image_encoder)
            return
        if len(embeds) != len(loaded.adapters):
            raise ConfigError(
                f"{len(embeds)} ip_adapter_image_embeds for {len(loaded.adapters)} IP-Adapters: one each."
            )
        guided = Guidance(request.guidance_scale, distilled=embedding_width(self.unet) is not None).doubles
        for each, projection in zip(embeds, loaded.projections, strict=True):
            ndim, width = 3 + projection.sees_tokens, projection.widths[0]
            if each.ndim != ndim or each.shape[-1] != width or len(each) != 1 + guided:
                shape = ", ".join(map(str, (1 + guided, "images", *(["tokens"] * projection.sees_tokens), width)))
                raise ConfigError(
                    f"ip_adapter_image_embeds has shape {tuple(each.shape)}, expected ({shape}) here"
                    f"{', the negative ones first' if guided else ', as there is no guidance'}: pass what "
                    "prepare_ip_adapter_image_embeds returns for one picture."
                )

    def _image_prompt(self: Any, request: Any) -> ImagePrompt:
        """What the UNet attends to in one call."""
        loaded, unet = self._adapters_loaded(), self._own_unet()
        embeds = self.prepare_ip_adapter_image_embeds(
            request.ip_adapter_image, request.ip_adapter_image_embeds, self.device, request.batch,
            self.do_classifier_free_guidance,
        )  # fmt: skip
        seen = [
            look(adapter, unet, each, self.dtype, self.device)
            for adapter, each in zip(loaded.adapters, embeds, strict=True)
        ]
        return ImagePrompt(text_layers(unet), seen, loaded.weight)


def _check_encoder(loaded: Loaded, encoder: Any) -> None:
    """TensorMismatch where the encoder is not the one that the adapters were trained with."""
    if (config := getattr(encoder, "config", None)) is not None:
        for adapter, projection in zip(loaded.adapters, loaded.projections, strict=True):
            check_encoder(adapter, projection, config)
