"""The fields of OpenAI's images requests, with those that diffusion models have besides."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from ..core.errors import ConfigError
from ..core.units import parse_bytes
from ..drawing.values import MAX_SEED
from .errors import ApiError
from .fields import Fields
from .uploads import Upload

MOST_SIDE, MOST_PICTURES, MOST_STEPS = 4096, 10, 1000
LONGEST_PROMPT = 32_000  # characters, as in OpenAI's contract
_SIZE = r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"

Text = Annotated[str, StringConstraints(max_length=LONGEST_PROMPT)]
Prompt = Annotated[Text, Field(description="What to draw: up to 32000 characters.")]
Negative = Annotated[Text | None, Field(description="What to keep out of the picture.")]
Size = Annotated[
    str,
    StringConstraints(pattern=_SIZE),
    Field(
        description=f"Pixels as WIDTHxHEIGHT, each up to {MOST_SIDE} and a multiple of 8; 'auto' is the model's own."
    ),
]
Count = Annotated[int, Field(ge=1, le=MOST_PICTURES, description="How many pictures, 1 to 10; each has the next seed.")]
Steps = Annotated[
    int | None, Field(ge=1, le=MOST_STEPS, description="Denoising steps, 1 to 1000; the model's own unless given.")
]
GuidanceScale = Annotated[
    float | None,
    Field(ge=0, le=100, description="How strictly the prompt is followed, 0 to 100; up to 1 there is no guidance."),
]
Seed = Annotated[
    int | None, Field(ge=0, le=MAX_SEED, description="The same seed gives the same picture; 0 to 2**63 - 1.")
]
Scheduler = Annotated[
    str | None,
    Field(max_length=64, description="A sampler's short name, such as 'dpm++-karras'; GET /sdapi/v1/samplers."),
]
ModelName = Annotated[
    str | None, Field(max_length=200, description="A model of GET /v1/models; the first one unless given.")
]
Strength = Annotated[
    float | None,
    Field(gt=0, le=1, description="How much of the picture is drawn anew: above 0, up to 1 for all of it."),
]
Syntax = Annotated[
    Literal["plain", "weighted"],
    Field(description="'weighted' reads (word:1.3) and prompts of any length; 'plain' reads what the encoder takes."),
]
Memory = Annotated[
    str | None,
    Field(max_length=20, description="Memory to draw within, such as '2GiB', where it is less than the server's."),
]

NO_TOKENS = {
    "input_tokens": 0, "input_tokens_details": {"image_tokens": 0, "text_tokens": 0}, "output_tokens": 0,
    "total_tokens": 0,
}  # fmt: skip
"""Nothing is charged here, and the clients expect the field."""

QUALITY = {"low": 0.5, "medium": 1.0, "standard": 1.0, "high": 1.5, "hd": 1.5}
"""Steps, in multiples of the model's own."""


