"""What networks, schedulers and pipelines return: named fields that also unpack by position."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, overload


class Output(Mapping[str, Any]):
    """Base of result dataclasses: `out.sample`, `out["sample"]`, `out[0]` and `out.to_tuple()` all reach the field.

    Fields that are None count as absent, so positions, `len`, `keys` and iteration (over names, as in any mapping)
    see only what was computed. Subclasses are ordinary dataclasses, declared with `@dataclass(eq=False)` because
    tensors have no single truth value.

    Raises KeyError for an absent name and IndexError for a position past the last present field.
    """

    def keys(self) -> list[str]:  # type: ignore[override]
        """Names of the present fields, in order of declaration."""
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]  # type: ignore[arg-type]

    def to_tuple(self) -> tuple[Any, ...]:
        """The present fields in order of declaration: what `return_dict=False` gives."""
        return tuple(getattr(self, name) for name in self.keys())

    @overload
    def __getitem__(self, key: str | int) -> Any: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Any, ...]: ...
    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in {field.name for field in fields(self)}:  # type: ignore[arg-type]
            raise KeyError(key)
        setattr(self, key, value)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())


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
