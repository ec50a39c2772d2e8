"""Every public name of diffusers' pipelines is here: it does what theirs does, or says that it is not there.

Numbers are compared exactly where nothing is computed in another order, else within 1e-5 of values around 1.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import leandiffusion
from leandiffusion import ConfigError, NotSupported
from leandiffusion.pipelines import open_pipeline

diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

Pair = tuple[Any, Any]
CLASSES = tuple(f"StableDiffusion{kind}{task}Pipeline" for task in ("", "Img2Img", "Inpaint") for kind in ("", "XL"))
CLOSE = {"atol": 1e-5, "rtol": 0}

NOT_THERE = {
    "enable_lora_hotswap", "set_lora_device", "lora_state_dict", "load_lora_into_unet", "load_lora_into_text_encoder",
    "write_lora_layers", "pack_weights",
    "enable_group_offload", "push_to_hub", "from_config", "extract_init_dict", "register_for_auto_class",
}  # fmt: skip
NOTHING_TO_UNDO = {
    "unload_lora_weights", "unfuse_lora", "enable_lora", "disable_lora", "unload_ip_adapter", "disable_freeu",
    "unfuse_qkv_projections", "maybe_free_model_hooks", "reset_device_map",
}  # fmt: skip


def public(cls: type) -> list[str]:
    return [name for name in dir(cls) if not name.startswith("_")]


@pytest.fixture(scope="module")
def pairs(tiny: Callable[[str], tuple[Any, Path]]) -> dict[str, Pair]:
    made = {}
    for family in ("sd1", "sdxl"):
        theirs, folder = tiny(family)
        ours = open_pipeline(folder)
        for pipe in (theirs, ours):
            pipe.set_progress_bar_config(disable=True)
            pipe("a", num_inference_steps=1, output_type="latent", generator=torch.Generator().manual_seed(0))
        made[family] = theirs, ours
    return made


@pytest.fixture(params=["sd1", "sdxl"])
def pair(request: pytest.FixtureRequest, pairs: dict[str, Pair]) -> Pair:
    return pairs[request.param]


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_name_is_there(name: str) -> None:
    theirs, ours = getattr(diffusers, name), getattr(leandiffusion, name)
    assert set(public(theirs)) <= set(public(ours))
    for attribute in public(theirs):
        kinds = [type(inspect.getattr_static(cls, attribute)) is property for cls in (theirs, ours)]
        assert kinds[0] == kinds[1] or attribute in ("config", "default_sample_size"), attribute
        assert callable(getattr(theirs, attribute)) == callable(getattr(ours, attribute)), attribute


def test_every_public_attribute_of_an_instance_is_there(pair: Pair) -> None:
    """What their constructors set, and what a call leaves."""
    theirs, ours = pair
    for name in (name for name in dir(theirs) if not name.startswith("_")):
        assert hasattr(ours, name), name


@pytest.mark.parametrize("name", sorted(NOT_THERE))
def test_what_is_not_there_says_so(pair: Pair, name: str) -> None:
    with pytest.raises(NotSupported, match=r"not supported|never|not built") as error:
        getattr(pair[1], name)("anything", adapter_name="x")
    assert isinstance(error.value, ConfigError)
    assert isinstance(error.value, NotImplementedError)
    assert len(str(error.value)) < 500
    assert ":" in str(error.value), "what to do instead"


def test_what_the_networks_may_know(tiny: Callable[[str], tuple[Any, Path]]) -> None:
    """FreeU and fused projections are the networks' business: diffusers' own, in our pipeline, know both."""
    _, folder = tiny("sd1")
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder)  # its own: unfused, fused layers stay behind
    ours = open_pipeline(folder, unet=theirs.unet, vae=theirs.vae)
    for pipe in (theirs, ours):
        pipe.set_progress_bar_config(disable=True)

    def draw(pipe: Any) -> torch.Tensor:
        given = {"output_type": "latent", "generator": torch.Generator().manual_seed(0)}
        return pipe("a cat", num_inference_steps=2, **given).images

    plain = draw(ours)
    ours.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    torch.testing.assert_close(draw(ours), draw(theirs), atol=1e-3, rtol=0)
    ours.disable_freeu()
    assert torch.equal(draw(ours), plain)
    ours.fuse_qkv_projections()
    torch.testing.assert_close(draw(ours), plain, atol=1e-3, rtol=0)
    ours.unfuse_qkv_projections()
    assert torch.equal(draw(ours), plain)
    ours.unet = torch.nn.Identity()
    for call in (lambda: ours.enable_freeu(0.9, 0.2, 1.2, 1.4), ours.fuse_qkv_projections):
        with pytest.raises(NotSupported, match="not supported yet"):
            call()


@pytest.mark.parametrize("name", sorted(NOTHING_TO_UNDO))
def test_what_has_nothing_to_undo(pair: Pair, name: str) -> None:
    assert getattr(pair[1], name)() is None


@pytest.mark.parametrize("name", sorted({name for cls in CLASSES for name in public(getattr(diffusers, cls))}))
def test_parameters_have_their_places(name: str) -> None:
    """A call by position means the same, up to what there is no use for here."""
    for cls in CLASSES:
        theirs, ours = (getattr(getattr(library, cls), name, None) for library in (diffusers, leandiffusion))
        if not inspect.isroutine(theirs) or name in NOT_THERE | NOTHING_TO_UNDO:
            continue
        wanted, got = (
            [each.name for each in inspect.signature(function).parameters.values() if each.kind < each.VAR_POSITIONAL]
            for function in (theirs, ours)
        )
        same = [a == b for a, b in zip(wanted, got, strict=False)]
        assert all(same) or name == "from_single_file", (wanted, got)  # its first parameter is a path here


# -- what they do ------------------------------------------------------------------------------------------------------


def test_the_config(pair: Pair) -> None:
    theirs, ours = pair
    for name, value in theirs.config.items():
        if not name.startswith("_"):
            got = ours.config[name]
            assert (tuple(got) if isinstance(got, list) else got) == value
    assert ours.config._class_name == type(theirs).__name__
    assert ours.name_or_path == str(theirs.name_or_path)
    assert ours.parameters == theirs.parameters
    assert ours.components.keys() == theirs.components.keys()
    assert ours.model_cpu_offload_seq == theirs.model_cpu_offload_seq
    assert ours.hf_device_map is theirs.hf_device_map is None


def test_the_config_as_a_file(pair: Pair, tmp_path: Path) -> None:
    theirs, ours = pair
    ours.save_config(tmp_path)
    ours.to_json_file(tmp_path / "other.json")
    assert (tmp_path / "other.json").read_text() == (tmp_path / ours.config_name).read_text() == ours.to_json_string()
    loaded = ours.load_config(tmp_path)
    assert loaded == type(theirs).load_config(tmp_path)
    assert {k: v for k, v in loaded.items() if k[0] != "_"} == {
        k: v for k, v in dict(ours.config).items() if k[0] != "_"
    }


def test_registering(pair: Pair, pairs: dict[str, Pair]) -> None:
    theirs, ours = pair
    for pipe in (theirs, ours):
        unet, changed = pipe.unet, {name: not value for name, value in pipe.parameters.items()}
        kept = pipe.parameters
        try:
            pipe.register_modules(unet=None)
            assert pipe.unet is None
            assert tuple(pipe.config["unet"]) == (None, None)
            pipe.register_to_config(**changed)
            assert all(pipe.config[name] == value for name, value in changed.items())
        finally:
            pipe.register_modules(unet=unet)
            pipe.register_to_config(**kept)


@pytest.mark.parametrize("given", [False, True])
def test_prepare_latents(pair: Pair, given: bool) -> None:
    noise = torch.randn(2, 4, 5, 9, generator=torch.Generator().manual_seed(3)) if given else None
    a, b = (
        pipe.prepare_latents(2, 4, 40, 72, torch.float32, torch.device("cpu"), torch.Generator().manual_seed(1), noise)
        for pipe in pair
    )
    torch.testing.assert_close(b, a, **CLOSE)
    with pytest.raises(ValueError, match="3"):
        pair[1].prepare_latents(2, 4, 8, 8, torch.float32, "cpu", [torch.Generator()] * 3)


def test_arguments_of_a_step(pair: Pair) -> None:
    for scheduler in ("DDIMScheduler", "EulerDiscreteScheduler", "LMSDiscreteScheduler", "PNDMScheduler"):
        seen = []
        for library, pipe in zip((diffusers, leandiffusion), pair, strict=True):
            old, pipe.scheduler = pipe.scheduler, getattr(library, scheduler)()
            try:
                seen.append(pipe.prepare_extra_step_kwargs("generator", 0.5))
            finally:
                pipe.scheduler = old
        assert seen[0] == seen[1]


def test_guidance_as_an_input(pair: Pair) -> None:
    for dim, scales in ((256, torch.tensor([0.5, 6.5])), (64, torch.tensor([2.0]))):
        a, b = (pipe.get_guidance_scale_embedding(scales, dim) for pipe in pair)
        torch.testing.assert_close(b, a, atol=5e-4, rtol=0)  # sines of angles up to 6500, which float32 has to 5e-4


def test_pictures(pair: Pair) -> None:
    theirs, ours = (pipe.image_processor for pipe in pair)
    decoded = 1.2 * torch.randn(3, 3, 16, 24, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    for kind in ("pt", "np", "pil", "latent"):
        for flags in (None, [True, True, True]):
            a, b = (processor.postprocess(decoded, kind, flags) for processor in (theirs, ours))
            np.testing.assert_allclose(np.asarray(b, dtype=float), np.asarray(a, dtype=float), atol=1e-6)
    unit = theirs.postprocess(decoded, "pt")
    torch.testing.assert_close(
        ours.postprocess(unit, "pt", [False, True, False]), theirs.postprocess(unit, "pt", [False, True, False])
    )
    array = np.random.default_rng(0).random((2, 16, 24, 3), dtype=np.float32)
    for images in (array, array[0], array[..., :1]):
        a, b = (pipe.numpy_to_pil(images) for pipe in pair)
        assert [list(each.getdata()) for each in a] == [list(each.getdata()) for each in b]
        assert [each.mode for each in a] == [each.mode for each in b]
    pictures = pair[0].numpy_to_pil(array)
    np.testing.assert_array_equal(ours.pil_to_numpy(pictures), theirs.pil_to_numpy(pictures))


@pytest.mark.parametrize("size", [{}, {"height": 24, "width": 40}, {"height": 30}])
def test_pictures_to_encode(pair: Pair, size: dict[str, int]) -> None:
    theirs, ours = (pipe.image_processor for pipe in pair)
    rng = np.random.default_rng(1)
    array = rng.random((2, 33, 50, 3), dtype=np.float32)
    picture = Image.fromarray((array[0] * 255).astype(np.uint8))
    for given in (
        picture,
        [picture, picture],
        array,
        [array[0], array[1]],
        torch.from_numpy(array).permute(0, 3, 1, 2),
    ):
        a, b = (processor.preprocess(given, **size) for processor in (theirs, ours))
        torch.testing.assert_close(b, a, **CLOSE)
    latents = torch.randn(1, 4, 8, 8)
    assert ours.preprocess(latents) is not None
    assert torch.equal(ours.preprocess(latents), theirs.preprocess(latents))
    with pytest.raises(ValueError, match="Pillow"):
        ours.preprocess("picture.png")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_decoding(pairs: dict[str, Pair]) -> None:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        a, b = (pipe.decode_latents(latents) for pipe in pairs["sd1"])
    np.testing.assert_allclose(b, a, atol=1e-5)


def test_deprecated(pairs: dict[str, Pair]) -> None:
    with pytest.warns(FutureWarning, match="decode_latents is deprecated"):
        pairs["sd1"][1].decode_latents(torch.zeros(1, 4, 8, 8))
    with pytest.warns(FutureWarning, match="upcast_vae is deprecated"):
        pairs["sdxl"][1].upcast_vae()


CHECKS = [
    {}, {"height": 65}, {"width": 12}, {"callback_steps": 0}, {"prompt": None}, {"prompt": 3},
    {"negative_prompt": "a", "negative_prompt_embeds": torch.zeros(1, 24, 32)},
    {"callback_on_step_end_tensor_inputs": ["nothing"]}, {"callback_on_step_end_tensor_inputs": ["latents"]},
    {"prompt_embeds": torch.zeros(1, 24, 32)},
]  # fmt: skip


@pytest.mark.parametrize("case", CHECKS)
def test_check_inputs(pair: Pair, case: dict[str, Any]) -> None:
    given = {"prompt": "a", "height": 64, "width": 64, "callback_steps": None} | case
    if "StableDiffusionXL" in type(pair[0]).__name__:
        given["prompt_2"] = None
    refused = []
    for pipe in pair:
        try:
            pipe.check_inputs(**given)
            refused.append(False)
        except ValueError:
            refused.append(True)
    assert refused[0] == refused[1]


def test_from_pipe(pair: Pair) -> None:
    theirs, ours = pair
    again = type(ours).from_pipe(ours)
    assert again is not ours
    assert all(part is ours.components[name] for name, part in again.components.items())
    assert again.parameters == ours.parameters
    wrapped = type(ours).from_pipe(theirs)
    assert wrapped.unet is theirs.unet
    assert wrapped.parameters == ours.parameters
    changed = type(ours).from_pipe(ours, scheduler=leandiffusion.DDIMScheduler(steps_offset=1, clip_sample=False))
    assert type(changed.scheduler).__name__ == "DDIMScheduler"
    with pytest.raises(ConfigError, match="does not know the argument 'unett'"):
        type(ours).from_pipe(ours, unett=None)


def test_from_the_pipe_of_another_family(pairs: dict[str, Pair]) -> None:
    with pytest.raises(ConfigError, match="lacks text_encoder_2"):
        leandiffusion.StableDiffusionXLPipeline.from_pipe(pairs["sd1"][1])


def test_progress_bars(pair: Pair) -> None:
    for pipe in pair:
        assert list(pipe.progress_bar([1, 2])) == [1, 2]
        with pipe.progress_bar(total=2) as bar:
            bar.update()
        with pytest.raises(ValueError, match="total"):
            pipe.progress_bar()


def test_download(tiny: Callable[[str], tuple[Any, Path]]) -> None:
    folder = tiny("sd1")[1]
    assert leandiffusion.StableDiffusionPipeline.download(folder) == str(folder)


def test_slicing_under_its_older_name(pair: Pair) -> None:
    ours = pair[1]
    ours.set_attention_slice("auto")
    assert [applied.name for applied in ours.techniques] == ["attention_slicing"]
    ours.set_attention_slice(None)
    ours.set_use_memory_efficient_attention_xformers(False)
    assert not ours.techniques


# -- the safety checker ------------------------------------------------------------------------------------------------


def black_first(images: Any, clip_input: Any) -> tuple[Any, list[bool]]:
    assert clip_input.shape[0] == len(images)
    assert images.min() < 0, "as decoded, in [-1, 1]"
    images = images.clone()
    images[0] = 0
    return images, [True] + [False] * (len(images) - 1)


def grey_last(images: Any, clip_input: Any) -> tuple[Any, list[bool]]:
    images = images.clone()
    images[-1] = 0.25
    return images, [False] * (len(images) - 1) + [True]


def extract(images: list[Image.Image], return_tensors: str) -> Any:
    from leandiffusion.core.output import Batch

    return Batch(pixel_values=torch.stack([torch.tensor(np.array(each)).permute(2, 0, 1) / 255 for each in images]))


@pytest.mark.parametrize(
    "checker", [black_first, grey_last, lambda images, clip_input: (images, [False] * len(images))]
)
@pytest.mark.parametrize("kind", ["np", "pil", "latent"])
def test_any_callable_as_safety_checker(pairs: dict[str, Pair], checker: Any, kind: str) -> None:
    results = []
    for pipe in pairs["sd1"]:
        pipe.safety_checker, pipe.feature_extractor = checker, extract
        given = {"num_inference_steps": 2, "output_type": kind, "generator": torch.Generator().manual_seed(1)}
        try:
            results.append(pipe(["a", "a cat"], **given))
        finally:
            pipe.safety_checker = pipe.feature_extractor = None
    assert results[1].nsfw_content_detected == results[0].nsfw_content_detected
    theirs, ours = (np.stack([np.asarray(each, float) for each in result.images]) for result in results)
    np.testing.assert_allclose(ours, theirs, atol={"pil": 1, "np": 1 / 255, "latent": 1e-3}[kind])


def test_run_safety_checker(pairs: dict[str, Pair]) -> None:
    decoded = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    array = np.random.default_rng(0).random((2, 16, 16, 3), dtype=np.float32)
    for pipe in pairs["sd1"]:
        assert pipe.run_safety_checker(decoded, torch.device("cpu"), torch.float32)[1] is None
    seen: list[torch.Tensor] = []

    def look(images: Any, clip_input: torch.Tensor) -> tuple[Any, list[bool]]:
        seen.append(clip_input)
        return images, [False, True]

    for pipe in pairs["sd1"]:
        pipe.safety_checker, pipe.feature_extractor = look, extract
        try:
            for given in (decoded, array):
                images, flags = pipe.run_safety_checker(given, torch.device("cpu"), torch.float32)
                assert images is given
                assert flags == [False, True]
        finally:
            pipe.safety_checker = pipe.feature_extractor = None
    assert all(torch.equal(a, b) for a, b in zip(seen[:2], seen[2:], strict=True))


@pytest.mark.parametrize("returned", [False, None])
def test_the_usual_way_to_switch_the_checker_off(pairs: dict[str, Pair], returned: Any) -> None:
    """`lambda images, clip_input: (images, False)` stands in many scripts; no feature extractor is needed for it."""
    ours = pairs["sd1"][1]
    plain = ours("a", num_inference_steps=1, output_type="np", generator=torch.Generator().manual_seed(0)).images
    ours.safety_checker = lambda images, clip_input: (images, returned)
    try:
        result = ours("a", num_inference_steps=1, output_type="np", generator=torch.Generator().manual_seed(0))
    finally:
        ours.safety_checker = None
    assert np.array_equal(result.images, plain)
    assert result.nsfw_content_detected == [False]


def test_a_checker_that_returns_too_few(pairs: dict[str, Pair]) -> None:
    ours = pairs["sd1"][1]
    ours.safety_checker = lambda images, clip_input: (images[:1], [False])
    try:
        with pytest.raises(ConfigError, match="safety checker returned 1 pictures and 1 flags for 2"):
            ours(["a", "b"], num_inference_steps=1)
    finally:
        ours.safety_checker = None


@pytest.mark.parametrize("name", CLASSES)
def test_encode_prompt_returns_the_same_names(name: str) -> None:
    """There are tools, diffusers' own tests among them, that read from the source what the results are called."""

    def returned(library: Any) -> list[list[str]]:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(getattr(library, name).encode_prompt))))
        tuples = [n.value for n in ast.walk(tree) if isinstance(n, ast.Return) and isinstance(n.value, ast.Tuple)]
        return [[each.id for each in found.elts if isinstance(each, ast.Name)] for found in tuples]

    assert returned(leandiffusion) == returned(diffusers)
