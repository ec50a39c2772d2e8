"""What a bug report needs to know of the machine: versions, processor, memory, devices, settings."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__
from ..core.units import format_bytes
from .cgroup import memory_limit

PACKAGES = (
    "torch", "triton", "tokenizers", "safetensors", "huggingface_hub", "transformers", "numpy", "pillow",
    "xformers", "diffusers", "accelerate", "openvino",
)  # fmt: skip

# Instruction sets that decide which dtype and which kernels are fast on a CPU, as /proc/cpuinfo and macOS name them.
CPU_FLAGS = (
    "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8",
    "asimd", "asimdhp", "bf16", "i8mm", "sve", "sve2",
)  # fmt: skip

# Settings from outside that change speed, memory or where checkpoints are looked for. No secrets among them.
VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "KMP_AFFINITY", "GOMP_CPU_AFFINITY", "LD_PRELOAD", "MALLOC_ARENA_MAX",
    "ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "CUDA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE",
    "HF_ENDPOINT", "LEANDIFFUSION_CACHE",
)  # fmt: skip


def describe_environment() -> dict[str, dict[str, Any]]:
    """Sections of named facts about this machine, all plain JSON values; a fact that cannot be determined is None.

    Imports torch, and asks the driver of its accelerator for devices.
    """
    from ..device.capabilities import describe_devices

    return {
        "versions": {
            "leandiffusion": __version__,
            "python": platform.python_version(),
            **{name: package_version(name) for name in PACKAGES},
        },
        "system": {"platform": platform.platform(), "executable": sys.executable},
        "cpu": describe_cpu(),
        "memory": _memory(),
        "threads": _threads(),
        "devices": describe_devices(),
        "cache": _cache(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def describe_for_publication() -> dict[str, dict[str, Any]]:
    """`describe_environment` without what belongs to this machine's owner: paths, and where checkpoints are kept."""
    environment = describe_environment()
    del environment["cache"], environment["system"]["executable"]
    environment["variables"] = {k: v for k, v in environment["variables"].items() if os.sep not in v}
    return environment


def package_version(name: str) -> str | None:
    """The installed version of a package, without importing it; None when it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def available_memory() -> int | None:
    """Bytes this process may still take: what the system has free, or what its control group leaves, if less."""
    group = memory_limit()
    values = (_meminfo().get("MemAvailable"), None if group is None else group.left)
    return min((value for value in values if value is not None), default=None)


def total_memory() -> int | None:
    """Bytes of memory that there are for this process: the system's, or its control group's limit, if less."""
    group = memory_limit()
    values = (_meminfo().get("MemTotal"), None if group is None else group.limit)
    return min((value for value in values if value is not None), default=None)


def describe_cpu() -> dict[str, Any]:
    """Model, cores and instruction sets of the processor."""
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "model": info.get("model name") or platform.processor() or platform.machine(),
        "logical cores": os.cpu_count(),
        "usable cores": affinity,
        "flags": [flag for flag in CPU_FLAGS if flag in flags],
    }


def _memory() -> dict[str, Any]:
    memory, group = _meminfo(), memory_limit()
    return {
        "total": _as_bytes(memory.get("MemTotal")),
        "available": _as_bytes(available_memory()),
        "container limit": _as_bytes(None if group is None else group.limit),
        "swap": _as_bytes(memory.get("SwapTotal")),
    }


def _threads() -> dict[str, Any]:
    import torch

    return {"intra-op": torch.get_num_threads(), "inter-op": torch.get_num_interop_threads()}


def _cache() -> dict[str, Any]:
    from huggingface_hub import constants

    return {"folder": constants.HF_HUB_CACHE, "offline": constants.HF_HUB_OFFLINE}


def _as_bytes(count: int | None) -> str | None:
    return None if count is None else format_bytes(count)


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is none."""
    lines = _read("/proc/cpuinfo").split("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes; where there is none, the total alone if the system tells it."""
    pairs = (line.partition(":") for line in _read("/proc/meminfo").splitlines())
    memory = {name: int(value.split()[0]) * 1024 for name, _, value in pairs if value.endswith(" kB")}
    if not memory and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory["MemTotal"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return memory


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
