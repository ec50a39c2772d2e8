"""Model offload: text encoders, UNet and VAE take turns on the device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ..core.flag import Flag
from ..offload.policy import Policy
from ..run.size import CallSize
from . import techniques
from .base import Price, Technique
from .offloading import OFFLOAD_FLAG, Offload, device_of
from .subject import Subject
from .switchable import Switchable


@techniques.register("model_offload")
@dataclass(frozen=True)
class ModelOffload(Offload):
    """Whole components come when they are needed, one at a time; the UNet stays for all its steps."""

    name: ClassVar[str] = "model_offload"
    title: ClassVar[str] = "Model offload"
    calls: ClassVar[tuple[str, ...]] = ("enable_model_cpu_offload()", 'from_pretrained(…, offload="model")')
    flag: ClassVar[Flag] = replace(OFFLOAD_FLAG, value="model")
    bench_row: ClassVar[tuple[str, str]] = ("memory", "model offload")
    refuses: ClassVar[tuple[str, ...]] = ("traced_unet", "compile")
    price: ClassVar[Price] = Price(
        saves="The weights of all components but the one that runs, mostly the text encoders' and the VAE's.",
        costs="Each component is fetched once per picture; the steps themselves take as long as without.",
        use="The UNet fits beside its working memory, the rest does not.",
        refuses="A traced or compiled UNet fixes where its weights are, and here they move.",
    )

    @classmethod
    def candidates(cls, subject: Subject, call: CallSize) -> list[Technique]:
        return [cls(**cls.settings_of(subject))]

    @property
    def policy(self) -> Policy:
        return Policy(self.compute_device, "component")


class ModelOffloadMethods(Switchable):
    """Methods of the pipelines."""

    def enable_model_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None, **settings: Any
    ) -> None:
        """Bring text encoders, UNet and VAE to the device in turn. Below a CPU lies the checkpoint on disk."""
        self.enable("model_offload", device=device_of(gpu_id, device), **settings)
