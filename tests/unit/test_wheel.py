"""The wheel holds what the library uses, and nothing besides: no module that no entry point ever imports."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import leandiffusion

ROOT = Path(leandiffusion.__file__).parent
ENTRIES = ("leandiffusion", "leandiffusion.__main__")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in ROOT.rglob("*.py")}


def named_in(name: str) -> Iterator[str]:
    """Modules that a module names: in import statements anywhere, in texts (names imported on first use, processes),
    and, where it makes a registry, the files of the registry's folder."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                start = package.rsplit(".", level - 1)[0] if level > 1 else package
                base = ".".join(filter(None, (start if level else "", module)))
                yield from (base, *(f"{base}.{alias.name}" for alias in names))
            case ast.Constant(value=str(text)) if re.fullmatch(r"[\w.]+", text):
                yield from (text, f"leandiffusion.{text.lstrip('.')}")
            case ast.Call(func=ast.Name(id="Registry"), args=[_, folder]):
                base = folder.value if isinstance(folder, ast.Constant) else package
                yield from (other for other in MODULES if other.rpartition(".")[0] == base)


def test_every_module_is_imported_by_something() -> None:
    reached, waiting = set(), list(ENTRIES)
    while waiting:
        name = waiting.pop()
        if name in reached or name not in MODULES:
            continue
        reached.add(name)
        waiting += [*named_in(name), name.rpartition(".")[0]]
    assert sorted(set(MODULES) - reached) == []
