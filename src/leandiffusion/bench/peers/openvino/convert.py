"""Converting this library's networks to OpenVINO's format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....core.errors import BackendUnavailable
from ....device.openvino import openvino, operations
from ....modules.openvino import convert as convert_network
from ....pipelines import open_pipeline
from .networks import ADDED


def convert(checkpoint: str, home: Path, size: int, batch: int) -> None:
    """Write the checkpoint's networks for pictures of `size` pixels, `batch` at a time under guidance.

    Below `home` comes a folder for each, with config.json, model.xml, and beside it the weights in float16, which is
    OpenVINO's default. BackendUnavailable for guidance-distilled models.
    """
    pipe = open_pipeline(checkpoint, dtype=torch.float32)
    if pipe.unet.config.time_cond_proj_dim is not None:
        raise BackendUnavailable("the OpenVINO peer does not draw with guidance-distilled models")
    for name, (call, inputs) in _calls(pipe, size, batch).items():
        network = getattr(pipe, name)
        network.save_config(home / name)
        model = convert_network(network, call, inputs)
        _keep_frequencies(model)
        openvino().save_model(model, str(home / name / "model.xml"))


def _keep_frequencies(model: Any) -> None:
    """Store the frequencies of sinusoids as whole numbers over 2^30, which are not compressed: rounded to float16 they
    would turn timestep 999 by a quarter of a radian."""
    ops = operations()
    for frequencies in _constants_below(model, ("Sin", "Cos")):
        wholes = [ops.constant(value, dtype=np.int32) for value in (np.round(frequencies.data * 2.0**30), 2**30)]
        exact = ops.divide(*(ops.convert(whole, "f32") for whole in wholes))
        for reader in frequencies.output(0).get_target_inputs():
            reader.replace_source_output(exact.output(0))


def _constants_below(model: Any, functions: tuple[str, ...]) -> list[Any]:
    """Constants that are a factor of an argument of one of the functions."""

    def readers(op: Any, kinds: tuple[str, ...]) -> list[Any]:
        nodes = [reader.get_node() for reader in op.output(0).get_target_inputs()]
        return [node for node in nodes if node.get_type_name() in kinds]

    constants = [op for op in model.get_ordered_ops() if op.get_type_name() == "Constant"]
    return [op for op in constants if any(readers(product, functions) for product in readers(op, ("Multiply",)))]


def _calls(pipe: Any, size: int, batch: int) -> dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]]:
    """For each network: a call with nothing but tensors, and tensors as the pipeline gives them."""
    config, xl, both = pipe.unet.config, hasattr(pipe, "text_encoder_2"), 2 * batch
    side = size // pipe.vae_scale_factor
    length = (pipe.tokenizer_2 if xl else pipe.tokenizer).model_max_length
    latents, words = torch.randn(both, config.in_channels, side, side), (both, length, config.cross_attention_dim)
    added: tuple[Tensor, ...] = ()
    if xl:
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = torch.randn(both, pooled), torch.full((both, 6), float(size))
    texts = {name: getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2")}
    ids = torch.ones(batch, length, dtype=torch.int64)
    return {
        "unet": (_predict, (latents, torch.tensor([1]), torch.randn(words), *added)),
        "vae": (_decode, (latents[:batch],)),
        **{name: (_encode_xl if xl else _encode, (ids,)) for name, part in texts.items() if part is not None},
    }


def _predict(unet: Any, sample: Tensor, timestep: Tensor, words: Tensor, *added: Tensor) -> Tensor:
    conditions = dict(zip(ADDED, added, strict=True)) if added else None
    return unet(sample, timestep, words, added_cond_kwargs=conditions, return_dict=False)[0]


def _decode(vae: Any, z: Tensor) -> Tensor:
    return vae.decode(z, return_dict=False)[0]


def _encode(text_encoder: Any, ids: Tensor) -> Tensor:
    return text_encoder(ids)[0]


def _encode_xl(text_encoder: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    output = text_encoder(ids, output_hidden_states=True)
    return output[0], output.hidden_states[-2]
