"""The log: a line of JSON for each event. Whatever clients send stands in it escaped, and cannot end a line."""

from __future__ import annotations

import datetime
import json
import logging
import sys
import warnings
from typing import Any

from ..core.wording import printable, readable, to_length
from .jobs import current

log = logging.getLogger(__name__)

_OF_EVERY_RECORD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message"}
_LONGEST = 2000


class JsonLines(logging.Formatter):
    """A record as one line of ASCII: time, level, event, and what was passed as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": time, "level": record.levelname.lower(), "event": _inert(record.getMessage())}
        line |= {name: _inert(value) for name, value in vars(record).items() if name not in _OF_EVERY_RECORD}
        if record.exc_info:
            line["trace"] = _inert(self.formatException(record.exc_info))
        return json.dumps(line)


def _inert(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    return printable(to_length(str(value), _LONGEST))


def to_stderr(level: int = logging.INFO) -> None:
    """Have this library, uvicorn and Python's warnings write JSON lines to standard error; of all others, what they
    warn of."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, least in (("leandiffusion", level), ("uvicorn.error", level), ("", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(least)
    warnings.simplefilter("always", UserWarning)
    warnings.showwarning = note_warning


def note_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Stands in for `warnings.showwarning`: into the log, and to the client whose job it came up in."""
    job, text = current.get(), readable(str(message))
    log.warning("warning", extra={"about": text, "job": job and job.id})
    if job is not None and issubclass(category, UserWarning) and text not in job.notes:
        job.notes.append(text)
