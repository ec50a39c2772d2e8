"""From a request's body to checked fields: every wrong one is refused by name, with the rule and the fix."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

from ..core.jsons import BadJSON, parse_json
from ..core.registry import did_you_mean
from ..core.wording import show
from .errors import ApiError

_MOST_LISTS = 1000  # of a JSON body; none of the contracts nests more than a few


class Fields(BaseModel):
    """Base of the requests' fields. `UNSERVED` names fields of the contract that are not served, and says why."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=(), frozen=True)
    UNSERVED: ClassVar[Mapping[str, str]] = {}
    IDLE: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Fields that are not served, with the values that ask for nothing: clients send them all the same."""

    @classmethod
    def checked(cls, values: Any, *, strict: bool = True) -> Self:
        """The fields in a body. ApiError for the first that is wrong, unknown or missing. Forms have nothing but texts:
        with `strict` off these stand for numbers too."""
        if not isinstance(values, dict):
            raise ApiError(f"the body is {show(values)}: send a JSON object of fields.", code="invalid_body")
        given = {name: value for name, value in values.items() if not cls._is_idle(name, value)}
        for name in given:
            cls._check_name(str(name))
        try:
            return cls.model_validate({k: value for k, value in given.items() if value is not None}, strict=strict)
        except ValidationError as error:
            raise cls._told(error) from None

    @classmethod
    def names(cls) -> list[str]:
        """Of its fields, as clients write them."""
        return [field.alias or name for name, field in cls.model_fields.items()]

    @classmethod
    def _is_idle(cls, name: Any, value: Any) -> bool:
        if name in cls.UNSERVED and value is None:
            return True
        return name in cls.IDLE and any(type(value) is type(idle) and value == idle for idle in cls.IDLE[name])

    @classmethod
    def _check_name(cls, name: str) -> None:
        if name in cls.UNSERVED:
            raise ApiError(f"{name} is not served here: {cls.UNSERVED[name]}", param=name, code="unsupported_parameter")
        if name in cls.IDLE:
            idle = " or ".join(show(value) for value in cls.IDLE[name])
            raise ApiError(
                f"{name} is not served here, so it may only be {idle}: leave it out.",
                param=name, code="unsupported_parameter",
            )  # fmt: skip
        if name not in cls.names():
            known = cls.names()
            raise ApiError(
                f"there is no field {show(name)}.{did_you_mean(name, known)} Known: {', '.join(known)}.",
                param=name[:100], code="unknown_parameter",
            )  # fmt: skip

    @classmethod
    def _told(cls, error: ValidationError) -> ApiError:
        """The first thing that is wrong, in words: value, rule, and what the field is."""
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        about = next((f.description for key, f in cls.model_fields.items() if name in (key, f.alias)), None)
        rule = first["msg"].removeprefix("Value error, ")
        rule = rule[:1].lower() + rule[1:]
        if first["type"] == "missing":
            return ApiError(f"{name} is missing. {about or ''}".strip(), param=name, code="missing_parameter")
        told = f"{name}={show(first['input'])}: {rule.rstrip('.')}." if name else f"{rule.rstrip('.')}."
        return ApiError(f"{told} {about or ''}".strip(), param=name or None)


async def read_json(request: Request) -> Any:
    """The body as JSON. ApiError where it is none, or is said to be something else."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            f"the body is sent as {show(kind or 'nothing in particular')}: send JSON, with the header "
            "Content-Type: application/json.",
            status=415, code="unsupported_media_type",
        )  # fmt: skip
    try:
        return parse_json(await request.body(), strict=True, most=_MOST_LISTS)
    except BadJSON as error:
        raise ApiError(f"the body is no JSON: {error}.", code="invalid_json") from None


def document(fields: type[Fields], media_type: str = "application/json") -> dict[str, Any]:
    """The body that `fields` are read from, for FastAPI's `openapi_extra`."""
    schema = fields.model_json_schema(mode="validation")
    inner = schema.pop("$defs", {})
    for value in schema["properties"].values():
        if (name := value.pop("$ref", "").rpartition("/")[2]) in inner:  # which would point nowhere in the document
            _drop_null(inner[name])
            value.clear()
            value.update(inner[name])
    _drop_null(schema)
    if media_type != "application/json":
        files = {"type": "string", "contentMediaType": "application/octet-stream", "format": "binary"}
        for name, field in fields.model_fields.items():
            if _holds_bytes(field.annotation):
                schema["properties"][field.alias or name] = files | {"description": field.description}
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


def _drop_null(schema: dict[str, Any]) -> None:
    """`X | null` as X: a field that is null counts as left out, and form fields cannot be null."""
    for value in schema.get("properties", {}).values():
        options = [each for each in value.get("anyOf", ()) if each != {"type": "null"}]
        if len(options) == 1:
            del value["anyOf"]
            value.update(options[0])
        value.pop("default", None) if value.get("default", 0) is None else None


def _holds_bytes(annotation: Any) -> bool:
    parts = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return bytes in parts or any(getattr(part, "__name__", "") == "Upload" for part in parts)
