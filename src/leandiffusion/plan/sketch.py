"""A pipeline without weights: what planning looks at."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from ..core.errors import ConfigError
from ..families.base import Family
from ..families.folder import UNNEEDED
from ..modules.base import Network
from ..modules.lora import adapted_layers, make_adapted
from ..offload.residency import Pieces
from ..offload.units import weight_bytes
from ..techniques import Technique
from ..techniques.hooks import Undo, together
from ..techniques.subject import Subject
from ..weights.load import Origin
from .empty import described, described_control, empty_network
from .stages import CONTROLS, owners_of

if TYPE_CHECKING:
    from .seeing import Eyes

PLANNED = ("text_encoder", "text_encoder_2", "unet", "vae")
"""Components that planning knows the work of, beside ControlNets."""


@dataclass(frozen=True)
class Part:
    """A network: its class and config, the dtype of its weights, and the names of layers that adapters are on, which
    travel whole."""

    cls: type[Any]
    config: Mapping[str, Any]
    dtype: torch.dtype
    adapted: tuple[str, ...] = ()

    @classmethod
    def of(cls, network: Network, dtype: torch.dtype | None = None) -> Self:
        """One like the network, at another dtype if one is given."""
        own = network.dtype if dtype is None else dtype
        return cls(type(network), {**network.config}, own, tuple(adapted_layers(network)))

    def build(self, cast: torch.dtype | None = None, *, whole: bool = False) -> Any:
        """The network on the meta device, at another dtype if one is given, unless it is to be `whole` without what
        opening leaves on disk. It says that it comes from a checkpoint: from the one that will be there when it is
        opened."""
        network = empty_network(self.cls, self.config, cast or self.dtype)
        for prefix in () if whole else filter(None, UNNEEDED.get(self.cls.__name__, ())):
            setattr(network, prefix.rstrip("."), nn.Identity())
        for name in self.adapted:
            make_adapted(network.get_submodule(name))
        object.__setattr__(network, "_origin", Origin(self.cls, self.config, {}))
        return network


@dataclass(frozen=True)
class Blueprint:
    """What is known of a model before a weight is read: its networks by component name, a UNet and a VAE among them,
    and ControlNets where it is drawn with some.

    `device` is where they are to run, `side` the side in pixels of the square pictures that it was trained on. `others`
    are bytes of weights of components that are opened beside them, `eyes` the IP-Adapters, where there are some.
    """

    name: str
    networks: Mapping[str, Part]
    device: torch.device
    side: int
    others: int = 0
    eyes: Eyes | None = None

    @classmethod
    def of_family(cls, family: Family, dtype: torch.dtype, device: torch.device) -> Self:
        """A model of the family at full size."""
        networks = {name: Part(*found, dtype) for name, found in described(family).items()}
        return cls(family.name, networks, device, family.size)

    @classmethod
    def of_checkpoint(cls, source: str | Path, dtype: torch.dtype, device: torch.device) -> Self:
        """A checkpoint's, from its JSON files, or the header of a single file. No weights have to be there.

        ConfigError for what is not supported, WeightsError's kinds for files that are missing or broken.
        """
        parts = {name: Part(*found, dtype) for name, found in described(source).items()}
        networks = {name: part for name, part in parts.items() if name in PLANNED}
        if "unet" not in networks or "vae" not in networks:
            raise ConfigError(f"{source} has no {'VAE' if 'unet' in networks else 'UNet'}: nothing to plan for.")
        besides = (part for name, part in parts.items() if name not in PLANNED and not _stays_on_disk(part.cls))
        others = sum(weight_bytes(part.build()) for part in besides)
        return cls(str(source), networks, device, _side(networks), others)

    @classmethod
    def of_networks(
        cls, name: str, networks: Mapping[str, nn.Module], device: torch.device,
        dtypes: Mapping[str, torch.dtype] | None = None,
    ) -> Self:  # fmt: skip
        """The model that these networks are of, whose weights may be anywhere; at other `dtypes` than theirs if these
        are given by name. ConfigError where one of them is not this library's."""
        controls = owners_of("control", networks)
        planned: dict[str, Any] = {key: net for key, net in networks.items() if key in PLANNED or key in controls}
        for key, network in planned.items():
            if not isinstance(network, Network):
                raise ConfigError(
                    f"the {key} is a {type(network).__name__}, which is not this library's: its work cannot be "
                    "predicted. Choose techniques by hand (docs/techniques.md)."
                )
        if "unet" not in planned or "vae" not in planned:
            raise ConfigError("planning needs a UNet and a VAE, and this pipeline lacks one of them.")
        besides = (net for key, net in networks.items() if key not in planned and not _stays_on_disk(type(net)))
        others = sum(map(weight_bytes, besides))
        others += sum(map(lora_bytes, planned.values()))
        own: Mapping[str, Any] = dtypes or {}
        parts = {key: Part.of(network, own.get(key)) for key, network in planned.items()}
        return cls(name, parts, device, _side(parts), others)

    def controlled_by(self, sources: Sequence[str | Path | Family]) -> Self:
        """The same with ControlNets beside it: of checkpoints' configs, or such as one for a family at full size has.

        Raises what reading a config raises.
        """
        parts = [Part(*described_control(source), self.dtype) for source in sources]
        names = [CONTROLS] if len(parts) == 1 else [f"{CONTROLS}.{place}" for place in range(len(parts))]
        return replace(self, networks={**self.networks, **dict(zip(names, parts, strict=True))})

    @property
    def controls(self) -> int:
        """How many ControlNets there are."""
        return len(owners_of("control", self.networks))

    def called(self, name: str) -> Self:
        """The same under another name."""
        return replace(self, name=name)

    @property
    def is_distilled(self) -> bool:
        """Whether the UNet takes the guidance scale as an input, and never makes two predictions."""
        return self.networks["unet"].config.get("time_cond_proj_dim") is not None

    @property
    def dtype(self) -> torch.dtype:
        """Of the UNet's weights."""
        return self.networks["unet"].dtype


