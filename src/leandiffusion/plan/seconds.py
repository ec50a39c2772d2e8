"""How long a stage takes: its operations over the rates that a device was measured at."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from ..core.errors import ConfigError
from ..core.malloc import HIGHEST, LARGE
from .points import Points, product_rate, rate_at
from .profile import DeviceProfile
from .work import Ops, StageWork

OVERHEADS = {"other": 4.0, "matmul": 13.0, "attention": 7.0, "long attention": 7.0, "conv": 20.0, "layer": 13.0}
"""What an operation takes before it computes, and the Python around it, in operations that have nothing to do. Those
took 0.85 microseconds on an AMD EPYC with Zen 5. Where one follows another, as in Winograd's algorithm, others took 3.2
each, products 11, as oneDNN looks up the kernel for such shapes, and convolutions 17. In layers each took 11 more: a
UNet of 633 operations that had next to nothing to do took 11.5 ms."""

IN_NETWORKS = 1.08
"""Of the time of a product that runs again and again, what it takes amid others, with the cache as they leave it. SD1.5
on one thread of that processor, kernel by kernel: 3 to 7% more in the UNet, 11% in the VAE."""

OTHERS = 1.6
"""Of an addition's time, what operations that move numbers take on average: norms and activations compute too. There
they took 1.5 to 2 times as long as additions of their sizes."""

CLEARLY = 1.2
"""How much faster additions are where memory is kept than where it goes back, at sizes that tell what pages cost."""

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
    fetched: int = 0,
    arrivals: int = 0,
    ahead: bool = True,
    freed_from: int = HIGHEST,
    fast_attention: bool = False,
) -> float:
    """Seconds of one stage (of one step, for 'denoise') in a dtype such as 'float32' that the profile has.

    `fetched`: bytes of weights, as they are on the device, that come from the tier below meanwhile, in so many
    `arrivals`, and `ahead` of their use where there is room. `freed_from`: bytes from which freed blocks go back to the
    system, from which they then come anew (`core.malloc`). `fast_attention`: whether long attention has the kernel that
    is faster, where there is one. ConfigError for a dtype that the profile lacks.
    """
    if dtype not in profile.products:
        raise ConfigError(
            f"the profile has no rates for {dtype}, only for {', '.join(profile.products)}: ask profile_of for it."
        )
    options = {"freed_from": freed_from, "fast_attention": fast_attention}
    computing = sum(ops_seconds(ops, dtype, profile, **options) for ops in (*work.ops, *work.around))
    computing += ARRIVING * profile.overhead * arrivals
    return _beside(computing, fetched / profile.fetch[dtype], profile, ahead=ahead) if fetched else computing


def load_seconds(nbytes: int, dtype: str, profile: DeviceProfile) -> float:
    """Seconds of bringing whole networks from the tier below, with nothing computed meanwhile."""
    return nbytes / profile.load[dtype]


def fetch_seconds(nbytes: int, dtype: str, profile: DeviceProfile) -> float:
    """Seconds of bringing weights one by one from the tier below to memory that is fresh, with nothing computed
    meanwhile: the system hands out its pages one by one."""
    return nbytes * (1 / profile.fetch[dtype] + _pages(profile.moves)[0])


def ops_seconds(
    ops: Ops, dtype: str, profile: DeviceProfile, *, freed_from: int = HIGHEST, fast_attention: bool = False
) -> float:
    """Seconds of operations of one kind and size, all together."""
    if not ops.count:
        return 0.0
    nbytes = ops.nbytes / ops.count
    if ops.kind == "made":
        return ops.nbytes * _pages(profile.moves)[0] if nbytes >= freed_from else 0.0
    if ops.kind == "reordered":
        return ops.count * _reordering(profile.reorder[dtype], nbytes)
    overhead = OVERHEADS[ops.kind] * profile.overhead * ops.count
    if ops.kind == "layer":
        return overhead
    if ops.kind == "other":
        return OTHERS * ops.nbytes / max(rate_at(profile.moves["kept"], nbytes), _pages(profile.moves)[1]) + overhead
    products, kind = profile.products[dtype], ops.kind
    if kind == "long attention" and not (fast_attention and kind in products):
        kind = "attention"
    return IN_NETWORKS * ops.flops / product_rate(products[kind], ops.flops / ops.nbytes) + overhead


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


def _pages(moves: Mapping[str, Points]) -> tuple[float, float]:
    return _pages_of(moves["kept"], moves["fresh"])


@cache
def _pages_of(kept: Points, fresh: Points) -> tuple[float, float]:
    """Seconds of a byte of memory that the system hands out anew, and the bytes/s of large additions without it.

    Both of the largest additions that are clearly faster where the process keeps the memory of their sums, a third of
    what they move: still larger sums come from the system either way, and those below LARGE never do.
    """
    for size, rate in reversed(kept):
        anew = rate_at(fresh, size)
        if size >= 3 * LARGE and rate > CLEARLY * anew:
            return 3 * (1 / anew - 1 / rate), rate
    return 0.0, kept[-1][1]
