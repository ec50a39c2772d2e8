"""`make fuzz`: open damaged headers, configs, tokenizers, indexes and pictures, and watch how that ends."""

from __future__ import annotations

import argparse
import sys

from tqdm import tqdm

from .watch import fuzz


def main() -> int:
    """Exit code 1 where a case hung, ended in an error that is not ours, or memory grew."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tqdm(total=asked.cases, unit=" cases", smoothing=0.05) as bar:
        report = fuzz(asked.cases, asked.seed, bar)
    print(report)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
