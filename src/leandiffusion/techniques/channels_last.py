"""Channels-last: the memory order in which convolution kernels read a pixel's channels side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ..core.flag import Flag
from . import techniques
from .base import Exactness, Phase, Price, Technique
from .hooks import Undo, together
from .subject import Subject
from .switchable import Switchable


@techniques.register("channels_last")
@dataclass(frozen=True)
class ChannelsLast(Technique):
    """Lays out the convolutions of UNet and VAE as NHWC; what flows between them follows."""

    name: ClassVar[str] = "channels_last"
    title: ClassVar[str] = "Channels-last"
    phase: ClassVar[Phase] = Phase.LAYOUT
    exactness: ClassVar[Exactness] = Exactness.EXACT
    calls: ClassVar[tuple[str, ...]] = ("enable_channels_last()", "unet.to(memory_format=torch.channels_last)")
    flag: ClassVar[Flag] = Flag("--channels-last", "Lay out convolutions as NHWC.")
    price: ClassVar[Price] = Price(
        saves="Time in convolutions on GPUs with tensor cores and on most CPUs.",
        costs="Nothing. On some processors it is slower: measure.",
        use="Half precision on a GPU, and CPUs with AVX-512.",
        refuses="A traced UNet, whose weights are fixed: switch channels-last on first.",
    )

    def why_not(self, subject: Subject) -> list[str]:
        if not any(_kernels(network) for network in subject.networks.values()):
            return ["no network of this pipeline has convolutions that can be laid out anew"]
        return []

    def apply(self, subject: Subject) -> Undo:
        networks = [network for network in subject.networks.values() if _kernels(network)]
        return together(_lay_out(network) for network in networks)


class ChannelsLastMethods(Switchable):
    """Methods of the pipelines."""

    def enable_channels_last(self) -> None:
        """Lay out UNet and VAE channels-last."""
        self.enable("channels_last")

    def disable_channels_last(self) -> None:
        """Undo `enable_channels_last`."""
        self.disable("channels_last")


def _kernels(network: nn.Module) -> list[nn.Module]:
    """Modules whose weight is a convolution's kernel; none in what was traced, which is fixed."""
    modules = (module for module in network.modules() if not isinstance(module, torch.jit.ScriptModule))
    weights = ((module, module._parameters.get("weight")) for module in modules)
    return [module for module, weight in weights if weight is not None and weight.dim() == 4]


def _lay_out(network: nn.Module) -> Undo:
    kernels = [m for m in _kernels(network) if not _weight(m).is_contiguous(memory_format=torch.channels_last)]
    _order(kernels, torch.channels_last)
    return lambda: _order(kernels, torch.contiguous_format)


def _order(kernels: list[nn.Module], form: torch.memory_format) -> None:
    """Reorder the weights that the modules hold now; weights on disk will be read in that order."""
    for module in kernels:
        weight = _weight(module)
        weight.data = weight.data.to(memory_format=form)


def _weight(module: nn.Module) -> nn.Parameter:
    weight = module._parameters["weight"]
    assert weight is not None
    return weight
