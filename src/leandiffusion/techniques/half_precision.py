"""Half-precision weights: two bytes a number instead of four."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.flag import Flag
from ..device.capabilities import HALF, leaner_dtype, why_slow
from ..device.host import is_host
from ..run.size import CallSize
from ..weights.build import put_tensor
from ..weights.load import origin_of
from ..weights.residence import cast, is_waiting, load_from_disk, release_to_disk, same_bits, tensors_of
from ..weights.stored import StoredTensor
from . import techniques
from .base import Exactness, Phase, Price, Technique
from .hooks import Undo, together
from .subject import Subject

TORCHS_OWN = (nn.Linear, nn.Conv2d)
"""Layers of other libraries' networks, which multiply as torch does."""


@techniques.register("half_precision")
@dataclass(frozen=True)
class HalfPrecision(Technique):
    """Casts every network. `dtype` is torch.float16 or torch.bfloat16; ConfigError for any other.

    Switching it off reads the weights from the checkpoint again, at the dtype they had: nothing is kept meanwhile.
    """

    dtype: torch.dtype = torch.float16

    name: ClassVar[str] = "half_precision"
    title: ClassVar[str] = "Half-precision weights"
    phase: ClassVar[Phase] = Phase.PRECISION
    exactness: ClassVar[Exactness] = Exactness.ROUNDING
    calls: ClassVar[tuple[str, ...]] = ("from_pretrained(…, dtype=torch.float16)", 'enable("half_precision")')
    flag: ClassVar[Flag] = Flag("--dtype", value="fp16")
    traced: ClassVar[tuple[str, ...]] = ("encode", "picture", "control", "denoise", "decode")
    price: ClassVar[Price] = Price(
        saves="Half the memory of weights and activations. On GPUs, and on CPUs with instructions for it, also time.",
        costs="Rounding: float16 keeps 11 bits and overflows above 65504, bfloat16 keeps 8 and never overflows.",
        use="Always on a GPU (float16). On a CPU for its memory: those without instructions for it compute each layer "
        "in float32 and take a little longer. Where `leandiffusion env` shows amx_bf16, and on AMD's with avx512_bf16, "
        "bfloat16 is faster too; Intel's with avx512_bf16 alone multiply it more slowly than float32. `leandiffusion "
        "bench published` measures it.",
        refuses="Networks that were built by hand: there is no checkpoint to go back to. Cast them with .to(dtype).",
    )

    def __post_init__(self) -> None:
        if self.dtype not in HALF:
            raise ConfigError(f"dtype={self.dtype!r}: half precision is torch.float16 or torch.bfloat16.")

    def why_not(self, subject: Subject) -> list[str]:
        networks = subject.networks
        if made := [name for name, network in networks.items() if origin_of(network) is None]:
            return [
                f"{', '.join(made)} was not opened from a checkpoint, so there would be no way back: use .to(dtype)"
            ]
        return []

    @classmethod
    def candidates(cls, subject: Subject, call: CallSize) -> list[Technique]:
        return [cls(leaner_dtype(subject.device))] if subject.dtype == torch.float32 else []

    def notes(self, subject: Subject) -> list[str]:
        reason = why_slow(self.dtype, subject.device)
        layers = (layer for network in subject.networks.values() for layer in network.modules())
        return [reason] if reason is not None and any(type(layer) in TORCHS_OWN for layer in layers) else []

    def apply(self, subject: Subject) -> Undo:
        return together(_cast(network, self.dtype) for network in subject.networks.values())


def _cast(network: nn.Module, dtype: torch.dtype) -> Undo:
    device, origin = next(network.parameters()).device, origin_of(network)
    assert origin is not None
    release_to_disk(network, origin.entries, origin.stamps)
    before = cast(network, dtype)
    if is_waiting(network):  # and will be read as that
        return lambda: _uncast(network, before)

    def undo() -> None:
        _uncast(network, before)
        if not is_host(device):
            load_from_disk(network, device)

    try:
        load_from_disk(network, device)
    except BaseException:  # out of memory, a file that changed
        undo()
        raise
    return undo


def _uncast(network: nn.Module, before: list[tuple[list[str], Tensor]]) -> None:
    now = tensors_of(network)
    for names, tensor in before:
        put_tensor(network, names, _unless_edited(now[names[0]], tensor))


def _unless_edited(now: Tensor, before: Tensor) -> Tensor:
    """The numbers from before the cast, unless those in half precision were written to: then these, at that dtype."""
    if isinstance(now, StoredTensor) and now.on_disk:
        return before.detach()
    numbers = now.read() if isinstance(now, StoredTensor) else now.detach().cpu()
    former = before.read() if isinstance(before, StoredTensor) else before.detach().cpu()
    same = numbers.shape == former.shape and same_bits(former.to(numbers.dtype), numbers)
    return before.detach() if same else numbers.to(before.dtype)
