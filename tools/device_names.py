"""That no code but the room `device` (and the benchmark's peers) tells one type of accelerator from another.

    python -m tools.device_names [FILE …]

What counts: a string that names an accelerator ('cuda', 'mps:0', the beginning of f"cuda:{i}"); torch's modules for one
of them (`torch.cuda`, `torch.backends.mps`, `from torch import xpu`); a tensor's `is_cuda` or `.cuda()`; and comparing
with 'cpu', for which there is `device.host.is_host`. What does not: docstrings and longer texts, such as an option's
help; and 'cpu' as the place of memory. Ends with 1 and a line for each place where it is found.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "leandiffusion"
ALLOWED = (PACKAGE / "device", PACKAGE / "bench" / "peers")

TYPES = ("cuda", "mps", "xpu", "hip", "hpu", "mtia", "npu")
NAME = re.compile(rf"({'|'.join(TYPES)})(:\d*)?")
HOST = re.compile(r"cpu(:\d*)?")
OF_TENSORS = {*TYPES, *(f"is_{name}" for name in TYPES), "is_cpu"}


def found_in(source: str) -> list[tuple[int, str]]:
    """Lines of `source` that tell types of devices apart, and what is there. SyntaxError for what is no Python."""
    tree = ast.parse(source)
    texts = set(_statements_of_text(tree))
    return sorted({(node.lineno, what) for node in ast.walk(tree) if node not in texts for what in _told(node)})


def _told(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Constant(value=str(text)) if NAME.fullmatch(text):
            yield repr(text)
        case ast.Attribute(attr=name) if name in OF_TENSORS:
            yield f".{name}"
        case ast.Import(names=names):
            yield from (f"import {each.name}" for each in names if set(each.name.split(".")) & set(TYPES))
        case ast.ImportFrom(module=module, names=names):
            parts = {*(module or "").split("."), *(each.name for each in names)}
            if (module or "").split(".")[0] == "torch" and parts & set(TYPES):
                yield f"from {module} import …"
        case ast.Compare(left=left, comparators=others):
            yield from _hosts([left, *others])
        case ast.Call(func=ast.Attribute(attr="startswith"), args=arguments):
            yield from _hosts(arguments)
        case ast.MatchValue(value=value):
            yield from _hosts([value])


def _hosts(nodes: list[ast.expr]) -> Iterator[str]:
    for node in nodes:
        for part in ast.walk(node):
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and HOST.fullmatch(part.value):
                yield f"a comparison with {part.value!r}"


def _statements_of_text(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.value


def files() -> list[Path]:
    """The package's files in which nothing may be found."""
    return [file for file in sorted(PACKAGE.rglob("*.py")) if not any(file.is_relative_to(room) for room in ALLOWED)]


def main(arguments: list[str]) -> int:
    """Print where something is found; 1 if it is, else 0."""
    places = [
        f"{file.relative_to(ROOT) if file.is_relative_to(ROOT) else file}:{line}: {what}: ask a question of device/"
        for file in (map(Path, arguments) if arguments else files())
        for line, what in found_in(file.read_text(encoding="utf-8"))
    ]
    print("\n".join(places) or "No code outside device/ names a type of accelerator.")
    return int(bool(places))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
