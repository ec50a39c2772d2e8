"""What torch and oneDNN find in the environment: huge pages and fewer kernels, unless the user chose otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from leandiffusion.core import libraries


@pytest.mark.parametrize("name", ["ONEDNN_PRIMITIVE_CACHE_CAPACITY", "THP_MEM_ALLOC_ENABLE"])
def test_the_users_environment_stays(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(libraries, "_set", set())
    monkeypatch.setenv(name, "7")
    libraries.set_up_libraries()
    libraries.leave_libraries_alone()
    assert os.environ[name] == "7"
    monkeypatch.delenv(name)
    libraries.set_up_libraries()
    assert os.environ[name] != "7"
    assert name not in libraries.environment_of_others()
    libraries.leave_libraries_alone()
    assert name not in os.environ


@pytest.mark.parametrize("chosen", [None, "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
@pytest.mark.parametrize("installed", [True, False])
def test_threads_soon_sleep_where_openvino_computes_too(
    monkeypatch: pytest.MonkeyPatch, installed: bool, chosen: str | None
) -> None:
    monkeypatch.setattr(libraries, "_set", set())
    monkeypatch.setattr(libraries, "find_spec", lambda name: object() if installed else None)
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    if chosen is not None:
        monkeypatch.setenv(chosen, "active")
    libraries.set_up_libraries()
    expected = {"GOMP_SPINCOUNT": "active"}.get(
        chosen or "", str(libraries.SPINS) if installed and not chosen else None
    )
    assert os.environ.get("GOMP_SPINCOUNT") == expected
    libraries.leave_libraries_alone()
    assert os.environ.get("GOMP_SPINCOUNT") == ("active" if chosen == "GOMP_SPINCOUNT" else None)


PAGES = """
import re, sys, torch, leandiffusion
from leandiffusion.core.libraries import pages
pipe = leandiffusion.StableDiffusionPipeline.from_pretrained("demo")
pipe.set_progress_bar_config(disable=True)
pipe("a red circle", num_inference_steps=1, height=64, width=64)
block = torch.ones(64 << 18)
rollup = open("/proc/self/smaps_rollup").read()
print(pages(), re.search(r"AnonHugePages: +(\\d+)", rollup)[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("chosen", [None, "0"])
def test_large_blocks_lie_on_huge_pages(chosen: str | None) -> None:
    """64 MiB, of which the system gives what it can; also after a picture was drawn, before which torch allocates."""
    environment = dict(os.environ)
    environment.pop("THP_MEM_ALLOC_ENABLE")
    environment |= {} if chosen is None else {"THP_MEM_ALLOC_ENABLE": chosen}
    done = subprocess.run([sys.executable, "-c", PAGES], env=environment, capture_output=True, text=True, check=True)
    kind, kibibytes = done.stdout.split()
    if kind == "huge":
        assert int(kibibytes) > 32 << 10
    elif chosen is not None:
        assert int(kibibytes) < 32 << 10
