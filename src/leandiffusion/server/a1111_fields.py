"""The fields of AUTOMATIC1111's requests. What is not served may be sent as long as it asks for nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from ..drawing.values import MAX_SEED
from .a1111_samplers import eta_of, scheduler_of
from .errors import ApiError
from .fields import Fields
from .openai_fields import MOST_SIDE, Prompt, Steps, Text

MOST_PICTURES = 16
_OFF = (None, False)
_NOTHING = (None, 0, 0.0, -1)
_IN_PROMPT = re.compile(r"<(lora|lyco|hypernet):", re.IGNORECASE)
OF_HIRES = ("hr_", "firstphase_")
"""How fields begin that count with enable_hr alone, which is not served."""

Side = Annotated[
    int | None, Field(ge=8, le=MOST_SIDE, description="Pixels, a multiple of 8; the model's own unless given.")
]
Batches = Annotated[int, Field(ge=1, le=MOST_PICTURES, description="Pictures: batch_size times n_iter, 16 at most.")]
Picture = Annotated[str, Field(description="A picture in base64, with or without 'data:image/png;base64,' before it.")]


class OverrideSettings(Fields):
    """Settings of the web UI for one request."""

    IDLE: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "CLIP_stop_at_last_layers": (1,), "sd_vae": ("", "Automatic", "None", "none", "automatic"),
    }  # fmt: skip

    sd_model_checkpoint: Annotated[str | None, Field(max_length=200, description="A model of /sdapi/v1/sd-models.")] = (
        None
    )
    samples_format: Annotated[
        str | None, Field(pattern="^(png|jpg|jpeg|webp)$", description="Of the pictures in the answer.")
    ] = None


class TextToPicture(Fields):
    """POST /sdapi/v1/txt2img."""

    IDLE: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "enable_hr": _OFF, "restore_faces": _OFF, "tiling": _OFF, "styles": (None, []), "subseed": _NOTHING,
        "subseed_strength": _NOTHING, "seed_resize_from_h": _NOTHING, "seed_resize_from_w": _NOTHING,
        "s_min_uncond": _NOTHING, "s_churn": _NOTHING, "s_tmax": _NOTHING, "s_tmin": _NOTHING,
        "s_noise": (None, 0, 0.0, 1, 1.0), "clip_skip": (None, 0, 1), "refiner_checkpoint": (None, "", "None"),
        "refiner_switch_at": (None, 0, 0.0, 1, 1.0), "script_name": (None, "", "None"), "script_args": (None, []),
        "alwayson_scripts": (None, {}), "comments": (None, {}), "firstpass_image": (None, ""), "infotext": (None, ""),
        "disable_extra_networks": (None, False, True), "override_settings_restore_afterwards": (None, False, True),
        "save_images": (None, False, True), "do_not_save_samples": (None, False, True),
        "do_not_save_grid": (None, False, True), "force_task_id": (None, ""),
    }  # fmt: skip

    prompt: Prompt = ""
    negative_prompt: Annotated[Text, Field(description="What to keep out of the picture.")] = ""
    seed: Annotated[int, Field(ge=-1, le=MAX_SEED, description="-1 for any; each picture has the next.")] = -1
    sampler_name: Annotated[str | None, Field(max_length=64, description="Of /sdapi/v1/samplers.")] = None
    sampler_index: Annotated[str | None, Field(max_length=64, description="An older name of sampler_name.")] = None
    scheduler: Annotated[str | None, Field(max_length=64, description="A schedule type: Automatic or Karras.")] = None
    eta: Annotated[
        float | None, Field(ge=-1, le=1, description="Samplers add the noise that is theirs: it changes nothing.")
    ] = None
    steps: Steps = None
    cfg_scale: Annotated[float | None, Field(ge=0, le=100, description="Guidance, 0 to 100; up to 1 is none.")] = None
    width: Side = None
    height: Side = None
    batch_size: Batches = 1
    n_iter: Batches = 1
    send_images: Annotated[bool, Field(description="Whether the answer has the pictures.")] = True
    override_settings: OverrideSettings = OverrideSettings()
    denoising_strength: Annotated[float | None, Field(ge=0, le=1, description="How much is drawn anew, 0 to 1.")] = None

    @classmethod
    def checked(cls, values: Any, *, strict: bool = True) -> Self:
        """The fields in a body, without those that count with enable_hr alone, which is off."""
        if isinstance(values, dict):
            values = {name: each for name, each in values.items() if not str(name).startswith(OF_HIRES)}
            if isinstance(values.get("override_settings"), dict):
                values["override_settings"] = OverrideSettings.checked(values["override_settings"])
        return super().checked(values, strict=strict)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.count > MOST_PICTURES:
            raise ApiError(
                f"batch_size: {self.count} pictures are asked for, and {MOST_PICTURES} are most.", param="batch_size"
            )
        if self.seed + self.count - 1 > MAX_SEED:
            raise ApiError("seed: the last picture's would be beyond 2**63 - 1.", param="seed")
        for name in ("prompt", "negative_prompt"):
            if found := _IN_PROMPT.search(getattr(self, name)):
                raise ApiError(f"{name}: {found[0]}…> is not read here. Take it out.", param=name)
        return self

    @property
    def count(self) -> int:
        """Pictures in all."""
        return self.batch_size * self.n_iter

    @property
    def sampler(self) -> str | None:
        """Our short name for it. ApiError for one that there is not."""
        return scheduler_of(self.sampler_name or self.sampler_index, self.scheduler)

    @property
    def notes(self) -> list[str]:
        """What the answer says of fields that change nothing."""
        own = eta_of(self.sampler)
        if own is None or self.eta in (None, own):
            return []
        return [f"eta={self.eta:g} was not used: {self.sampler} draws with {own:g} here."]


class PictureToPicture(TextToPicture):
    """POST /sdapi/v1/img2img."""

    IDLE: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **TextToPicture.IDLE, "inpainting_mask_invert": (None, 0, False), "initial_noise_multiplier": (None, 1, 1.0),
        "mask_round": (None, True), "latent_mask": (None, ""),
        "include_init_images": (None, False),
    }  # fmt: skip
    OF_MASKS: ClassVar[tuple[str, ...]] = (
        "mask_blur", "mask_blur_x", "mask_blur_y", "inpainting_fill", "inpaint_full_res", "inpaint_full_res_padding",
        "inpainting_mask_invert", "mask_round",
    )  # fmt: skip

    init_images: Annotated[
        list[Picture], Field(min_length=1, max_length=1, description="One picture to draw on, in base64.")
    ]
    mask: Annotated[str | None, Field(description="What is white in it is drawn anew: a picture in base64.")] = None
    resize_mode: Annotated[int, Field(ge=0, le=1, description="0 stretches the picture, 1 cuts what is beyond.")] = 0
    mask_blur: Annotated[
        int | None, Field(ge=0, le=64, description="Edges of masks are sharp here: it changes nothing.")
    ] = None
    mask_blur_x: Annotated[int | None, Field(ge=0, le=64, description="As mask_blur.")] = None
    mask_blur_y: Annotated[int | None, Field(ge=0, le=64, description="As mask_blur.")] = None
    inpainting_fill: Annotated[
        int, Field(ge=1, le=1, description="1: what the mask covers is drawn over what is there.")
    ] = 1
    inpaint_full_res: Annotated[bool, Field(description="Draw what is around the mask alone, at the full size.")] = (
        False
    )
    inpaint_full_res_padding: Annotated[int, Field(ge=0, le=1024, description="Pixels around the mask, then.")] = 0

    @classmethod
    def checked(cls, values: Any, *, strict: bool = True) -> Self:
        """The fields in a body, without those that count with a mask alone where there is none, and without the one
        that counts with InstructPix2Pix alone, which is not served."""
        if isinstance(values, dict):
            idle = {"image_cfg_scale", *(() if values.get("mask") else ("mask", *cls.OF_MASKS))}
            values = {name: value for name, value in values.items() if name not in idle}
        return super().checked(values, strict=strict)

    @property
    def notes(self) -> list[str]:
        """As `TextToPicture.notes`."""
        blurs = (self.mask_blur, self.mask_blur_x, self.mask_blur_y)
        return super().notes + (["mask_blur was not used: edges of masks are sharp here."] if any(blurs) else [])


class PictureInfo(Fields):
    """POST /sdapi/v1/png-info."""

    image: Picture


class Options(OverrideSettings):
    """POST /sdapi/v1/options."""
