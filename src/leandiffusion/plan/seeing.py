"""What IP-Adapters make of pictures before the first step, on networks without weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..device.host import is_host
from ..families.ip_adapter import IPAdapter, check_encoder, check_fit, look
from ..modules.image_projection import Projection
from ..modules.vision import CLIPVisionModelWithProjection
from ..run.image_prompt import rows_of, see
from ..run.size import CallSize
from ..techniques.hooks import around_forward
from ..weights.source import Source
from .sketch import Part
from .stages import HOLES, Stage, guided
from .trace import trace
from .work import StageWork

TOKENS = 257
"""That the usual image encoder makes of a picture, where there is none to ask."""


@dataclass(frozen=True)
class Eyes:
    """IP-Adapters of a UNet, and the network that looks at pictures for them: None where calls are given embeddings.

    All weights of both stay in their files, and are read each time that they are needed.
    """

    encoder: Part | None
    adapters: tuple[IPAdapter, ...]

    @classmethod
    def of_files(cls, adapters: Sequence[IPAdapter], encoder: Path, unet: Part) -> Self:
        """Adapters for such a UNet, and the image encoder in a folder, of which the config is read.

        TensorMismatch where they do not belong together.
        """
        part = Part(CLIPVisionModelWithProjection, CLIPVisionModelWithProjection.load_config(encoder), unet.dtype)
        network, config = unet.build(), part.build(whole=True).config
        for adapter in adapters:
            check_encoder(adapter, check_fit(adapter, network), config)
        return cls(part, tuple(adapters))

    def open(self, cast: torch.dtype | None = None) -> Any:
        """The encoder on the meta device, at another dtype if one is given; None where there is none. Its weights take
        memory while a layer computes with them, as if it read them."""
        if self.encoder is None:
            return None
        network = self.encoder.build(cast, whole=True)
        for module in network.modules():
            if module._parameters:
                around_forward(module, _reading)
        return network

    def read_bytes(self, encoder: Any, dtype: torch.dtype) -> int:
        """Of weights that are read for a call: the encoder's once for each adapter."""
        own = sum(math.prod(source.shape) for adapter in self.adapters for source in _sources(adapter))
        looks = 0 if encoder is None else sum(weight.nbytes for weight in encoder.parameters())
        return own * dtype.itemsize + looks * len(self.adapters)


def trace_seeing(
    eyes: Eyes, encoder: Any, networks: Mapping[str, Any], call: CallSize, device: torch.device
) -> StageWork:
    """The work of a call's pictures, as many for each adapter; what is kept are keys and values for the UNet among
    `networks`, for all steps. Weights of the adapters, and of an `encoder` that `Eyes` opened, count while they are
    read."""
    on_host = is_host(device)
    stage = _seeing(eyes, encoder, networks, call)
    return trace(*stage, on_host=on_host, holes=HOLES if on_host else None)


def _seeing(eyes: Eyes, encoder: Any, networks: Mapping[str, Any], call: CallSize) -> Stage:
    unet, adapters = networks["unet"], [_Unread.of(adapter) for adapter in eyes.adapters]

    def seen(projection: Projection) -> tuple[Tensor, Tensor]:
        def make(*shape: int) -> Tensor:
            return torch.empty(call.image_prompts, *shape, dtype=unet.dtype, device="meta")

        if encoder is not None:
            side = encoder.config.image_size
            return see(encoder, make(encoder.config.num_channels, side, side), tokens=projection.sees_tokens)
        shape = (TOKENS, projection.widths[0]) if projection.sees_tokens else (projection.widths[0],)
        return make(*shape), make(*shape)

    def run() -> list[Any]:
        embeds = []
        for adapter in adapters:
            positive, negative = (each[None] for each in seen(adapter.built[0]))
            embeds.append(rows_of(positive, negative if guided(networks, call) else None, call.batch))
        pairs = zip(adapters, embeds, strict=True)
        return [look(adapter, unet, each, unet.dtype, unet.device) for adapter, each in pairs]

    return run, lambda: ()


@dataclass(frozen=True, eq=False)
class _Unread(IPAdapter):
    """An adapter whose tensors take memory on the meta device when they are read. It can be looked with once."""

    built: list[Projection] = field(default_factory=list)

    @classmethod
    def of(cls, adapter: IPAdapter) -> _Unread:
        projection = {name: _Numberless.of(source) for name, source in adapter.projection.items()}
        layers = tuple((_Numberless.of(k), _Numberless.of(v)) for k, v in adapter.layers)
        return cls(adapter.where, projection, layers, [adapter.empty()])

    def empty(self) -> Projection:
        return self.built.pop()


class _Numberless(Source):
    @classmethod
    def of(cls, source: Source) -> Source:
        return cls(tensor=torch.empty(source.shape, device="meta"))

    def read(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        return torch.empty(self.shape, dtype=dtype, device="meta")


def _reading(module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    read = [torch.empty_like(weight) for weight in module._parameters.values() if weight is not None]
    result = forward(*args, **kwargs)
    del read
    return result


def _sources(adapter: IPAdapter) -> list[Source]:
    return [*adapter.projection.values(), *(each for pair in adapter.layers for each in pair)]
