"""What a model family is: its networks at full size, how they are stored in one file, and how much they weigh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..core.errors import ConfigError, WeightsError
from ..core.registry import Registry
from ..weights.build import build_empty, tensor_bytes
from ..weights.convert import Entries
from ..weights.header import TensorEntry
from ..weights.kinds import MODEL, kind_of
from .folder import component_class

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."


@dataclass(frozen=True)
class NetworkSpec:
    """One network of a family.

    `prefix` is that of its tensors in a single file, `elsewhere` other prefixes that some files have; `convert` renames
    them to its parameters.
    """

    class_name: str
    config: Mapping[str, Any]
    prefix: str
    convert: Callable[[Entries, Mapping[str, Any]], dict[str, TensorEntry]]
    elsewhere: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Family:
    """A kind of Stable Diffusion.

    `networks` by component name; `tokenizers` the settings of the standard CLIP tokenizer by component name;
    `scheduler` a class name and its config; `recognises` tells its single files from its header; `size` is the side of
    the square pictures it was trained on, in pixels; `ambiguous_prediction` means that the file does not tell whether
    the UNet predicts noise or velocity; `absent` are the components that it does without, `settings` the plain ones of
    its pipeline where they are not the usual.
    """

    name: str
    title: str
    pipeline: str
    networks: Mapping[str, NetworkSpec]
    tokenizers: Mapping[str, Mapping[str, Any]]
    scheduler: tuple[str, Mapping[str, Any]]
    recognises: Callable[[Entries], bool]
    size: int
    ambiguous_prediction: bool = False
    absent: tuple[str, ...] = field(default=())
    settings: Mapping[str, Any] = field(default_factory=dict)

    def with_config(self, component: str, **changes: Any) -> Family:
        """This family with other settings for one of its networks."""
        spec = self.networks[component]
        changed = replace(spec, config={**spec.config, **changes})
        return replace(self, networks={**self.networks, component: changed})

    def with_scheduler(self, **changes: Any) -> Family:
        """This family with other scheduler settings."""
        name, config = self.scheduler
        return replace(self, scheduler=(name, {**config, **changes}))

    def replaced_scheduler(self, name: str, config: Mapping[str, Any]) -> Family:
        """This family with another scheduler."""
        return replace(self, scheduler=(name, dict(config)))

    def footprint(self, dtype: torch.dtype = torch.float16) -> dict[str, int]:
        """Bytes of each network's weights at that dtype, from shapes alone."""
        sizes: dict[str, int] = {}
        for name, spec in self.networks.items():
            cls, config = component_class(spec.class_name), spec.config
            sizes[name] = tensor_bytes(build_empty(lambda cls=cls, config=config: cls.from_config(config)), dtype)
        return sizes


families: Registry[Family] = Registry("model family", "leandiffusion.families")


_VERSIONS = {"sd15": "sd1", "sd21": "sd2"}


def family_names() -> dict[str, str]:
    """The names that people call families by, such as 'sd15' and 'sdxl', and what each is registered as."""
    return _VERSIONS | {name: name for name in families if name not in _VERSIONS.values()}


def detect(entries: Entries, file: object = "the file") -> Family:
    """The family that a single file in the original layout belongs to, told by names and shapes of its tensors.

    The UNet's input channels are taken from the file: 4, or 9 for inpainting. Raises ConfigError for kinds that are
    not supported, and WeightsError for all other files; both say what was found.
    """
    conv_in = entries.get(f"{UNET_PREFIX}input_blocks.0.0.weight")
    for name in families:
        family = families.get(name)
        if conv_in is not None and len(conv_in.shape) == 4 and family.recognises(entries):
            channels = conv_in.shape[1]
            if channels not in (4, 9):
                raise ConfigError(
                    f"{file} is a {family.title} whose UNet takes {channels} channels; supported are 4 (text to image) "
                    "and 9 (inpainting)."
                )
            return family if channels == 4 else family.with_config("unet", in_channels=channels)
    raise _unknown(entries, file)


def cross_attention_size(entries: Entries, block: str) -> int | None:
    """Size of the text embeddings that an attention block of the UNet reads; None where it has no such block."""
    entry = entries.get(f"{UNET_PREFIX}{block}.transformer_blocks.0.attn2.to_k.weight")
    return entry.shape[1] if entry is not None and len(entry.shape) == 2 else None


def _unknown(entries: Entries, file: object) -> Exception:
    whole = f"a whole checkpoint in the original layout of {', '.join(families.get(n).title for n in families)}"
    kind = kind_of(entries)
    if kind is None or kind == MODEL:
        some = ", ".join(list(entries)[:3]) or "nothing"
        return WeightsError(f"{file} is of an unknown kind ({len(entries)} tensors: {some} …): expected {whole}.")
    if not kind.use:
        return ConfigError(f"{file} is {kind.title}, which is not supported: expected {whole}.")
    return WeightsError(f"{file} is {kind.title}, expected {whole}: {kind.use}.")
