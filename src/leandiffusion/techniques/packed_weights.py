"""Packed weights: those of convolutions and linear layers in the order in which oneDNN computes with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import nn

from ..device.capabilities import onednn_computes
from ..device.host import is_host
from ..modules.convolution import FEWEST_NUMBERS, Conv2d
from ..modules.linear import Linear
from ..run.size import CallSize
from ..weights.packed import unpack
from . import techniques
from .base import Exactness, Phase, Price, Technique
from .hooks import Undo, set_attribute, together
from .subject import Subject
from .switchable import Switchable

WORTH = 64 << 20
"""Bytes of weights from which it is on by default: smaller networks are done before it shows."""


@techniques.register("packed_weights")
@dataclass(frozen=True)
class PackedWeights(Technique):
    """Keeps weights in oneDNN's order, from their first use on, instead of the plain ones: those of convolutions and,
    in networks that have some, of linear layers that oneDNN multiplies.

    They look plain to everybody else, and are again once it is off: the same objects, bit for bit. A weight that
    somebody writes to, or holds a view of, is used plain until nobody does.
    """

    name: ClassVar[str] = "packed_weights"
    title: ClassVar[str] = "Packed weights"
    phase: ClassVar[Phase] = Phase.PACKING
    exactness: ClassVar[Exactness] = Exactness.EXACT
    calls: ClassVar[tuple[str, ...]] = ("enable_packed_weights()",)
    bench_row: ClassVar[tuple[str, str] | None] = None
    refuses: ClassVar[tuple[str, ...]] = ("sequential_offload", "model_offload", "traced_unet", "compile")
    optional: ClassVar[bool] = True
    traced: ClassVar[tuple[str, ...]] = ("control", "denoise", "decode")
    price: ClassVar[Price] = Price(
        saves="Time in convolutions of small feature maps on a CPU, up to four times, and a few percent of a step in "
        "linear layers where oneDNN multiplies them.",
        costs="Nothing: the plain weights are given up meanwhile. Looking at a weight takes a copy of it.",
        use="On by default on CPUs, for networks in memory, in float32 and in what the CPU has instructions for. "
        "`disable_packed_weights()` keeps weights plain.",
        refuses="Offloading and graphs, which handle weights themselves; by default it makes way for them.",
    )

    def why_not(self, subject: Subject) -> list[str]:
        if not is_host(subject.device):
            return [f"it is oneDNN's order, for CPUs, and the networks are on {subject.device}"]
        if not any(_layers(network) for network in subject.networks.values()):
            return ["none of its networks has convolutions of this library that are large enough"]
        return []

    def by_default(self, subject: Subject) -> bool:
        weights = (layer.weight for network in subject.networks.values() for layer in _layers(network))
        return onednn_computes(subject.dtype) and sum(weight.nbytes for weight in weights) >= WORTH

    @classmethod
    def candidates(cls, subject: Subject, call: CallSize) -> list[Technique]:
        return [cls()] if onednn_computes(subject.dtype) else []

    def apply(self, subject: Subject) -> Undo:
        layers = [layer for network in subject.networks.values() for layer in _layers(network)]
        return together(_steps(layers))


class PackedWeightsMethods(Switchable):
    """Methods of the pipelines."""

    def enable_packed_weights(self) -> None:
        """Keep weights of convolutions and linear layers in oneDNN's order, on a CPU. On by default where it pays."""
        self.enable("packed_weights")

    def disable_packed_weights(self) -> None:
        """Keep the weights of layers as they are."""
        self.disable("packed_weights")


def _steps(layers: list[Conv2d | Linear]) -> Iterator[Undo]:
    for layer in layers:
        yield partial(unpack, layer)  # once it packs no more
        yield set_attribute(layer, "packs", True)


def _layers(network: nn.Module) -> list[Conv2d | Linear]:
    found = [module for module in network.modules() if isinstance(module, Conv2d | Linear)]
    layers = [layer for layer in found if layer.weight.numel() >= FEWEST_NUMBERS]
    return layers if any(isinstance(layer, Conv2d) for layer in layers) else []  # a text's are used once for a picture
