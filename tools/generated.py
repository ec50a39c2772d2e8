"""Files that are drawn from what the techniques declare, so that they are text which a reader, an editor and `--help`
have without loading a technique: the price list, the options of `generate`, the list of the pipelines' methods. And a
page that is drawn from a record of plans.

    python -m tools.generated           draws them anew: make generated
    python -m tools.generated --check   ends with 1 and a line for each that differs: make check
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

from leandiffusion.core.flag import Flag
from leandiffusion.techniques.switchable import Switchable

from . import price_list, which_settings

ROOT = Path(__file__).parents[1]
LONGEST_HELP = 100  # characters, with which its line has 120

FLAGS = '''\
"""The flags that the techniques declare, by technique. Drawn by `make generated`: change the technique instead."""

from __future__ import annotations

from ..core.flag import Flag

FLAGS: dict[str, Flag] = {{
{entries}
}}
'''

METHODS = '''\
"""The methods of the pipelines that switch techniques, from the techniques' files. Drawn by `make generated`."""

from __future__ import annotations

{imports}


class MemoryAndSpeed(
{bases}
):
    """Mixin of the pipelines: the techniques one by one, most of them under diffusers' names."""
'''


def flags() -> str:
    """cli/technique_flags.py. SystemExit for flags that could not be options."""
    declared = {cls.name: cls.flag for cls in price_list.in_order() if cls.flag is not None and cls.flag.help}
    for name, flag in declared.items():
        sharing = [each for each in declared.values() if each.name == flag.name]
        if len(flag.help) > LONGEST_HELP:
            sys.exit(f"{name}: the help of {flag.name} has {len(flag.help)} characters, at most {LONGEST_HELP} fit")
        if len(sharing) > 1 and (flag.setting or not flag.value or {each.help for each in sharing} != {flag.help}):
            sys.exit(f"{name}: others have the option {flag.name} too: each needs a `value` of its own, the same help")
    return FLAGS.format(entries="\n".join(f"    {_written(name)}: {_call(flag)}," for name, flag in declared.items()))


def _call(flag: Flag) -> str:
    given = {f.name: value for f in fields(flag) if (value := getattr(flag, f.name)) != f.default}
    lines = "".join(f"        {key}={_written(value)},\n" for key, value in given.items())
    return f"Flag(\n{lines}    )"


def _written(value: str | tuple[str, ...]) -> str:
    """As Python source."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return f"({', '.join(map(_written, value))}{',' if len(value) == 1 else ''})"


def methods() -> str:
    """pipelines/memory_and_speed.py: a base for each class of methods in the techniques' files."""
    classes = sorted((cls for cls in Switchable.__subclasses__() if _is_ours(cls)), key=lambda cls: cls.__module__)
    return METHODS.format(
        imports="\n".join(f"from ..{cls.__module__.split('.', 1)[1]} import {cls.__name__}" for cls in classes),
        bases="\n".join(f"    {cls.__name__}," for cls in classes),
    )


def _is_ours(cls: type) -> bool:
    return cls.__module__.startswith("leandiffusion.techniques.")


FILES: dict[str, Callable[[], str]] = {
    "docs/techniques.md": price_list.page,
    "docs/which-settings.md": which_settings.page,
    "src/leandiffusion/cli/technique_flags.py": flags,
    "src/leandiffusion/pipelines/memory_and_speed.py": methods,
}
"""By path, what draws each."""


def stale() -> Iterator[str]:
    """The files that are not what would be drawn."""
    for name, draw in FILES.items():
        path = ROOT / name
        if not path.exists() or path.read_text(encoding="utf-8") != draw():
            yield name


def main(arguments: list[str]) -> int:
    """Draw the files, or with --check say which would change: 1 if one would, else 0."""
    found = list(stale())
    if arguments == ["--check"]:
        for name in found:
            print(f"{name} is not what would be drawn: run `make generated` and commit what it changes.")
        return int(bool(found))
    for name in found:
        (ROOT / name).write_text(FILES[name](), encoding="utf-8")
        print(name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
