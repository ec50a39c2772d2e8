"""What scripts do with a pipeline's components: weigh words of long prompts as Compel does, and draw with diffusers'
pipelines on our components.

Tolerances: text within 1e-6 of values around 1, the same operations in the same order; latents within 1e-4 of their
largest entry, as in test_pipelines.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import leandiffusion
from leandiffusion.pipelines import open_pipeline

diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

Pair = tuple[Any, Any]
LATENTS, TEXT = 1e-4, 1e-6
LONG = "the red cat, an a cat. " * 4


@pytest.fixture(scope="module")
def pairs(tiny: Callable[[str], tuple[Any, Path]]) -> dict[str, Pair]:
    made = {}
    for family in ("sd1", "sd2", "sdxl"):
        theirs, folder = tiny(family)
        ours = open_pipeline(folder)
        ours.set_progress_bar_config(disable=True)
        made[family] = theirs, ours
    return made


@pytest.fixture(params=["sd1", "sd2", "sdxl"])
def pair(request: pytest.FixtureRequest, pairs: dict[str, Pair]) -> Pair:
    return pairs[request.param]


def close(expected: torch.Tensor, got: torch.Tensor, tolerance: float) -> None:
    assert got.shape == expected.shape
    assert ((expected - got).abs().max() / expected.abs().max()).item() < tolerance


@pytest.mark.parametrize("part", ["unet", "vae", "scheduler"])
def test_configs_by_folder(tiny: Callable[[str], tuple[Any, Path]], part: str) -> None:
    theirs, folder = tiny("sd1")
    name = type(getattr(theirs, part)).__name__
    with pytest.warns(FutureWarning, match="from_config with a folder or hub id is deprecated"):
        ours = getattr(leandiffusion, name).from_config(str(folder), subfolder=part)
    expected = getattr(diffusers, name).from_config(str(folder), subfolder=part).config
    for key in set(ours.config) & set(expected) - {"_use_default_values"}:
        as_lists = [list(each[key]) if isinstance(each[key], tuple) else each[key] for each in (ours.config, expected)]
        assert as_lists[0] == as_lists[1], key


# -- tokens ------------------------------------------------------------------------------------------------------------

TEXTS = ["a red cat", "the cat!? 12", "", LONG, "Ünïcode <|endoftext|> a"]


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_by_name(pair: Pair, text: str) -> None:
    theirs, ours = (pipe.tokenizer for pipe in pair)
    ids = theirs(text, truncation=False, padding="do_not_pad")["input_ids"]
    assert ours(text, truncation=False, padding="do_not_pad")["input_ids"] == ids
    tokens = theirs.convert_ids_to_tokens(ids)
    assert ours.convert_ids_to_tokens(ids) == ours.convert_ids_to_tokens(torch.tensor(ids)) == tokens
    assert ours.convert_ids_to_tokens(ids, skip_special_tokens=True) == theirs.convert_ids_to_tokens(
        ids, skip_special_tokens=True
    )
    assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens) == ids
    assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)
    assert ours.tokenize(text) == theirs.tokenize(text)


def test_tokens_with_a_role(pair: Pair) -> None:
    theirs, ours = (pipe.tokenizer for pipe in pair)
    assert ours.special_tokens_map == {role: str(token) for role, token in theirs.special_tokens_map.items()}
    assert ours.all_special_tokens == [str(token) for token in theirs.all_special_tokens]
    assert ours.all_special_ids == theirs.all_special_ids
    assert ours.added_tokens_encoder == theirs.added_tokens_encoder
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    assert ours.get_vocab() == theirs.get_vocab()
    assert {k: v.content for k, v in ours.added_tokens_decoder.items()} == {
        k: v.content for k, v in theirs.added_tokens_decoder.items()
    }
    assert ours.num_special_tokens_to_add() == theirs.num_special_tokens_to_add()
    assert ours.padding_side == theirs.padding_side
    for given in (5, "cat</w>", "no such token"):
        name = "convert_ids_to_tokens" if isinstance(given, int) else "convert_tokens_to_ids"
        assert getattr(ours, name)(given) == getattr(theirs, name)(given)
    with pytest.raises(leandiffusion.ConfigError, match="-1 is not a token's id"):
        ours.convert_ids_to_tokens([3, -1])


# -- weights and long prompts ------------------------------------------------------------------------------------------


def chunks(tokenizer: Any, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (chunks, length): the whole text, however long, in pieces that the encoder reads."""
    ids = tokenizer(text, truncation=False, padding="do_not_pad", return_tensors=None)["input_ids"][1:-1]
    room = tokenizer.model_max_length - 2
    rows, masks = [], []
    for start in range(0, max(len(ids), 1), room):
        piece = [tokenizer.bos_token_id, *ids[start : start + room], tokenizer.eos_token_id]
        padding = tokenizer.model_max_length - len(piece)
        rows.append(piece + [tokenizer.pad_token_id] * padding)
        masks.append([1] * len(piece) + [0] * padding)
    return torch.tensor(rows), torch.tensor(masks)


