"""Networks that OpenVINO runs, called as the pipelines call this library's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....core.config import Config, read_json

ADDED = ("text_embeds", "time_ids")
"""SDXL's added conditions, in the order in which a converted UNet takes them."""


class Network:
    """Stands for a network of a pipeline: same config, same call, run by OpenVINO on the CPU."""

    def __init__(self, core: Any, folder: Path, properties: Mapping[str, Any]) -> None:
        self.config = Config(read_json(folder / "config.json"))
        self.dtype, self.device = torch.float32, torch.device("cpu")
        self._request = core.compile_model(str(folder / "model.xml"), "CPU", dict(properties)).create_infer_request()

    def _run(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Inputs are read where they are. Outputs are copied, for the next run writes to the same place."""
        outputs = self._request.infer([x.contiguous().numpy() for x in inputs], share_inputs=True, share_outputs=True)
        return tuple(torch.from_numpy(outputs[i].copy()) for i in range(len(outputs)))


class UNet(Network):
    """As UNet2DConditionModel is called."""

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        added = [added_cond_kwargs[name] for name in ADDED] if added_cond_kwargs else []
        return self._run(sample, timestep.reshape(1), encoder_hidden_states, *added)


class Decoder(Network):
    """As AutoencoderKL decodes."""

    def decode(self, z: Tensor, return_dict: bool = False) -> tuple[Tensor, ...]:
        return self._run(z)


class Encoded(tuple[Tensor, ...]):
    """A text encoder's first output and, for SDXL, the output of its layer before the last."""

    @property
    def hidden_states(self) -> tuple[Tensor, None]:
        return self[1], None


class TextEncoder(Network):
    """As CLIPTextModel is called."""

    def __call__(self, ids: Tensor, output_hidden_states: bool = False) -> Encoded:
        return Encoded(self._run(ids))


KINDS: Mapping[str, type[Network]] = {
    "unet": UNet, "vae": Decoder, "text_encoder": TextEncoder, "text_encoder_2": TextEncoder,
}  # fmt: skip