def _stays_on_disk(cls: type[Any]) -> bool:
    """Whether opening leaves all weights of such a network on disk, to be read one at a time: an image encoder's."""
    return "" in UNNEEDED.get(cls.__name__, ())


def lora_bytes(network: nn.Module) -> int:
    """Bytes of the factors that adapters put on a network's layers."""
    return sum(buffer.nbytes for layer in adapted_layers(network).values() for buffer in layer.buffers(recurse=False))


def _side(networks: Mapping[str, Part]) -> int:
    """Of the square pictures that the UNet was trained on, in pixels."""
    own = networks["unet"].config.get("sample_size") or 64
    levels = networks["vae"].config.get("block_out_channels", (0,) * 4)
    return (own if isinstance(own, int) else max(own)) * 2 ** (len(levels) - 1)


class Sketch:
    """Networks on the meta device, with what techniques look at in a pipeline. `subject` is theirs, `pieces` what
    offloading cuts them into, `cast` the dtype of all of them where it is not their own."""

    def __init__(self, blueprint: Blueprint, cast: torch.dtype | None = None) -> None:
        self.networks: dict[str, Any] = {name: part.build(cast) for name, part in blueprint.networks.items()}
        self.subject = _SketchSubject(self, blueprint.device)
        self.pieces = Pieces(self.networks)

    def with_encoder(self, blueprint: Blueprint, cast: torch.dtype | None = None) -> Sketch:
        """The same networks, but for the VAE, which has its encoder too."""
        other = copy.copy(self)
        other.networks = {**self.networks, "vae": blueprint.networks["vae"].build(cast, whole=True)}
        other.subject = _SketchSubject(other, blueprint.device)
        other.pieces = Pieces(other.networks)
        return other

    def put_on(self, techniques: Iterable[Technique]) -> Undo:
        """Apply techniques to the networks, in order of their phases; undo takes all of them off again."""
        return together(each.apply(self.subject) for each in sorted(techniques, key=lambda each: each.phase))

    @property
    def components(self) -> Mapping[str, Any]:
        """As a pipeline has them."""
        return self.networks

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent along a side."""
        return 2 ** (len(self.networks["vae"].config.block_out_channels) - 1)


class _SketchSubject(Subject):
    """Says that the networks are where they will be."""

    def __init__(self, sketch: Sketch, device: torch.device) -> None:
        super().__init__(sketch, has_runs=True)
        self._device = device

    @property
    def device(self) -> torch.device:
        return self._device
