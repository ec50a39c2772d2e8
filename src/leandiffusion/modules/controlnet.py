"""ControlNetModel: a copy of a UNet's down path that sees a picture, such as edges or depth (Zhang et al. 2023).

What it makes of each skip connection and of the middle is added to the UNet's own. Parameter names are those of
diffusers checkpoints.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.hub import local_path
from ..core.output import Output
from .base import Network, either_dtype, openers
from .blocks import TimestepEmbedding, in_place_allowed, refuse_unsupported, silu
from .convolution import Conv2d
from .features import AttentionFeatures
from .transformer import set_attention_slice
from .unet_blocks import SharedSettings
from .unet_inputs import refuse_unused
from .unet_levels import SUPPORTED, build_middle, down_levels, levels_of
from .unet_time import TimeMixin, build_added_embedding

_SUPPORTED = {
    "controlnet_conditioning_channel_order": ("rgb", "bgr"),
    **{key: SUPPORTED[key] for key in (
        "mid_block_type", "only_cross_attention", "downsample_padding", "mid_block_scale_factor", "act_fn",
        "encoder_hid_dim", "encoder_hid_dim_type", "num_attention_heads", "class_embed_type", "addition_embed_type",
        "num_class_embeds", "resnet_time_scale_shift", "addition_embed_type_num_heads",
    )},
}  # fmt: skip


@dataclass(eq=False)
class ControlNetOutput(Output):
    """`down_block_res_samples`: what is added to each skip connection (B, C, h', w'), the outermost first;
    `mid_block_res_sample`: to what leaves the middle block."""

    down_block_res_samples: list[Tensor]
    mid_block_res_sample: Tensor


def _at_zero(layer: Conv2d) -> Conv2d:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _head(channels: int) -> Conv2d:
    """What makes an output of a feature map: a "zero convolution" (Zhang et al. 2023, sec. 3.1)."""
    return _at_zero(Conv2d(channels, channels, 1, padding=0))


class ControlNetConditioningEmbedding(nn.Module):
    """Convolutions from a picture to what is added to the latents' first feature map, an eighth of its size."""

    def __init__(self, outs: int, ins: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.conv_in = Conv2d(ins, channels[0])
        self.blocks = nn.ModuleList()
        for narrow, wide in pairwise(channels):
            self.blocks += [Conv2d(narrow, narrow), Conv2d(narrow, wide, stride=2)]
        self.conv_out = _at_zero(Conv2d(channels[-1], outs))

    def forward(self, picture: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, outs, H/8, W/8)."""
        x = silu(self.conv_in(picture), self.conv_in)
        for conv in self.blocks:
            x = silu(conv(x), conv)
        return self.conv_out(x)


class ControlNetModel(TimeMixin, AttentionFeatures, Network):
    """Noisy latents, timestep, text and a picture -> what a UNet adds. Keywords are the keys of its config.json.

    One that is made anew adds nothing: the convolutions where it begins and ends are at zero, until they are trained
    or read. `attention_head_dim` is the number of heads, as in UNet2DConditionModel. ConfigError for values that are
    not supported, naming them.
    """

    repeated_blocks = _repeated_blocks = ("BasicTransformerBlock",)
    _no_split_modules: ClassVar[list[str]] = ["BasicTransformerBlock", "ResnetBlock2D"]

    def __init__(
        self,
        in_channels: int = 4,
        conditioning_channels: int = 3,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        down_block_types: Sequence[str] = (
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        mid_block_type: str | None = "UNetMidBlock2DCrossAttn",
        only_cross_attention: bool = False,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        act_fn: str = "silu",
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int = 1280,
        transformer_layers_per_block: int | Sequence[int | Sequence[int]] = 1,
        encoder_hid_dim: int | None = None,
        encoder_hid_dim_type: str | None = None,
        attention_head_dim: int | Sequence[int] = 8,
        num_attention_heads: int | None = None,
        use_linear_projection: bool = False,
        class_embed_type: str | None = None,
        addition_embed_type: str | None = None,
        addition_time_embed_dim: int | None = None,
        num_class_embeds: int | None = None,
        upcast_attention: bool = False,
        resnet_time_scale_shift: str = "default",
        projection_class_embeddings_input_dim: int | None = None,
        controlnet_conditioning_channel_order: str = "rgb",
        conditioning_embedding_out_channels: Sequence[int] = (16, 32, 96, 256),
        global_pool_conditions: bool = False,
        addition_embed_type_num_heads: int = 64,
    ) -> None:
        super().__init__()
        refuse_unsupported(self, _SUPPORTED, self.config)
        channels = list(block_out_channels)
        levels = levels_of(self.config)
        temb_channels = 4 * channels[0]
        shared = SharedSettings(temb_channels, norm_num_groups, norm_eps, use_linear_projection, bool(upcast_attention))
        self.conv_in = Conv2d(in_channels, channels[0])
        self.time_embedding = TimestepEmbedding(channels[0], temb_channels)
        self.add_embedding = build_added_embedding(self.config, temb_channels)
        self.controlnet_cond_embedding = ControlNetConditioningEmbedding(
            channels[0], conditioning_channels, conditioning_embedding_out_channels
        )
        # Made in diffusers' order, so that the same seed gives the same weights.
        self.controlnet_down_blocks, self.down_blocks = nn.ModuleList([_head(channels[0])]), nn.ModuleList()
        for block, skip_channels in down_levels(self.config, levels, shared):
            self.down_blocks.append(block)
            self.controlnet_down_blocks += [_head(each) for each in skip_channels]
        self.controlnet_mid_block = _head(channels[-1])
        self.mid_block = build_middle(self.config, levels[-1], shared)

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path_or_dict: str | Path,
        *,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        config: str | Path | None = None,
    ) -> Self:
        """Open a ControlNet of one .safetensors file, in the original layout or diffusers'.

        Its tensors tell which family it was made for, unless `config`, a local folder with a config.json, does. `dtype`
        as in `from_pretrained`. Raises WeightsError's kinds for files without such a ControlNet.
        """
        file, folder = local_path(pretrained_model_link_or_path_or_dict), None if config is None else local_path(config)
        return openers.get("ControlNetModel")(
            cls, file, config=folder, dtype=either_dtype(dtype, torch_dtype), device=device
        )

    @classmethod
    def settings_for(cls, unet: Mapping[str, Any]) -> dict[str, Any]:
        """The config of a ControlNet for a UNet of that config: the same down path, text and time."""
        known = inspect.signature(cls.__init__).parameters
        return {name: value for name, value in unet.items() if name in known and name not in ("self", "in_channels")}

    @classmethod
    def from_unet(
        cls,
        unet: Network,
        controlnet_conditioning_channel_order: str = "rgb",
        conditioning_embedding_out_channels: Sequence[int] = (16, 32, 96, 256),
        load_weights_from_unet: bool = True,
        conditioning_channels: int = 3,
    ) -> Self:
        """A new ControlNet for a UNet, with a copy of the weights of its down path unless told otherwise.

        It adds nothing until it is trained. ConfigError for a UNet of a kind that is not supported.
        """
        net = cls(
            **cls.settings_for(unet.config) | {
                "in_channels": unet.config.in_channels,
                "controlnet_conditioning_channel_order": controlnet_conditioning_channel_order,
                "conditioning_embedding_out_channels": conditioning_embedding_out_channels,
                "conditioning_channels": conditioning_channels,
            }
        )  # fmt: skip
        if load_weights_from_unet:
            own = net.state_dict().keys()
            net.load_state_dict({name: w for name, w in unet.state_dict().items() if name in own}, strict=False)
        return net

    def set_attention_slice(self, slice_size: str | int | list[int] | None = "auto") -> None:
        """Compute attention so many heads at a time: 'auto' half, 'max' one, a number, one per layer; None all."""
        set_attention_slice(self, slice_size)

    def embed_condition(self, controlnet_cond: Tensor) -> Tensor:
        """The picture (B, conditioning_channels, H, W) in [0, 1] -> (B, C, H/8, W/8), the same at every timestep."""
        if self.config.controlnet_conditioning_channel_order == "bgr":
            controlnet_cond = controlnet_cond.flip(1)
        return self.controlnet_cond_embedding(controlnet_cond)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor | None = None,
        conditioning_scale: float = 1.0,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        guess_mode: bool = False,
        return_dict: bool = True,
        embedded: Tensor | None = None,
    ) -> ControlNetOutput | tuple[list[Tensor], Tensor]:
        """What a UNet adds for latents `sample` (B, in_channels, h, w) at `timestep`, times `conditioning_scale`.

        `controlnet_cond` (B, conditioning_channels, H, W) in [0, 1] is the picture; in its place `embedded`, of
        `embed_condition`, spares computing that anew at each step. In `guess_mode` the outer levels count less, from a
        tenth up. `encoder_hidden_states` and `added_cond_kwargs` as the UNet takes them.

        ConfigError for inputs that this network does not use, and for a picture of another size than the latents'.
        """
        unused = {
            "class_labels": class_labels, "timestep_cond": timestep_cond, "attention_mask": attention_mask,
            "cross_attention_kwargs": cross_attention_kwargs,
        }  # fmt: skip
        refuse_unused(unused, added_cond_kwargs, () if self.add_embedding is None else ("text_embeds", "time_ids"))
        if embedded is None:
            if controlnet_cond is None:
                raise ConfigError("controlnet_cond is missing: pass the picture (B, 3, H, W) in [0, 1].")
            embedded = self.embed_condition(controlnet_cond)
        if embedded.shape[-2:] != sample.shape[-2:]:
            h, w = (8 * side for side in sample.shape[-2:])
            raise ConfigError(f"controlnet_cond does not fit the latents: it has to be {w}x{h} pixels.")
        temb = self.embed_time(sample, timestep, None, added_cond_kwargs)
        x = self.conv_in(sample) + embedded
        heads = iter(self.controlnet_down_blocks)
        added = [next(heads)(x)]
        for block in self.down_blocks:
            x, skips = block(x, temb, encoder_hidden_states)
            while skips:  # each is freed once it was used
                added.append(next(heads)(skips.pop(0)))
        if self.mid_block is not None:
            x = self.mid_block(x, temb, encoder_hidden_states)
        added.append(self.controlnet_mid_block(x))
        added = self._scaled(added, conditioning_scale, guess_mode=guess_mode)
        if return_dict:
            return ControlNetOutput(added[:-1], added[-1])
        return added[:-1], added[-1]

    def _scaled(self, added: list[Tensor], scale: float, *, guess_mode: bool) -> list[Tensor]:
        pools = self.config.global_pool_conditions
        if guess_mode and not pools:
            scales = (torch.logspace(-1, 0, len(added)) * scale).tolist()
        else:
            scales = [scale] * len(added)
        if in_place_allowed():
            added = [each if factor == 1 else each.mul_(factor) for each, factor in zip(added, scales, strict=True)]
        else:
            added = [each * factor for each, factor in zip(added, scales, strict=True)]
        return [each.mean(dim=(2, 3), keepdim=True) for each in added] if pools else added
