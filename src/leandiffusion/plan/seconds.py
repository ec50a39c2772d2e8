"""How long a stage takes: its operations over the rates that a device was measured at."""

from __future__ import annotations

from ..core.errors import ConfigError
from .points import Points, product_rate, rate_at
from .profile import DeviceProfile
from .work import Ops, StageWork

AROUND = 20.0
"""Python around an operation, in operations that have nothing to do: of 1.5 microseconds on an AMD EPYC, where stages
took 30 microseconds of each operation beyond what their kernels did."""

OTHERS = 1.3
"""Of an addition's time, what operations that move numbers take on average: norms and activations compute too. Those of
SD1.5's UNet took 1.5 times as long as additions of their sizes, those of its VAE 1.15 times."""


def stage_seconds(
    work: StageWork,
    dtype: str,
    profile: DeviceProfile,
    *,
    packed: bool = True,
    fetched: int = 0,
    fresh: bool = False,
) -> float:
    """Seconds of one stage (of one step, for 'denoise') in a dtype such as 'float32' that the profile has.

    `packed`: whether convolutions keep their weights in oneDNN's order; without meaning where there is no such.
    `fetched`: bytes of weights, as they are on the device, that come from the tier below meanwhile. `fresh`: whether
    freed memory goes back to the system at once, as in a decode in slices or strips on a CPU. ConfigError for a dtype
    that the profile lacks.
    """
    if dtype not in profile.products:
        raise ConfigError(
            f"the profile has no rates for {dtype}, only for {', '.join(profile.products)}: ask profile_of for it."
        )
    computing = sum(ops_seconds(ops, dtype, profile, packed=packed, fresh=fresh) for ops in work.ops)
    return _beside(computing, fetched / profile.fetch[dtype]) if fetched else computing


def ops_seconds(ops: Ops, dtype: str, profile: DeviceProfile, *, packed: bool = True, fresh: bool = False) -> float:
    """Seconds of operations of one kind and size, all together."""
    if not ops.count:
        return 0.0
    nbytes = ops.nbytes / ops.count
    overhead = AROUND * profile.overhead * ops.count
    if ops.kind == "other":
        return OTHERS * ops.nbytes / rate_at(profile.moves["fresh" if fresh else "kept"], nbytes) + overhead
    seconds = ops.flops / product_rate(profile.products[dtype][ops.kind], ops.flops / ops.nbytes)
    if ops.kind == "conv" and not packed:
        seconds += ops.count * _reordering(profile.reorder[dtype], nbytes)
    return seconds + overhead


def _reordering(points: Points, nbytes: float) -> float:
    """Seconds for plain weights: along lines from none for none, and on in proportion."""
    before = (0.0, 0.0)
    for size, seconds in points:
        if nbytes <= size:
            return before[1] + (seconds - before[1]) * (nbytes - before[0]) / (size - before[0])
        before = (size, seconds)
    return before[1] * nbytes / before[0] if before[0] else 0.0


def _beside(computing: float, fetching: float) -> float:
    """Fetching beside computing: the longer of the two."""
    return max(computing, fetching)
