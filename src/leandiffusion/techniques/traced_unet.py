"""A traced UNet: torch.jit records its operations once and replays them without Python."""

from __future__ import annotations

import io
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from weakref import finalize, ref

import torch
from torch import Tensor, nn

from ..core.aside import aside
from ..core.errors import ConfigError
from ..core.flag import Flag
from ..core.fork import Lock
from ..core.notices import warn
from ..modules.processors import CustomProcessor
from ..modules.unet import UNet2DConditionModel, UNet2DConditionOutput
from ..weights.load import origin_of
from ..weights.residence import read_weights
from . import graphs, techniques
from .base import Exactness, Phase, Price, Technique
from .hooks import Undo
from .subject import Subject
from .switchable import Switchable

MOST_KEPT = 4
"""Graphs of one UNet that are kept while none of them is in use."""

_TRACING = Lock()  # torch.jit.trace keeps its state in a global, and writing a graph empties its weights


@techniques.register("traced_unet")
@dataclass(frozen=True)
class TracedUNet(Technique):
    """Traces the UNet at the first shape that it is called with. Other shapes run as before, with a warning.

    `path` is a file that keeps the recorded graph, without weights: it is read when it was made for the same network,
    shapes, dtype and torch, and otherwise written. Without it the graph lives as long as the UNet, and is used again.
    ConfigError for a `path` that is neither text nor a Path.
    """

    path: str | Path | None = None

    name: ClassVar[str] = "traced_unet"
    title: ClassVar[str] = "Traced UNet"
    phase: ClassVar[Phase] = Phase.GRAPH
    exactness: ClassVar[Exactness] = Exactness.EXACT
    calls: ClassVar[tuple[str, ...]] = ("enable_traced_unet(path=None)",)
    flag: ClassVar[Flag] = Flag("--trace", "Run a traced UNet.")
    refuses: ClassVar[tuple[str, ...]] = ("sequential_offload", "model_offload", "compile")
    price: ClassVar[Price] = Price(
        saves="What Python costs per step: some milliseconds, which count on fast GPUs and small pictures.",
        costs="Some seconds before the first step, unless path holds the graph. One size of picture at a time.",
        use="Many pictures of one size where torch.compile does not work.",
        refuses="A trace fixes where weights are, so they cannot travel, and there is nothing left to compile in it.",
    )

    def __post_init__(self) -> None:
        if not isinstance(self.path, str | os.PathLike | None):
            raise ConfigError(f"path={self.path!r}: name a file to keep the graph in, or None to keep it in memory.")

    def why_not(self, subject: Subject) -> list[str]:
        if not isinstance(subject.denoiser, UNet2DConditionModel | Traced):
            return [f"the UNet is a {type(subject.denoiser).__name__}, expected leandiffusion's UNet2DConditionModel"]
        return []

    def apply(self, subject: Subject) -> Undo:
        traced = Traced(subject.denoiser, None if self.path is None else Path(self.path).expanduser())
        replaced, mine = subject.replace(subject.denoiser_name, traced), ref(traced)

        def undo() -> None:
            if (traced := mine()) is not None:
                traced.let_go()
            replaced()

        return undo


class TracedUNetMethods(Switchable):
    """Methods of the pipelines."""

    def enable_traced_unet(self, path: str | Path | None = None) -> None:
        """Run a traced UNet, from the file if one for this model, shape and dtype is there, else traced and saved."""
        self.enable("traced_unet", path=path)


