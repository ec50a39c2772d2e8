"""ControlNets against diffusers' on the same random weights: the network alone, and the pipelines.

Tolerances: 1e-5 of the largest value for the network, those of test_pipelines for pictures' latents.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from leandiffusion import ControlNetModel

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

TINY: dict[str, Any] = {
    "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 32, "norm_num_groups": 8,
    "attention_head_dim": 4, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "conditioning_embedding_out_channels": (8, 16, 16, 24),
}  # fmt: skip
VARIANTS = {
    "sd1": {},
    "sd2": {"use_linear_projection": True, "attention_head_dim": (2, 4)},
    "sdxl": {
        "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 80,
        "use_linear_projection": True, "transformer_layers_per_block": (1, 2),
    },
    "bgr": {"controlnet_conditioning_channel_order": "bgr"},
    "pooled": {"global_pool_conditions": True},
}  # fmt: skip


def random_controlnet(folder: Path, **config: Any) -> Any:
    """diffusers', with no weight left at zero, saved in the folder."""
    torch.manual_seed(0)
    net = diffusers.ControlNetModel(**TINY | config).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    net.save_pretrained(folder)
    return net


@pytest.mark.parametrize("guess", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_network(tmp_path: Path, variant: str, guess: bool) -> None:
    theirs = random_controlnet(tmp_path, **VARIANTS[variant])
    ours = ControlNetModel.from_pretrained(tmp_path)
    torch.manual_seed(1)
    inputs: dict[str, Any] = {
        "sample": torch.randn(2, 4, 8, 12), "timestep": 13, "encoder_hidden_states": torch.randn(2, 7, 32),
        "controlnet_cond": torch.rand(2, 3, 64, 96), "conditioning_scale": 0.7, "guess_mode": guess,
    }  # fmt: skip
    if variant == "sdxl":
        inputs["added_cond_kwargs"] = {"text_embeds": torch.randn(2, 32), "time_ids": torch.rand(2, 6) * 100}
    with torch.no_grad():
        expected, got = theirs(**inputs), ours(**inputs)
        embedded = ours.embed_condition(inputs.pop("controlnet_cond"))
        again = ours(**inputs, embedded=embedded, return_dict=False)
    pairs = [
        *zip(got.down_block_res_samples, expected.down_block_res_samples, strict=True),
        (got.mid_block_res_sample, expected.mid_block_res_sample),
    ]
    for one, other in pairs:
        assert other.abs().max() > 1e-3, "nothing to compare"
        assert (one - other).abs().max() < 1e-5 * other.abs().max()
    assert all(torch.equal(one, other) for one, other in zip(again[0], got.down_block_res_samples, strict=True))
