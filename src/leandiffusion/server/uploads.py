"""Pictures that clients send: bounded by declared type, header and pixels before they are decoded."""

from __future__ import annotations

import base64
import binascii
import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from ..core.wording import show
from .errors import ApiError

MOST_PIXELS = 16_777_216  # 4096 x 4096, the largest that can be asked for
_TYPES = {"image/png": "PNG", "image/jpeg": "JPEG", "image/jpg": "JPEG", "image/webp": "WEBP"}
_UNDECLARED = ("", "application/octet-stream")  # what clients send who were given bytes without a name
_MOST_FIELDS = 64


@dataclass(frozen=True)
class Upload:
    """A file that came with a request: its bytes, and the type that was declared."""

    data: bytes
    content_type: str = ""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.is_instance_schema(cls)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return {"type": "string", "format": "binary"}


async def read_form(request: Request) -> dict[str, Any]:
    """The fields of a multipart body; files as Uploads. ApiError for other bodies, and for what is given twice."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise ApiError(
            f"the body is sent as {show(kind or 'nothing in particular')}: send multipart/form-data.",
            status=415, code="unsupported_media_type",
        )  # fmt: skip
    values: dict[str, Any] = {}
    try:
        async with request.form(max_files=4, max_fields=_MOST_FIELDS) as form:
            for name, value in form.multi_items():
                name = name.removesuffix("[]")  # as clients write lists, of which one picture is taken
                if name in values:
                    raise ApiError(f"{name} is there twice: send one.", param=name[:100], code="given_twice")
                if isinstance(value, UploadFile):
                    values[name] = Upload(await value.read(), (value.content_type or "").lower())
                else:
                    values[name] = value
    except (HTTPException, MultiPartException, UnicodeError, ValueError, KeyError) as error:
        why = getattr(error, "detail", None) or getattr(error, "message", None) or error
        raise ApiError(
            f"the body is no multipart/form-data ({str(why).rstrip('.')}): let your HTTP library make it, with its "
            "boundary in the header Content-Type.", code="invalid_form",
        ) from None  # fmt: skip
    return values


def from_base64(name: str, text: str) -> Upload:
    """A picture that is sent as base64, with or without 'data:image/png;base64,' before it. No other URL is read."""
    head, comma, rest = text.partition(",")
    declared = ""
    if comma:
        if not head.startswith("data:") or not head.endswith(";base64"):
            raise ApiError(f"{name}: a picture is sent as base64, not as {show(head)}.", param=name)
        declared, text = head[len("data:") : -len(";base64")].lower(), rest
    try:
        return Upload(base64.b64decode(text, validate=True), declared)
    except (binascii.Error, ValueError):
        raise ApiError(
            f"{name} is no base64: encode the picture's bytes, as base64.b64encode does.", param=name
        ) from None


def check_picture(name: str, upload: Upload) -> None:
    """ApiError, naming the field, for what by its header is no PNG, JPEG or WebP, not what it was declared as, or of
    more than MOST_PIXELS. Nothing is decoded."""
    from PIL import Image

    declared = upload.content_type.partition(";")[0].strip()
    if declared not in _UNDECLARED and declared not in _TYPES:
        raise ApiError(f"{name} is declared as {show(declared)}: send image/png, image/jpeg or image/webp.", param=name)
    formats = (_TYPES[declared],) if declared in _TYPES else tuple(dict.fromkeys(_TYPES.values()))
    if not upload.data:
        raise ApiError(f"{name} is empty: send the picture's bytes.", param=name, code="invalid_image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's, at sizes that are refused below
            with Image.open(BytesIO(upload.data), formats=formats) as image:
                size = f"{image.width}x{image.height}" if image.width * image.height > MOST_PIXELS else ""
    except Image.DecompressionBombError:
        size = "far larger"
    except Exception:  # Pillow's parsers raise whatever they come across
        raise ApiError(
            f"{name} is no {' or '.join(formats)} picture that can be read.", param=name, code="invalid_image"
        ) from None
    if size:
        raise ApiError(
            f"{name} is {size}: send one of at most {MOST_PIXELS // 10**6} million pixels.",
            param=name, code="invalid_image",
        )  # fmt: skip