class Pictures(Fields):
    """What all requests for pictures have."""

    UNSERVED: ClassVar[Mapping[str, str]] = {
        "style": "say the style in the prompt.",
        "svg": "pictures are made of pixels: use output_format png, jpeg or webp.",
        "complexity": "it belongs to SVG, which is not drawn.",
        "frame_count": "no animations are drawn.",
        "frame_duration_ms": "no animations are drawn.",
        "input_fidelity": "use strength, from 0 to 1: how much of the picture is drawn anew.",
        "markup": "say in the prompt what the picture becomes, and in the mask where.",
    }
    IDLE: ClassVar[Mapping[str, tuple[Any, ...]]] = {"moderation": ("auto",)}

    model: ModelName = None
    n: Count = 1
    size: Size = "auto"
    response_format: Annotated[
        Literal["b64_json", "url"] | None,
        Field(description="Only 'b64_json' is served: pictures come in the answer, none is kept here to have a URL."),
    ] = None
    output_format: Annotated[Literal["png", "jpeg", "webp"], Field(description="PNG carries the picture's record.")] = (
        "png"
    )
    output_compression: Annotated[
        int | None,
        Field(ge=0, le=100, description="Quality of jpeg and webp, 0 to 100 for the best, which is the default."),
    ] = None
    background: Annotated[
        Literal["auto", "opaque", "transparent"] | None, Field(description="Pictures are opaque: 'auto' or 'opaque'.")
    ] = None
    quality: Annotated[
        Literal["auto", "low", "medium", "standard", "high", "hd"],
        Field(
            description="Steps: low half of the model's own, medium and standard these, high and hd half as many again."
        ),
    ] = "auto"
    user: Annotated[str | None, Field(max_length=512, description="Who asks, for the log.")] = None
    safety_identifier: Annotated[str | None, Field(max_length=512, description="Who asks, for the log.")] = None
    negative_prompt: Negative = None
    num_inference_steps: Steps = None
    guidance_scale: GuidanceScale = None
    seed: Seed = None
    scheduler: Scheduler = None
    prompt_syntax: Syntax = "plain"
    memory: Memory = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.response_format == "url":
            raise _refused(
                "response_format", "'url' is not served: pictures come in the answer as b64_json. Leave it out."
            )
        if self.background == "transparent":
            raise _refused("background", "'transparent' is not served: pictures are opaque. Leave it out.")
        if self.output_compression is not None and self.output_format == "png":
            raise _refused("output_compression", "it belongs to output_format jpeg and webp: PNG loses nothing.")
        if self.quality != "auto" and self.num_inference_steps is not None:
            raise _refused("quality", "it chooses the number of steps, and num_inference_steps too: give one of them.")
        if self.seed is not None and self.seed + self.n - 1 > MAX_SEED:
            raise _refused("seed", f"with n={self.n} the last picture's seed would be beyond 2**63 - 1.")
        _ = self.pixels, self.memory_bytes  # they are checked by looking
        return self

    @property
    def pixels(self) -> tuple[int, int] | None:
        """Width and height; None for the model's own."""
        if self.size == "auto":
            return None
        width, height = (int(side) for side in re.findall(r"\d+", self.size))
        if max(width, height) > MOST_SIDE:
            raise _refused("size", f"{self.size!r} has a side of more than {MOST_SIDE} pixels: ask for less.")
        return width, height

    @property
    def memory_bytes(self) -> int | None:
        """Memory to draw within; None for what there is."""
        return bytes_of(self.memory)


def bytes_of(memory: str | None) -> int | None:
    """Of a size in words. ApiError for what is none."""
    try:
        return None if memory is None else parse_bytes(memory)
    except ConfigError as error:
        raise _refused("memory", str(error)) from None


class Streamed(Pictures):
    """Requests whose pictures may come as they are made."""

    stream: Annotated[bool, Field(description="Send server-sent events, a picture as soon as it is there.")] = False
    partial_images: Annotated[
        int | None, Field(ge=0, le=3, description="With stream: unfinished pictures to send of each, 0 to 3.")
    ] = None

    @model_validator(mode="after")
    def _partial_are_streamed(self) -> Self:
        if self.partial_images and not self.stream:
            raise _refused("partial_images", "unfinished pictures are sent as events: ask for stream too.")
        return self


class Generation(Streamed):
    """POST /v1/images/generations."""

    prompt: Prompt


class Edit(Streamed):
    """POST /v1/images/edits."""

    prompt: Prompt
    image: Annotated[Upload, Field(description="The picture to draw on, as a file: PNG, JPEG or WebP.")]
    mask: Annotated[
        Upload | None,
        Field(description="As large as the picture: what is transparent in it, or else white, is drawn anew."),
    ] = None
    strength: Strength = None


class Variation(Pictures):
    """POST /v1/images/variations."""

    image: Annotated[Upload, Field(description="The picture to vary, as a file: PNG, JPEG or WebP.")]
    prompt: Annotated[Text, Field(description="What it shows, which helps to keep it.")] = ""
    strength: Strength = None


def _refused(param: str, why: str) -> ApiError:
    return ApiError(f"{param}: {why}", param=param)
