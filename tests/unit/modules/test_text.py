"""The text models: configs, names, both file layouts, what they return and refuse."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from leandiffusion.core.errors import ConfigError
from leandiffusion.modules.text import CLIPTextModel, CLIPTextModelWithProjection

TINY = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "projection_dim": 12, "max_position_embeddings": 10, "bos_token_id": 48, "eos_token_id": 49,
}  # fmt: skip
# As SD1's text_encoder/config.json has them beside the settings.
NOTES = {
    "_name_or_path": "openai/clip", "architectures": ["CLIPTextModel"], "dropout": 0.0, "model_type": "clip_text_model",
    "torch_dtype": "float32", "transformers_version": "4.22.0.dev0",
}  # fmt: skip
IDS = torch.tensor([[48, 3, 7, 49, 49], [48, 5, 49, 49, 49]])


def tiny(cls: type[CLIPTextModel] = CLIPTextModel, **changes: object) -> CLIPTextModel:
    torch.manual_seed(0)
    return cls(**{**TINY, **changes}).eval()  # type: ignore[arg-type]


def test_parameter_names_are_the_published_ones() -> None:
    names = set(tiny(CLIPTextModelWithProjection).state_dict())
    layer = "text_model.encoder.layers.1"
    assert len(names) == 2 + 2 * 16 + 2 + 1, "embeddings, two layers, final norm, projection and nothing else"
    assert {
        "text_model.embeddings.token_embedding.weight",
        "text_model.embeddings.position_embedding.weight",
        f"{layer}.self_attn.q_proj.bias",
        f"{layer}.self_attn.out_proj.weight",
        f"{layer}.layer_norm1.weight",
        f"{layer}.mlp.fc2.bias",
        "text_model.final_layer_norm.weight",
        "text_projection.weight",
    } <= names


@pytest.mark.parametrize("prefix", ["text_model.", ""])
@torch.no_grad()
def test_opens_files_with_and_without_prefix(tmp_path: Path, prefix: str) -> None:
    model = tiny()
    state = {prefix + name.removeprefix("text_model."): tensor for name, tensor in model.state_dict().items()}
    state[f"{prefix}embeddings.position_ids"] = torch.arange(10)[None]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps({**TINY, **NOTES}))
    opened = CLIPTextModel.from_pretrained(tmp_path)
    assert not opened.training
    assert torch.equal(opened(IDS).last_hidden_state, model(IDS).last_hidden_state)


def test_saves_and_reopens(tmp_path: Path) -> None:
    model = tiny(CLIPTextModelWithProjection).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"] == ["CLIPTextModelWithProjection"]
    assert (written["model_type"], written["torch_dtype"]) == ("clip_text_model", "bfloat16")
    opened = CLIPTextModelWithProjection.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert dict(opened.config) == dict(model.config)
    assert all(torch.equal(a, b) for a, b in zip(opened.parameters(), model.parameters(), strict=True))
    assert opened.dtype == torch.bfloat16
    assert CLIPTextModelWithProjection.from_pretrained(tmp_path).dtype == torch.float32


def test_building_on_meta_then_assigning() -> None:
    with torch.device("meta"):
        empty = tiny()
    assert empty.device.type == "meta"
    empty.load_state_dict(tiny().state_dict(), assign=True)
    assert torch.equal(empty(IDS)[0], tiny()(IDS)[0])


@torch.no_grad()
def test_outputs_by_name_and_place() -> None:
    plain, projected = tiny(), tiny(CLIPTextModelWithProjection)
    out = plain(IDS, output_hidden_states=True)
    assert list(out) == ["last_hidden_state", "pooler_output", "hidden_states"]
    assert (out[0].shape, out[1].shape, len(out.hidden_states)) == ((2, 5, 16), (2, 16), 3)
    assert torch.equal(plain.text_model.final_layer_norm(out.hidden_states[-1]), out.last_hidden_state)
    assert torch.equal(out.pooler_output, out.last_hidden_state[[0, 1], [3, 2]]), "the first end token of each text"
    out = projected(IDS)
    assert list(out) == ["text_embeds", "last_hidden_state"]
    assert out[0].shape == (2, 12)
    assert [tensor.shape for tensor in projected(IDS, return_dict=False)] == [(2, 12), (2, 5, 16)]


@torch.no_grad()
def test_attention_is_causal() -> None:
    model, changed = tiny(), IDS.clone()
    changed[:, 3:] = 11
    before, after = model(IDS).last_hidden_state, model(changed).last_hidden_state
    torch.testing.assert_close(before[:, :3], after[:, :3], atol=1e-6, rtol=0)  # float32 noise of the kernel
    assert not torch.allclose(before[:, 3:], after[:, 3:], atol=1e-3)


def test_dropout_only_in_training() -> None:
    model = tiny(attention_dropout=0.5)
    assert torch.equal(model(IDS)[0], model(IDS)[0])
    model.train()
    assert not torch.equal(model(IDS)[0], model(IDS)[0])


def test_a_fresh_model_is_initialised_as_published() -> None:
    """Standard deviations within 5%: ten thousand samples and more each."""
    model = CLIPTextModel(**{**TINY, "vocab_size": 1000, "hidden_size": 128, "intermediate_size": 512})
    layer = model.text_model.encoder.layers[0]
    expected = {
        model.get_input_embeddings(): 0.02,
        layer.self_attn.q_proj: 128**-0.5 * 4**-0.5,
        layer.self_attn.out_proj: 128**-0.5,
        layer.mlp.fc1: 256**-0.5,
        layer.mlp.fc2: 128**-0.5 * 4**-0.5,
    }
    for module, std in expected.items():
        assert module.weight.std().item() == pytest.approx(std, rel=0.05)
    assert not layer.mlp.fc1.bias.any()


def test_copies_and_pickles() -> None:
    model = tiny()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(IDS)[0], model(IDS)[0])
        assert twin.config.hidden_size == 16


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "relu"}, "hidden_act='relu'.*quick_gelu"),
        ({"num_attention_heads": 3}, "num_attention_heads=3"),
        ({"eos_token_id": [1, 2]}, "eos_token_id"),
        ({"rope_theta": 1.0}, "rope_theta"),
        ({"hiden_size": 8}, "hiden_size.*'hidden_size'"),
    ],
)
def test_refused_settings(changes: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        CLIPTextModel.from_config({**TINY, **NOTES, **changes})


def test_projection_needs_its_size() -> None:
    assert CLIPTextModel(**{**TINY, "projection_dim": None}).config.projection_dim is None
    with pytest.raises(ConfigError, match="projection_dim"):
        CLIPTextModelWithProjection(**{**TINY, "projection_dim": None})


def test_too_long_a_text_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"11 tokens .* 10"):
        tiny()(torch.zeros(1, 11, dtype=torch.int64))
