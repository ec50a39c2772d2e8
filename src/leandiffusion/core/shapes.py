"""Shapes without numbers: what code may ask, and tell, while a tracer runs it on torch's meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Tracer(Protocol):
    """Who runs code on shapes to learn what it computes and holds."""

    @property
    def on_host(self) -> bool:
        """Whether the meta device stands for the CPU, and not for an accelerator."""
        ...

    def times(self, count: int) -> AbstractContextManager[None]:
        """Meanwhile each operation stands for so many."""
        ...

    def trimmed(self) -> None:
        """What is free goes back to the system now."""
        ...

    def once(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """`function(*args, **kwargs)`, or a tensor like the one that it gave for the same shapes."""
        ...

    def repeat(self, what: Any, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The same for functions that are equal by `what`, where one new tensor is all that they give."""
        ...


_tracer: ContextVar[Tracer | None] = ContextVar("tracer", default=None)


def traced_once(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator of functions, tensors to one new tensor or to none where they write to what they are given, that do the
    same for the same shapes and other arguments: a tracer needs to run them once for all."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        tracer = _tracer.get()
        return function(*args, **kwargs) if tracer is None else tracer.once(function, args, kwargs)

    return call


def repeated(what: Any, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """`function(*args, **kwargs)`, which a tracer runs once for all that `what` says are equal and that get the same
    shapes."""
    tracer = _tracer.get()
    return function(*args, **kwargs) if tracer is None else tracer.repeat(what, function, args, kwargs)


@contextmanager
def traced_by(tracer: Tracer) -> Iterator[None]:
    """Tell the code that runs meanwhile, in this thread, that it is being traced."""
    token = _tracer.set(tracer)
    try:
        yield
    finally:
        _tracer.reset(token)


def is_traced() -> bool:
    """Whether shapes are being traced in this thread."""
    return _tracer.get() is not None


def tell_trimmed() -> bool:
    """Tell the tracer that what is free goes back to the system now. Whether there is one."""
    tracer = _tracer.get()
    if tracer is not None:
        tracer.trimmed()
    return tracer is not None


def meta_is_host() -> bool:
    """Whether tensors on the meta device stand for such of the CPU."""
    tracer = _tracer.get()
    return tracer is not None and tracer.on_host


def alike(items: Sequence[T]) -> Iterator[T]:
    """The items, all of which are worked on alike, except that the first and the last may be special.

    Under a tracer the second stands for all that are between.
    """
    tracer = _tracer.get()
    if tracer is None or len(items) <= 3:
        yield from items
        return
    yield items[0]
    with tracer.times(len(items) - 2):
        yield items[1]
    yield items[-1]


def is_channels_last(x: Any) -> bool:
    """Whether torch takes a tensor of feature maps (B, C, H, W) for channels-last, as its `suggest_memory_format` does:
    by its strides, whether or not it is dense."""
    if x.dim() != 4:
        return False
    sizes, strides = x.shape, x.stride()
    least = 0
    for dim in (1, 3, 2, 0):
        if not sizes[dim] or not strides[1] or strides[dim] < least or (dim == 0 and least == strides[1]):
            return False
        least = strides[dim] * max(sizes[dim], 1)
    return True
