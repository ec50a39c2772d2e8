"""Embeddings kept across calls: exact, forgotten as soon as an encoder changes, and bounded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parity.lora_files import dotted
from torch import nn

from leandiffusion import StableDiffusionPipeline, StableDiffusionXLPipeline
from leandiffusion.families.prompt_cache import PromptCache
from leandiffusion.modules.text import CLIPTextModel
from leandiffusion.weights.opened import OpenFile

Draw = Callable[..., torch.Tensor]


@pytest.fixture
def pipe(folders: dict[str, Path]) -> Any:
    """SD1, its weights on disk."""
    return opened(folders["sd1"], StableDiffusionPipeline)


def opened(folder: Path, cls: Any) -> Any:
    pipe = cls.from_pretrained(folder, offload="sequential")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The text encoders that ran, in order."""
    ran: list[Any] = []
    forward = CLIPTextModel.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        ran.append(self)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(CLIPTextModel, "forward", counted)
    return ran


@pytest.mark.parametrize(
    ("family", "cls", "encoders"), [("sd1", StableDiffusionPipeline, 1), ("sdxl", StableDiffusionXLPipeline, 2)]
)
@pytest.mark.parametrize("syntax", ["plain", "weighted"])
def test_the_same_words_are_encoded_once(
    family: str, cls: Any, encoders: int, syntax: str, folders: dict[str, Path], runs: list[Any], draw: Draw
) -> None:
    pipe = opened(folders[family], cls)
    pipe.prompt_syntax = syntax
    words = {"prompt": "a (red:1.2) cat", "negative_prompt": "b"}
    first = draw(pipe, **words)
    assert len(runs) == 2 * encoders
    assert torch.equal(draw(pipe, **words), first)
    assert len(runs) == 2 * encoders
    draw(pipe, prompt="a dog", negative_prompt="b")
    assert len(runs) == 3 * encoders
    pipe.prompt_cache = None
    assert torch.equal(draw(pipe, **words), first)
    assert len(runs) == 5 * encoders


def written(pipe: Any) -> None:
    with torch.no_grad():
        pipe.text_encoder.text_model.final_layer_norm.bias.add_(0.5)


def replaced(pipe: Any) -> None:
    norm = pipe.text_encoder.text_model.final_layer_norm
    norm.bias = nn.Parameter(norm.bias.detach() + 0.5)


def loaded(pipe: Any) -> None:
    state = {name: tensor + 0.1 for name, tensor in pipe.text_encoder.state_dict().items()}
    pipe.text_encoder.load_state_dict(state)


def shortened(pipe: Any) -> None:
    del pipe.text_encoder.text_model.encoder.layers[-1]


def set_otherwise(pipe: Any) -> None:
    pipe.text_encoder.text_model.final_layer_norm.eps = 1.0


def hooked(pipe: Any) -> None:
    norm = pipe.text_encoder.text_model.final_layer_norm
    norm.register_forward_hook(lambda module, args, output: output + 0.5)


def patched(pipe: Any) -> None:
    norm = pipe.text_encoder.text_model.final_layer_norm
    norm.forward = lambda x: nn.functional.layer_norm(x, x.shape[-1:]) + 0.5


@pytest.mark.parametrize(
    "change", [written, replaced, loaded, shortened, set_otherwise, hooked, patched], ids=lambda f: f.__name__
)
def test_an_encoder_that_changed_encodes_anew(change: Any, pipe: Any, draw: Draw) -> None:
    before = draw(pipe)
    change(pipe)
    after = draw(pipe)
    assert not torch.equal(after, before)
    pipe.prompt_cache = None
    assert torch.equal(draw(pipe), after)


@pytest.mark.parametrize("arguments", [{"clip_skip": 1}, {"prompt": "b"}, {"prompt": ["a red cat", "a red cat"]}])
def test_other_arguments_are_encoded_anew(arguments: Any, pipe: Any, draw: Draw, runs: list[Any]) -> None:
    draw(pipe)
    before = len(runs)
    draw(pipe, **arguments)
    assert len(runs) > before


