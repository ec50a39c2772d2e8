"""Perturbed-attention guidance (Ahn et al. 2024): away from what the UNet predicts with less self-attention."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..core.errors import ConfigError
from ..modules.blocks import repeat_rows
from ..modules.perturbed import Perturbed
from ..modules.processors import CustomProcessor, attention_layers
from ..modules.text_memory import TextMemory, current_memory, remembering
from .guidance import is_ours
from .inputs import check_number
from .rows import taken

if TYPE_CHECKING:
    from ..modules.transformer import Attention
    from .run import Run, UNetCall

STEADY = ("encoder_hidden_states", "timestep_cond", "added_cond_kwargs")
"""Inputs of the UNet that are the same at every step."""


@dataclass(frozen=True)
class PerturbedAttention:
    """`scale` of the guidance, and the `layers` whose self-attention is left out for it: parts of names, or regular
    expressions. `adaptive_scale` times the steps of training that are past is taken off the scale, down to 0.

    ConfigError for scales that are no numbers of 0 or more, and for layers that are no texts.
    """

    scale: float = 3.0
    layers: tuple[str, ...] = ("mid",)
    adaptive_scale: float = 0.0

    def __post_init__(self) -> None:
        for name in ("scale", "adaptive_scale"):
            check_number(f"perturbed attention's {name}", getattr(self, name), 0, 1000)
        for pattern in self.layers:
            try:
                re.compile(pattern)
            except (TypeError, re.error) as error:
                raise ConfigError(
                    f"perturbed attention's layers={pattern!r}: {error}. Give parts of layers' names, such as 'mid' or "
                    "'up_blocks.1'."
                ) from None
        if not self.layers:
            raise ConfigError("perturbed attention has no layers: give parts of their names, such as 'mid'.")

    def layers_of(self, unet: Any) -> frozenset[Attention]:
        """The layers of self-attention that are meant. ConfigError for a pattern that meets none, for a UNet that is
        not ours, and for layers that somebody's processor computes."""
        own = {name: layer for name, layer in attention_layers(unet) if name.endswith("attn1")}
        if not own:
            raise ConfigError(
                f"the UNet is a {type(unet).__name__} without self-attention of this library: perturbed attention "
                "works with UNet2DConditionModel."
            )
        found: set[Attention] = set()
        for pattern in self.layers:
            meant = {name: layer for name, layer in own.items() if re.search(pattern, name)}
            if not meant:
                parts = dict.fromkeys(name.partition(".transformer_blocks")[0] for name in own)
                raise ConfigError(f"no self-attention of this UNet is called {pattern!r}: it is in {', '.join(parts)}.")
            for name, layer in meant.items():
                if isinstance(layer.backend, CustomProcessor):
                    raise ConfigError(
                        f"{name} computes with {layer.backend.name}, a processor of your own, which cannot be "
                        "perturbed: set_default_attn_processor(), or choose other layers."
                    )
            found |= {*meant.values()}
        return frozenset(found)


class Perturbation:
    """Calls the UNet for one run with a further sample for each picture, whose self-attention is perturbed."""

    def __init__(self, settings: PerturbedAttention) -> None:
        self.settings = settings
        self._times: list[float] | None = None
        self._unet: Any = None
        self._layers: frozenset[Attention] = frozenset()
        self._seen: list[Any] = []  # the steady inputs, and what was made of them
        self._made: dict[str, Any] = {}
        self._memory: TextMemory | None = None  # the run's, and the one of the longer batch
        self._own: TextMemory | None = None

    def scale_at(self, run: Run, i: int) -> float:
        """The scale of step i."""
        scale, slope = self.settings.scale, self.settings.adaptive_scale
        if not slope:
            return scale
        if self._times is None:
            self._times = [float(t) for t in run.timesteps]  # read once: the device would be waited for at each step
        return max(scale - slope * (1000 - self._times[i]), 0.0)

    def predict(self, call: UNetCall, run: Run, given: Tensor, i: int, inputs: Mapping[str, Any]) -> Tensor:
        """What `call` predicts (B or 2B, …), with the difference to the perturbed prediction added to each row, so that
        what classifier-free guidance makes of them has it once."""
        scale = self.scale_at(run, i)
        if not scale:
            return call(run, given, i, inputs)
        unet = run.model.unet
        if unet is not self._unet:
            self._unet, self._layers = unet, self.settings.layers_of(unet)
        pictures, rows = run.shape[0], len(inputs["encoder_hidden_states"])
        order = [*range(rows), *range(rows - pictures, rows)]  # the conditional rows once more
        others = {name: value for name, value in inputs.items() if name not in STEADY}
        longer = {
            **self._steady(inputs, rows, order), **taken(others, rows, order),
            "perturbed": Perturbed(self._layers, pictures),
        }  # fmt: skip
        with remembering(self._memory_of(longer["encoder_hidden_states"])):
            made = call(run, given if is_ours(unet) and len(given) == pictures else given[order], i, longer)
        usual, perturbed = made[:rows], made[rows:]
        return usual + repeat_rows(scale * (usual[-pictures:] - perturbed), rows)

    def _steady(self, inputs: Mapping[str, Any], rows: int, order: list[int]) -> dict[str, Any]:
        """The steady inputs for the longer batch: the same objects as long as they are made of the same."""
        given = {name: inputs[name] for name in STEADY if name in inputs}
        tensors = [t for v in given.values() for t in (v.values() if isinstance(v, Mapping) else [v])]
        seen = [each for t in tensors for each in (t, None if t.is_inference() else t._version)]
        same = len(seen) == len(self._seen) and all(
            a is b or (not isinstance(a, Tensor) and a == b) for a, b in zip(seen, self._seen, strict=True)
        )
        if not same:
            self._seen, self._made = seen, taken(given, rows, order)
        return self._made

    def _memory_of(self, text: Tensor) -> TextMemory | None:
        """Keys and values of the longer batch's text, for as long as the run keeps those of its own."""
        memory = current_memory()
        if memory is None:
            return None
        if self._own is None or self._own.text is not text or memory is not self._memory:
            self._memory, self._own = memory, memory.derived(text)
        return self._own
