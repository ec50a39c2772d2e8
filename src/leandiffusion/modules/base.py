"""What every network shares: its dtype and device, its config, opening and saving."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from ..core.config import Configurable
from ..core.errors import ConfigError
from ..core.registry import Registry
from ..device.host import is_host
from ..weights.residence import is_waiting, read_weights
from .features import Features
from .lora import WithLora


def check_dtype(dtype: object) -> torch.dtype:
    """`dtype` if weights can have it; ConfigError for anything else, names of dtypes included."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigError(f"dtype={dtype!r}: pass torch.float32, torch.bfloat16 or torch.float16.")
    return dtype


def either_dtype(dtype: Any, torch_dtype: Any) -> Any:
    """The dtype to load at under its newer or older keyword, float32 unless given, as scripts expect.

    A mapping of dtypes by component stays one. ConfigError for anything else, and for two that contradict each other.
    """
    if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
        raise ConfigError(f"dtype={dtype} and torch_dtype={torch_dtype} mean the same thing: give one of them.")
    chosen = torch_dtype if dtype is None else dtype
    if isinstance(chosen, Mapping):
        return {"default": torch.float32} | {name: check_dtype(value) for name, value in chosen.items()}
    return torch.float32 if chosen is None else check_dtype(chosen)


openers: Registry[Callable[..., Any]] = Registry("class that opens from a single file", "leandiffusion.families")
"""Class name -> what opens it from a single file. Families know how checkpoints in one file are laid out."""


class Network(WithLora, Configurable, Features):
    """Base of the networks: an `nn.Module` described by a config.json and stored as one safetensors checkpoint.

    Subclasses write an ordinary constructor whose keywords are the config keys, and name their parameters as the
    published checkpoints do. Where a file may differ from that, they say so in the three attributes and the hook below.
    """

    weights_stem: ClassVar[str] = "diffusion_pytorch_model"
    """File name of the weights without its ending: `<stem>[.<variant>].safetensors`."""

    ignored_keys: ClassVar[tuple[str, ...]] = ()
    """Regular expressions; a tensor whose name in the file is found by one (`re.search`) is left unread."""

    @classmethod
    def rename_keys(cls, keys: list[str]) -> dict[str, str]:
        """Names in a file -> parameter names of this class, for every name given. The identity unless overridden."""
        return {key: key for key in keys}

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the first floating-point parameter (or buffer); torch's default where there is none."""
        return self._first_floating().dtype

    @property
    def device(self) -> torch.device:
        """Device of the first floating-point parameter (or buffer); the CPU where there is none."""
        return self._first_floating().device

    def _first_floating(self) -> torch.Tensor:
        for tensors in (self.parameters(), self.buffers()):
            for tensor in tensors:
                if tensor.is_floating_point():
                    return tensor
        return torch.empty(0)

    # -- weights that wait for their first use -----------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`forward`, once the weights are read: opening leaves them in their files until the first use."""
        if is_waiting(self):
            read_weights([self])
        return super().__call__(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As every module's; reads the weights."""
        read_weights([self])
        return super().state_dict(*args, **kwargs)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """`to`, `half` and the like only say how weights will be read, but to another device they go at once."""
        super()._apply(*args, **kwargs)
        self.factors_moved()
        if is_waiting(self) and not is_host(self.device):
            read_weights([self])
        return self

    _initialize_hook = True

    def _infer_parameters(self, *_: Any) -> None:
        """What torch.compile calls before it looks at a network, of any that has these two names."""
        read_weights([self])

    @property
    def __jit_ignored_attributes__(self) -> list[str]:
        """None. torch.jit asks for them before it takes up a module's weights, which have to be read by then."""
        read_weights([self])
        return []

    # -- sizes, opening, saving --------------------------------------------------------------------------------------

    def num_parameters(self, only_trainable: bool = False) -> int:
        """How many numbers the parameters hold together, shared ones counted once."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        subfolder: str | None = None,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        variant: str | None = None,
        revision: str | None = None,
        use_safetensors: bool | None = None,
        local_files_only: bool = False,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        low_cpu_mem_usage: bool = True,
    ) -> Self:
        """Open a checkpoint: a local folder or a hub id, or a `subfolder` of one, such as 'unet'.

        `dtype` (or its older name `torch_dtype`) is the type that tensors are cast to while they are read: float32
        unless given. The network comes back in eval mode. Names and shapes are checked; the weights are read when they
        are first used, or at once when `device` is another than the CPU. That never takes much more memory than they
        do, whatever `low_cpu_mem_usage` says.

        Raises ConfigError for a bad config or dtype, and WeightsError's kinds for everything that can be wrong with
        the files.
        """
        from ..weights.load import open_network
        from ..weights.locate import find_checkpoint

        chosen = either_dtype(dtype, torch_dtype)
        found = find_checkpoint(
            pretrained_model_name_or_path,
            revision=revision,
            variant=variant,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            use_safetensors=use_safetensors,
            subfolders=[subfolder] if subfolder else None,
        )
        return open_network(
            cls,
            found.folder / subfolder if subfolder else found.folder,
            dtype=chosen,
            device=device,
            variant=found.variant,
            use_safetensors=use_safetensors,
            on_disk=True,
        )

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
    ) -> None:
        """Write config.json and safetensors into a folder, in shards no larger than `max_shard_size`.

        The folder opens in diffusers (networks) and transformers (text models) too. Raises ConfigError for
        `safe_serialization=False`, which asks for pickles.
        """
        from ..weights.save import save_network

        if not safe_serialization:
            raise ConfigError("safe_serialization=False asks for pickled weights, which are not written: leave it out.")
        save_network(self, Path(save_directory), variant=variant, max_shard_size=max_shard_size)
