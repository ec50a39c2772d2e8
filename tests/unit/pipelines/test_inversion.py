"""Textual inversions: exact undo, offloaded encoders, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.unit.pipelines.conftest import LENGTH, paint

from leandiffusion import ConfigError, StableDiffusionPipeline
from leandiffusion.core.errors import CheckpointNotFound, TensorMismatch, UnsafeFormat
from leandiffusion.weights.residence import names_on_disk

Draw = Callable[..., torch.Tensor]


def vectors(count: int = 2, width: int = 32) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count))


def test_undo_is_exact(sd1: Any, draw: Draw) -> None:
    before, vocabulary = draw(sd1, prompt="a <cat>"), sd1.tokenizer.get_vocab()
    table = sd1.text_encoder.get_input_embeddings().weight
    sd1.load_textual_inversion({"<cat>": vectors()})
    sd1.load_textual_inversion({"<dog>": vectors(1)})
    with_cat = draw(sd1, prompt="a <cat>")
    assert not torch.equal(with_cat, before)
    sd1.unload_textual_inversion("<dog>")
    assert torch.equal(draw(sd1, prompt="a <cat>"), with_cat)
    sd1.unload_textual_inversion()
    assert sd1.tokenizer.get_vocab() == vocabulary
    assert sd1.text_encoder.get_input_embeddings().weight is table
    assert torch.equal(draw(sd1, prompt="a <cat>"), before)
    sd1.unload_textual_inversion()  # nothing to do


def test_a_word_taken_away_leaves_the_others(sd1: Any) -> None:
    alone = copy.deepcopy(sd1)
    alone.load_textual_inversion({"<dog>": vectors(3)})
    sd1.load_textual_inversion([{"<cat>": vectors()}, {"<dog>": vectors(3)}])
    sd1.unload_textual_inversion(["<cat>"])
    for text in ("a <dog> b", "a <cat> b"):
        assert torch.equal(sd1.encode_prompt(text)[0], alone.encode_prompt(text)[0])


@pytest.mark.parametrize("offload", ["sequential", "model"])
def test_the_table_stays_on_disk(offload: str, folders: dict[str, Path], draw: Draw) -> None:
    plain = StableDiffusionPipeline.from_pretrained(folders["sd1"])
    pipe = StableDiffusionPipeline.from_pretrained(folders["sd1"], offload=offload)
    for each in (plain, pipe):
        each.set_progress_bar_config(disable=True)
        each.load_textual_inversion({"<cat>": vectors()})
    name = "text_model.embeddings.token_embedding.weight"
    assert name in names_on_disk(pipe.text_encoder)
    torch.testing.assert_close(draw(pipe, prompt="a <cat>"), draw(plain, prompt="a <cat>"), rtol=0, atol=1e-5)
    assert name in names_on_disk(pipe.text_encoder)
    pipe.unload_textual_inversion()
    plain.unload_textual_inversion()
    torch.testing.assert_close(draw(pipe, prompt="a <cat>"), draw(plain, prompt="a <cat>"), rtol=0, atol=1e-5)


def test_what_is_saved_has_no_inversions(sd1: Any, tmp_path: Path, draw: Draw) -> None:
    before = draw(sd1, prompt="a <cat>")
    sd1.load_textual_inversion({"<cat>": vectors()})
    sd1.save_pretrained(tmp_path / "saved")
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    assert torch.equal(draw(again, prompt="a <cat>"), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_vectors_follow_the_encoders_dtype(sd1: Any, dtype: torch.dtype) -> None:
    sd1.load_textual_inversion({"<cat>": vectors()})
    sd1.to(dtype)
    embeds = sd1.text_encoder.text_model.embeddings
    ids = torch.tensor([sd1.tokenizer("<cat>")["input_ids"]])
    found = embeds(ids, None) - embeds.position_embedding.weight[None, : ids.shape[1]]
    torch.testing.assert_close(found[0, 1:-1], vectors().to(dtype), rtol=0.02, atol=0.02)


def test_vectors_of_a_word_stay_in_one_chunk(sd1: Any) -> None:
    from leandiffusion.families.chunks import chunks_of

    sd1.load_textual_inversion({"<cat>": vectors(5)})
    first, second = chunks_of(sd1.tokenizer, "a" * (LENGTH - 2 - 4) + " (<cat>:1.3)")
    assert len(first.ids) == LENGTH - 6
    assert second.weights == [1.3] * 5


def test_the_file_says_the_word_or_is_it(sd1: Any, tmp_path: Path) -> None:
    save_file({"emb_params": vectors()}, tmp_path / "bad-hands.safetensors")
    sd1.load_textual_inversion(tmp_path / "bad-hands.safetensors")
    assert sd1.tokenizer.words == {"bad-hands": 2}
    sd1.load_textual_inversion({"string_to_param": {"*": vectors(1)}, "name": "style"})
    sd1.load_textual_inversion(vectors(2), token=["<a>", "<b>"])
    assert sd1.tokenizer.words == {"bad-hands": 2, "style": 1, "<a>": 1, "<b>": 1}


def test_each_of_sdxls_encoders_gets_its_own(sdxl: Any) -> None:
    sdxl.load_textual_inversion({"clip_l": vectors(2), "clip_g": vectors(2, 40)}, token="<cat>")
    assert sdxl.tokenizer.words == sdxl.tokenizer_2.words == {"<cat>": 2}
    sdxl.load_textual_inversion({"<dog>": vectors(1, 40)})
    assert "<dog>" not in sdxl.tokenizer.words
    assert sdxl.tokenizer_2.words["<dog>"] == 1
    sdxl.unload_textual_inversion()
    assert not sdxl.tokenizer.words
    assert not sdxl.tokenizer_2.words


@pytest.mark.parametrize(
    ("source", "token", "error", "told"),
    [
        ({"<cat>": vectors(1, 768)}, None, TensorMismatch, "768 channels, as of Stable Diffusion 1"),
        ({"<cat>": vectors(1, 1280)}, None, TensorMismatch, "SDXL's second text encoder"),
        ({"clip_l": vectors(), "clip_g": vectors(2, 40)}, "<cat>", TensorMismatch, "open SDXL"),
        ({"a": vectors(), "b": vectors()}, None, TensorMismatch, "expected one tensor"),
        ({"<cat>": torch.ones(2, 3, 32)}, None, TensorMismatch, "expected vectors"),
        ({"<cat>": torch.full((1, 32), float("nan"))}, None, TensorMismatch, "NaN"),
        ({"emb_params": vectors()}, None, ConfigError, "pass token="),
        ({"<cat>": vectors()}, "two words", ConfigError, "without spaces"),
        ({"<cat>": vectors()}, "a", ConfigError, "token already"),
        (vectors(3), ["<a>", "<b>"], ConfigError, "2 tokens for 3 vectors"),
        ([{"<cat>": vectors()}, {"<CAT>": vectors()}], None, ConfigError, "token already"),
        ("nowhere.safetensors", None, CheckpointNotFound, "does not exist"),
        ("old.pt", None, UnsafeFormat, "Convert one that you trust: python -c"),
        (7, None, ConfigError, "give a path"),
    ],
)
def test_what_is_refused_changes_nothing(sd1: Any, source: Any, token: Any, error: Any, told: str) -> None:
    vocabulary = sd1.tokenizer.get_vocab()
    with pytest.raises(error, match=told):
        sd1.load_textual_inversion(source, token=token)
    assert sd1.tokenizer.get_vocab() == vocabulary
    assert sd1.text_encoder.text_model.embeddings.added is None


def test_not_during_a_call(sd1: Any) -> None:
    def load(pipe: Any, *_: Any) -> dict[str, Any]:
        with pytest.raises(ConfigError, match="between calls"):
            sd1.load_textual_inversion({"<cat>": vectors()})
        return {}

    paint(sd1, callback_on_step_end=load)


def test_unknown_words_and_resizing(sd1: Any) -> None:
    with pytest.raises(ConfigError, match="was not loaded"):
        sd1.unload_textual_inversion("<cat>")
    sd1.load_textual_inversion({"<cat>": vectors()})
    with pytest.raises(ConfigError, match="unload them first"):
        sd1.text_encoder.resize_token_embeddings(5)
