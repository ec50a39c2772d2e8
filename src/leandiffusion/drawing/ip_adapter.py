"""IP-Adapters as paths, and the pictures that they see as PATH:SCALE: checked before a model opens, and loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..core.errors import LeanError
from .lora import path_and_scale
from .wrong import OptionError

if TYPE_CHECKING:
    from PIL.Image import Image

    from .options import DrawingOptions

FIELD, PICTURE = "ip_adapter", "ip_image"


def check(options: DrawingOptions) -> None:
    """OptionError where IP-Adapters and pictures are not as many, and for files that are none; headers are read."""
    files, pictures = options.ip_adapter or (), options.ip_image or ()
    if len(files) != len(pictures):
        raise OptionError(
            PICTURE, "there are {files} {ip_adapter} and {pictures} {ip_image}: give a picture for each.",
            files=len(files), pictures=len(pictures),
        )  # fmt: skip
    for text in pictures:
        path_and_scale(text, PICTURE)
    if not files:
        return
    from ..families.ip_adapter import find_ip_adapter, read_ip_adapter

    for path in files:
        try:
            read_ip_adapter(find_ip_adapter(path))
        except (LeanError, OSError) as error:
            raise OptionError(FIELD, "{reason}", reason=error) from error


def load(pipe: Any, options: DrawingOptions) -> None:
    """Load all of them."""
    if options.ip_adapter:
        pipe.load_ip_adapter(list(options.ip_adapter))


def arguments(pipe: Any, options: DrawingOptions, pictures: Sequence[Image]) -> dict[str, Any]:
    """What a pipeline's call is given; how much each picture counts is set."""
    if not options.ip_image:
        return {}
    pipe.set_ip_adapter_scale([path_and_scale(text, PICTURE)[1] for text in options.ip_image])
    return {"ip_adapter_image": list(pictures)}
