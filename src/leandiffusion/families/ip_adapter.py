"""IP-Adapters: files that let a UNet attend to pictures as it does to texts (Ye et al. 2023).

A file holds `image_proj.*`, which makes tokens of a picture's embedding, and `ip_adapter.N.to_k_ip.weight` and
`.to_v_ip.weight`, keys and values of these tokens for each layer that attends to the text. N counts all of diffusers'
attention layers (down, up, middle), so that those of the text are 1, 3, 5, …

The weights stay in the file. Tokens, keys and values do not depend on the step, so they are made once for a drawing, a
layer at a time, and the UNet is given them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import CheckpointNotFound, ConfigError, NotSupported, TensorMismatch, UnsafeFormat
from ..core.hub import check_hub_id, fetch_file, local_path
from ..modules.image_projection import Projection, projection_of
from ..modules.processors import attention_layers
from ..run.image_prompt import KeysAndValues
from ..weights.build import build_empty, put_tensor
from ..weights.header import PICKLE_SUFFIXES, read_header
from ..weights.kinds import IP_ADAPTER, mistaken
from ..weights.opened import OpenFile, stamp_of
from ..weights.source import Source

CONVERT = (
    "python -c \"import torch, safetensors.torch as s; d = torch.load('IN', weights_only=True); s.save_file({p + '.' + "
    "k: v.contiguous() for p, part in d.items() for k, v in part.items()}, 'OUT.safetensors')\""
)

WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}
"""Families by the width of the text that their UNet attends to."""

_NAMES = re.compile(r"ip_adapter\.(\d+)\.to_([kv])_ip\.weight")


@dataclass(frozen=True, eq=False)
class IPAdapter:
    """A file's tensors: of the projection by name, and key and value weights of each layer in order."""

    where: str
    projection: Mapping[str, Source]
    layers: tuple[tuple[Source, Source], ...]

    @property
    def context(self) -> int:
        """Width of the tokens."""
        return self.layers[0][0].shape[1]

    def empty(self) -> Projection:
        """The projection without weights. TensorMismatch where the tensors are those of none."""
        shapes = {name: source.shape for name, source in self.projection.items()}
        try:
            built = build_empty(lambda: projection_of(shapes))  # type: ignore[type-var]
        except (KeyError, ValueError, IndexError, RuntimeError):
            built = None
        wanted = {} if built is None else {name: tuple(p.shape) for name, p in built.named_parameters()}
        if built is None or wanted != shapes:
            odd = sorted(name for name in {*wanted, *shapes} if wanted.get(name) != shapes.get(name))
            raise TensorMismatch(
                f"{self.where}: its image_proj is none that is known (plain, Plus or full face); see "
                f"{', '.join(odd[:3])}. The file is damaged, or of another kind."
            )
        return built


def find_ip_adapter(
    path_or_id: str | Path, *, weight_name: str | None = None, subfolder: str | None = None, **hub: Any
) -> Path:
    """The .safetensors file that is meant: the path itself, or `weight_name` in `subfolder` of a folder or of a
    repository on the hub. CheckpointNotFound where it is not, UnsafeFormat for pickles."""
    path = local_path(path_or_id)
    if path.is_file():
        return _safe(path)
    if weight_name is None:
        raise CheckpointNotFound(
            f"{path_or_id} is not a file: give an IP-Adapter's .safetensors file, or a folder or hub id with "
            "weight_name, such as subfolder='models', weight_name='ip-adapter_sd15.safetensors'."
        )
    if not isinstance(weight_name, str) or Path(weight_name).is_absolute():
        raise ConfigError(f"weight_name={weight_name!r}: give the name of a file inside of the folder or repository.")
    _safe(Path(weight_name))
    if path.is_dir():
        file = path / (subfolder or "") / weight_name
        if not file.is_file():
            raise CheckpointNotFound(f"{file} does not exist: see subfolder and weight_name.")
        return file
    check_hub_id(str(path_or_id))
    return fetch_file(str(path_or_id), lambda names: weight_name, usual=weight_name, subfolder=subfolder, **hub)


def _safe(path: Path) -> Path:
    if path.suffix in PICKLE_SUFFIXES:
        raise UnsafeFormat(
            f"{path} is a pickle, which can run any code and is refused. Take the .safetensors file of the same "
            f"adapter, or convert one that you trust: {CONVERT}"
        )
    return path


