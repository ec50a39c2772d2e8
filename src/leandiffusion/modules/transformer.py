"""Attention parts: the attention layer, GEGLU feed-forward, transformer block, and the 2-D transformer of the UNet.

Parameter names are those of diffusers checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import AttentionBackend, backends
from ..attention.sdpa import fused_attention
from ..attention.sliced import Sliced
from ..core.errors import ConfigError
from ..device.capabilities import is_unobserved
from ..device.host import is_host
from .blocks import GradientCheckpointing, GroupNorm, in_place_allowed, is_untouched, repeat_rows
from .convolution import Conv2d
from .linear import Linear
from .perturbed import Perturbed
from .processors import CustomProcessor, WithProcessor, attention_layers
from .text_memory import keys_and_values


class Attention(WithProcessor):
    """Multi-head attention (Vaswani et al. 2017) over tokens; `context` None means self-attention.

    `backend` is the kernel that runs: replace it on the instance to change how, never what, is computed. ConfigError
    for channels that do not divide into heads.
    """

    def __init__(
        self, channels: int, heads: int, context_dim: int | None = None, *, bias: bool = False, upcast: bool = False
    ) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ConfigError(
                f"{channels} channels do not divide into {heads} heads (attention_head_dim, which is their number): "
                "the first must be a multiple of the second."
            )
        self.heads = heads
        self.upcast = upcast
        self.group_norm: nn.Module | None = None
        self.backend: AttentionBackend = backends.get("sdpa")
        context_dim = channels if context_dim is None else context_dim
        self.to_q = Linear(channels, channels, bias=bias)
        self.to_k = Linear(context_dim, channels, bias=bias)
        self.to_v = Linear(context_dim, channels, bias=bias)
        # The second is where training has its dropout, and where processors call it.
        self.to_out = nn.ModuleList([Linear(channels, channels), nn.Identity()])

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """x (B, T, C), context (B, S, C_context), mask (B, 1, S) added to the scores -> (B, T, C).

        x may have fewer rows, which are then repeated. `extra` are arguments of a processor that was set, and by layer
        what else concerns it: `perturbed`, which samples go without self-attention, and `images`, weights with keys and
        values (B, S', nh * hs) of pictures, which are attended to beside the context.
        """
        if isinstance(self.backend, CustomProcessor):
            return self.backend.run(self, x, context, mask, extra or {})
        if not extra:
            return self.compute(x, context, mask, self.backend)
        perturbed: Perturbed | None = extra.get("perturbed")
        concerns = perturbed is not None and self in perturbed.layers
        backend = partial(perturbed.attend, self.backend) if concerns else self.backend  # type: ignore[union-attr]
        return self.compute(x, context, mask, backend, extra.get("images", {}).get(self, ()))

    def compute(
        self,
        x: Tensor,
        context: Tensor | None,
        mask: Tensor | None,
        backend: Callable[[Tensor, Tensor, Tensor], Tensor],
        images: Sequence[tuple[float, Tensor, Tensor]] = (),
    ) -> Tensor:
        """Attention by `backend`; a mask is left to torch's own kernel, which supports masks, whatever the backend."""
        context = x if context is None else context
        q, (k, v) = self.to_q(x), keys_and_values(self, context)
        q, k, v = self.split_heads(q), self.split_heads(k), self.split_heads(v)
        q, dtype = repeat_rows(q, len(k)), q.dtype
        if self.upcast and dtype != torch.float32:  # SD2.1's scores overflow float16
            q, k, v = q.float(), k.float(), v.float()
        if mask is None:
            out = backend(q, k, v).to(dtype)
        else:
            out = fused_attention(q, k, v, attn_mask=mask[:, None].to(q.dtype)).to(dtype)
        for weight, *seen in images:
            k, v = (self.split_heads(each).to(q.dtype) for each in seen)
            out = out + weight * backend(q, k, v).to(dtype)
        B, nh, T, hs = out.shape
        return self.to_out[0](out.transpose(1, 2).reshape(B, T, nh * hs))

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, T, nh * hs) -> (B, nh, T, hs), a view."""
        B, T, C = x.shape
        return x.view(B, T, self.heads, C // self.heads).transpose(1, 2)


def set_attention_backend(network: nn.Module, backend: AttentionBackend) -> None:
    """Let `backend` compute attention in every layer of the network. Sliced layers stay sliced."""
    for _, layer in attention_layers(network):
        sliced = layer.backend
        layer.backend = Sliced(backend, sliced.heads_at_a_time) if isinstance(sliced, Sliced) else backend


def set_attention_slice(network: nn.Module, slice_size: str | int | list[int] | None) -> None:
    """Compute so many heads at a time: 'auto' half of them, 'max' one, a number, one number per layer; None all.

    Each layer's backend stays the one it has. ConfigError, before anything changes, for anything else and for more
    heads than a layer has.
    """
    layers = list(attention_layers(network))
    sizes = slice_size if isinstance(slice_size, list) else [slice_size] * len(layers)
    if len(sizes) != len(layers):
        raise ConfigError(f"{len(sizes)} slice sizes for {len(layers)} attention layers: give one for each, or one.")
    for (name, layer), size in zip(layers, sizes, strict=True):
        if size not in (None, "auto", "max") and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ConfigError(f"slice size {size!r} is none of 'auto', 'max' and whole numbers from 1 up.")
        if isinstance(size, int) and size > layer.heads:
            raise ConfigError(
                f"slice size {size} is more than the {layer.heads} heads of {name}: it is how many heads are computed "
                f"at a time, from 1 to {layer.heads} are possible."
            )
        if size is not None and isinstance(layer.backend, CustomProcessor):
            raise ConfigError(
                f"{name} computes with {layer.backend.name}, a processor of your own, which cannot be cut into "
                "slices: switch back with set_default_attn_processor() first."
            )
    for (_, layer), size in zip(layers, sizes, strict=True):
        inner = layer.backend.inner if isinstance(layer.backend, Sliced) else layer.backend
        layer.backend = inner if size is None else Sliced(inner, size)


INNER_BYTES = 24 << 20
"""Of the feed-forward's inner numbers in memory at once, on a CPU."""

