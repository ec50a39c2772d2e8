"""Options that diffusers takes when opening and that ask for nothing here, or for what is not there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.errors import ConfigError, NotSupported

# option -> what to do instead of asking for it; None and False never ask
_INSTEAD = {
    "force_download": "delete the model from the hub's cache (`hf cache delete`) and open it again.",
    "proxies": "set the environment's HTTPS_PROXY.",
    "mirror": "set the environment's HF_ENDPOINT.",
    "use_auth_token": "pass token=….",
    "output_loading_info": "missing or surplus tensors are an error or a warning that names them.",
    "custom_pipeline": "code from elsewhere is never run: import your class and call its from_pretrained.",
    "custom_revision": "code from elsewhere is never run.",
    "trust_remote_code": "code from elsewhere is never run.",
    "load_connected_pipeline": "open the other pipeline by itself.",
    "max_memory": "pass memory='6GiB', or offload='model' or 'sequential'.",
    "offload_folder": "offload='sequential' leaves weights in the checkpoint's own files.",
    "offload_state_dict": "loading never takes much more memory than the weights.",
    "use_onnx": "open a checkpoint with safetensors.",
    "provider": "ONNX models are not supported.",
    "sess_options": "ONNX models are not supported.",
    "provider_options": "ONNX models are not supported.",
    "quantization_config": "quantized weights are not supported yet: use dtype=torch.float16 and offloading.",
    "use_flashpack": "open a checkpoint with safetensors.",
    "local_dir": "pass the folder itself, or cache_dir=….",
}
# Whatever their value: interrupted downloads are always resumed, and weights are never mapped into memory.
_POINTLESS = ("resume_download", "disable_mmap", "local_dir_use_symlinks")


def take_neutral(options: dict[str, Any], device: Any) -> Any:
    """Take diffusers' other options out of `options`, and return the device that `device` or `device_map` names.

    NotSupported for those that ask for something, with what to do instead.
    """
    for name in _POINTLESS:
        options.pop(name, None)
    for name, instead in _INSTEAD.items():
        if name in options and options.pop(name) not in (None, False):
            raise NotSupported(f"{name} is not supported: {instead}")
    placed = options.pop("device_map", None)
    if isinstance(placed, Mapping) and len(set(placed.values())) == 1:
        placed = next(iter(placed.values()))
    if placed is None:
        return device
    if isinstance(placed, Mapping) or placed in ("balanced", "auto", "balanced_low_0", "sequential"):
        raise NotSupported(
            f"device_map={placed!r} is not supported: all weights go to one device=…, or travel with offload='model'."
        )
    if device is not None and str(device) != str(placed):
        raise ConfigError(f"device={str(device)!r} and device_map={placed!r} mean the same thing: give one of them.")
    return placed
