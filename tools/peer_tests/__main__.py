"""`python -m tools.peer_tests /path/to/diffusers`: diffusers' tests of classes that are here too, on both libraries.

A test counts if it passes with the installed diffusers itself. Exit code 1 if one of those fails with ours that
expected.txt does not name.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import sys
import tempfile
from pathlib import Path

from . import expected, table
from .files import FILES
from .run import copied, run_file, with_diffusers

NEEDED = ("diffusers", "transformers", "accelerate", "parameterized", "requests_mock", "pytest")


def main() -> int:
    asked = _arguments()
    patterns = expected.read()
    pairs: table.Pairs = {}
    with copied(asked.checkout) as folder:
        for name in asked.only:
            print(f"\n{name}: {FILES[name]}", flush=True)
            theirs = with_diffusers(folder, FILES[name], asked.work, limit_s=asked.limit)
            if asked.classes == "diffusers":
                pairs[name] = (theirs, theirs)
                continue
            ours = run_file(folder, FILES[name], "ours", limit_s=asked.limit, pick=asked.pick, trace=asked.trace)
            pairs[name] = ({test: theirs[test] for test in ours if test in theirs}, ours)
    return _report(pairs, patterns)


def _report(pairs: table.Pairs, patterns: list[tuple[str, str]]) -> int:
    failing, mended = table.surprises(pairs, patterns)
    print(f"\n{table.by_reason(pairs, patterns)}\n\n{table.rows(pairs)}")
    if mended:
        print(f"\n{len(mended)} pass that {expected.FILE.name} names: take them out.\n  " + "\n  ".join(mended))
    if failing:
        print(f"\n{len(failing)} should pass and do not:\n  " + "\n  ".join(failing))
    return 1 if failing else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.peer_tests", description=__doc__)
    parser.add_argument("checkout", nargs="?", default="", help="a checkout of diffusers, with its tests")
    parser.add_argument("--with", dest="classes", choices=["ours", "diffusers"], default="ours", help="whose classes")
    parser.add_argument("--only", default=",".join(FILES), help=f"files, with commas between: {', '.join(FILES)}")
    parser.add_argument("-k", dest="pick", help="pytest's -k: tests whose names match")
    parser.add_argument("--trace", action="store_true", help="print where each test with ours failed")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds that a test may take")
    default = Path(tempfile.gettempdir()) / "leandiffusion-peer-tests"
    parser.add_argument("--work", type=Path, default=default, help="where the results with diffusers are kept")
    asked = parser.parse_args()
    asked.only = asked.only.split(",")
    if unknown := [name for name in asked.only if name not in FILES]:
        parser.error(f"--only {', '.join(unknown)}: there are {', '.join(FILES)}.")
    if absent := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        parser.error(f"{', '.join(absent)} must be installed: pip install -e '.[test,peer-tests]'.")
    asked.checkout = _checkout(asked.checkout, parser)
    return asked


def _checkout(given: str, parser: argparse.ArgumentParser) -> Path:
    version = importlib.metadata.version("diffusers")
    where = (
        f"diffusers {version} is installed. Its tests come with its sources: git clone --depth 1 --branch v{version} "
        "https://github.com/huggingface/diffusers, and name that folder: make peer-tests DIFFUSERS=/path/to/diffusers"
    )
    if not given:
        parser.error(where)
    checkout = Path(given).expanduser().resolve()
    if not all((checkout / "tests" / file).is_file() for file in FILES.values()):
        absent = next(file for file in FILES.values() if not (checkout / "tests" / file).is_file())
        parser.error(f"{checkout} has no tests/{absent}. {where}")
    return checkout


if __name__ == "__main__":
    sys.exit(main())
