"""MultiControlNetModel: several ControlNets as one component of a pipeline, in folders side by side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..core.errors import CheckpointNotFound, ConfigError
from ..core.hub import local_path
from ..core.replacing import Replacement, finish_saving
from ..weights.files import stale_weights
from .controlnet import ControlNetModel, ControlNetOutput


class MultiControlNetModel(nn.Module):
    """Several ControlNets, whose contributions are added up. It is what a pipeline makes of a list.

    On disk the first lies in a folder such as 'controlnet', the others beside it in 'controlnet_1' and so on, as
    diffusers has it.
    """

    member: ClassVar[type[ControlNetModel]] = ControlNetModel

    def __init__(self, controlnets: Sequence[ControlNetModel]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(controlnets)

    @property
    def dtype(self) -> torch.dtype:
        """That of the first one's weights."""
        return self.nets[0].dtype  # type: ignore[return-value]

    @property
    def device(self) -> torch.device:
        """That of the first one's weights."""
        return self.nets[0].device  # type: ignore[return-value]

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        controlnet_cond: Sequence[Tensor],
        conditioning_scale: Sequence[float],
        return_dict: bool = True,
        **inputs: Any,
    ) -> ControlNetOutput | tuple[list[Tensor], Tensor]:
        """The sum of what they make, each of its own picture of `controlnet_cond` and times its own scale.

        All else is given to each: see `ControlNetModel.forward`. ConfigError for other numbers of pictures or scales
        than of ControlNets.
        """
        if not len(controlnet_cond) == len(conditioning_scale) == len(self.nets):
            raise ConfigError(
                f"{len(self.nets)} ControlNets need as many pictures and scales: found {len(controlnet_cond)} in "
                f"controlnet_cond and {len(conditioning_scale)} in conditioning_scale."
            )
        down: list[Tensor] = []
        middle: Tensor | None = None
        for net, picture, scale in zip(self.nets, controlnet_cond, conditioning_scale, strict=True):
            others, other = net(
                sample, timestep, encoder_hidden_states, picture, scale, return_dict=False, **inputs
            )  # fmt: skip
            down = [a + b for a, b in zip(down, others, strict=True)] if down else list(others)
            middle = other if middle is None else middle + other
        assert middle is not None
        return ControlNetOutput(down, middle) if return_dict else (down, middle)

    # -- folders -----------------------------------------------------------------------------------------------------

    @classmethod
    def member_folders(cls, first: Path) -> list[Path]:
        """The folders of those that were saved at `first`. CheckpointNotFound where one between them is not there."""
        if not first.is_dir():
            raise CheckpointNotFound(f"no such folder: {first}. Expected a ControlNet there, others in {first}_1 …")
        found = [first, *_behind(first).values()]
        expected = [first, *(_numbered(first, i) for i in range(1, len(found)))]
        if absent := [path for path in expected if path not in found]:
            raise CheckpointNotFound(
                f"{absent[0]} is not there, and {found[-1].name} is: download it again, or remove what others left."
            )
        return expected

    def placed(self, first: Path) -> dict[Path, ControlNetModel]:
        """Where each belongs when they are saved at `first`. ConfigError where a folder of more than these would be
        taken for another one."""
        nets = list(self.nets)
        if surplus := [path for number, path in _behind(first).items() if number >= len(nets)]:
            raise ConfigError(
                f"{surplus[0]} is left of another save and would be taken for one of these {len(nets)} ControlNets: "
                "remove it, or save to another folder."
            )
        return {_numbered(first, i): net for i, net in enumerate(nets)}  # type: ignore[misc]

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
    ) -> None:
        """Write the first one's config and weights to the folder, the others' beside it, all of them or nothing.

        Raises as `ControlNetModel.save_pretrained`, and ConfigError where a folder of more than these is there.
        """
        if not safe_serialization:
            raise ConfigError("safe_serialization=False asks for pickled weights, which are not written: leave it out.")
        first = Path(save_directory).absolute()
        placed = self.placed(first)
        with Replacement(first.parent, partial(stale_weights, variant=variant)) as new:
            for path, net in placed.items():
                net.save_pretrained(new.place(path.name), variant=variant, max_shard_size=max_shard_size)

    @classmethod
    def from_pretrained(cls, pretrained_model_path: str | Path, **options: Any) -> Self:
        """Open those that were saved at a local folder, with the `options` of `ControlNetModel.from_pretrained`.

        Raises as that does, CheckpointNotFound where one is missing.
        """
        first = local_path(pretrained_model_path).absolute()
        if first.parent.is_dir():
            finish_saving(first.parent)
        return cls([cls.member.from_pretrained(each, **options) for each in cls.member_folders(first)])


def open_controlnets(sources: Sequence[str], **options: Any) -> ControlNetModel | list[ControlNetModel]:
    """As a pipeline takes them: one by itself, several as a list. A source is a folder, a hub id, or a single file.

    `options` as `from_pretrained` and `from_single_file` both take them, and their errors.
    """
    nets = [
        ControlNetModel.from_single_file(source, **options)
        if Path(source).expanduser().is_file()
        else ControlNetModel.from_pretrained(source, **options)
        for source in sources
    ]
    return nets if len(nets) > 1 else nets[0]


def _numbered(first: Path, number: int) -> Path:
    return first.with_name(f"{first.name}_{number}") if number else first


def _behind(first: Path) -> dict[int, Path]:
    """The folders beside `first` that have its name and a number from 1 on, by number."""
    if not first.parent.is_dir():
        return {}
    named = {
        path: re.fullmatch(rf"{re.escape(first.name)}_([1-9]\d{{0,3}})", path.name) for path in first.parent.iterdir()
    }
    found = {int(match[1]): path for path, match in named.items() if match and path.is_dir()}
    return dict(sorted(found.items()))
