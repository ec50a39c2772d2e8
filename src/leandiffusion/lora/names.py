"""Names of tensors in LoRA files: which network, which layer, which factor.

The layouts: diffusers' and PEFT's, with dots (`unet.mid_block.….to_q.lora_A.weight`), the older one of attention
processors (`….processor.to_q_lora.down.weight`), and that of kohya's trainers, which LyCORIS shares, with underscores
(`lora_unet_mid_block_…_to_q.lora_down.weight`). A layer is found by listing what each layer of the network could be
called, rather than by taking its name apart: underscores do not tell where a name ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..weights.convert import original_unet_names

_FACTOR = re.compile(
    r"(?:"
    r"\.lora_(?P<letter>[AB])(?:\.(?!weight$)[\w-]+)?\.weight"
    r"|[._]lora(?:_linear_layer)?[._](?P<word>down|up|mid)\.weight"
    r"|\.(?P<other>alpha|dora_scale|diff|diff_b|hada_[wt][12](?:_[ab])?|lokr_(?:w[12](?:_[ab])?|t[12]))"
    r"|\.(?P<magnitude>lora_magnitude_vector)(?:\.[\w-]+)*"
    r")$"
)
_LETTERS = {"A": "down", "B": "up"}

_KOHYA = {
    "lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2",
    "lycoris_": "unet",
}  # fmt: skip
_DOTTED = {
    "unet.": "unet", "text_encoder.": "text_encoder", "text_encoder_2.": "text_encoder_2", "diffusion_model.": "unet",
}  # fmt: skip
_BARE = {
    "down_blocks.": "unet", "up_blocks.": "unet", "mid_block.": "unet", "conv_in.": "unet", "conv_out.": "unet",
    "time_embedding.": "unet", "text_model.": "text_encoder",
}  # fmt: skip

OTHER_FAMILIES = (
    (re.compile(r"^(lora_)?(transformer[._])?(single_transformer_blocks|(double|single)_blocks)[._]"), "Flux"),
    (re.compile(r"^lora_unet_(double|single)_blocks_|^diffusion_model\.(double|single)_blocks\."), "Flux"),
    (re.compile(r"^lora_te3_|^(diffusion_model\.|lora_unet_)?joint_blocks[._]"), "Stable Diffusion 3"),
    (re.compile(r"^(lora_)?transformer[._]"), "a model with a transformer"),
    (re.compile(r"^lora_prior_|^lora_(unet|te)_stage"), "Stable Cascade"),
)  # fmt: skip
"""What names of tensors say of models that this library does not have."""


@dataclass(frozen=True)
class Place:
    """Where a tensor of a file belongs: a network by component name, a layer by a name of it, a factor."""

    network: str
    layer: str
    factor: str


def place_of(name: str) -> Place | None:
    """What the name of a tensor says; None for one that is no LoRA's."""
    found = _FACTOR.search(name)
    if found is None:
        return None
    factor = _LETTERS.get(found["letter"] or "") or found["word"] or found["other"] or found["magnitude"]
    layer = name[: found.start()].removeprefix("base_model.model.")
    for prefixes, strips in ((_KOHYA, True), (_DOTTED, True), (_BARE, False)):
        for prefix, network in prefixes.items():
            if layer.startswith(prefix):
                return Place(network, _usual(layer.removeprefix(prefix) if strips else layer), factor)
    return None


def _usual(layer: str) -> str:
    """The layer's name without what older layouts put between."""
    layer = layer.removeprefix("base_model.model.").replace(".processor.", ".")
    layer = re.sub(r"(attn[12])\.to_out$", r"\1.to_out.0", layer)
    layer = re.sub(r"self_attn\.to_([qkv])$", r"self_attn.\1_proj", layer)
    return re.sub(r"self_attn\.to_out$", "self_attn.out_proj", layer)


def layers_by_name(network: nn.Module) -> dict[str, str]:
    """Every name that a file may have for a layer with a weight of the network -> the layer's own name."""
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    names = {layer: layer for layer in layers} | _original(network, layers)
    for layer in layers:  # transformers had CLIP's text model inside of another one, and has no more
        inner = layer.removeprefix("text_model.")
        names.setdefault(inner if inner != layer else f"text_model.{layer}", layer)
    for name, layer in list(names.items()):
        names.setdefault(name.replace(".", "_"), layer)
    return names


def _original(network: nn.Module, layers: list[str]) -> dict[str, str]:
    config: Any = getattr(network, "config", None)
    per_block = getattr(config, "layers_per_block", None)
    if not isinstance(per_block, int) or not hasattr(network, "down_blocks"):
        return {}
    return original_unet_names(layers, {"block_out_channels": config.block_out_channels, "layers_per_block": per_block})
