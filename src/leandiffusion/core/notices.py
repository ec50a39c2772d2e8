"""Warnings whose text holds names from outside: from checkpoints, configs, folders, prompts."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
import warnings

from .wording import readable


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """`warnings.warn` of the message as a terminal may print it: no control characters, of bounded length.

    The warning is attributed to the line outside of this package that led here, however deep below it this is called.
    """
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_passed_over()):
        level, frame = level + 1, frame.f_back
    warnings.warn(readable(message), category, stacklevel=level)


@functools.cache
def _passed_over() -> tuple[str, ...]:
    """Files that are not the caller's: this package's, and torch's and contextlib's, whose decorators ours use."""
    torch = importlib.util.find_spec("torch")
    ours = os.path.dirname(os.path.dirname(__file__))
    places = [ours, *((torch.submodule_search_locations or []) if torch else [])]
    return (*(place + os.sep for place in places), contextlib.__file__)