LIGHT_BYTES = 8 << 20
"""Of its weights: so many stay together in the memory through which weights travel."""


class GEGLU(nn.Module):
    """Linear to two halves, one gating the other through GELU (Shazeer 2020)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = Linear(channels, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, inner)."""
        proj = self.proj
        if is_unobserved(x) and type(proj) is Linear and is_untouched(proj):
            out = proj(x, gate=True)
            if out.shape[-1] != proj.weight.shape[0]:  # the same where weights travel, unless they come in parts
                return out
        else:
            out = proj(x)
        value, gate = out.chunk(2, dim=-1)
        gate = F.gelu(gate)
        return gate.mul_(value) if in_place_allowed() else value * gate


class FeedForward(nn.Module):
    """GEGLU of four times the width and a linear back. `net` has a gap where training had dropout.

    On a CPU so many tokens at a time that what is between the two products, eight times the input, stays in the cache.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GEGLU(channels, 4 * channels), nn.Identity(), Linear(4 * channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        tokens = INNER_BYTES // (8 * x.shape[-1] * x.element_size())
        if tokens >= x.shape[:-1].numel() or not self._may_split(x):
            return self.net[2](self.net[0](x))
        out = x.new_empty(x.shape)
        for some, place in zip(x.flatten(0, -2).split(tokens), out.flatten(0, -2).split(tokens), strict=True):
            place.copy_(self.net[2](self.net[0](some)))
        return out

    def _may_split(self, x: Tensor) -> bool:
        """Whether calling the layers once for some tokens at a time changes nothing but the time that it takes.

        Not where heavy weights travel: they would come once for each call.
        """
        layers = self.net[0], *self.net[0].children(), self.net[2]
        travel = any("forward" in vars(layer) for layer in layers)
        if travel and sum(p.nbytes for p in self.parameters()) > LIGHT_BYTES:
            return False
        return is_host(x.device) and in_place_allowed() and all(map(is_untouched, layers))


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward, each behind a layer norm with a residual."""

    def __init__(self, channels: int, heads: int, context_dim: int, *, upcast: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads, upcast=upcast)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads, context_dim, upcast=upcast)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(
        self, x: Tensor, context: Tensor, mask: Tensor | None = None, extra: Mapping[str, Any] | None = None
    ) -> Tensor:
        """x (B, T, C) or fewer rows, context (B, S, C_context), mask (B, 1, S) of the context -> (B, T, C)."""
        x = _sum(x, self.attn1(self.norm1(x), extra=extra))
        x = _sum(x, self.attn2(self.norm2(x), context, mask, extra))
        return _sum(x, self.ff(self.norm3(x)))


def _sum(x: Tensor, y: Tensor) -> Tensor:
    """x (B or fewer, ...), repeated, + y (B, ...). What is only in a call is freed with it."""
    return repeat_rows(x, len(y)) + y


class Transformer2DModel(GradientCheckpointing):
    """Pixels to tokens, transformer blocks, tokens to pixels, with a residual (Rombach et al. 2022, app. E.2.1).

    SD1 projects in and out with 1x1 convolutions, SD2 and SDXL with linear layers on the tokens.
    """

    def __init__(
        self, channels: int, heads: int, depth: int, context_dim: int, *, groups: int, linear: bool, upcast: bool
    ) -> None:
        super().__init__()
        self.linear = linear
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, channels) if linear else Conv2d(channels, channels, 1, padding=0)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(channels, heads, context_dim, upcast=upcast) for _ in range(depth)
        )
        self.proj_out = Linear(channels, channels) if linear else Conv2d(channels, channels, 1, padding=0)

    def forward(
        self, x: Tensor, context: Tensor, mask: Tensor | None = None, extra: Mapping[str, Any] | None = None
    ) -> Tensor:
        """x (B, C, H, W) or fewer rows, context (B, S, C_context), mask (B, 1, S) of the context -> (B, C, H, W).

        With channels-last x, tokens are a view of it.
        """
        H, W = x.shape[2:]
        h = self.norm(x)
        h = h if self.linear else self.proj_in(h)
        h = h.permute(0, 2, 3, 1).flatten(1, 2)
        h = self.proj_in(h) if self.linear else h
        for block in self.transformer_blocks:
            h = self.layer(block, h, context, mask, extra)
        h = self.proj_out(h) if self.linear else h
        h = h.unflatten(1, (H, W)).permute(0, 3, 1, 2)
        h = h if self.linear else self.proj_out(h)
        return h + repeat_rows(x, len(h))
