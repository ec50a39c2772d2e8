"""OpenVINO, Intel's library that compiles networks for CPUs, where it is installed: imported when it is first used."""

from __future__ import annotations

import importlib
import os
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .host import is_host

_PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}


def openvino() -> Any:
    """The package `openvino`, without `openvino_telemetry`, which reports imports and conversions over the network."""
    absent: Any = None  # in sys.modules it makes an import fail, which OpenVINO takes for 'not installed'
    sys.modules.setdefault("openvino_telemetry", absent)
    return importlib.import_module("openvino")


def operations() -> Any:
    """OpenVINO's operations, to build models of."""
    openvino()
    return importlib.import_module("openvino.opset13")


class _Started:
    """The process in which OpenVINO's threads were started; None before that."""

    process: int | None = None


@cache
def core() -> Any:
    """OpenVINO's entry point, one for the process."""
    _Started.process = os.getpid()
    return openvino().Core()


def is_lost() -> bool:
    """Whether this process was forked from one that used OpenVINO: its threads stayed there."""
    return _Started.process not in (None, os.getpid())


def is_installed() -> bool:
    """Whether there is such a package, told without importing it."""
    return find_spec("openvino") is not None


@cache
def computes(dtype: torch.dtype) -> bool:
    """Whether OpenVINO computes in that dtype on this CPU: float32, and bfloat16 if it has instructions.

    ImportError, OSError or RuntimeError where what is installed cannot be used.
    """
    able = [name.lower() for name in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")]
    return dtype == torch.float32 or _PRECISIONS.get(dtype) in able  # which calls float32 'fp32'


def why_no_openvino(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Why OpenVINO does not compute in that dtype there; empty when it does."""
    if not is_host(device):
        return [f"OpenVINO computes on the CPU here, and this pipeline runs on {device.type}"]
    if not is_installed():
        return ["OpenVINO is not installed: pip install 'leandiffusion[openvino]'"]
    if is_lost():
        return ["this process was forked from one that used OpenVINO, whose threads do not survive a fork"]
    try:
        able = computes(dtype)
    except (ImportError, OSError, RuntimeError) as error:
        return [f"OpenVINO is installed but cannot be used: {reason(error)}"]
    if not able:
        also = "" if dtype == torch.bfloat16 else ", and bfloat16 where the CPU has instructions for it"
        return [f"OpenVINO does not compute {dtype} on this CPU: use float32{also}"]
    return []


def reason(error: Exception) -> str:
    """What is wrong, in a line. Of OpenVINO's own errors the first lines are places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from ", "Check '", "While "))]
    return (told or lines or [type(error).__name__])[0][:200].rstrip(".")


def compiled(model: Any, dtype: torch.dtype) -> Any:
    """The model compiled for this CPU, computing in `dtype` with as many threads as torch has now."""
    return core().compile_model(model, "CPU", _properties(dtype))


def imported(file: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """What was compiled and written to `file` for computing in `dtype`, and the mapped file, which has to outlive it.

    RuntimeError for a file that holds something else, or was written by another version or for another CPU.
    """
    mapped = np.memmap(file, dtype=np.uint8, mode="c")  # copy on write: OpenVINO takes no read-only memory
    return core().import_model(openvino().Tensor(mapped, shared_memory=True), "CPU", _properties(dtype)), mapped


def describe_engine(dtype: torch.dtype) -> list[str]:
    """All of the machine that a compiled model depends on."""
    return [openvino().__version__, str(core().get_property("CPU", "FULL_DEVICE_NAME")), _hint(dtype)]


def _properties(dtype: torch.dtype) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": _hint(dtype),
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }


def _hint(dtype: torch.dtype) -> str:
    """The precision to compute in: the dtype's own where this CPU has instructions for it, or else float32."""
    return _PRECISIONS[dtype] if computes(dtype) else "f32"


def shared(x: torch.Tensor) -> Any:
    """The numbers of a contiguous tensor as OpenVINO's tensor, in the same memory."""
    x = x.detach()
    if x.dtype == torch.bfloat16:  # which numpy lacks
        return openvino().Tensor(x.view(torch.int16).numpy(), openvino().Shape(list(x.shape)), openvino().Type.bf16)
    return openvino().Tensor(x.numpy(), shared_memory=True)
