"""What a client is told when something is wrong: OpenAI's `{"error": {message, type, param, code}}`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ..core.errors import BackendUnavailable, BudgetError, ConfigError, LeanError
from ..core.wording import readable

_NONE: Mapping[str, str] = MappingProxyType({})
_NO_RETRY = {"x-should-retry": "false"}  # OpenAI's clients repeat what ended in 5xx unless they are told


class ApiError(Exception):
    """An answer that is an error: HTTP `status`, what OpenAI calls `type`, `code` and `param` (the wrong field), and
    response headers. The message says the value, the rule and the fix, in fewer than 500 characters."""

    status, type, code = 400, "invalid_request_error", "invalid_value"

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, status: int | None = None,
        headers: Mapping[str, str] = _NONE,
    ) -> None:  # fmt: skip
        self.message, self.param, self.headers = readable(message), param, dict(headers)
        self.status, self.code = status or self.status, code or self.code
        super().__init__(self.message)

    def to_json(self) -> dict[str, Any]:
        """The body of the answer."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class ServerError(ApiError):
    """Not the client's fault."""

    status, type, code = 500, "server_error", "internal_error"


class QueueFull(ApiError):
    """As many requests wait as may. The client may come again after so many seconds."""

    status, type, code = 429, "rate_limit_error", "queue_full"

    def __init__(self, waiting: int, seconds: float | None) -> None:
        after = max(1, round(min(seconds or 10.0, 600.0)))
        super().__init__(
            f"{waiting} requests are waiting, which is as many as may: send it again in {after} s.",
            headers={"Retry-After": str(after)},
        )


class ShuttingDown(ServerError):
    """The server was asked to end."""

    status, code = 503, "shutting_down"

    def __init__(self) -> None:
        super().__init__(
            "the server is shutting down, and this request was not answered before: send it again later.",
            headers={"Retry-After": "30"},
        )


class TimedOut(ServerError):
    """The request took longer than requests may."""

    status, code = 504, "timed_out"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the picture was not there after {seconds:g} s, the longest that a request may take here: ask for fewer "
            "steps, pixels or pictures, or start the server with a longer --timeout.",
            headers=_NO_RETRY,
        )


class Cancelled(ApiError):
    """The client left, or asked to have its job ended."""

    status, type, code = 499, "cancelled", "cancelled"  # nginx's number for a client that closed the request

    def __init__(self, why: str = "the job was cancelled.") -> None:
        super().__init__(why, headers=_NO_RETRY)


class OutOfMemory(ServerError):
    """Memory ran out although the plan said that it would do."""

    status, code = 503, "out_of_memory"

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"memory ran out while drawing: ask for fewer pixels, or have the server keep a smaller --memory. {reason}",
            headers=_NO_RETRY,
        )


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told of an error. Of those that are not ours only that there was one: the log has the rest."""
    from ..device.memory import is_out_of_memory

    if isinstance(error, ApiError):
        return error
    if isinstance(error, BudgetError):
        return ApiError(str(error), param="size", code="does_not_fit")
    if isinstance(error, ConfigError):
        return ApiError(str(error))
    if is_out_of_memory(error):
        return OutOfMemory(str(error))
    if isinstance(error, BackendUnavailable | LeanError):
        return ServerError(str(error), headers=_NO_RETRY)
    return ServerError("the server failed; its log says more under this request's id.", headers=_NO_RETRY)
