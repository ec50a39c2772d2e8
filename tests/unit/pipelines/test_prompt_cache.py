"""Embeddings kept across calls: exact, forgotten as soon as an encoder changes, and bounded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parity.lora_files import dotted
from tests.unit.pipelines.conftest import make_sd1, make_sdxl
from torch import nn

from leandiffusion import StableDiffusionPipeline
from leandiffusion.families.prompt_cache import PromptCache
from leandiffusion.modules.text import CLIPTextModel
from leandiffusion.weights.opened import OpenFile

Draw = Callable[..., torch.Tensor]


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


@pytest.mark.parametrize(("make", "encoders"), [(make_sd1, 1), (make_sdxl, 2)])
@pytest.mark.parametrize("syntax", ["plain", "weighted"])
def test_the_same_words_are_encoded_once(make: Any, encoders: int, syntax: str, runs: list[Any], draw: Draw) -> None:
    pipe = make()
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


def another(pipe: Any) -> None:
    torch.manual_seed(9)
    pipe.text_encoder = make_sd1(text_encoder=type(pipe.text_encoder)(**pipe.text_encoder.config)).text_encoder.eval()


def hooked(pipe: Any) -> None:
    norm = pipe.text_encoder.text_model.final_layer_norm
    norm.register_forward_hook(lambda module, args, output: output + 0.5)


def patched(pipe: Any) -> None:
    norm = pipe.text_encoder.text_model.final_layer_norm
    norm.forward = lambda x: nn.functional.layer_norm(x, x.shape[-1:])


@pytest.mark.parametrize(
    "change", [written, replaced, loaded, shortened, set_otherwise, another, hooked, patched], ids=lambda f: f.__name__
)
def test_an_encoder_that_changed_encodes_anew(change: Any, sd1: Any, draw: Draw) -> None:
    with torch.no_grad():
        for weight in sd1.text_encoder.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    before = draw(sd1)
    change(sd1)
    after = draw(sd1)
    assert not torch.equal(after, before)
    sd1.prompt_cache = None
    assert torch.equal(draw(sd1), after)


@pytest.mark.parametrize("arguments", [{"clip_skip": 1}, {"prompt": "b"}, {"prompt": ["a red cat", "a red cat"]}])
def test_other_arguments_are_encoded_anew(arguments: Any, sd1: Any, draw: Draw, runs: list[Any]) -> None:
    draw(sd1)
    before = len(runs)
    draw(sd1, **arguments)
    assert len(runs) > before


def test_another_dtype_and_back(sd1: Any, draw: Draw, runs: list[Any]) -> None:
    first = draw(sd1)
    sd1.to(torch.bfloat16)
    half = draw(sd1)
    sd1.to(torch.float32)
    after = len(runs)
    draw(sd1)
    assert len(runs) == after + 2
    assert half.shape == first.shape
    assert not torch.equal(half.float(), first)


def test_gradients_and_training_are_never_kept(sd1: Any, runs: list[Any]) -> None:
    for _ in range(2):
        assert sd1.encode_prompt("a")[0].requires_grad
    sd1.text_encoder.train()
    with torch.no_grad():
        for _ in range(2):
            sd1.encode_prompt("a")
    assert len(runs) == 8


def test_writing_to_what_a_call_returns_changes_nothing_kept(sd1: Any, draw: Draw) -> None:
    expected = draw(sd1)
    for _ in range(2):
        with torch.no_grad():
            for embeds in sd1.encode_prompt("a red cat"):
                embeds.zero_()
    assert torch.equal(draw(sd1), expected)


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


def test_the_memory_is_bounded(sd1: Any, draw: Draw, runs: list[Any]) -> None:
    with torch.no_grad():
        one = sum(output.nbytes for output in sd1.encode_prompt("a", do_classifier_free_guidance=False)[:1])
    sd1.prompt_cache = PromptCache(limit=2 * one)
    for word in "abc":
        draw(sd1, prompt=word, guidance_scale=1)
    assert sum(kept.nbytes for kept in sd1.prompt_cache._kept.values()) <= sd1.prompt_cache.limit
    before = len(runs)
    draw(sd1, prompt="c", guidance_scale=1)
    assert len(runs) == before
    draw(sd1, prompt="a", guidance_scale=1)
    assert len(runs) == before + 1


def test_copies_begin_empty(sd1: Any, draw: Draw, runs: list[Any]) -> None:
    first = draw(sd1)
    twin = copy.deepcopy(sd1)
    before = len(runs)
    assert torch.equal(draw(twin), first)
    assert len(runs) == before + 2


def test_clear_forgets(sd1: Any, draw: Draw) -> None:
    before = draw(sd1)
    sd1.text_encoder.text_model.final_layer_norm.bias.data.add_(0.5)  # a write that torch does not count
    assert torch.equal(draw(sd1), before)
    sd1.prompt_cache.clear()
    assert not torch.equal(draw(sd1), before)


def test_adapters_of_the_encoder_count(sd1: Any, draw: Draw) -> None:
    def cached_and_not(**arguments: Any) -> torch.Tensor:
        cached = draw(sd1, **arguments)
        cache, sd1.prompt_cache = sd1.prompt_cache, None
        assert torch.equal(draw(sd1, **arguments), cached)
        sd1.prompt_cache = cache
        return cached

    with torch.no_grad():
        for weight in sd1.text_encoder.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    plain = cached_and_not()
    sd1.load_lora_weights(dotted("text_encoder", sd1.text_encoder), adapter_name="a")
    whole = cached_and_not()
    half = cached_and_not(cross_attention_kwargs={"scale": 0.5})
    sd1.set_adapters("a", 0.25)
    less = cached_and_not()
    assert len({each.sum().item() for each in (plain, whole, half, less)}) == 4
    sd1.fuse_lora()
    cached_and_not()
    sd1.unfuse_lora()
    assert torch.equal(cached_and_not(), less)
    sd1.unload_lora_weights()
    assert torch.equal(cached_and_not(), plain)
