"""Threads that read weights compute alone, so that they leave OpenMP's helpers to those who draw."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from leandiffusion.offload.prefetch import ThreadPrefetcher

pytestmark = pytest.mark.skipif(not torch.backends.openmp.is_available(), reason="torch was built without OpenMP")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_a_prefetcher_has_no_helpers() -> None:
    """Neither the first time, nor after a fill; whoever draws keeps theirs."""
    prefetcher, seen = ThreadPrefetcher(), []
    for _ in range(2):
        prefetcher.wait(prefetcher.start(lambda: seen.append(torch.get_num_threads()), []))
    prefetcher.close()
    assert seen == [1, 1]
    assert torch.get_num_threads() == 2
