"""Attaching to networks and taking off again. The only file that hooks modules or rebinds their attributes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

Undo = Callable[[], None]

_ABSENT = object()


def nothing() -> None:
    """The undo of what changed nothing."""


def together(undos: Iterable[Undo]) -> Undo:
    """One undo of several, in reverse order. Each is tried even when another fails; the first failure is raised.

    `undos` may be a generator that makes the changes as it goes: if it raises, those made so far are undone.
    """
    steps: list[Undo] = []

    def undo() -> None:
        failures: list[BaseException] = []
        while steps:
            try:
                steps.pop()()
            except Exception as error:
                failures.append(error)
        if failures:
            raise failures[0]

    try:
        for step in undos:
            steps.append(step)  # noqa: PERF402 - not a copy: what was appended before a failure is undone
    except BaseException:
        undo()
        raise
    return undo


def set_attribute(owner: Any, name: str, value: Any) -> Undo:
    """Set an attribute; undo restores what the instance held, or uncovers what its class holds."""
    own = vars(owner) if hasattr(owner, "__dict__") else {}
    before = own.get(name, _ABSENT)
    setattr(owner, name, value)

    def undo() -> None:
        if before is _ABSENT and name in vars(owner):
            delattr(owner, name)
        else:
            setattr(owner, name, before)

    return undo


def set_global(owner: Any, name: str, value: Any) -> Undo:
    """Set a setting of a library, such as `torch.backends.cudnn.benchmark`; undo restores its value.

    Unless it was changed meanwhile, by hand or by another pipeline's undo: restoring would switch it on for good.
    """
    before = getattr(owner, name)
    setattr(owner, name, value)

    def undo() -> None:
        if getattr(owner, name) == value:
            setattr(owner, name, before)

    return undo


def before_forward(modules: Iterable[nn.Module], hook: Callable[..., Any], *, inputs: bool = False) -> Undo:
    """Run `hook` before each module's forward, ahead of hooks that are there: hook(module, args), and with `inputs`
    hook(module, args, kwargs), which may return changed (args, kwargs). Undo takes every hook off again."""
    return together(m.register_forward_pre_hook(hook, prepend=True, with_kwargs=inputs).remove for m in modules)


def after_forward(modules: Iterable[nn.Module], hook: Callable[[nn.Module, Any, Any], Any]) -> Undo:
    """Run `hook`(module, args, output) after each module's forward; what it returns, unless None, is the output."""
    return together(module.register_forward_hook(hook).remove for module in modules)


def compile_in_place(module: nn.Module, **options: Any) -> Undo:
    """`module.compile(**options)`; undo forgets the compiled call."""
    undo = set_attribute(module, "_compiled_call_impl", module._compiled_call_impl)
    try:
        module.compile(**options)
    except BaseException:
        undo()
        raise
    return undo
