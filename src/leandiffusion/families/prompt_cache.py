"""Embeddings of texts, kept for the next call with the same words: the text encoder need not run, nor its weights come.

What is kept counts only as long as the encoder is what it was: the same weights, the same layers, the same settings.
It is for encoders whose weights are on disk, where offloading leaves them: nobody writes to them there unnoticed, and
reading them is what takes time. In memory they can be, through `tensor.data`, say, which torch does not count.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from ..core.fork import Lock
from ..device.capabilities import fewer_bits
from ..modules.lora import call_scale
from ..modules.text import CLIPTextModel
from ..weights.residence import is_waiting
from ..weights.stored import StoredTensor
from .encode import encode_text

LIMIT = 16 << 20
"""Bytes of host memory that a pipeline's cache takes at most: about 70 prompts of SD1 or 19 of SDXL, in float32."""

_OURS = __name__.partition(".")[0]
_marks = itertools.count()


@dataclass(frozen=True, eq=False)
class _Kept:
    encoder: ref[nn.Module]
    state: list[Any]
    outputs: tuple[Tensor, Tensor]
    device: torch.device

    @property
    def nbytes(self) -> int:
        return sum(output.nbytes for output in {id(output): output for output in self.outputs}.values())


class PromptCache:
    """What text encoders made of the latest texts, up to `limit` bytes in all. Copies begin empty."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._kept: OrderedDict[Any, _Kept] = OrderedDict()
        self._lock = Lock()

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.clear()

    def encode(
        self, text_encoder: Any, ids: Tensor, *, clip_skip: int | None = None, penultimate: bool = False
    ) -> tuple[Tensor, Tensor]:
        """As `encode_text`, from what is kept where that is the same to the last bit."""
        how = {"clip_skip": clip_skip, "penultimate": penultimate}
        if not _can_keep(text_encoder, ids) or is_waiting(text_encoder):  # its first use brings its weights to memory
            return encode_text(text_encoder, ids, **how)
        key, state = _key(text_encoder, ids, how), _state(text_encoder)
        if found := self._find(key, text_encoder, state):
            return found
        hidden, first = encode_text(text_encoder, ids, **how)
        kept = _copy(hidden)
        self._keep(
            key, _Kept(ref(text_encoder), state, (kept, kept if first is hidden else _copy(first)), hidden.device)
        )
        return hidden, first

    def _find(self, key: Any, text_encoder: nn.Module, state: list[Any]) -> tuple[Tensor, Tensor] | None:
        with self._lock:
            kept = self._kept.get(key)
            if kept is None or kept.encoder() is not text_encoder or not _same(kept.state, state):
                return None
            self._kept.move_to_end(key)
        hidden, first = (output.to(kept.device, copy=True) for output in kept.outputs)
        return hidden, first

    def _keep(self, key: Any, made: _Kept) -> None:
        if made.nbytes > self.limit:
            return
        with self._lock:
            for other, kept in list(self._kept.items()):  # what an encoder made before it changed is of no use
                if kept.encoder() is None or (kept.encoder() is made.encoder() and not _same(kept.state, made.state)):
                    del self._kept[other]
                elif kept.encoder() is made.encoder():
                    made = _Kept(made.encoder, kept.state, made.outputs, made.device)  # one list for all
            self._kept[key] = made
            self._kept.move_to_end(key)
            while sum(kept.nbytes for kept in self._kept.values()) > self.limit:
                self._kept.popitem(last=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> PromptCache:
        return PromptCache(self.limit)

    def __reduce__(self) -> Any:
        return PromptCache, (self.limit,)


def _copy(output: Tensor) -> Tensor:
    return output.detach().to("cpu", copy=True)


def _can_keep(text_encoder: Any, ids: Tensor) -> bool:
    """Whether this encoder's output depends on nothing but its ids and what `_state` tells of."""
    own = isinstance(text_encoder, CLIPTextModel) and not text_encoder.training and type(ids) is Tensor
    if not own or torch.is_grad_enabled() or torch.is_autocast_enabled(text_encoder.device.type):
        return False
    if not all(isinstance(weight, StoredTensor) and weight.on_disk for weight in text_encoder.parameters()):
        return False
    shared = nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks
    return not shared and not any(map(_is_watched, text_encoder.modules()))


def _is_watched(module: nn.Module) -> bool:
    """Whether somebody else looks on when the module runs, or runs something in its place."""
    forward = vars(module).get("forward")
    while forward is not None and _is_own(forward):
        forward = getattr(forward, "inner", None)
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return forward is not None or module._compiled_call_impl is not None or not all(map(_is_own, hooks))


def _is_own(function: Any) -> bool:
    where = getattr(function, "__module__", None) or type(function).__module__
    return str(where).partition(".")[0] == _OURS


def _key(text_encoder: Any, ids: Tensor, how: dict[str, Any]) -> Any:
    device = torch.device(text_encoder.device)
    precision = [owner.fp32_precision for owner in fewer_bits(device)[0]]  # torch's old name for it raises where mixed
    precision.append(torch.are_deterministic_algorithms_enabled())
    settings = *how.values(), str(device), *precision, torch.get_num_threads(), call_scale()
    return id(text_encoder), settings, tuple(ids.shape), tuple(ids.flatten().tolist())


def _state(network: nn.Module) -> list[Any]:
    """What a network's output follows from: its modules, their settings, and the identity and version of tensors."""
    state: list[Any] = []
    for module in network.modules():
        tensors = (*module._parameters.values(), *module._buffers.values())
        settings = {name: value for name, value in vars(module).items() if not name.startswith("_")}
        kept = {name: _identity(value) if isinstance(value, Tensor) else value for name, value in settings.items()}
        state.append((type(module).forward, kept, [_identity(tensor) for tensor in tensors if tensor is not None]))
    return state


def _same(one: list[Any], other: list[Any]) -> bool:
    try:
        return one is other or bool(one == other)
    except (TypeError, ValueError, RuntimeError):  # settings of somebody else's, which do not say whether they differ
        return False


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Another for each tensor object, for each other tensor that it becomes, and for each write that torch counts."""
    mark = vars(tensor).get("_mark")
    if mark is None:
        mark = tensor._mark = next(_marks)  # type: ignore[attr-defined]
    if isinstance(tensor, StoredTensor):
        value = tensor.held.value
        return id(tensor), mark, tensor.dtype, -1 if value is None else _version(value)
    return id(tensor), mark, tensor.dtype, _version(tensor), tensor.data_ptr()


def _version(tensor: Tensor) -> int:
    return next(_marks) if tensor.is_inference() else tensor._version  # those of inference mode count no writes
