"""Several ControlNets in one pipeline, against diffusers: drawing, pictures by prompt, and folders both ways.

Tolerances as in test_controlnet.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parity.controlnet_files import NAMES, VISIBLE, Pair, check, draw, pairs_of, picture

import leandiffusion
from leandiffusion import CheckpointNotFound, ConfigError, DiffusionPipeline, MultiControlNetModel
from leandiffusion.weights.residence import is_waiting
from leandiffusion.weights.stored import StoredTensor

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

PICTURES = [picture(1), picture(2)]


@pytest.fixture(scope="module", params=NAMES)
def pair(
    request: pytest.FixtureRequest, tiny: Callable[[str], tuple[Any, Path]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Pair]:
    """diffusers' pipeline and ours with so many ControlNets, the same weights in both."""
    return pairs_of(request.param, tiny, tmp_path_factory)


def test_several_at_once(pair: Callable[[int], Pair]) -> None:
    both, pictures = pair(2), [picture(1), picture(2)]
    check(both, image=pictures)
    got = check(both, image=pictures, controlnet_conditioning_scale=[0.3, 0.9], control_guidance_start=[0.0, 0.4])
    alone = draw(pair(1)[1], image=picture(1), controlnet_conditioning_scale=0.3)
    assert (got - alone).abs().max() > VISIBLE * got.abs().max(), "the second one matters"


@pytest.mark.parametrize("prompts", [1, 2, 3])
def test_several_with_pictures_for_each_prompt(pair: Callable[[int], Pair], prompts: int) -> None:
    """A list for each prompt with a picture for each ControlNet, of which diffusers reads such for SD1 and SD2."""
    theirs, ours = pair(2)
    pictures = [[picture(2 * i), picture(2 * i + 1)] for i in range(prompts)]
    asked: dict[str, Any] = {"prompt": ["a red cat", "a dog", "the red"][:prompts], "num_images_per_prompt": 2}
    got = draw(ours, image=pictures, **asked)
    by_net = [torch.cat(each) for each in zip(*pictures, strict=True)]
    if type(theirs).__name__ == NAMES["sd1"]:
        check((theirs, ours), image=pictures, **asked)
    assert torch.equal(got, check((theirs, ours), image=by_net, **asked))
    if prompts == 2:
        other = draw(ours, image=[list(each) for each in zip(*pictures, strict=True)], **asked)
        assert (got - other).abs().max() > VISIBLE * got.abs().max(), "which list is whose matters"


def test_pictures_that_are_not_for_each_prompt_are_told(pair: Callable[[int], Pair]) -> None:
    ours, prompts = pair(2)[1], ["a red cat", "a dog", "the red"]
    by_net = [[picture(i) for i in range(3)] for _ in range(2)]
    cases = [
        (by_net, "2 ControlNets, and among their pictures is a list of 3 pictures"),
        ([[picture(1), picture(2)], picture(3)], "pictures beside lists"),
        ([[picture(1), picture(2)], [picture(3)]], "a list of 1 pictures"),
        ([picture(1)], "2 ControlNets and 1 pictures"),
        (picture(1), "2 ControlNets and 1 pictures"),
        ([[], []], "a list of 0 pictures"),
        ([[picture(1), picture(2)]] * 2, "2 entries for 3 pictures to draw"),
    ]
    for pictures, told in cases:
        with pytest.raises(ConfigError, match=told):
            draw(ours, image=pictures, prompt=prompts)


def test_several_in_the_class_of_diffusers(pair: Callable[[int], Pair]) -> None:
    ours = pair(2)[1]
    several = diffusers.MultiControlNetModel(list(ours.controlnet.nets))
    other = type(ours)(**{**ours.components, "controlnet": several})
    pictures = [picture(1), picture(2)]
    assert torch.equal(draw(other, image=pictures), draw(ours, image=pictures))


# -- folders -----------------------------------------------------------------------------------------------------------


def test_diffusers_opens_what_we_save(pair: Callable[[int], Pair], tmp_path: Path) -> None:
    theirs, ours = pair(2)
    ours.save_pretrained(tmp_path)
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert type(again.controlnet) is diffusers.MultiControlNetModel
    assert len(again.controlnet.nets) == 2
    assert torch.equal(draw(again, image=PICTURES), draw(theirs, image=PICTURES))


