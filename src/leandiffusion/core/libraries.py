"""What torch, oneDNN and GCC's OpenMP read from the environment when they are loaded, first allocate and compile."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

KERNELS = 256
"""Stable Diffusion 1.5's UNet needs some 90 for one size. https://uxlfoundation.github.io/oneDNN/dev_guide_primitive_cache.html
"""

SPINS = 10_000
"""Turns for which a thread of OpenMP waits awake for the next operation, some 0.1 ms; it is 3 ms by itself."""

_PAGES = "THP_MEM_ALLOC_ENABLE"
_WAITING = "GOMP_SPINCOUNT"  # https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html
_SETTINGS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(KERNELS), _PAGES: "1"}
_OFFERED = Path("/sys/kernel/mm/transparent_hugepage/enabled")

_set: set[str] = set()  # names that were set here, and not by the user


def set_up_libraries() -> None:
    """Set what the user did not; to be called before torch is imported, or at least before the first tensor.

    Blocks of 2 MiB or more lie on huge pages of the system (madvise(2), "MADV_HUGEPAGE"), so that memory which comes
    from the system anew, weights that travel and buffers that were given back, costs a fraction of the page faults.
    oneDNN's cache holds KERNELS compiled kernels instead of 1024: it compiles one for every shape, so that pictures of
    many sizes fill memory with them. Where OpenVINO is installed, whose threads compute attention on the same cores,
    torch's threads soon sleep when they have nothing to do: while they wait awake, attention has half of the cores.
    """
    chosen = {_WAITING, "OMP_WAIT_POLICY"} & os.environ.keys()
    waiting = {_WAITING: str(SPINS)} if find_spec("openvino") is not None and not chosen else {}
    for name, value in {**_SETTINGS, **waiting}.items():
        if name not in os.environ:
            os.environ[name] = value
            _set.add(name)


def leave_libraries_alone() -> None:
    """Take back what `set_up_libraries` set, where other libraries are measured as their users have them; to be called
    before the first tensor."""
    while _set:
        os.environ.pop(_set.pop(), None)


def environment_of_others() -> dict[str, str]:
    """The environment without what `set_up_libraries` set, for processes that are started: each sets its own."""
    return {name: value for name, value in os.environ.items() if name not in _set}


def pages() -> str:
    """'huge' where torch asks for huge pages and Linux has them, else 'small'."""
    try:
        offered = "[never]" not in _OFFERED.read_text()
    except OSError:
        offered = False
    return "huge" if offered and os.environ.get(_PAGES) == "1" else "small"
