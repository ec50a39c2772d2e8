"""Attention processors: functions of the user that compute a layer's attention, written for diffusers' layers.

A processor is called as `processor(layer, hidden_states, encoder_hidden_states=…, attention_mask=…, **arguments)`. What
it reads from the layer beside its projections is here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import AttentionBackend, backends
from ..core.errors import ConfigError

if TYPE_CHECKING:
    from .transformer import Attention


@dataclass(frozen=True)
class AttnProcessor2_0:  # noqa: N801 - the name that scripts look for
    """The default processor: computes with the layer's own kernel."""

    backend: AttentionBackend

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """hidden_states (B, T, C), encoder_hidden_states (B, S, C_context), mask (B, 1, S) added to the scores."""
        return attn.compute(hidden_states, encoder_hidden_states, attention_mask, self.backend)


@dataclass(frozen=True, eq=False)
class CustomProcessor:
    """Holds a user's processor in a layer's `backend`, so that what switches kernels restores it too."""

    processor: Callable[..., Tensor]

    @property
    def name(self) -> str:
        """The processor's class, or its name if it is a function."""
        return getattr(self.processor, "__name__", type(self.processor).__name__)

    def accepts(self, argument: str) -> bool:
        """Whether the processor takes an argument of that name."""
        call = self.processor.__call__ if isinstance(self.processor, nn.Module) else self.processor
        known = inspect.signature(call).parameters
        return argument in known or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())

    def run(
        self, layer: Attention, x: Tensor, context: Tensor | None, mask: Tensor | None, extra: Mapping[str, Any]
    ) -> Tensor:
        """The processor's answer, with the `extra` arguments that it takes."""
        own = {name: value for name, value in extra.items() if self.accepts(name)}
        return self.processor(layer, x, encoder_hidden_states=context, attention_mask=mask, **own)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise ConfigError(
            f"{self.name} is a processor of your own and computes whole layers, not heads: give the network its kernel "
            "back with set_default_attn_processor()."
        )

    def why_not(self, device: torch.device, dtype: torch.dtype) -> list[str]:
        """No known reasons: the processor is not inspected."""
        return []

    def workspace_bytes(self, batch: int, heads: int, queries: int, keys: int, itemsize: int) -> int:
        """Assumed to keep the whole score matrix, as most do."""
        return backends.get("plain").workspace_bytes(batch, heads, queries, keys, itemsize)


