"""The adapters of one network: which are loaded, which are on and how much they weigh, and putting them on layers.

They belong to the network and not to a pipeline: whoever shares the network shares them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ..core.fork import Lock
from ..modules.lora import Added, adapted_layers, put_on
from ..offload.engine import engine_of
from ..weights.stored import StoredTensor
from .fit import Piece, Pieces
from .weights import Weights, weight_in

_placing = Lock()


class Adapters:
    """What is loaded into a network, by adapter name; `weights` of those that are active, in order.

    Files stay where they are: a layer that is not on holds nothing, and where the network's weights travel from disk
    its factors do too.
    """

    def __init__(self) -> None:
        self.loaded: dict[str, Pieces] = {}
        self.weights: dict[str, Weights] = {}
        self.enabled = True
        self.fused: dict[str, Any] = {}
        """Former weights by layer, while adapters are merged into them: `lora.fuse`."""

        self.fused_names: tuple[str, ...] = ()
        self.placed: Any = None
        """For which dtype and way of travelling the layers were made; None when that is to be done anew."""

    def copy(self) -> Adapters:
        """The same adapters, to be changed apart from these."""
        other = Adapters()
        other.__dict__.update(self.__dict__)
        other.loaded, other.weights, other.placed = dict(self.loaded), dict(self.weights), None
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Adapters:
        """Of a copied network: its own list of the same adapters."""
        return self.copy()

    def wanted(self) -> dict[str, list[tuple[Piece, float]]]:
        """What is to be added by layer: pieces, and what they are multiplied by."""
        found: dict[str, list[tuple[Piece, float]]] = {}
        for name, weights in self.weights.items() if self.enabled and not self.fused_names else ():
            for layer, piece in self.loaded[name].items():
                found.setdefault(layer, []).append((piece, piece.scale * weight_in(layer, weights)))
        return found


def adapters_of(network: nn.Module) -> Adapters:
    """The network's adapters; none were loaded unless it says so."""
    return getattr(network, "_adapters", None) or Adapters()


def change(networks: Mapping[str, nn.Module], changed: Mapping[str, Adapters]) -> None:
    """Give networks other adapters, all or none: if one fails, such as for lack of memory, all keep what they had."""
    before = {name: adapters_of(networks[name]) for name in changed}
    try:
        for name, adapters in changed.items():
            _give(networks[name], adapters)
    except BaseException:
        for name, adapters in before.items():
            _give(networks[name], adapters)
        raise


def _give(network: nn.Module, adapters: Adapters) -> None:
    adapters.placed = None
    _set(network, "_adapters", adapters)
    place(network)
    if not adapters.loaded and not adapters.fused:
        _set(network, "_adapters", None)


def _set(network: nn.Module, name: str, value: Any) -> None:
    """Set an attribute of the network, or with None let it have none again."""
    if value is not None:
        setattr(network, name, value)
    else:
        vars(network).pop(name, None)


def place_all(networks: Iterable[nn.Module]) -> None:
    """Bring adapters to where their networks' weights are now, and to their dtype, if they are elsewhere."""
    for network in networks:
        if "_adapters" in vars(network):
            place(network)


def place(network: nn.Module) -> None:
    """Make the network's layers add what its adapters say, with factors as the layers' weights are: on their device, at
    their dtype, on disk where these travel from there."""
    adapters = adapters_of(network)
    with _placing:
        now = _how(network)
        if adapters.placed == now:
            return
        wanted = adapters.wanted()
        from_disk = (engine := engine_of(network)) is not None and engine.policy.from_disk
        for layer, module in adapted_layers(network).items():
            if layer not in wanted:
                put_on(module, ())
        for layer, pieces in wanted.items():
            module = network.get_submodule(layer)
            weight: Tensor = module.weight  # type: ignore[assignment]
            put_on(module, [(piece.kind, _factors(piece, weight, from_disk), scale) for piece, scale in pieces])
        _set(network, "_added", Added(network) if wanted else None)
        adapters.placed = now


def _how(network: nn.Module) -> tuple[Any, ...]:
    first = next(network.parameters())
    engine = engine_of(network)
    return first.dtype, first.device, id(engine), None if engine is None else engine.policy


def _factors(piece: Piece, weight: Tensor, from_disk: bool) -> dict[str, Tensor]:
    if not from_disk:
        return {name: source.read(weight.dtype, weight.device) for name, source in piece.factors.items()}
    stays = isinstance(weight, StoredTensor) and weight.on_disk
    return {
        name: source.stored(weight.dtype) if stays else source.read(weight.dtype)
        for name, source in piece.factors.items()
    }