def test_another_dtype_and_back(pipe: Any, draw: Draw, runs: list[Any]) -> None:
    first = draw(pipe)
    pipe.to(torch.bfloat16)
    half = draw(pipe)
    pipe.to(torch.float32)
    after = len(runs)
    draw(pipe)
    assert len(runs) == after + 2
    assert half.shape == first.shape
    assert not torch.equal(half.float(), first)


def test_gradients_and_training_are_never_kept(pipe: Any, runs: list[Any]) -> None:
    for _ in range(2):
        assert pipe.encode_prompt("a")[0].requires_grad
    pipe.text_encoder.train()
    with torch.no_grad():
        for _ in range(2):
            pipe.encode_prompt("a")
    assert len(runs) == 8


def test_writing_to_what_a_call_returns_changes_nothing_kept(pipe: Any, draw: Draw) -> None:
    expected = draw(pipe)
    for _ in range(2):
        with torch.no_grad():
            for embeds in pipe.encode_prompt("a red cat"):
                embeds.zero_()
    assert torch.equal(draw(pipe), expected)


@pytest.mark.parametrize("offload", ["sequential", "model"])
def test_nothing_of_text_encoders_is_read_again(
    offload: str, folders: dict[str, Path], draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(folders["sd1"], offload=offload)
    pipe.set_progress_bar_config(disable=True)
    read: list[Path] = []
    original = OpenFile.read

    def counted(self: OpenFile, entry: Any, into: Any) -> None:
        read.append(entry.file)
        original(self, entry, into)

    monkeypatch.setattr(OpenFile, "read", counted)
    first = draw(pipe)
    assert any("text_encoder" in file.parts for file in read)
    read.clear()
    assert torch.equal(draw(pipe), first)
    assert read
    assert not any("text_encoder" in file.parts for file in read)


def test_the_memory_is_bounded(pipe: Any, draw: Draw, runs: list[Any]) -> None:
    with torch.no_grad():
        one = sum(output.nbytes for output in pipe.encode_prompt("a", do_classifier_free_guidance=False)[:1])
    pipe.prompt_cache = PromptCache(limit=2 * one)
    for word in "abc":
        draw(pipe, prompt=word, guidance_scale=1)
    assert sum(kept.nbytes for kept in pipe.prompt_cache._kept.values()) <= pipe.prompt_cache.limit
    before = len(runs)
    draw(pipe, prompt="c", guidance_scale=1)
    assert len(runs) == before
    draw(pipe, prompt="a", guidance_scale=1)
    assert len(runs) == before + 1


def test_copies_begin_empty(pipe: Any, draw: Draw, runs: list[Any]) -> None:
    first = draw(pipe)
    twin = copy.deepcopy(pipe)
    before = len(runs)
    assert torch.equal(draw(twin), first)
    assert len(runs) == before + 2


def test_clear_forgets(pipe: Any, draw: Draw, runs: list[Any]) -> None:
    before = draw(pipe)
    pipe.prompt_cache.clear()
    assert torch.equal(draw(pipe), before)
    assert len(runs) == 4


def test_what_is_in_memory_is_encoded_each_time_since_writes_may_go_unnoticed(
    folders: dict[str, Path], draw: Draw
) -> None:
    plain = StableDiffusionPipeline.from_pretrained(folders["sd1"])
    plain.set_progress_bar_config(disable=True)
    before = draw(plain)
    plain.text_encoder.text_model.final_layer_norm.bias.data.add_(0.5)  # a write that torch does not count
    assert not torch.equal(draw(plain), before)


def test_adapters_of_the_encoder_count(pipe: Any, draw: Draw) -> None:
    def cached_and_not(**arguments: Any) -> torch.Tensor:
        cached = draw(pipe, **arguments)
        cache, pipe.prompt_cache = pipe.prompt_cache, None
        assert torch.equal(draw(pipe, **arguments), cached)
        pipe.prompt_cache = cache
        return cached

    plain = cached_and_not()
    pipe.load_lora_weights(dotted("text_encoder", pipe.text_encoder), adapter_name="a")
    whole = cached_and_not()
    half = cached_and_not(cross_attention_kwargs={"scale": 0.5})
    pipe.set_adapters("a", 0.25)
    less = cached_and_not()
    assert len({each.sum().item() for each in (plain, whole, half, less)}) == 4
    pipe.unload_lora_weights()
    assert torch.equal(cached_and_not(), plain)
