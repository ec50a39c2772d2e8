"""What a device computes, and how fast: dtypes, TF32, kernels of attention, compilers. Reasons are sentences' ends."""

from __future__ import annotations

import functools
import platform
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..core.units import format_bytes
from ..core.wording import dtype_name
from .host import is_host
from .kinds import kind_of
from .memory import free_memory
from .names import device_names

X86 = ("x86_64", "amd64")
HALF = (torch.float16, torch.bfloat16)


def why_no_cudnn() -> str | None:
    """Why there is no cuDNN, or AMD's MIOpen in its place; None where there is."""
    if torch.backends.cudnn.is_available():
        return None
    return "torch finds no cuDNN, NVIDIA's library of convolutions, on this machine"


def why_no_tf32(device: torch.device) -> str | None:
    """Why float32 products cannot be computed in fewer bits there; None where they can."""
    if is_host(device):
        return None if fast_bfloat16() else "this CPU has no instructions that multiply bfloat16"
    if device.type != "cuda":
        return f"{device.type} has no TF32"
    major, minor = torch.cuda.get_device_capability(device)
    return None if major >= 8 else f"compute capability {major}.{minor} has no TF32: it came with 8.0"


def fewer_bits(device: torch.device) -> tuple[tuple[Any, ...], str]:
    """Owners of torch's `fp32_precision` of products and of convolutions on the device, and the value that means TF32,
    or on a CPU its counterpart."""
    backends: Any = torch.backends
    if is_host(device):
        return (backends.mkldnn.matmul, backends.mkldnn.conv), "bf16"
    return (backends.cuda.matmul, backends.cudnn.conv), "tf32"


def is_full_float32(device: torch.device, *, convolutions: bool) -> bool:
    """Whether float32 is computed in float32 there: in convolutions, or in products of matrices."""
    return fewer_bits(device)[0][convolutions].fp32_precision in ("none", "ieee")  # torch's names for it


def compute_full_float32() -> None:
    """Have this process compute float32 in float32: cuDNN's convolutions are TF32 unless told otherwise."""
    backends: Any = torch.backends
    backends.cudnn.conv.fp32_precision = backends.cuda.matmul.fp32_precision = "ieee"


