"""For every test: nothing may reach the network, whatever a test asks a hub for; and processes that a test starts
import the package that is tested, wherever the test goes first."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so before any test is
os.environ.pop("HF_TOKEN", None)

if paths := os.environ.get("PYTHONPATH"):
    os.environ["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, paths.split(os.pathsep)))
