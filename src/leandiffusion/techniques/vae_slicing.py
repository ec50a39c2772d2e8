"""Sliced VAE: a batch is decoded picture by picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..core.flag import Flag
from ..run.size import CallSize
from . import techniques
from .base import Exactness, Phase, Price, Technique
from .hooks import Undo, set_attribute
from .subject import Subject
from .switchable import Switchable


@techniques.register("vae_slicing")
@dataclass(frozen=True)
class VaeSlicing(Technique):
    """Decodes (and encodes) one latent at a time, straight into the result."""

    name: ClassVar[str] = "vae_slicing"
    title: ClassVar[str] = "Sliced VAE decode"
    phase: ClassVar[Phase] = Phase.SLICING
    exactness: ClassVar[Exactness] = Exactness.EXACT
    calls: ClassVar[tuple[str, ...]] = ("enable_vae_slicing()", "vae.enable_slicing()")
    flag: ClassVar[Flag] = Flag("--vae-slicing", "Decode a batch picture by picture.")
    bench_row: ClassVar[tuple[str, str]] = ("memory", "VAE slicing")
    traced: ClassVar[tuple[str, ...]] = ("picture", "decode")
    price: ClassVar[Price] = Price(
        saves="Working memory of decoding a batch: that of one picture, whatever the batch.",
        costs="On large GPUs a little speed in batches of small pictures; on CPUs with glibc a few percent of the "
        "decode, since large blocks go back to the system as soon as they are freed.",
        use="More than one picture per call.",
        refuses="A VAE that cannot decode picture by picture.",
    )

    def why_not(self, subject: Subject) -> list[str]:
        return why_not_switched(subject, "use_slicing")

    @classmethod
    def candidates(cls, subject: Subject, call: CallSize) -> list[Technique]:
        return [cls()] if call.batch > 1 else []

    def apply(self, subject: Subject) -> Undo:
        return set_attribute(subject.vae, "use_slicing", True)


class VaeSlicingMethods(Switchable):
    """Methods of the pipelines."""

    def enable_vae_slicing(self) -> None:
        """Decode a batch picture by picture."""
        self.enable("vae_slicing")

    def disable_vae_slicing(self) -> None:
        """Undo `enable_vae_slicing`."""
        self.disable("vae_slicing")


def why_not_switched(subject: Subject, attribute: str) -> list[str]:
    """Why the VAE cannot be switched by that attribute; empty when it can."""
    if subject.vae is None:
        return ["this pipeline has no VAE"]
    if not hasattr(subject.vae, attribute):
        return [f"its VAE is a {type(subject.vae).__name__}, which has no {attribute}"]
    return []
