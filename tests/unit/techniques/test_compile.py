"""Compiled blocks: the same picture, nothing compiled again for a new prompt, and nothing left when switched off."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from leandiffusion import ConfigError, StableDiffusionPipeline
from leandiffusion.device import capabilities
from leandiffusion.techniques import compile as module
from leandiffusion.techniques import techniques

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own affairs


@pytest.fixture
def pipe() -> Any:
    torch._dynamo.reset()
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, prompt: str = "a red circle", seed: int = 3, size: int = 64) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    return pipe(prompt, generator=generator, num_inference_steps=2, output_type="np", height=size, width=size).images


def test_a_new_prompt_compiles_nothing(pipe: Any) -> None:
    """Within 1e-4 of a picture's range: what is compiled multiplies by torch's library, what is not may by oneDNN."""
    expected = [draw(pipe), draw(pipe, "a small blue star on a white background", 4)]
    pipe.enable_compile(backend="eager")
    np.testing.assert_allclose(draw(pipe), expected[0], atol=1e-4)
    compiled = counters["stats"]["unique_graphs"]
    assert compiled > 0
    np.testing.assert_allclose(draw(pipe, "a small blue star on a white background", 4), expected[1], atol=1e-4)
    assert counters["stats"]["unique_graphs"] == compiled
    pipe.disable("compile")
    assert all(m._compiled_call_impl is None for m in (*pipe.unet.modules(), *pipe.vae.modules()))
    assert np.array_equal(draw(pipe), expected[0])


def test_blocks_of_one_kind_share_their_compilation(pipe: Any) -> None:
    blocks, before = list(module.Compile()._blocks(pipe._stack.subject)), counters["stats"]["unique_graphs"]
    pipe.enable_compile(backend="eager")
    draw(pipe)
    assert 0 < counters["stats"]["unique_graphs"] - before < len(blocks)


@pytest.mark.slow
def test_with_the_compiler(pipe: Any) -> None:
    technique = techniques.get("compile")()
    if reasons := pipe.why_not(technique):
        pytest.skip("; ".join(reasons))
    expected = draw(pipe)
    pipe.enable(technique)
    np.testing.assert_allclose(draw(pipe), expected, atol=1e-4)


def test_no_compiler_is_said(monkeypatch: pytest.MonkeyPatch, pipe: Any) -> None:
    monkeypatch.setattr(capabilities.shutil, "which", lambda name: None)
    [reason] = pipe.why_not(module.Compile())
    assert "needs a C++ compiler" in reason
    assert pipe.why_not(module.Compile(backend="eager")) == []


@pytest.mark.parametrize("settings", [{"backend": "inducktor"}, {"backend": "eager", "dynamic": "yes"}])
def test_what_torch_does_not_know_changes_nothing(pipe: Any, settings: dict[str, Any]) -> None:
    limit = torch._dynamo.config.recompile_limit
    with pytest.raises(ConfigError, match=r"torch\.compile refuses compile"):
        pipe.enable_compile(**settings)
    assert torch._dynamo.config.recompile_limit == limit
    assert not any("_compiled_call_impl" in vars(m) for m in (*pipe.unet.modules(), *pipe.vae.modules()))


@pytest.mark.parametrize("parts", ["unet", 5, None])
def test_parts_that_are_none(parts: Any) -> None:
    with pytest.raises(ConfigError, match=r"give a tuple of names, such as \('unet',\)"):
        module.Compile(parts=parts)
