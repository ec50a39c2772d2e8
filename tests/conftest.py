"""For every test: nothing may reach the network, whatever a test asks a hub for."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so before any test is
os.environ.pop("HF_TOKEN", None)
