"""`make soak`: thousands of requests to a server, made of its OpenAPI document, and a thousand that are drawn."""

from __future__ import annotations

import argparse
import sys

from .contract import explore
from .endure import endure
from .quick import quick_server
from .served import served

MOST_GROWTH = 0.02


def main() -> int:
    """Exit code 1 where the server failed, a request had no answer, or memory grew."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--cases", type=int, default=5000, help="requests made of the OpenAPI document")
    parser.add_argument("--requests", type=int, default=1000, help="requests that are drawn")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with quick_server() as running:
        found = explore(running.url, asked.cases, asked.seed)
    print(found)
    with served() as url:
        endured = endure(url, asked.requests, seed=asked.seed)
    print(endured)
    bad = [each for each in endured.ended if each not in ("answered", "left")]
    return 1 if found.wrong or bad or endured.growth > MOST_GROWTH else 0


if __name__ == "__main__":
    sys.exit(main())