def weigh(tokenizer: Any, encoder: Any, text: str, word: str, weight: float, penultimate: bool) -> list[torch.Tensor]:
    """(1, chunks * length, C) with the word's tokens weighted against the empty text, masked; and the pooled output."""
    ids, mask = chunks(tokenizer, text)
    heavy = torch.isin(ids, torch.tensor(tokenizer.encode(word, add_special_tokens=False)))
    empty = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")
    outputs = []
    for given, seen in ((ids, mask), (ids, mask * ~heavy), (empty["input_ids"], None)):
        output = encoder(given.to(encoder.device), seen, output_hidden_states=True, return_dict=True)
        hidden = output.hidden_states[-2] if penultimate else output.last_hidden_state
        outputs.append((hidden, output.pooler_output if hasattr(output, "pooler_output") else output.text_embeds))
    (whole, pooled), (without, _), (nothing, _) = outputs
    mixed = nothing + torch.where(heavy[..., None], weight, 1.0) * (0.7 * whole + 0.3 * without - nothing)
    return [mixed.flatten(0, 1)[None], pooled[:1]]


def test_weighted_long_prompts(pair: Pair) -> None:
    """A prompt of several chunks, with a weighted word, against an empty negative of the same length."""
    double = "XL" in type(pair[0]).__name__
    results = []
    for pipe in pair:
        encoders = [(pipe.tokenizer, pipe.text_encoder)]
        if double:
            encoders.append((pipe.tokenizer_2, pipe.text_encoder_2))
        with torch.no_grad():
            pos = [weigh(*each, LONG, "red", 1.4, double) for each in encoders]
            neg = [weigh(*each, "an " * 60, "an", 0.5, double) for each in encoders]
        length = min(pos[0][0].shape[1], neg[0][0].shape[1])
        given = {
            "prompt_embeds": torch.cat([each for each, _ in pos], dim=-1)[:, :length],
            "negative_prompt_embeds": torch.cat([each for each, _ in neg], dim=-1)[:, :length],
        }
        if double:
            given |= {"pooled_prompt_embeds": pos[1][1], "negative_pooled_prompt_embeds": neg[1][1]}
        images = pipe(**given, num_inference_steps=3, output_type="latent", generator=torch.Generator().manual_seed(0))
        results.append((given, images.images))
    assert results[0][0]["prompt_embeds"].shape[1] > pair[0].tokenizer.model_max_length
    for name, expected in results[0][0].items():
        close(expected, results[1][0][name], TEXT)
    close(results[0][1], results[1][1], LATENTS)


def test_compel_itself(pair: Pair) -> None:
    compel = pytest.importorskip("compel")
    double = "XL" in type(pair[0]).__name__
    made = compel.CompelForSDXL if double else compel.CompelForSD
    for prompt in ("a (red)1.4 cat", "(the cat)0.3, a (red)++", LONG + "(red)1.3"):
        with torch.no_grad():
            theirs, ours = (made(pipe)(prompt, negative_prompt="an (a)0.5") for pipe in pair)
        for name, expected in vars(theirs).items():
            if isinstance(expected, torch.Tensor):
                close(expected, getattr(ours, name), TEXT)


# -- diffusers' pipelines on our components ----------------------------------------------------------------------------

RNG = np.random.default_rng(0)
PICTURE = Image.fromarray((RNG.random((64, 64, 3)) * 255).astype(np.uint8))
MASK = Image.fromarray(np.uint8(np.tri(64) * 255))
PLAIN: dict[str, Any] = {}
IMG2IMG = {"image": PICTURE, "strength": 0.7}
INPAINT = {"image": PICTURE, "mask_image": MASK, "strength": 0.9, "height": 64, "width": 64}
THEIRS = {
    "StableDiffusionPipeline": ("sd1", PLAIN), "StableDiffusionImg2ImgPipeline": ("sd1", IMG2IMG),
    "StableDiffusionInpaintPipeline": ("sd1", INPAINT), "StableDiffusionXLPipeline": ("sdxl", PLAIN),
    "StableDiffusionXLImg2ImgPipeline": ("sdxl", IMG2IMG), "StableDiffusionXLInpaintPipeline": ("sdxl", INPAINT),
}  # fmt: skip


@pytest.mark.parametrize("scheduler", [None, "DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler"])
@pytest.mark.parametrize("name", THEIRS)
def test_pipelines_of_diffusers_draw_with_our_components(
    pairs: dict[str, Pair], name: str, scheduler: str | None
) -> None:
    family, given = THEIRS[name]
    results = []
    for pipe, library in zip(pairs[family], (diffusers, leandiffusion), strict=True):
        components = dict(pipe.components)
        if scheduler is not None:
            components["scheduler"] = getattr(library, scheduler).from_config(pipe.scheduler.config)
        made = getattr(diffusers, name)(**components, **pipe.parameters)
        made.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(1)
        results.append(made("a red cat", num_inference_steps=4, output_type="latent", generator=generator, **given))
    close(results[0].images, results[1].images, LATENTS)


def test_from_pipe_of_diffusers(pairs: dict[str, Pair]) -> None:
    ours = pairs["sd1"][1]
    made = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(ours)
    assert made.unet is ours.unet
    assert type(diffusers.AutoPipelineForImage2Image.from_pipe(ours)) is diffusers.StableDiffusionImg2ImgPipeline
