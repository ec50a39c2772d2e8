"""The calls that switch techniques on and off, under the names that diffusers gave them and under one of our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..core.errors import ConfigError
from ..device.names import check_device, numbered
from ..techniques import Technique
from ..techniques.stack import Applied, Stack, make


class Techniques:
    """Any technique by name, on whatever has a stack of them.

    Techniques can be switched in any order; they are applied in the order that makes sense. Switching one on again
    replaces it. Nothing changes while a picture is being drawn: ConfigError.
    """

    _stack: Stack

    def enable(self, technique: Technique | str, *, why: str = "asked for", **settings: Any) -> None:
        """Switch a technique on: an instance, or its name and settings, as in `enable("attention_slicing", size=2)`.

        Raises ConfigError for unknown names and settings, or when another technique that is on refuses it, and
        BackendUnavailable when this machine or pipeline cannot run it; before anything changes. One that only saves
        time warns instead and is left out.
        """
        self._stack.enable(make(technique, settings), why)

    def disable(self, name: str) -> None:
        """Switch the technique of that name off; nothing happens if it is not on. ConfigError for unknown names."""
        self._stack.disable(name)

    def why_not(self, technique: Technique | str, **settings: Any) -> list[str]:
        """Reasons why that technique cannot be switched on with these components on this machine; empty when it can."""
        return make(technique, settings).why_not(self._stack.subject)

    @property
    def techniques(self) -> tuple[Applied, ...]:
        """What is on, in order of application: each with its settings and why. `print(*pipe.techniques, sep="\\n")`."""
        return self._stack.applied


class MemoryAndSpeed(Techniques):
    """Mixin of the pipelines: the techniques one by one, under diffusers' names. Each call ends in `enable` or
    `disable`."""

    def enable_cudnn_autotune(self) -> None:
        """Let cuDNN try its kernels on each new shape and keep the fastest. A warning where there is no cuDNN."""
        self.enable("cudnn_autotune")

    def enable_tf32(self) -> None:
        """Compute float32 products in TF32, or on CPUs in bfloat16. A warning where the machine has neither."""
        self.enable("tf32")

    def enable_channels_last(self) -> None:
        """Lay out UNet and VAE channels-last."""
        self.enable("channels_last")

    def disable_channels_last(self) -> None:
        """Undo `enable_channels_last`."""
        self.disable("channels_last")

    def enable_attention_slicing(self, slice_size: str | int | list[int] | None = "auto") -> None:
        """Compute attention 'auto' (half the heads), 'max' (one head) or that many heads at a time; None switches off.

        ConfigError for more heads than a layer has, naming it.
        """
        if slice_size is None:
            self.disable_attention_slicing()
        else:
            self.enable("attention_slicing", size=slice_size)

    def disable_attention_slicing(self) -> None:
        """Undo `enable_attention_slicing`."""
        self.disable("attention_slicing")

    def enable_vae_slicing(self) -> None:
        """Decode a batch picture by picture."""
        self.enable("vae_slicing")

    def disable_vae_slicing(self) -> None:
        """Undo `enable_vae_slicing`."""
        self.disable("vae_slicing")

    def enable_vae_tiling(self, rows: int | None = None) -> None:
        """Decode in strips of so many rows of the picture, without seams; chosen by the size unless given."""
        self.enable("vae_tiling", rows=rows)

    def disable_vae_tiling(self) -> None:
        """Undo `enable_vae_tiling`."""
        self.disable("vae_tiling")

    def set_attention_backend(self, backend: str) -> None:
        """Compute attention with that kernel: 'sdpa' (the default), 'xformers', 'flash', … ConfigError lists them."""
        self.enable("attention_backend", backend=backend)

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """xFormers' attention where it is installed and runs; elsewhere torch's own such kernel, with a warning."""
        self.enable("attention_backend", attention_op=attention_op)

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Back to the default kernel."""
        self.disable("attention_backend")

    def enable_model_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None, **settings: Any
    ) -> None:
        """Bring text encoders, UNet and VAE to the device in turn. Below a CPU lies the checkpoint on disk."""
        self.enable("model_offload", device=_compute_device(gpu_id, device), **settings)

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None, **settings: Any
    ) -> None:
        """Bring layers to the device one after the other, the next while one computes. `settings`: granularity,
        resident_fraction and slots of `techniques.sequential_offload`. Below a CPU lies the checkpoint on disk."""
        self.enable("sequential_offload", device=_compute_device(gpu_id, device), **settings)

    def remove_all_hooks(self) -> None:
        """Switch offloading off, whichever is on."""
        self.disable("model_offload")
        self.disable("sequential_offload")

    def enable_traced_unet(self, path: str | Path | None = None) -> None:
        """Run a traced UNet, from the file if one for this model, shape and dtype is there, else traced and saved."""
        self.enable("traced_unet", path=path)

    def enable_compile(self, **settings: Any) -> None:
        """Compile UNet and VAE with torch.compile; `settings` as in `techniques.compile`."""
        self.enable("compile", **settings)


def _compute_device(gpu_id: int | None, device: torch.device | str | None) -> torch.device | str | None:
    """The device that diffusers' two ways of naming it mean; None leaves the choice. ConfigError for what is none,
    or if they disagree."""
    named = None if device is None else check_device(device)
    if gpu_id is None:
        return named
    if isinstance(gpu_id, bool) or not isinstance(gpu_id, int) or gpu_id < 0:
        raise ConfigError(f"gpu_id={gpu_id!r} is no number of a GPU: use 0 for the first, or device='cuda:0'.")
    device_of_id = numbered(gpu_id)
    if named is not None and (named.type != device_of_id.type or named.index not in (None, gpu_id)):
        raise ConfigError(f"gpu_id={gpu_id} and device={str(device)!r} name two devices: give one of them.")
    return device_of_id