class WithProcessor(nn.Module):
    """What processors read from an attention layer, and how one is set. Letters: B samples, T, S tokens, nh heads."""

    spatial_norm: ClassVar[None] = None
    norm_cross: ClassVar[None] = None
    norm_q: ClassVar[None] = None
    norm_k: ClassVar[None] = None
    fused_projections: ClassVar[bool] = False
    upcast_softmax: ClassVar[bool] = False
    rescale_output_factor: ClassVar[float] = 1.0
    residual_connection: ClassVar[bool] = False
    group_norm: nn.Module | None
    heads: int
    upcast: bool
    backend: AttentionBackend
    to_q: nn.Linear
    to_k: nn.Linear

    @property
    def scale(self) -> float:
        """What scores are multiplied by: 1 / sqrt(head size)."""
        return (self.to_q.out_features // self.heads) ** -0.5

    @property
    def upcast_attention(self) -> bool:
        """Whether scores are computed in float32."""
        return self.upcast

    @property
    def sliceable_head_dim(self) -> int:
        """Heads that can be computed in slices."""
        return self.heads

    @property
    def cross_attention_dim(self) -> int:
        """Width of the context."""
        return self.to_k.in_features

    @property
    def processor(self) -> Any:
        """What computes: the processor that was set, or one that stands for the layer's kernel."""
        return self.backend.processor if isinstance(self.backend, CustomProcessor) else AttnProcessor2_0(self.backend)

    def get_processor(self) -> Any:
        """See `processor`."""
        return self.processor

    def set_processor(self, processor: Callable[..., Tensor]) -> None:
        """Compute with `processor` from now on. One with weights becomes a part of the network."""
        if not callable(processor):
            raise ConfigError(
                f"{processor!r} is not an attention processor: it must be callable, as processor(layer, x, …)."
            )
        self._modules.pop("processor", None)
        if isinstance(processor, AttnProcessor2_0):
            self.backend = processor.backend
            return
        if isinstance(processor, nn.Module):
            self._modules["processor"] = processor
        self.backend = CustomProcessor(processor)

    def prepare_attention_mask(
        self, attention_mask: Tensor | None, target_length: int, batch_size: int, out_dim: int = 3
    ) -> Tensor | None:
        """Mask (B, T or 1, S), added to the scores, -> (B * nh, T or 1, S), or (B, nh, T or 1, S) with `out_dim` 4.

        A mask of another length than `target_length` gets that many columns of zeros.
        """
        if attention_mask is None:
            return None
        if attention_mask.shape[-1] != target_length:
            attention_mask = F.pad(attention_mask, (0, target_length))
        if out_dim == 4:
            return attention_mask[:, None].repeat_interleave(self.heads, dim=1)
        if attention_mask.shape[0] < batch_size * self.heads:
            return attention_mask.repeat_interleave(self.heads, dim=0)
        return attention_mask

    def head_to_batch_dim(self, tensor: Tensor, out_dim: int = 3) -> Tensor:
        """(B, T, nh * hs) -> (B * nh, T, hs), or (B, nh, T, hs) with `out_dim` 4."""
        heads = tensor.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return heads.flatten(0, 1) if out_dim == 3 else heads

    def batch_to_head_dim(self, tensor: Tensor) -> Tensor:
        """(B * nh, T, hs) -> (B, T, nh * hs)."""
        return tensor.unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2)

    def get_attention_scores(self, query: Tensor, key: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """query (B * nh, T, hs), key (B * nh, S, hs) -> the weights of values (B * nh, T, S), which sum up to 1."""
        dtype = query.dtype
        if self.upcast:
            query, key = query.float(), key.float()
        scores = (query * self.scale) @ key.transpose(-1, -2)
        return (scores if attention_mask is None else scores + attention_mask).softmax(dim=-1).to(dtype)


def attention_layers(network: nn.Module) -> Iterator[tuple[str, Attention]]:
    """Every attention layer of a network with its name, in order of declaration."""
    layers = ((name, module) for name, module in network.named_modules() if isinstance(module, WithProcessor))
    return cast("Iterator[tuple[str, Attention]]", layers)


def processors_of(network: nn.Module) -> dict[str, Any]:
    """'<layer>.processor' -> what computes it."""
    return {f"{name}.processor": layer.processor for name, layer in attention_layers(network)}


def set_processors(network: nn.Module, processor: Callable[..., Tensor] | Mapping[str, Callable[..., Tensor]]) -> None:
    """One processor for every layer, or one for each name of `processors_of`. ConfigError before anything changes."""
    layers = {f"{name}.processor": layer for name, layer in attention_layers(network)}
    if not isinstance(processor, Mapping):
        processor = dict.fromkeys(layers, processor)
    if len(processor) != len(layers):
        raise ConfigError(
            f"the number of processors ({len(processor)}) is not that of attention layers ({len(layers)}): give one "
            "for each name of attn_processors, or one for all."
        )
    if strange := processor.keys() - layers.keys():
        raise ConfigError(f"there is no attention layer {min(strange)!r}: the names are those of attn_processors.")
    for name, layer in layers.items():
        layer.set_processor(processor[name])


def check_arguments(network: nn.Module, arguments: Mapping[str, Any]) -> None:
    """ConfigError for attention arguments that no processor of the network takes."""
    own = [layer.backend for _, layer in attention_layers(network) if isinstance(layer.backend, CustomProcessor)]
    unused = [name for name in arguments if not any(processor.accepts(name) for processor in own)]
    if unused:
        raise ConfigError(
            f"no attention processor of this network takes {', '.join(unused)} (cross_attention_kwargs): leave out "
            "what would be ignored, or set a processor that takes it with set_attn_processor."
        )