class Traced(nn.Module):
    """Stands for `unet` and runs its trace where the inputs have the shapes of the first call."""

    def __init__(self, unet: UNet2DConditionModel, path: Path | None) -> None:
        super().__init__()
        self.unet = unet
        self.path = path
        self._graph: Any = None
        self._key: str | None = None
        self._finalizer: finalize[..., Any] | None = None
        self._fits: object = None  # what the last call that the graph fitted was like
        self._switched = graphs.switched(unet)
        self._lora: object = None  # what adapters added when the graph was taken up
        self._warned: set[str] = set()
        self.train(unet.training)

    def __getattr__(self, name: str) -> Any:
        """What the UNet has: its settings, and what switches it."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or name == "unet":
                raise
            return getattr(self.unet, name)

    @property
    def _origin(self) -> Any:
        return origin_of(self.unet)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        timestep_cond: Tensor | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        return_dict: bool = True,
        **others: Any,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """As `UNet2DConditionModel.forward`; calls with anything else than these inputs are not traced."""
        added = dict(added_cond_kwargs or {})
        inputs = {
            "sample": sample,
            "timestep": torch.as_tensor(timestep, device=sample.device),
            "encoder_hidden_states": encoder_hidden_states,
            **({} if timestep_cond is None else {"timestep_cond": timestep_cond}),
            **added,
        }
        if not others and self._have_graph(inputs):
            x = self._graph(*inputs.values())
        else:
            x = graphs.run(self.unet, inputs, **others)
        return UNet2DConditionOutput(sample=x) if return_dict else (x,)

    def _have_graph(self, inputs: Mapping[str, Tensor]) -> bool:
        """Whether the graph fits the inputs; it is read or made if there is none yet."""
        call = (
            *((name, x.shape, x.dtype) for name, x in inputs.items()),
            self.dtype, self.device.type, *(getattr(module, name) for module, name in self._switched),
        )  # fmt: skip
        if call == self._fits:  # describing it takes a millisecond, which a step on a fast GPU would feel
            return True
        if any(isinstance(getattr(module, name), CustomProcessor) for module, name in self._switched):
            self._warn_once(
                "an attention processor of your own may do something else each time, which a trace would not: such "
                "calls run untraced. set_default_attn_processor() gives the network its kernel back."
            )
            return False
        key = graphs.describe(self.unet, inputs)
        if self._key is not None and self._lora != self.unet.lora:
            self.let_go()  # adapters came or went: trace for them
        with _TRACING:
            if self._key is None:
                self._graph = self._take_up(key, inputs)
                self._key, self._lora = key, self.unet.lora
        if key == self._key:
            self._fits = call
        else:
            made_for, called = graphs.shapes_of(self._key), graphs.shapes_of(key)
            self._warn_once(
                f"the UNet was traced for {made_for} and is called with {called}: such "
                "calls run untraced. Switch traced_unet on anew to trace for them instead."
            )
        return key == self._key

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=3)

    def _take_up(self, key: str, inputs: Mapping[str, Tensor]) -> Any:
        """The graph for this key with the UNet's own weights: kept from before, read, or recorded now."""
        read_weights([self.unet])
        kept = graphs.kept_graphs.setdefault(self.unet, {})
        if key not in kept:
            graph = self._read(key)
            if graph is None:
                recorded = graphs.record(self.unet, key, inputs)
                graph = graphs.load(io.BytesIO(recorded), self.device)[0]
                self._write(recorded)
            for old in [k for k, each in kept.items() if not list(each.users)][: max(len(kept) - MOST_KEPT + 1, 0)]:
                del kept[old]
            kept[key] = graphs.Kept(graph)
        elif self.path is not None and self._read(key) is None:
            self._write(graphs.record(self.unet, key, inputs))
        own = dict(self.unet.named_parameters(remove_duplicate=False))
        graphs.give_weights(kept[key].graph, own)
        kept[key].users.add(self)
        self._finalizer = finalize(self, graphs.let_go, kept[key], ref(self))
        self._finalizer.atexit = False
        return kept[key].graph

    def let_go(self) -> None:
        """Take the graph's weights away if nobody else runs it; it is kept for the next time."""
        with _TRACING:
            if self._finalizer is not None:
                self._finalizer()
            self._graph = self._key = self._fits = self._finalizer = None

    def _write(self, recorded: bytes) -> None:
        path = self.path
        if path is None:
            return
        try:
            with aside(path) as place:
                place.write_bytes(recorded)
                os.replace(place, path)
        except OSError as error:
            why = error.strerror or error
            warn(f"the traced UNet could not be written to {path} ({why}). Going on without.")

    def _read(self, key: str) -> Any:
        """The graph that `path` holds for this key, with the UNet's own weights; None when there is none."""
        if self.path is None or not self.path.exists():
            return None
        try:
            graph, stored = graphs.load(str(self.path), self.device)
            if stored == key:
                graphs.check_weights(graph, self.unet)
                return graph
            reason = "was made for another network, shape, dtype or torch"
        except (OSError, RuntimeError, ValueError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
            reason = f"is not a traced UNet ({str(error).strip().splitlines()[0]})"
        warn(f"{self.path} {reason}: tracing anew, and replacing it.")
        return None
