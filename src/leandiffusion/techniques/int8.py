"""Weights and inputs of the UNet's layers in eight bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import nn

from ..core.flag import Flag
from ..device.capabilities import why_no_int8
from ..modules.controlnet import ControlNetModel
from ..modules.convolution import Conv2d
from ..modules.unet import UNet2DConditionModel
from ..weights.int8 import put_int8, take_int8
from ..weights.load import origin_of
from ..weights.packed import unpack
from ..weights.residence import release_to_disk
from . import techniques
from .base import Exactness, Phase, Price, Technique
from .hooks import Undo, together
from .subject import Subject
from .switchable import Switchable

BLOCKS = ("down_blocks.", "mid_block.", "up_blocks.")
"""What is rounded. What is before and behind is small, and all that is drawn goes through it."""

EXACT_INPUTS = ("attn2.to_k", "attn2.to_v", "time_emb_proj")
"""Layers that see the text or the time: a few numbers, some of which are a hundred times as large as the others."""


@techniques.register("int8")
@dataclass(frozen=True)
class Int8(Technique):
    """Computes the linear layers and convolutions of the UNet and of ControlNets with weights and inputs in eight bits,
    by oneDNN's integer kernels, which torch has. Inputs are rounded as they come, each token and each sample by its own
    scale, so that nothing has to be calibrated. The exact weights are left to the checkpoint meanwhile, and are back
    bit for bit once it is off. Who looks at a weight sees the exact one. A layer whose weight is written to computes
    with what was written, exactly.
    """

    name: ClassVar[str] = "int8"
    title: ClassVar[str] = "UNet in eight bits"
    phase: ClassVar[Phase] = Phase.PACKING
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    calls: ClassVar[tuple[str, ...]] = ("enable_int8()",)
    flag: ClassVar[Flag] = Flag("--int8", "Compute the UNet in eight bits, on the CPU: another picture.")
    bench_row: ClassVar[tuple[str, str]] = ("published", "UNet in eight bits")
    refuses: ClassVar[tuple[str, ...]] = ("sequential_offload", "model_offload", "openvino", "traced_unet", "compile")
    unplanned: ClassVar[str] = "its speed depends on the processor's instructions: `leandiffusion bench` measures it"
    price: ClassVar[Price] = Price(
        saves="Three quarters of the memory of float32 weights, half of half precision's; and time per step on x86 "
        "CPUs; more is expected, and was not measured, where `leandiffusion env` shows VNNI or AMX.",
        costs="Another picture: the same layout, other details, which also differ from one batch, or number of "
        "threads, to another. The first step takes longer, in which weights are rounded.",
        use="Full-size models on a CPU, for less memory without reading weights from disk at each step. Small networks "
        "lose time to rounding.",
        refuses="Offloading and graphs, which handle weights themselves; accelerators and Arm; other libraries' UNets.",
    )

    def why_not(self, subject: Subject) -> list[str]:
        if not isinstance(subject.denoiser, UNet2DConditionModel):
            return [f"the UNet is a {type(subject.denoiser).__name__}, expected leandiffusion's UNet2DConditionModel"]
        return why_no_int8(subject.device)

    def notes(self, subject: Subject) -> list[str]:
        if all(origin_of(network) is not None for network in _networks(subject)):
            return []
        return ["the UNet was not opened from a checkpoint, so its exact weights stay in memory too"]

    def apply(self, subject: Subject) -> Undo:
        return together(step for network in _networks(subject) for step in _steps(network))


class Int8Methods(Switchable):
    """Methods of the pipelines."""

    def enable_int8(self) -> None:
        """Compute the UNet in eight bits, on a CPU: a quarter of the memory of float32 weights, and less time."""
        self.enable("int8")


def _networks(subject: Subject) -> list[nn.Module]:
    controls = [control for control in subject.controls if isinstance(control, ControlNetModel)]
    return [subject.denoiser, *controls]


def _steps(network: nn.Module) -> Iterator[Undo]:
    layers = {
        name: layer
        for name, layer in network.named_modules()
        if name.startswith(BLOCKS) and isinstance(layer, nn.Linear | Conv2d)
    }
    for layer in layers.values():
        unpack(layer)
    if origin := origin_of(network):
        ours = {id(layer.weight) for layer in layers.values()}
        others = {id(p) for p in network.parameters() if id(p) not in ours}
        release_to_disk(network, origin.entries, origin.stamps, leave=others)
    for name, layer in layers.items():
        yield partial(take_int8, layer)
        put_int8(layer, inputs=not name.endswith(EXACT_INPUTS))
