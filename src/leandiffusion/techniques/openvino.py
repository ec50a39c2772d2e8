"""UNet and VAE decoder run by OpenVINO: converted for the shape they are called with, and compiled for the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

from ..core.errors import ConfigError
from ..core.flag import Flag
from ..device.openvino import why_no_openvino
from ..modules.unet import UNet2DConditionModel
from ..modules.vae import AutoencoderKL
from ..weights.load import origin_of
from . import techniques
from .base import Exactness, Phase, Price, Technique
from .hooks import Undo, around_forward, own_forward, together
from .openvino_graphs import COMPUTED, Graphs, decoder_inputs, unet_inputs
from .subject import Subject
from .switchable import Switchable


@techniques.register("openvino")
@dataclass(frozen=True)
class OpenVINO(Technique):
    """Runs UNet and VAE decoder as OpenVINO's graphs, one for each shape; torch's copy of their weights goes.

    It computes in the pipeline's dtype where OpenVINO does, and else in float32. `cache_dir` is a folder that keeps the
    graphs, as large as the weights, for the next process. Calls that a graph does not fit (a ControlNet's residuals,
    masks, processors of attention, gradients, float64) run in torch. Weights that are changed are converted anew.
    ConfigError for a `cache_dir` that is neither text nor a Path.
    """

    cache_dir: str | Path | None = None

    name: ClassVar[str] = "openvino"
    title: ClassVar[str] = "UNet and VAE in OpenVINO"
    phase: ClassVar[Phase] = Phase.GRAPH
    exactness: ClassVar[Exactness] = Exactness.EXACT
    calls: ClassVar[tuple[str, ...]] = ("enable_openvino(cache_dir=None)",)
    bench_row: ClassVar[tuple[str, str]] = ("published", "UNet and VAE in OpenVINO")
    loads_library: ClassVar[bool] = True
    flag: ClassVar[Flag] = Flag("--openvino", "Run UNet and VAE decoder in OpenVINO, on the CPU.")
    refuses: ClassVar[tuple[str, ...]] = (
        "sequential_offload", "model_offload", "packed_weights", "compile", "traced_unet", "deep_cache"
    )  # fmt: skip
    price: ClassVar[Price] = Price(
        saves="Time per step on CPUs, most in bfloat16 where the CPU has instructions for it.",
        costs="A minute or more before the first picture of each size, half of that where cache_dir holds its graphs. "
        "Memory: OpenVINO packs the weights and maps the file that it has them from; more than that while it compiles.",
        use="Many pictures of one size on a CPU: measure.",
        refuses="OpenVINO's graphs have the weights, so these cannot travel or be packed, and run the network whole.",
    )

    def __post_init__(self) -> None:
        if not isinstance(self.cache_dir, str | os.PathLike | None):
            raise ConfigError(f"cache_dir={self.cache_dir!r}: name a folder to keep graphs in, or None for none.")

    def why_not(self, subject: Subject) -> list[str]:
        if not isinstance(subject.denoiser, UNet2DConditionModel):
            return [f"the UNet is a {type(subject.denoiser).__name__}, expected leandiffusion's UNet2DConditionModel"]
        return why_no_openvino(subject.device, COMPUTED[0])

    def notes(self, subject: Subject) -> list[str]:
        if origin_of(subject.denoiser) is not None:
            return []
        return ["the UNet was not opened from a checkpoint, so its weights stay in torch's memory beside OpenVINO's"]

    def apply(self, subject: Subject) -> Undo:
        return together(self._steps(subject))

    def _steps(self, subject: Subject) -> Iterator[Undo]:
        folder = None if self.cache_dir is None else Path(self.cache_dir).expanduser()
        unet, vae = subject.denoiser, subject.vae
        yield _run_through(Graphs(unet, "", unet_inputs, folder), unet)
        if isinstance(vae, AutoencoderKL):
            yield _run_through(Graphs(vae, "decoder.", decoder_inputs, folder), vae.decoder)


class OpenVINOMethods(Switchable):
    """Methods of the pipelines."""

    def enable_openvino(self, cache_dir: str | Path | None = None) -> None:
        """Run UNet and VAE decoder in OpenVINO, on the CPU; `cache_dir` keeps what it compiles for the next process."""
        self.enable("openvino", cache_dir=cache_dir)


def _run_through(graphs: Graphs, module: nn.Module) -> Undo:
    around_forward(module, graphs.run)

    def undo() -> None:
        own_forward(module, graphs.run)
        graphs.let_go()

    return undo
