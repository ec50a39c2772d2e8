"""Our CLIP text models against transformers' with the same random weights, in float32.

Tolerance 1e-5 absolute on outputs of a final layer norm (so of order one): both sides do the same algebra, and what is
left is the order of float32 additions inside fused attention kernels.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from leandiffusion.modules.text import CLIPTextModel, CLIPTextModelWithProjection

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5
VOCAB = 1000
SMALL = {"vocab_size": VOCAB, "bos_token_id": 998, "eos_token_id": 999}
LAYOUTS = {
    "clip-l": {
        **SMALL, "hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 12, "num_attention_heads": 12,
    },
    "openclip-h": {
        **SMALL, "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 23, "num_attention_heads": 16,
        "hidden_act": "gelu",
    },
    "openclip-bigg": {
        **SMALL, "hidden_size": 160, "intermediate_size": 640, "num_hidden_layers": 32, "num_attention_heads": 20,
        "hidden_act": "gelu", "projection_dim": 160,
    },
}  # fmt: skip


def pair(name: str, config: dict) -> tuple:
    """transformers' model and ours, holding the same random weights, none of them trivial."""
    theirs = getattr(transformers, name)(transformers.CLIPTextConfig(**config)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    cls = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}[name]
    ours = cls(**config).eval()
    state = theirs.state_dict()
    names = cls.rename_keys(list(state))
    ours.load_state_dict({names[key]: tensor for key, tensor in state.items()})
    return theirs, ours


def token_ids(length: int = 77) -> torch.Tensor:
    """Three texts of different lengths, begun, ended and padded as a tokenizer does."""
    ids = torch.full((3, length), 999)
    for row, used in enumerate((3, length // 2, length - 1)):
        ids[row, 0] = 998
        ids[row, 1:used] = torch.randint(0, 900, (used - 1,))
    return ids


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["CLIPTextModel", "CLIPTextModelWithProjection"])
@torch.no_grad()
def test_outputs_equal(name: str, layout: str) -> None:
    torch.manual_seed(0)
    theirs, ours = pair(name, LAYOUTS[layout])
    ids = token_ids()
    expected, got = theirs(ids, output_hidden_states=True), ours(ids, output_hidden_states=True)
    assert list(got) == list(expected), "the same fields in the same order"
    for field in ("last_hidden_state", "pooler_output", "text_embeds"):
        if field in expected:
            torch.testing.assert_close(got[field], expected[field], atol=TOLERANCE, rtol=0)
    assert len(got.hidden_states) == len(expected.hidden_states)
    for mine, reference in zip(got.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine, reference, atol=TOLERANCE, rtol=TOLERANCE)
    for mine, reference in zip(ours(ids, return_dict=False), theirs(ids, return_dict=False), strict=True):
        torch.testing.assert_close(mine, reference, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_legacy_eos_pools_at_the_highest_id() -> None:
    torch.manual_seed(1)
    theirs, ours = pair("CLIPTextModel", {**LAYOUTS["clip-l"], "eos_token_id": 2})
    ids = token_ids()
    ids[:, 5] = 2  # an ordinary token here: pooling must not stop at it
    torch.testing.assert_close(ours(ids).pooler_output, theirs(ids).pooler_output, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_attention_mask_and_positions() -> None:
    torch.manual_seed(2)
    theirs, ours = pair("CLIPTextModel", LAYOUTS["clip-l"])
    ids = token_ids(20)
    mask = (torch.arange(20)[None] < torch.tensor([[4], [11], [20]])).long()
    places = torch.arange(30, 50)[None]
    expected = theirs(ids, attention_mask=mask, position_ids=places).last_hidden_state
    got = ours(ids, attention_mask=mask, position_ids=places).last_hidden_state
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)
    assert not torch.allclose(got, ours(ids).last_hidden_state, atol=1e-3), "mask and positions were used"


@pytest.mark.parametrize("name", ["CLIPTextModel", "CLIPTextModelWithProjection"])
@torch.no_grad()
def test_transformers_opens_what_we_name(name: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(3)
    _, ours = pair(name, LAYOUTS["clip-l"])
    ours.save_config(tmp_path)
    save_file(ours.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    reopened, report = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids = token_ids()
    torch.testing.assert_close(ours(ids)[0], reopened.eval()(ids)[0], atol=TOLERANCE, rtol=0)