def read_ip_adapter(source: Path | Mapping[str, Any]) -> IPAdapter:
    """The adapter in a .safetensors file, of which only the header is read, or in a state dict, nested or flat.

    Raises TensorMismatch for tensors that are no IP-Adapter's, NotSupported for Face ID, and what reading headers does.
    """
    if isinstance(source, Mapping):
        where, tensors = "the state dict", dict(_flat(source))
    else:
        header, file = read_header(source), OpenFile.at(source, stamp_of(source))
        where, tensors = str(source), {name: Source(entry, file) for name, entry in header.entries.items()}
    if other := mistaken(where, tensors, IP_ADAPTER):
        raise TensorMismatch(other)
    projection = {n.removeprefix("image_proj."): t for n, t in tensors.items() if n.startswith("image_proj.")}
    faces = {"norm.weight", "proj.0.weight"} <= {*projection} or any("lora" in name for name in tensors)
    if faces or any(name.startswith("perceiver_resampler") for name in projection):
        raise NotSupported(
            f"{where} is a Face ID adapter, which reads what a face recognizer makes of a picture, and these are not "
            "supported: use a plain, Plus or full-face one."
        )
    parts: dict[int, dict[str, Source]] = {}
    unknown = []
    for name, tensor in tensors.items():
        if match := _NAMES.fullmatch(name):
            parts.setdefault(int(match[1]), {})[match[2]] = tensor
        elif not name.startswith("image_proj."):
            unknown.append(name)
    if not projection or not parts or unknown or any(len(part) < 2 for part in parts.values()):
        some = ", ".join((unknown or list(tensors))[:3])
        raise TensorMismatch(
            f"{where} is no IP-Adapter: expected tensors image_proj.… and ip_adapter.1.to_k_ip.weight, …to_v_ip.weight "
            f"and so on; it holds {some or 'nothing'}."
        )
    for number, part in parts.items():
        if any(len(each.shape) != 2 or not each.dtype.is_floating_point for each in part.values()):
            raise TensorMismatch(f"{where}: ip_adapter.{number} holds no matrices of numbers. Download it again.")
    return IPAdapter(where, projection, tuple((parts[n]["k"], parts[n]["v"]) for n in sorted(parts)))


def _flat(source: Mapping[str, Any]) -> Any:
    """Tensors by their full names, of a dict of tensors or of dicts of these."""
    for name, value in source.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            yield name, Source(tensor=value)
        elif isinstance(name, str) and isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", each) for inner, each in _flat(value))
        else:
            raise ConfigError(f"a state dict of an IP-Adapter has tensors by name; {name!r} is none of them.")


def text_layers(unet: nn.Module) -> dict[str, Any]:
    """The layers that attend to the text by name, in the order in which files have them: down, up, middle."""
    layers = {name: layer for name, layer in attention_layers(unet) if name.endswith("attn2")}
    return {
        name: layer for way in ("down_blocks.", "up_blocks.", "mid_block.") for name, layer in layers.items()
        if name.startswith(way)
    }  # fmt: skip


def check_fit(adapter: IPAdapter, unet: nn.Module) -> Projection:
    """The projection without weights, if the adapter is for this UNet: TensorMismatch, saying what it is for."""
    layers = text_layers(unet)
    width = next((layer.cross_attention_dim for layer in layers.values()), None)
    if width != adapter.context:
        raise TensorMismatch(
            f"{adapter.where} is an IP-Adapter for {_family(adapter.context)}, and this model is {_family(width)}: use "
            "one that was trained for it."
        )
    projection = adapter.empty()
    wanted = [(layer.to_k.out_features, layer.to_k.in_features) for layer in layers.values()]
    found = [each.shape for pair in adapter.layers for each in pair]
    if found != [shape for shape in wanted for _ in range(2)] or projection.widths[1] != width:
        raise TensorMismatch(
            f"{adapter.where} has keys and values for {len(adapter.layers)} layers, and they do not fit the "
            f"{len(layers)} of this UNet that attend to the text: it was trained for another model."
        )
    return projection


def check_encoder(adapter: IPAdapter, projection: Projection, config: Any) -> None:
    """TensorMismatch where an image encoder of that config is not the one that the adapter was trained with."""
    made = config.hidden_size if projection.sees_tokens else config.projection_dim
    if made != projection.widths[0]:
        raise TensorMismatch(
            f"{adapter.where} reads {'tokens' if projection.sees_tokens else 'embeddings'} of width "
            f"{projection.widths[0]}, and this image encoder makes such of width {made}: use the encoder that the "
            "adapter was trained with (image_encoder_folder=…)."
        )


@torch.no_grad()
def look(
    adapter: IPAdapter, unet: nn.Module, embeds: Tensor, dtype: torch.dtype, device: torch.device
) -> KeysAndValues:
    """What each layer attends to of pictures' embeddings, (R, n, D) or (R, n, T, D), n pictures for each row."""
    projection = adapter.empty()
    for name, source in adapter.projection.items():
        put_tensor(projection, [name], source.read(dtype, device))
    tokens = projection(embeds.to(device, dtype).flatten(0, 1))
    tokens = tokens.unflatten(0, embeds.shape[:2]).flatten(1, 2)  # (R, n * S, C)
    made = {}
    for name, pair in zip(text_layers(unet), adapter.layers, strict=True):
        k, v = (tokens @ source.read(dtype, device).T for source in pair)
        made[name] = k, v
    return made


def _family(width: int | None) -> str:
    return WIDTHS.get(width or 0, f"a model whose UNet reads texts of width {width}")
