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

COMPETING = 1.5
"""Of the time that fetching takes by itself, how much longer it makes a step where every core computes: the threads of
an operation wait for the one whose core it took. `benchmarks/attached`: the 3.4 GB of SD1.5's UNet made a step 1.3 to
2.0 s longer, Flux's 3.3 GB 0.8 s, and reading so much takes 0.6 to 0.8 s."""


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
    return _beside(computing, fetched / profile.fetch[dtype], profile) if fetched else computing


def fetch_seconds(nbytes: int, dtype: str, profile: DeviceProfile) -> float:
    """Seconds of bringing weights from the tier below to memory that is fresh, with nothing computed meanwhile: the
    system hands out its pages one by one."""
    return nbytes * (1 / profile.fetch[dtype] + _page_seconds(profile))


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


def _beside(computing: float, fetching: float, profile: DeviceProfile) -> float:
    """Seconds of both at once: the longer, where fetching has a core or an engine of its own."""
    if profile.has_idle_cores:
        return max(computing, fetching)
    return computing + COMPETING * fetching


def _page_seconds(profile: DeviceProfile) -> float:
    """Of a byte of fresh memory: a third of what the largest addition moves is its sum, which lies in such; that of the
    next smaller one does not."""
    (_, before), (_, last) = profile.moves["kept"][-2:]
    return 3 * (1 / last - 1 / before)
