"""How long a stage takes: its operations over the rates that a device was measured at."""

from __future__ import annotations

from ..core.errors import ConfigError
from .points import Points, product_rate, rate_at
from .profile import DeviceProfile
from .work import Ops, StageWork

AROUND = 30.0
"""Python around an operation, in operations that have nothing to do. Those took 1.5 microseconds on an AMD EPYC, where
a decode of 11,000 operations took half a second beyond its kernels."""

IN_NETWORKS = 1.08
"""Of the time of a product that runs again and again, what it takes amid others, with the cache as they leave it. SD1.5
on one thread of that processor, kernel by kernel: 3 to 7% more in the UNet, 11% in the VAE."""

OTHERS = 1.6
"""Of an addition's time, what operations that move numbers take on average: norms and activations compute too. There
they took 1.5 to 2 times as long as additions of their sizes."""

MADE = 2.0
"""Parts of a matrix product that lie in fresh memory: its result, and an input that was made for it bit by bit, as
Winograd's tiles are. Of all else it is the result."""

COMPETING = 1.5
"""Of the time that fetching takes by itself, how much longer it makes a step where every core computes: the threads of
an operation wait for the one whose core it took. `benchmarks/attached`: the 3.4 GB of SD1.5's UNet made a step 1.3 to
2.0 s longer, Flux's 3.3 GB 0.8 s, and reading so much takes 0.6 to 0.8 s."""


ARRIVING = 150.0
"""Python around a unit of weights that comes from the tier below, in operations that have nothing to do: on that
processor some 0.25 ms, of which a step of the demo model, with 216 units of small layers, takes three times as long."""


def stage_seconds(
    work: StageWork,
    dtype: str,
    profile: DeviceProfile,
    *,
    packed: bool = True,
    fetched: int = 0,
    arrivals: int = 0,
    ahead: bool = True,
    fresh: bool = False,
    fast_attention: bool = False,
) -> float:
    """Seconds of one stage (of one step, for 'denoise') in a dtype such as 'float32' that the profile has.

    `packed`: whether convolutions keep their weights in oneDNN's order; without meaning where there is no such.
    `fetched`: bytes of weights, as they are on the device, that come from the tier below meanwhile, in so many
    `arrivals`, and `ahead` of their use where there is room. `fresh`: whether
    freed memory goes back to the system at once, as in a decode in slices or strips on a CPU. `fast_attention`: whether
    long attention has the kernel that is faster, where there is one. ConfigError for a dtype that the profile lacks.
    """
    if dtype not in profile.products:
        raise ConfigError(
            f"the profile has no rates for {dtype}, only for {', '.join(profile.products)}: ask profile_of for it."
        )
    options = {"packed": packed, "fresh": fresh, "fast_attention": fast_attention}
    computing = sum(ops_seconds(ops, dtype, profile, **options) for ops in work.ops)
    computing += ARRIVING * profile.overhead * arrivals
    return _beside(computing, fetched / profile.fetch[dtype], profile, ahead=ahead) if fetched else computing


def load_seconds(nbytes: int, dtype: str, profile: DeviceProfile) -> float:
    """Seconds of bringing whole networks from the tier below, with nothing computed meanwhile."""
    return nbytes / profile.load[dtype]


def fetch_seconds(nbytes: int, dtype: str, profile: DeviceProfile) -> float:
    """Seconds of bringing weights one by one from the tier below to memory that is fresh, with nothing computed
    meanwhile: the system hands out its pages one by one."""
    return nbytes * (1 / profile.fetch[dtype] + _page_seconds(profile.moves["kept"][-1][1], profile))


def ops_seconds(
    ops: Ops,
    dtype: str,
    profile: DeviceProfile,
    *,
    packed: bool = True,
    fresh: bool = False,
    fast_attention: bool = False,
) -> float:
    """Seconds of operations of one kind and size, all together."""
    if not ops.count:
        return 0.0
    nbytes, overhead = ops.nbytes / ops.count, AROUND * profile.overhead * ops.count
    rate, in_memory = rate_at(profile.moves["fresh" if fresh else "kept"], nbytes), profile.moves["kept"][-2][1]
    pages = ops.nbytes / 3 * _page_seconds(rate, profile)
    if ops.kind == "other":
        return OTHERS * ops.nbytes / max(rate, in_memory) + pages + overhead
    products, kind = profile.products[dtype], ops.kind
    if kind == "long attention" and not (fast_attention and kind in products):
        kind = "attention"
    seconds = IN_NETWORKS * ops.flops / product_rate(products[kind], ops.flops / ops.nbytes)
    seconds += (MADE if ops.kind == "matmul" else 1) * pages
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


def _beside(computing: float, fetching: float, profile: DeviceProfile, *, ahead: bool) -> float:
    """Seconds of both: the longer, where fetching goes `ahead` and has a core or an engine of its own."""
    if profile.has_idle_cores:
        return max(computing, fetching) if ahead else computing + fetching
    return computing + COMPETING * fetching


def _page_seconds(rate: float, profile: DeviceProfile) -> float:
    """Of a byte of fresh memory, where additions go at that rate: a third of what they move is their sum, which lies in
    such if they are slower than the last but one, whose sum still does not."""
    return 3 * max(1 / rate - 1 / profile.moves["kept"][-2][1], 0.0)
