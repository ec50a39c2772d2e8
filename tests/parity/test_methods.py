"""Networks answer to every public name that diffusers' have: each works, or says what to do instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

import leandiffusion

# Of no use without the machinery around it: how diffusers builds, registers and downloads its own classes.
MACHINERY = {"extract_init_dict", "get_config_dict", "text_encoder_name", "unet_name"}


@pytest.mark.parametrize("name", ["UNet2DConditionModel", "AutoencoderKL"])
def test_every_public_name_is_there(name: str) -> None:
    theirs, ours = getattr(diffusers, name), getattr(leandiffusion, name)
    public = {n for n in dir(theirs) if not n.startswith("_") and not hasattr(nn.Module, n)}
    assert {n for n in public - MACHINERY if not hasattr(ours, n)} == set()


UNET: dict[str, Any] = {
    "block_out_channels": (8, 16), "norm_num_groups": 4, "cross_attention_dim": 12, "attention_head_dim": 2,
    "layers_per_block": 1, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "sample_size": 8,
}  # fmt: skip
VAE: dict[str, Any] = {
    "block_out_channels": (8, 8), "norm_num_groups": 4, "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "sample_size": 8,
}  # fmt: skip


def pair(name: str, **config: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    theirs = getattr(diffusers, name)(**config).eval()
    ours = getattr(leandiffusion, name)(**config).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def run(network: Any, **others: Any) -> Tensor:
    torch.manual_seed(1)
    if type(network).__name__ == "AutoencoderKL":
        return network(torch.randn(1, 3, 8, 8), return_dict=False)[0]
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 12)
    return network(x, torch.tensor([7, 900]), text, return_dict=False, **others)[0]


def close(ours: Tensor, theirs: Tensor) -> None:
    """Rounding of another order of the same sums: 1e-5 of numbers of the order of 1."""
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_freeu() -> None:
    def told(network: Any) -> list[tuple[float | None, ...]]:
        return [(block.s1, block.s2, block.b1, block.b2) for block in network.up_blocks]

    theirs, ours = pair("UNet2DConditionModel", **UNET)
    plain = run(ours)
    for network in (theirs, ours):
        network.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    close(run(ours), run(theirs))
    assert told(ours) == told(theirs)
    assert not torch.allclose(run(ours), plain, atol=1e-3)
    for network in (theirs, ours):
        network.disable_freeu()
    assert told(ours) == told(theirs)
    assert torch.equal(run(ours), plain)


@torch.no_grad()
@pytest.mark.parametrize("processor", [AttnProcessor, AttnProcessor2_0])
@pytest.mark.parametrize(("name", "config"), [("UNet2DConditionModel", UNET), ("AutoencoderKL", VAE)])
def test_processors_of_diffusers(name: str, config: dict[str, Any], processor: type) -> None:
    """Theirs compute our layers; names are the same."""
    theirs, ours = pair(name, **config)
    assert set(ours.attn_processors) == set(theirs.attn_processors)
    ours.set_attn_processor(processor())
    close(run(ours), run(theirs))
    ours.set_default_attn_processor()
    close(run(ours), run(theirs))


@torch.no_grad()
def test_masked_text() -> None:
    theirs, ours = pair("UNet2DConditionModel", **UNET)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1]])
    close(run(ours, encoder_attention_mask=mask), run(theirs, encoder_attention_mask=mask))


@torch.no_grad()
def test_depths_that_differ_within_a_level() -> None:
    """As in SSD-1B: fewer transformer blocks behind some of a level's resnets."""
    depths = {"transformer_layers_per_block": [[2, 1], 1], "reverse_transformer_layers_per_block": [1, [1, 2, 1]]}
    theirs, ours = pair("UNet2DConditionModel", **UNET | depths | {"layers_per_block": 2})
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    close(run(ours), run(theirs))


@pytest.mark.parametrize(("name", "config"), [("UNet2DConditionModel", UNET), ("AutoencoderKL", VAE)])
def test_sizes_and_checkpoints(name: str, config: dict[str, Any]) -> None:
    theirs, ours = pair(name, **config)
    assert ours.get_memory_footprint() == theirs.get_memory_footprint()
    for network in (theirs, ours):
        network.enable_gradient_checkpointing()
    assert ours.is_gradient_checkpointing
    names = [
        {type(m).__name__ for m in network.modules() if getattr(m, "gradient_checkpointing", False)}
        for network in (theirs, ours)
    ]
    assert names[0] == names[1]


@pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing")  # transformers' newer name for it
def test_text_encoders() -> None:
    """What scripts call on a text encoder; the rest of transformers' base class trains, shards and generates."""
    settings = {
        "vocab_size": 50, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 10,
    }  # fmt: skip
    theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(**settings))
    ours = leandiffusion.CLIPTextModel(**settings)
    assert ours.get_memory_footprint() == sum(p.numel() * 4 for p in theirs.parameters())
    assert ours.main_input_name == theirs.main_input_name
    for network in (theirs, ours):
        first = network.get_input_embeddings().weight[:50].detach().clone()
        table = network.resize_token_embeddings(53)
        assert table is network.get_input_embeddings()
        assert table.weight.shape == (53, 8)
        assert torch.equal(table.weight[:50], first)
        assert network.config.vocab_size == 53
        network.gradient_checkpointing_enable()
        assert network.is_gradient_checkpointing
        network.gradient_checkpointing_disable()
        assert not network.is_gradient_checkpointing
        network.set_input_embeddings(nn.Embedding(50, 8))
        assert network.get_input_embeddings().num_embeddings == 50


def test_tokens_added_to_a_tokenizer(tmp_path: Path) -> None:
    """As textual inversion adds them: the same ids as from transformers on the same files, also after saving."""
    ours = leandiffusion.CLIPTokenizer.standard()
    ours.save_pretrained(tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    several: list[tuple[Any, bool]] = [("<cat-toy>", False), (["<S1>", "<cat-toy>", "a new"], False), (["<x>"], True)]
    for added, special in several:
        assert ours.add_tokens(added, special) == theirs.add_tokens(added, special)
        assert len(ours) == len(theirs)
    ours.save_pretrained(tmp_path / "again")
    again = leandiffusion.CLIPTokenizer.from_pretrained(tmp_path / "again")
    for text in ("a <cat-toy> on <S1><x>", "a <CAT-TOY>photo of a new", "<s1> <X>"):
        assert ours(text).input_ids == theirs(text).input_ids == again(text).input_ids
    with pytest.raises(leandiffusion.ConfigError, match="empty token"):
        ours.add_tokens(["<y>", ""])