def fast_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16: AVX512_BF16, AMX, or Arm's BF16.

    Without them it is many times slower than float32. With them it is not always faster: Intel's AVX512_BF16 without
    AMX was measured at 0.6 times the speed of float32 (AMD's at twice).
    """
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def fast_float16() -> bool:
    """Whether this CPU has instructions for float16."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


def _emulated() -> tuple[torch.dtype, ...]:
    slow16 = platform.machine().lower() in X86 and not fast_float16()
    return (*([torch.float16] if slow16 else []), *([] if fast_bfloat16() else [torch.bfloat16]))


EMULATED = _emulated()
"""Half precision that torch multiplies one number at a time on this CPU, which has no instructions for it."""


@functools.cache
def fast_int8() -> bool:
    """Whether this CPU has instructions that multiply bytes and add the products up in 32 bits: VNNI or AMX."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))


def int8_inputs() -> int:
    """The largest number, of unsigned bytes, that inputs may become for oneDNN to compute right on this CPU.

    Without such instructions it adds two products with signed bytes in 16 bits, which hold 2 * 127 * 127 and not
    2 * 255 * 127. Weights in seven bits would do as well, but were measured to cost more of the picture: inputs are
    rounded anew at each step, weights are wrong by the same at all.
    """
    return 255 if fast_int8() else 127


@functools.cache
def onednn_computes(dtype: torch.dtype) -> bool:
    """Whether torch's oneDNN computes in that dtype on this CPU, by instructions that there are for it."""
    ops = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or dtype in EMULATED:
        return False
    if dtype == torch.bfloat16:
        return ops._is_mkldnn_bf16_supported()
    return dtype == torch.float32 or (dtype == torch.float16 and ops._is_mkldnn_fp16_supported())


@functools.cache
def onednn_multiplies_faster() -> bool:
    """Whether oneDNN multiplies float32 matrices faster than torch's own library for that.

    In torch's builds for x86 that is Intel's MKL, which does not use the AVX-512 of other makers' processors: on an AMD
    Zen 5 it was measured at 200 GFLOP/s where oneDNN reaches 470.
    """
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    has_avx512 = torch.cpu.get_capabilities().get("avx512_f") if hasattr(torch.cpu, "get_capabilities") else False
    return bool(has_avx512) and not _is_intel()


def _is_intel() -> bool:
    """Whether Intel made this x86 processor, as its `vendor_id` says: in /proc/cpuinfo, or on Windows in its name."""
    try:
        said = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        said = platform.processor()
    return "GenuineIntel" in said


def why_no_int8(device: torch.device) -> list[str]:
    """Why layers cannot compute in eight bits there; empty when they can."""
    if not is_host(device):
        return [f"it is oneDNN's, for CPUs, and the networks are on {device}"]
    if not torch.backends.mkldnn.is_available():
        return ["this build of torch has no oneDNN: install the one from PyPI or download.pytorch.org"]
    if platform.machine().lower() not in X86:
        return [f"oneDNN's kernels for eight bits are for x86, and this is {platform.machine()}"]
    return []


def is_unobserved(x: torch.Tensor) -> bool:
    """Whether a layer may compute with x in any way that gives the result: on the CPU, while nobody differentiates,
    casts, traces or compiles."""
    return (
        type(x) is torch.Tensor
        and is_host(x.device)
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        and not torch.compiler.is_compiling()
    )


def is_widened(x: torch.Tensor) -> bool:
    """Whether layers compute with x in float32 although it is in half precision: on CPUs without instructions for it,
    where torch would multiply one number at a time."""
    return x.dtype in EMULATED and is_host(x.device) and not torch.is_autocast_enabled("cpu")


def widened(dtype: torch.dtype) -> torch.dtype:
    """What layers compute in then: float32 for half precision, any other as it is."""
    return torch.float32 if dtype in HALF else dtype


def has_float64(device: torch.device) -> bool:
    """Whether there are float64 tensors on the device; Apple's GPUs have none."""
    return is_host(device) or kind_of(device).float64


def usual_dtype(device: torch.device) -> torch.dtype:
    """The dtype to compute in where none was asked for: accelerators are made for float16; what half precision gives on
    a CPU depends on the CPU, so there it waits to be asked for."""
    return torch.float32 if is_host(device) else torch.float16


def fastest_half(device: torch.device) -> torch.dtype:
    """The half-precision dtype that is fast there; float32 on a CPU that has none."""
    if not is_host(device):
        return torch.float16
    return torch.float32 if torch.bfloat16 in EMULATED else torch.bfloat16


def leaner_dtype(device: torch.device) -> torch.dtype:
    """The half-precision dtype to take there for less memory, fast or not."""
    return torch.bfloat16 if is_host(device) else torch.float16


def why_slow(dtype: torch.dtype, device: torch.device) -> str | None:
    """Why torch's own layers are slow in that dtype there, and what to take instead; None when they are not.

    This library's layers are not: they compute in float32 then (`is_widened`).
    """
    if not is_host(device) or dtype not in EMULATED:
        return None
    name, better = dtype_name(dtype), fastest_half(device)
    return f"{name} is emulated by torch on this CPU, many times slower: use dtype={better}."


def why_no_flash(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Why torch's flash kernel of attention does not run there; empty when it does."""
    if is_host(device):
        return []
    if device.type != "cuda":
        return [f"torch has no flash kernel for {device.type}"]
    reasons = []
    if dtype not in HALF:
        reasons.append(f"torch's flash kernel computes float16 and bfloat16 on GPUs, not {dtype}")
    if torch.cuda.get_device_capability(device) < (8, 0):
        reasons.append("torch's flash kernel needs compute capability 8.0, an Ampere GPU or newer")
    return reasons


def why_no_efficient(device: torch.device) -> list[str]:
    """Why torch's memory-efficient kernel of attention does not run there; empty when it does."""
    return [] if device.type == "cuda" else [f"torch's memory-efficient kernel runs on CUDA, and this is {device.type}"]


def why_no_xformers(device: torch.device) -> list[str]:
    """Why xFormers does not run there, as far as can be told without importing it; empty when it may."""
    if device.type != "cuda":
        return [f"xFormers runs on CUDA, and this is {device.type}"]
    return [] if find_spec("xformers") is not None else ["xFormers is not installed: pip install xformers"]


def why_no_inductor(device: torch.device) -> list[str]:
    """Why torch's compiler cannot make code for the device; empty when it can."""
    if device.type == "mps":  # Metal's own compiler comes with the system
        return []
    if not is_host(device):
        there = find_spec("triton") is not None
        return [] if there else [f"compiling for {device.type.upper()} needs Triton: pip install triton"]
    compilers = ("cl",) if sys.platform == "win32" else ("g++", "clang++", "c++")
    if not any(shutil.which(name) for name in compilers):
        return [f"compiling needs a C++ compiler, and none of {', '.join(compilers)} is on the PATH"]
    return []


def describe_devices() -> dict[str, Any]:
    """Plain facts for a bug report: what torch was built with, and each accelerator by its name ('cuda:0')."""
    told: dict[str, Any] = {
        "CUDA build": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        "oneDNN": torch.backends.mkldnn.is_available(),
    }
    return told | {name: _described(torch.device(name)) for name in device_names()[1:]}


def name_of(device: torch.device) -> str:
    """What an accelerator's maker calls it, as far as torch tells."""
    ask = getattr(torch.get_device_module(device), "get_device_properties", None)
    if ask is None:
        return "Apple GPU" if device.type == "mps" else device.type
    return str(ask(device).name)


def _described(device: torch.device) -> str:
    parts, memory = [name_of(device)], free_memory(device)
    ask = getattr(torch.get_device_module(device), "get_device_properties", None)
    if ask is not None and hasattr(properties := ask(device), "minor"):
        parts.append(f"compute capability {properties.major}.{properties.minor}")
    if memory is not None:
        parts.append(f"{format_bytes(memory[0])} of {format_bytes(memory[1])} free")
    return ", ".join(parts)
