from __future__ import annotations

import json

import pytest
import torch

import leandiffusion
from leandiffusion.measure import cgroup, environment


def test_it_tells_what_a_bug_report_needs_as_plain_json():
    told = environment.describe_environment()
    assert json.loads(json.dumps(told)) == told
    assert told["versions"]["leandiffusion"] == leandiffusion.__version__
    assert told["versions"]["torch"] == torch.__version__
    assert told["threads"]["intra-op"] == torch.get_num_threads()
    assert told["cpu"]["logical cores"] >= 1
    assert {"memory", "devices", "cache", "system", "variables"} <= set(told)


def test_settings_are_told_and_secrets_are_not(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    told = environment.describe_environment()
    assert told["variables"]["OMP_NUM_THREADS"] == "3"
    assert "hf_secret" not in json.dumps(told)


def test_what_is_not_installed_is_none():
    assert environment.package_version("no-such-package-anywhere") is None
    assert environment.package_version("pytest")


V2 = {
    "/proc/self/cgroup": "0::/job/part\n",
    "/sys/fs/cgroup/job/memory.max": "2147483648\n",
    "/sys/fs/cgroup/job/memory.current": "1073741824\n",
    "/sys/fs/cgroup/job/part/memory.max": "max\n",
}
V1 = {
    "/proc/self/cgroup": "12:pids:/\n4:cpu,memory:/job\n",
    "/sys/fs/cgroup/memory/job/memory.limit_in_bytes": "2147483648\n",
    "/sys/fs/cgroup/memory/job/memory.usage_in_bytes": "2073741824\n",
    "/sys/fs/cgroup/memory/job/memory.stat": "cache 5\ntotal_inactive_file 1000000000\n",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "/sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
}


@pytest.mark.parametrize("group", [V2, V1])
def test_a_container_limit_bounds_what_is_available(monkeypatch, group):
    files = {**group, "/proc/meminfo": "MemTotal: 8388608 kB\nMemAvailable:    4194304 kB\n"}
    monkeypatch.setattr(environment, "_read", lambda path: files.get(path, ""))
    monkeypatch.setattr(cgroup, "_text", lambda path: files.get(str(path), ""))
    assert environment.available_memory() == 2**30
    assert environment.total_memory() == 2**31
    del files["/proc/self/cgroup"]
    assert environment.available_memory() == 4 * 2**30
    assert environment.total_memory() == 8 * 2**30
    files.clear()
    assert environment.available_memory() is None


def test_the_flags_that_matter_are_found(monkeypatch):
    text = "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu sse avx2 amx_bf16 avx512_bf16\n\nprocessor\t: 1\n"
    monkeypatch.setattr(environment, "_read", lambda path: text if path == "/proc/cpuinfo" else "")
    cpu = environment.describe_environment()["cpu"]
    assert cpu["model"] == "A CPU"
    assert cpu["flags"] == ["avx2", "avx512_bf16", "amx_bf16"]