def test_what_diffusers_saved(pair: Callable[[int], Pair], tmp_path: Path) -> None:
    """The weights stay on disk until they are used, and travel from there as all others do."""
    theirs, ours = pair(2)
    theirs.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert type(again) is type(ours)
    assert all(is_waiting(net) for net in again.controlnet.nets)
    plain = draw(ours, image=PICTURES)
    assert torch.equal(draw(again, image=PICTURES), plain)
    lean = DiffusionPipeline.from_pretrained(tmp_path, offload="sequential")
    lean.set_progress_bar_config(disable=True)
    assert (draw(lean, image=PICTURES) - plain).abs().max() < 1e-5 * plain.abs().max()
    assert all(isinstance(p, StoredTensor) for net in lean.controlnet.nets for p in net.parameters())


@pytest.mark.parametrize("task", ["Text2Image", "Image2Image", "Inpainting"])
def test_for_another_task(pair: Callable[[int], Pair], tmp_path: Path, task: str) -> None:
    pair(2)[1].save_pretrained(tmp_path)
    name = f"AutoPipelineFor{task}"
    expected = getattr(diffusers, name).from_pretrained(tmp_path)
    assert type(getattr(leandiffusion, name).from_pretrained(tmp_path)).__name__ == type(expected).__name__


def test_dtypes_are_those_of_the_component(pair: Callable[[int], Pair], tmp_path: Path) -> None:
    pair(2)[1].save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path, dtype={"controlnet": torch.bfloat16})
    assert [net.dtype for net in again.controlnet.nets] == [torch.bfloat16] * 2
    assert again.unet.dtype is torch.float32
    assert DiffusionPipeline.from_pretrained(tmp_path, controlnet=again.controlnet.nets[0]).controlnet.dtype


def test_alone_both_ways(pair: Callable[[int], Pair], tmp_path: Path) -> None:
    theirs, ours = (pipe.controlnet for pipe in pair(2))
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(str(tmp_path / "theirs"))
    names = ["ours", "ours_1", "theirs", "theirs_1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    read = diffusers.MultiControlNetModel.from_pretrained(str(tmp_path / "ours"))
    own = MultiControlNetModel.from_pretrained(tmp_path / "theirs", dtype=torch.float64)
    assert own.dtype is torch.float64
    for expected, *others in zip(theirs.nets, read.nets, own.nets, strict=True):
        for other in others:
            state = other.state_dict()
            assert all(torch.equal(t, state[name].to(t.dtype)) for name, t in expected.state_dict().items())


def test_called_by_hand(pair: Callable[[int], Pair]) -> None:
    theirs, ours = (pipe.controlnet for pipe in pair(2))
    width = ours.nets[0].config.cross_attention_dim
    asked = [torch.randn(1, 4, 8, 8), 13, torch.randn(1, 5, width), PICTURES, [0.7, 0.2]]
    if ours.nets[0].add_embedding is not None:
        pooled = theirs.nets[0].add_embedding.linear_1.in_features - 6 * ours.nets[0].config.addition_time_embed_dim
        more = {"added_cond_kwargs": {"text_embeds": torch.randn(1, pooled), "time_ids": torch.rand(1, 6)}}
    else:
        more = {}
    with torch.no_grad():
        expected, got = theirs(*asked, return_dict=False, **more), ours(*asked, **more)
    pairs = zip([*expected[0], expected[1]], [*got.down_block_res_samples, got.mid_block_res_sample], strict=True)
    assert all((one - other).abs().max() < 1e-5 * one.abs().max() for one, other in pairs)
    with pytest.raises(ConfigError, match="2 ControlNets need as many pictures and scales: found 1"):
        ours(*asked[:3], PICTURES[:1], [1.0])


def test_folders_that_do_not_belong_are_told(pair: Callable[[int], Pair], tmp_path: Path) -> None:
    ours = pair(2)[1]
    several = MultiControlNetModel([*ours.controlnet.nets, ours.controlnet.nets[0]])
    several.save_pretrained(tmp_path / "controlnet")
    for save in (
        lambda: ours.save_pretrained(tmp_path),
        lambda: ours.controlnet.save_pretrained(tmp_path / "controlnet"),
    ):
        with pytest.raises(ConfigError, match="controlnet_2 is left of another save"):
            save()
    assert not (tmp_path / "model_index.json").exists()
    shutil.rmtree(tmp_path / "controlnet_1")
    with pytest.raises(CheckpointNotFound, match="controlnet_1 is not there, and controlnet_2 is"):
        MultiControlNetModel.from_pretrained(tmp_path / "controlnet")
    with pytest.raises(CheckpointNotFound, match="no such folder"):
        MultiControlNetModel.from_pretrained(tmp_path / "absent" / "controlnet")
    with pytest.raises(ConfigError, match="pickled weights"):
        several.save_pretrained(tmp_path / "other", safe_serialization=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["controlnet", "controlnet_2"]
