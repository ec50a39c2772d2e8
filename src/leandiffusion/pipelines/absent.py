"""Features of diffusers' pipelines that are not there: each says so, and what to do instead, where it is called."""

from __future__ import annotations

from typing import Any

from ..core.errors import NotSupported

LORA = (
    "this part of diffusers' LoRA loader is not supported: load_lora_weights reads files and state dicts for all "
    "networks at once, with hotswap=True in place of another adapter, and factors follow the weights' device."
)
FREEU = "FreeU is not supported yet: leave it out, or draw with diffusers."
FUSED_QKV = "fused projections are not supported yet, and the picture is the same without: leave the call out."
GROUPS = (
    "diffusers' group offloading is not supported yet: enable_sequential_cpu_offload(granularity='block') or "
    "enable_model_cpu_offload() save as much."
)
WATERMARK = "watermarks are not supported: leave it out."
ATTENTION = 'nothing here reads it, so it would have no effect: leave it out. {"scale": …} weighs LoRA adapters.'
PUSH = "uploading is not supported: save_pretrained(folder), then huggingface_hub.upload_folder(folder_path=folder, …)."
BUILD = "a pipeline is not built from its config alone: use from_pretrained, or pass the components to the class."


def unsupported(arguments: dict[str, Any], why: str) -> None:
    """NotSupported for arguments that are given although nothing here would heed them."""
    given = [name for name, value in arguments.items() if value is not None]
    if given:
        raise NotSupported(f"{', '.join(given)}: {why}")


def _absent(why: str) -> Any:
    def method(self: Any, *_: Any, **__: Any) -> Any:
        raise NotSupported(why)

    method.__doc__ = f"Raises NotSupported: {why}"
    return method


class Absent:
    """Mixin of the pipelines. What undoes a feature has nothing to undo, and what lists adapters lists none."""

    text_encoder_name = "text_encoder"
    unet_name = "unet"

    enable_lora_hotswap = set_lora_device = _absent(LORA)
    lora_state_dict = load_lora_into_unet = load_lora_into_text_encoder = classmethod(_absent(LORA))
    write_lora_layers = pack_weights = classmethod(_absent(LORA))
    enable_group_offload = _absent(GROUPS)
    push_to_hub = _absent(PUSH)
    from_config = extract_init_dict = register_for_auto_class = classmethod(_absent(BUILD))

    def enable_freeu(self: Any, s1: float, s2: float, b1: float, b2: float) -> None:
        """Switch FreeU (Si et al. 2023) on in the UNet: `s` scale skips, `b` what comes from below, at two levels.

        NotSupported if this UNet does not know it.
        """
        if not hasattr(self.unet, "enable_freeu"):
            raise NotSupported(FREEU)
        self.unet.enable_freeu(s1=s1, s2=s2, b1=b1, b2=b2)

    def disable_freeu(self: Any) -> None:
        """Undo `enable_freeu`."""
        if hasattr(self.unet, "disable_freeu"):
            self.unet.disable_freeu()

    def fuse_qkv_projections(self: Any, unet: bool = True, vae: bool = True) -> None:
        """Compute attention's projections at once, in networks that know how; NotSupported in others."""
        for network in [self.unet] * unet + [self.vae] * vae:
            if not hasattr(network, "fuse_qkv_projections"):
                raise NotSupported(FUSED_QKV)
            network.fuse_qkv_projections()

    def unfuse_qkv_projections(self: Any, unet: bool = True, vae: bool = True) -> None:
        """Undo `fuse_qkv_projections`."""
        for network in [self.unet] * unet + [self.vae] * vae:
            if hasattr(network, "unfuse_qkv_projections"):
                network.unfuse_qkv_projections()
