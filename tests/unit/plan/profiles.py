"""A profile whose numbers are easy to reckon with. Nothing is measured."""

from __future__ import annotations

import torch

from leandiffusion.plan.profile import DeviceProfile

CPU = torch.device("cpu")

PROFILE = DeviceProfile(
    taken_under={
        "method": "2",
        "leandiffusion": "1",
        "torch": "2",
        "openvino": "",
        "device": "cpu: paper",
        "flags": "",
        "threads": "2",
        "cores": "2",
        "pages": "small",
    },
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
    load={"float32": 5e8},
    floor=250_000_000,
    computing=30_000_000,
)


def a_profile(fetch: float = 1e9, slow_half: float = 10.0, floor: int = 200 << 20) -> DeviceProfile:
    """100 GFLOP/s in float32; half precision is so many times slower."""

    def rates(times: float) -> dict[str, tuple[tuple[float, float], ...]]:
        return dict.fromkeys(
            ("matmul", "conv", "attention"), ((1.0, 10000000000.0 / times), (100.0, 100000000000.0 / times))
        )

    return DeviceProfile(
        taken_under={"device": "cpu: paper", "threads": "2", "cores": "2", "pages": "small"},
        date="2026-01-01T00:00:00+00:00",
        products={"float32": rates(1.0), "bfloat16": rates(slow_half)},
        reorder=dict.fromkeys(("float32", "bfloat16"), ((1e6, 1e-3),)),
        moves=dict.fromkeys(("kept", "fresh"), ((1e4, 1e10), (1e8, 1e10))), overhead=1e-6,
        fetch=dict.fromkeys(("float32", "bfloat16"), fetch), load=dict.fromkeys(("float32", "bfloat16"), fetch),
        floor=floor, computing=20 << 20,
    )  # fmt: skip
