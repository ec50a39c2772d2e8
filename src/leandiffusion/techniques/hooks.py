"""Hooking networks, and how to undo it. The only file that hooks modules or rebinds their attributes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from weakref import finalize, ref

from torch import nn

from ..core.errors import ConfigError
from ..core.fork import Lock

Undo = Callable[[], None]

Run = Callable[[nn.Module, Callable[..., Any], Any, Any], Any]
"""(module, its forward, args, kwargs) -> what the module gives."""

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


@dataclass(eq=False)
class _Global:
    """A setting of a library that somebody wants to have that value, and what it would be without them."""

    owner: Any
    name: str
    value: Any
    before: Any


_globals: list[_Global] = []  # in the order in which they were set
_globals_lock = Lock()


class _Restore:
    """The undo of a global setting. Nobody else holds it: when its technique is gone, so is what it wanted."""

    def __init__(self, wanted: _Global) -> None:
        self._finalizer = finalize(self, _withdraw, wanted)
        self._finalizer.atexit = False

    def __call__(self) -> None:
        self._finalizer()


def set_global(owner: Any, name: str, value: Any) -> Undo:
    """Set a setting of a library, such as `torch.backends.cudnn.benchmark`; undo restores its value, and so does
    letting go of the undo.

    Unless somebody else wants a value meanwhile: another technique's stays until that is undone too, and one set by
    hand stays for good.
    """
    with _globals_lock:
        wanted = _Global(owner, name, value, getattr(owner, name))
        setattr(owner, name, value)
        _globals.append(wanted)
    return _Restore(wanted)


def _withdraw(wanted: _Global) -> None:
    with _globals_lock:
        index = next(i for i, each in enumerate(_globals) if each is wanted)
        del _globals[index]
        later = [each for each in _globals[index:] if each.owner is wanted.owner and each.name == wanted.name]
        if later:  # whose value counts now
            later[0].before = wanted.before
        elif getattr(wanted.owner, wanted.name) == wanted.value:
            setattr(wanted.owner, wanted.name, wanted.before)


def before_forward(modules: Iterable[nn.Module], hook: Callable[..., Any], *, inputs: bool = False) -> Undo:
    """Run `hook` before each module's forward, ahead of hooks that are there: hook(module, args), and with `inputs`
    hook(module, args, kwargs), which may return changed (args, kwargs). Undo takes every hook off again."""
    return together(m.register_forward_pre_hook(hook, prepend=True, with_kwargs=inputs).remove for m in modules)


def after_forward(modules: Iterable[nn.Module], hook: Callable[[nn.Module, Any, Any], Any]) -> Undo:
    """Run `hook`(module, args, output) after each module's forward; what it returns, unless None, is the output."""
    return together(module.register_forward_hook(hook).remove for module in modules)


class Around:
    """Stands for the forward of a module: `run(module, forward, args, kwargs)` calls it as it pleases.

    It keeps no module alive. A copy of the module runs its own forward; so does the module itself once `run` is None.
    """

    def __init__(self, module: nn.Module, run: Run | None, *, only_moves: bool = False) -> None:
        self._module, self._only_moves = ref(module), only_moves
        self.inner = vars(module).get("forward")
        """The forward that the instance had before; None when it was its class's."""
        self.run = run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self._module()
        assert module is not None
        forward = self._forward(module)
        return forward(*args, **kwargs) if self.run is None else self.run(module, forward, args, kwargs)

    def _forward(self, module: nn.Module) -> Callable[..., Any]:
        return type(module).forward.__get__(module) if self.inner is None else self.inner

    @property
    def only_moves(self) -> bool:
        """Whether what the module gives is what its class's forward does, with weights that `run` brought."""
        return self._only_moves and (self.inner is None or getattr(self.inner, "only_moves", False))

    @property
    def __signature__(self) -> inspect.Signature:
        module = self._module()
        assert module is not None
        return inspect.signature(self._forward(module))

    def __deepcopy__(self, memo: dict[int, Any]) -> Around:
        twin = copy.copy(self)
        twin._module, twin.run = ref(memo[id(self._module())]), None
        twin.inner = copy.deepcopy(self.inner, memo)
        return twin

    def __reduce__(self) -> Any:
        raise ConfigError(
            "networks whose weights travel cannot be pickled: switch offloading off first, or send the path of the "
            "checkpoint instead and open it over there."
        )

    def __copy__(self) -> Around:
        twin = object.__new__(Around)
        twin.__dict__.update(self.__dict__)
        return twin


def around_forward(module: nn.Module, run: Run, *, only_moves: bool = False) -> None:
    """Have `run`(module, forward, args, kwargs) called in place of the module's forward. Done once, it stays once.

    `only_moves`: it gives what the forward gives, having brought weights.
    """
    current = vars(module).get("forward")
    if not isinstance(current, Around) or current.run != run:
        module.forward = Around(module, run, only_moves=only_moves)  # pyright: ignore[reportAttributeAccessIssue]


def own_forward(module: nn.Module, run: Callable[..., Any]) -> None:
    """Undo `around_forward`. Where something else was put around it meanwhile, it lets that through to the forward."""
    around = vars(module).get("forward")
    if not isinstance(around, Around) or around.run != run:
        return
    around.run = None
    if around.inner is None:
        del module.forward
    else:
        module.forward = around.inner


def compile_in_place(module: nn.Module, **options: Any) -> Undo:
    """`module.compile(**options)`; undo forgets the compiled call."""
    undo = set_attribute(module, "_compiled_call_impl", module._compiled_call_impl)
    try:
        module.compile(**options)
    except BaseException:
        undo()
        raise
    return undo
