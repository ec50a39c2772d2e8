"""A profile whose numbers are easy to reckon with. Nothing is measured."""

from __future__ import annotations

from leandiffusion.plan.profile import DeviceProfile

PROFILE = DeviceProfile(
    taken_under={"leandiffusion": "1", "torch": "2", "device": "cpu: paper", "flags": "", "threads": "2", "cores": "2"},
    date="2026-01-01T00:00:00+00:00",
    products={
        "float32": {
            "matmul": ((1.0, 1e9), (10.0, 1e10), (100.0, 4e10)),
            "conv": ((10.0, 2e10), (100.0, 8e10)),
            "attention": ((10.0, 1e10), (1000.0, 1e10)),
        }
    },
    reorder={"float32": ((1e6, 0.0), (2e6, 0.01))},
    moves={"kept": ((1e6, 4e10), (1e8, 1e10), (2e8, 4e9)), "fresh": ((1e6, 4e10), (1e8, 1e9))},
    overhead=1e-6,
    fetch={"float32": 1e9},
    floor=250_000_000,
    computing=30_000_000,
)
