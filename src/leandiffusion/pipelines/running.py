"""One call of a pipeline: its own settings and scheduler, and how the pipeline shows and takes them.

A call works on a view of the pipeline: the same components, settings and a scheduler of its own, so that calls in
several threads do not disturb each other. To the code around it there seems to be one pipeline, as in diffusers:

- during a call, in its thread, the pipeline reads as the call's view does, and what is written to it reaches the view;
- settings written from another thread, such as a stop button's, reach every call under way;
- after a call the pipeline and its scheduler hold that call's values, those of the last to end if there were several.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Self

_calls: ContextVar[tuple[Running, ...]] = ContextVar("calls of this thread, outermost first", default=())


class PerCall:
    """An attribute that reads as the call's own while one runs in this thread, else as the pipeline's."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, pipe: Running | None, owner: type | None = None) -> Any:
        if pipe is None:
            return self
        view = pipe._view
        try:
            return (pipe if view is None else view).__dict__[self._name]
        except KeyError:
            raise AttributeError(f"{self._name} is set by a call, and nothing was drawn yet.") from None

    def __set__(self, pipe: Running, value: Any) -> None:
        pipe.__dict__[self._name] = value


class Running:
    """Mixin of the pipelines: settings of the running call, or of the last one."""

    scheduler: Any = PerCall()
    _guidance_scale: Any = PerCall()
    _guidance_rescale: Any = PerCall()
    _clip_skip: Any = PerCall()
    _cross_attention_kwargs: Any = PerCall()
    _denoising_start: Any = PerCall()
    _denoising_end: Any = PerCall()
    _num_timesteps: Any = PerCall()
    _interrupt: Any = PerCall()
    _SETTINGS = (
        "_guidance_scale", "_guidance_rescale", "_clip_skip", "_cross_attention_kwargs", "_denoising_start",
        "_denoising_end", "_num_timesteps", "_interrupt",
    )  # fmt: skip

    def __init__(self) -> None:
        self._origin: Running | None = None  # the pipeline that this is one call's view of
        self._under_way: list[Running] = []  # views of the calls that run, in whichever thread
        self._interrupt = False

    @property
    def _view(self) -> Running | None:
        """The innermost call of this pipeline in this thread; None outside of one, and for a view."""
        return next((view for view in reversed(_calls.get()) if view._origin is self), None)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if not self.__dict__.get("_under_way") or self._origin is not None:
            return
        view = self._view
        if view is not None:
            view.__setattr__(name, value)
        elif name in self._SETTINGS:
            for each in list(self._under_way):
                each.__setattr__(name, value)

    @contextmanager
    def _call(self, **settings: Any) -> Iterator[Self]:
        """A call's view of this pipeline, with these settings and a scheduler of its own at the start of a run."""
        view, scheduler = copy.copy(self), self.__dict__["scheduler"]
        view._origin, view._interrupt = self, False
        view.scheduler = scheduler.clone() if hasattr(scheduler, "clone") else copy.deepcopy(scheduler)
        for name, value in settings.items():
            setattr(view, f"_{name}", value)
        own, token = view.scheduler, _calls.set((*_calls.get(), view))
        self._under_way.append(view)
        try:
            yield view
        finally:
            self._under_way[:] = [each for each in self._under_way if each is not view]
            _calls.reset(token)
            if self._origin is None:  # a call that a callback makes of its view tells nothing to the call around it
                self.__dict__.update((name, view.__dict__[name]) for name in self._SETTINGS if name in view.__dict__)
                if view.scheduler is own and hasattr(scheduler, "__dict__"):
                    vars(scheduler).update(vars(own))

    @property
    def interrupt(self) -> bool:
        """Whether to stop after this step and decode what there is: callbacks set `_interrupt = True`, also from
        outside and in other threads, which stops every call under way."""
        return self._interrupt

    @property
    def guidance_scale(self) -> float:
        """Guidance scale of the call; callbacks may set `_guidance_scale` to change it between steps."""
        return self._guidance_scale

    @property
    def guidance_rescale(self) -> float:
        """Guidance rescale of the call; callbacks may set `_guidance_rescale`."""
        return self._guidance_rescale

    @property
    def clip_skip(self) -> int | None:
        """How many text-encoder layers the call left out."""
        return self._clip_skip

    @property
    def cross_attention_kwargs(self) -> dict[str, Any] | None:
        """What the call was given under that name."""
        return self._cross_attention_kwargs

    @property
    def num_timesteps(self) -> int:
        """Timesteps of the call."""
        return self._num_timesteps
