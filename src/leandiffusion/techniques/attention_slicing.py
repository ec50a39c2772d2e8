"""Sliced attention: a few heads at a time, so that fewer scores are in memory at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ..attention import AttentionBackend
from ..attention.sliced import Sliced
from ..core.flag import Flag
from ..modules.transformer import attention_layers, set_attention_slice
from ..run.size import CallSize
from . import techniques
from .base import Exactness, Phase, Price, Technique
from .hooks import Undo
from .subject import Subject
from .switchable import Switchable


@techniques.register("attention_slicing")
@dataclass(frozen=True)
class AttentionSlicing(Technique):
    """`size`: 'auto' for half the heads at a time, 'max' for one, a number of heads, or one such number per layer.

    The kernel that is on runs on each slice, and on all heads at once where slices would save nothing. ConfigError,
    when it is switched on, for numbers above a layer's heads.
    """

    size: str | int | list[int] = "auto"

    name: ClassVar[str] = "attention_slicing"
    title: ClassVar[str] = "Sliced attention"
    phase: ClassVar[Phase] = Phase.SLICING
    exactness: ClassVar[Exactness] = Exactness.EXACT
    calls: ClassVar[tuple[str, ...]] = ('enable_attention_slicing("auto")', "unet.set_attention_slice(4)")
    flag: ClassVar[Flag] = Flag(
        "--attention-slicing",
        "Compute attention for half of the heads at a time, for one, or for N.",
        value="auto",
        setting="size",
        words=("auto", "max"),
        number="a number of heads",
    )
    traced: ClassVar[tuple[str, ...]] = ("control", "denoise")
    price: ClassVar[Price] = Price(
        saves="Working memory of attention kernels that keep scores (`plain`, `chunked`); nothing with `sdpa`, "
        "`xformers` or `openvino`, which keep none: with them heads are not sliced.",
        costs="Some time where heads are sliced: several small kernels instead of one.",
        use="Kernels that keep all scores, on devices where nothing better runs.",
        refuses="Networks without attention layers of this library, such as a traced UNet.",
    )

    def why_not(self, subject: Subject) -> list[str]:
        return why_no_attention(subject)

    @classmethod
    def candidates(cls, subject: Subject, call: CallSize) -> list[Technique]:
        layers = (layer for network in networks_with_attention(subject) for _, layer in attention_layers(network))
        return [cls("auto"), cls("max")] if any(_keeps_scores(layer.backend) for layer in layers) else []

    def apply(self, subject: Subject) -> Undo:
        def slice_all() -> None:
            for network in networks_with_attention(subject):
                # Others may have fewer heads than what is given for the UNet's, which words fit and numbers may not.
                size = self.size if network is subject.denoiser or isinstance(self.size, str) else "max"
                set_attention_slice(network, size)

        return switch_backends(subject, slice_all)


def _keeps_scores(backend: AttentionBackend) -> bool:
    """Whether its memory grows with the square of the tokens."""
    return backend.workspace_bytes(1, 1, 2048, 2048, 1) > 2 * backend.workspace_bytes(1, 1, 1024, 1024, 1)


class AttentionSlicingMethods(Switchable):
    """Methods of the pipelines."""

    def enable_attention_slicing(self, slice_size: str | int | list[int] | None = "auto") -> None:
        """Compute attention 'auto' (half the heads), 'max' (one head) or that many heads at a time; None switches off.

        ConfigError for more heads than a layer has, naming it.
        """
        if slice_size is None:
            self.disable_attention_slicing()
        else:
            self.enable("attention_slicing", size=slice_size)

    def disable_attention_slicing(self) -> None:
        """Undo `enable_attention_slicing`."""
        self.disable("attention_slicing")


def switch_backends(subject: Subject, change: Callable[[], None]) -> Undo:
    """Run `change` on the attention of UNet and VAE, and tell how to undo it. What raises leaves all as it was.

    What was switched by hand meanwhile, kernels or slices, stays switched.
    """
    layers = [layer for network in networks_with_attention(subject) for _, layer in attention_layers(network)]
    before = [layer.backend for layer in layers]
    try:
        change()
    except BaseException:
        for layer, was in zip(layers, before, strict=True):
            layer.backend = was
        raise
    after = [layer.backend for layer in layers]

    def undo() -> None:
        for layer, was, became in zip(layers, before, after, strict=True):
            layer.backend = _without(layer.backend, was, became)

    return undo


def _without(now: AttentionBackend, was: AttentionBackend, became: AttentionBackend) -> AttentionBackend:
    """`now`, its kernel and its slices taken back to `was` where they still are what `became` of them."""
    if now is became:
        return was
    (kernel, size), (old_kernel, old_size), (new_kernel, new_size) = map(kernel_and_size, (now, was, became))
    kernel = old_kernel if kernel == new_kernel else kernel
    size = old_size if size == new_size else size
    return kernel if size is None else Sliced(kernel, size)


def kernel_and_size(backend: AttentionBackend) -> tuple[AttentionBackend, int | str | None]:
    """The kernel that computes, and of how many heads at a time; None where they are not sliced."""
    return (backend.inner, backend.heads_at_a_time) if isinstance(backend, Sliced) else (backend, None)


def why_no_attention(subject: Subject) -> list[str]:
    """Why the UNet's attention cannot be switched; empty when it can."""
    if subject.denoiser not in networks_with_attention(subject):
        return [f"the UNet is a {type(subject.denoiser).__name__} without attention layers of this library"]
    return []


def networks_with_attention(subject: Subject) -> list[nn.Module]:
    """UNet, ControlNets and VAE, as far as they have attention layers of this library."""
    found = (subject.denoiser, *subject.controls, subject.vae)
    networks = [network for network in found if isinstance(network, nn.Module)]
    return [network for network in networks if next(attention_layers(network), None) is not None]
