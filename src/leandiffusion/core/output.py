"""What networks, schedulers and pipelines return: named fields that also unpack by position."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload


class Output(OrderedDict[str, Any]):
    """Base of result dataclasses: `out.sample`, `out["sample"]`, `out[0]` and `out.to_tuple()` all reach the field.

    A dict of the fields that are not None, in order of declaration: positions, `len`, `keys` and iteration (over names)
    see only what was computed. torch's pytree takes it apart and puts it together, so that `torch.export`, tracing,
    and libraries that move results between devices know it; `type(out)({"sample": …})`, their way of making one, works.
    Subclasses are ordinary dataclasses, declared with `@dataclass(eq=False)`: tensors have no single truth value.

    Raises KeyError for an absent name, IndexError for a position past the last present field, TypeError for taking
    fields away.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "torch" in sys.modules:  # results that hold tensors are declared where torch is imported
            _tell_pytree(cls, sys.modules["torch"].utils._pytree)

    def __post_init__(self) -> None:
        """Fill the dict, and accept one mapping, or iterator of pairs, in place of the fields."""
        names = self._names()
        first = getattr(self, names[0])
        if isinstance(first, Mapping | Iterator) and all(getattr(self, name) is None for name in names[1:]):
            given = dict(first)
            object.__setattr__(self, names[0], None)
            for name, value in given.items():
                self[name] = value
        self._fill()

    @classmethod
    def _names(cls) -> list[str]:
        return list(cls.__dataclass_fields__)  # type: ignore[attr-defined]

    def _fill(self) -> None:
        super().clear()
        for name in self._names():
            if (value := getattr(self, name, None)) is not None:
                super().__setitem__(name, value)

    def to_tuple(self) -> tuple[Any, ...]:
        """The present fields in order of declaration: what `return_dict=False` gives."""
        return tuple(self.values())

    @overload
    def __getitem__(self, key: str | int) -> Any: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Any, ...]: ...
    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self._names():
            raise KeyError(key)
        setattr(self, key, value)

    def __setattr__(self, key: str, value: Any) -> None:
        super().__setattr__(key, value)
        if key in self._names():
            self._fill()

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"the fields of a {type(self).__name__} are fixed: take a copy with dict(output).")

    __delitem__ = __delattr__ = _refuse  # type: ignore[assignment]
    clear = pop = popitem = setdefault = update = move_to_end = _refuse  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        return type(self), tuple(getattr(self, name) for name in self._names())


def _tell_pytree(cls: type[Output], pytree: Any) -> None:
    def made(values: Iterable[Any], names: Sequence[str]) -> Output:
        output = cls(**dict.fromkeys(cls._names()))
        for name, value in zip(names, values, strict=True):  # one by one: a first field may be a mapping here
            output[name] = value
        return output

    pytree.register_pytree_node(
        cls,
        lambda output: (list(output.values()), list(output)),
        made,
        flatten_with_keys_fn=lambda output: ([(pytree.MappingKey(k), v) for k, v in output.items()], list(output)),
        serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
    )


class Batch(dict[str, Any]):
    """Prepared model inputs: a dict whose entries are attributes too, movable as one: `batch.to("cuda").input_ids`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no entry {name!r} here, only {', '.join(self)}") from None

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """A batch with every tensor moved or cast as `torch.Tensor.to` does; other entries stay."""
        return Batch({k: v.to(*args, **kwargs) if hasattr(v, "to") else v for k, v in self.items()})
