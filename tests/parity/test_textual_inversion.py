"""Textual inversions against diffusers', on transformers' encoders with the same random weights, in float32.

Embeddings agree to 1e-5 of their largest entry: both sides look up the same vectors, and add in different orders.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from leandiffusion.pipelines import open_pipeline

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

TOLERANCE = 1e-5
PROMPTS = ["a <cat-toy> the red cat", "<cat-toy>, red <cat-toy>", "the red cat", "a <cat-toy> " * 12]


def vectors(count: int, width: int, seed: int = 3) -> torch.Tensor:
    return 0.3 * torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def pair_of(name: str, tiny: Callable[[str], tuple[Any, Path]]) -> tuple[Any, Any]:
    """Both opened anew: what is loaded below must not stay in the folder's pipeline."""
    theirs, folder = tiny(name)
    ours = open_pipeline(folder)
    ours.set_progress_bar_config(disable=True)
    return type(theirs).from_pretrained(folder), ours


def agree(theirs: Any, ours: Any, prompt: str) -> None:
    with torch.no_grad():
        expected = theirs.encode_prompt(prompt, "cpu", 1, True, negative_prompt="<cat-toy>") if not hasattr(
            theirs, "text_encoder_2"
        ) else theirs.encode_prompt(prompt, device="cpu", negative_prompt="<cat-toy>")  # fmt: skip
        found = ours.encode_prompt(prompt, negative_prompt="<cat-toy>")
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= TOLERANCE * other.abs().max()


@pytest.mark.filterwarnings("ignore:.*was cut off")
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("name", "width"), [("sd1", 32), ("sd2", 40)])
def test_embeddings(name: str, width: int, count: int, tiny: Callable[[str], tuple[Any, Path]], tmp_path: Path) -> None:
    theirs, ours = pair_of(name, tiny)
    file = tmp_path / "learned_embeds.safetensors"
    save_file({"<cat-toy>": vectors(count, width)}, file)
    for pipe in (theirs, ours):
        pipe.load_textual_inversion(str(tmp_path))
    for prompt in PROMPTS:
        agree(theirs, ours, prompt)
    words = "a <cat-toy> red"
    kept = [*ours.tokenizer(words)["input_ids"]]
    assert kept == theirs.tokenizer(theirs.maybe_convert_prompt(words, theirs.tokenizer)).input_ids
    for pipe in (theirs, ours):
        pipe.unload_textual_inversion("<cat-toy>" if count == 1 else None)
    agree(theirs, ours, "a <cat-toy>")


def test_two_encoders(tiny: Callable[[str], tuple[Any, Path]], tmp_path: Path) -> None:
    theirs, ours = pair_of("sdxl", tiny)
    state = {"clip_l": vectors(2, 32), "clip_g": vectors(2, 40)}
    save_file(state, tmp_path / "style.safetensors")
    for which, part in (("", "clip_l"), ("_2", "clip_g")):
        parts = {f"{kind}": getattr(theirs, f"{kind}{which}") for kind in ("tokenizer", "text_encoder")}
        theirs.load_textual_inversion(state[part], token="<cat-toy>", **parts)
    ours.load_textual_inversion(tmp_path / "style.safetensors", token="<cat-toy>")
    for prompt in PROMPTS[:3]:
        agree(theirs, ours, prompt)


def test_the_picture(tiny: Callable[[str], tuple[Any, Path]]) -> None:
    theirs, ours = pair_of("sd1", tiny)
    asked: dict[str, Any] = {"num_inference_steps": 3, "output_type": "latent"}
    plain = ours(PROMPTS[0], **asked, generator=torch.Generator().manual_seed(1)).images
    pictures = []
    for pipe in (theirs, ours):
        pipe.load_textual_inversion({"<cat-toy>": vectors(2, 32)})
        pictures.append(pipe(PROMPTS[0], **asked, generator=torch.Generator().manual_seed(1)).images)
    assert (pictures[0] - pictures[1]).abs().max() <= 1e-4 * pictures[0].abs().max()
    assert (pictures[1] - plain).abs().max() > 1e-2
