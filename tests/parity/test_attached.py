"""Techniques of this library on diffusers' own pipelines: the same pictures, and nothing left behind."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from leandiffusion import BackendUnavailable, ConfigError, StableDiffusionPipeline, attach
from leandiffusion.techniques import techniques
from leandiffusion.weights.residence import names_on_disk

from .conftest import LENGTH, TOKENS, enliven, make_sd1, make_sdxl, make_text_encoder, make_vae

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy's of diffusers

EXACT = {
    "sequential_offload": {}, "by block": {"granularity": "block"}, "half resident": {"resident_fraction": 0.5},
    "model_offload": {}, "vae_slicing": {},
}  # fmt: skip
"""Nothing is computed otherwise: pictures are equal to the last bit."""

NEED_OUR_LAYERS = {"attention_backend": "attention layers", "attention_slicing": "attention layers",
                   "traced_unet": "UNet2DConditionModel", "openvino": "UNet2DConditionModel",
                   "guidance_interval": "loop of its own",
                   "deep_cache": "loop of its own"}  # fmt: skip


def make_t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=len(TOKENS), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    return enliven(T5EncoderModel(config), 1.5)


def make_sd3() -> Any:
    """Two CLIPs and a T5, whose tokenizers are left out: it is called with embeddings."""
    torch.manual_seed(4)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=64, out_channels=4,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=enliven(transformer, 1.3), vae=make_vae(shift_factor=0.06),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        text_encoder=make_text_encoder(32, projection=32), text_encoder_2=make_text_encoder(32, projection=32),
        text_encoder_3=make_t5(), tokenizer=None, tokenizer_2=None, tokenizer_3=None,
    )  # fmt: skip


def make_flux() -> Any:
    torch.manual_seed(5)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return diffusers.FluxPipeline(
        transformer=enliven(transformer, 1.3), vae=make_vae(shift_factor=0.06),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), text_encoder=make_text_encoder(32),
        text_encoder_2=make_t5(), tokenizer=None, tokenizer_2=None,
    )  # fmt: skip


MAKERS: dict[str, Callable[[], Any]] = {"sd1": make_sd1, "sdxl": make_sdxl, "sd3": make_sd3, "flux": make_flux}


def inputs(kind: str, dtype: torch.dtype) -> dict[str, Any]:
    if kind in ("sd1", "sdxl"):
        return {"prompt": "a red cat", "negative_prompt": "the"}
    made = torch.Generator().manual_seed(7)
    embeds, pooled = (torch.randn(*shape, generator=made).to(dtype) for shape in ((1, LENGTH, 32), (1, 64)))
    given = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled if kind == "sd3" else pooled[:, :32]}
    return given | {"guidance_scale": 1.0}


def draw(pipe: Any, kind: str, seed: int = 0, **changes: Any) -> np.ndarray:
    own = {
        "height": 64,
        "width": 64,
        "num_inference_steps": 2,
        "output_type": "np",
        **inputs(kind, pipe.dtype),
        **changes,
    }
    return pipe(generator=torch.Generator().manual_seed(seed), **own | changes).images


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    saved = {}
    for kind, make in MAKERS.items():
        saved[kind] = tmp_path_factory.mktemp("attached") / kind
        make().save_pretrained(saved[kind])
    return saved


@pytest.fixture(scope="module", params=MAKERS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def shared(kind: str, folders: dict[str, Path]) -> tuple[Any, np.ndarray]:
    pipe = opened(kind, folders)
    return pipe, draw(pipe, kind)


@pytest.fixture
def pipe(shared: tuple[Any, np.ndarray]) -> Iterator[Any]:
    yield shared[0]
    assert "_lean" not in vars(shared[0])


@pytest.fixture
def expected(shared: tuple[Any, np.ndarray]) -> np.ndarray:
    return shared[1]


def opened(kind: str, folders: dict[str, Path], **options: Any) -> Any:
    absent = [name for name, part in MAKERS[kind]().components.items() if part is None]
    pipe = diffusers.DiffusionPipeline.from_pretrained(folders[kind], **dict.fromkeys(absent), **options)
    pipe.set_progress_bar_config(disable=True)
    for network in networks(pipe).values():
        for parameter in network.parameters():  # safetensors leaves them at any address, and MKL rounds by alignment
            parameter.data = parameter.data.clone()
    return pipe


def networks(pipe: Any) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


@pytest.mark.parametrize("case", EXACT)
def test_the_same_picture_and_undone(pipe: Any, kind: str, expected: np.ndarray, case: str) -> None:
    own, before = type(pipe), {n: dict(network.named_parameters()) for n, network in networks(pipe).items()}
    with attach(pipe) as lean:
        lean.enable(case if case in techniques else "sequential_offload", **EXACT[case])
        assert isinstance(pipe, own)
        assert np.array_equal(draw(pipe, kind), expected)
        assert np.array_equal(draw(pipe, kind), expected)
    assert type(pipe) is own
    for name, network in networks(pipe).items():
        assert not names_on_disk(network)
        assert all(p is before[name][n] for n, p in network.named_parameters())
        assert not any("forward" in vars(module) for module in network.modules())
        assert not hasattr(network, "_origin")
    assert np.array_equal(draw(pipe, kind), expected)


def test_weights_are_left_on_disk(kind: str, folders: dict[str, Path]) -> None:
    pipe = opened(kind, folders)
    with attach(pipe) as lean:
        lean.enable("sequential_offload")
        for name, network in networks(pipe).items():
            assert {*names_on_disk(network)} == {n for n, _ in network.named_parameters(remove_duplicate=False)}, name


def test_channels_last_and_back(pipe: Any, kind: str, expected: np.ndarray) -> None:
    """Other kernels of convolution: 1e-5 of the range."""
    with attach(pipe) as lean:
        lean.enable("channels_last")
        np.testing.assert_allclose(draw(pipe, kind), expected, atol=1e-5)
    assert np.array_equal(draw(pipe, kind), expected)


@pytest.mark.filterwarnings("ignore:.*is emulated by torch on this CPU")
def test_half_precision_is_diffusers_own(kind: str, folders: dict[str, Path]) -> None:
    pipe = opened(kind, folders)
    plain, theirs = draw(pipe, kind), draw(opened(kind, folders, dtype=torch.bfloat16), kind)
    with attach(pipe) as lean:
        lean.enable("half_precision", dtype=torch.bfloat16)
        lean.enable("sequential_offload")
        assert {p.dtype for network in networks(pipe).values() for p in network.parameters()} == {torch.bfloat16}
        np.testing.assert_allclose(draw(pipe, kind), theirs, atol=0.05)  # T5 keeps a layer in float32 there
    assert np.array_equal(draw(pipe, kind), plain)


def test_compile(pipe: Any, kind: str, expected: np.ndarray) -> None:
    with attach(pipe) as lean:
        lean.enable("compile", backend="eager")
        np.testing.assert_allclose(draw(pipe, kind), expected, atol=1e-5)
    assert np.array_equal(draw(pipe, kind), expected)


def test_vae_tiling_is_its_own(pipe: Any, kind: str, expected: np.ndarray) -> None:
    with attach(pipe) as lean:
        with pytest.warns(UserWarning, match="decodes tiles apart and blends them"):
            lean.enable("vae_tiling")
        assert pipe.vae.use_tiling
        with pytest.raises(BackendUnavailable, match="leave out rows"):
            lean.enable("vae_tiling", rows=64)
    assert not pipe.vae.use_tiling


@pytest.mark.parametrize("name", NEED_OUR_LAYERS)
def test_what_needs_our_layers_says_so(pipe: Any, name: str) -> None:
    with attach(pipe) as lean:
        [reason] = lean.why_not(name)
        assert NEED_OUR_LAYERS[name] in reason
        with pytest.raises(BackendUnavailable, match=name):
            lean.enable(name)
        assert lean.techniques == ()


def test_replaced_and_edited(kind: str, folders: dict[str, Path]) -> None:
    plain, pipe = opened(kind, folders), opened(kind, folders)
    with attach(pipe) as lean:
        lean.enable("sequential_offload")
        draw(pipe, kind)
        for each in (plain, pipe):
            with torch.no_grad():
                each.vae.decoder.conv_out.weight.mul_(0.5)
        assert np.array_equal(draw(pipe, kind), draw(plain, kind))
    assert np.array_equal(draw(pipe, kind), draw(plain, kind))


def test_diffusers_own_offloading_keeps_out(pipe: Any, kind: str) -> None:
    with attach(pipe) as lean:
        lean.enable("model_offload")
        for name in ("enable_model_cpu_offload", "enable_sequential_cpu_offload", "enable_group_offload"):
            with pytest.raises(ConfigError, match="model_offload is on"):
                getattr(pipe, name)()
        with pytest.raises(ConfigError, match="decides where weights are"):
            pipe.to("cuda")
        assert pipe.to("cpu") is pipe


def test_the_device_is_diffusers_own_unless_weights_travel(pipe: Any, kind: str, monkeypatch: Any) -> None:
    """Its own offloading computes elsewhere than where weights lie."""
    theirs = torch.device("cuda", 3)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "_execution_device", property(lambda self: theirs))
    with attach(pipe) as lean:
        assert pipe._execution_device == theirs
        lean.enable("sequential_offload")
        assert pipe._execution_device == torch.device("cpu")
        lean.disable("sequential_offload")
        assert pipe._execution_device == theirs


def test_while_drawing_nothing_changes(pipe: Any, kind: str) -> None:
    lean, said = attach(pipe), []

    def step(pipe: Any, i: int, t: Any, tensors: Any) -> dict[str, Any]:
        with pytest.raises(ConfigError, match="while a picture is being drawn"):
            lean.detach()
        said.append(i)
        return {}

    draw(pipe, kind, callback_on_step_end=step)
    lean.detach()
    assert said[:2] == [0, 1]


def test_after_an_interrupted_call(pipe: Any, kind: str, expected: np.ndarray) -> None:
    def stop(pipe: Any, i: int, t: Any, tensors: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    with attach(pipe) as lean:
        lean.enable("sequential_offload")
        with pytest.raises(KeyboardInterrupt):
            draw(pipe, kind, callback_on_step_end=stop)
        assert np.array_equal(draw(pipe, kind), expected)
        lean.disable("sequential_offload")
        assert np.array_equal(draw(pipe, kind), expected)


def test_what_cannot_be_attached(pipe: Any) -> None:
    with pytest.raises(ConfigError, match="not a pipeline that draws"):
        attach(pipe.vae)
    with pytest.raises(ConfigError, match="has these techniques itself"):
        attach(StableDiffusionPipeline.from_pretrained("demo"))
    with attach(pipe):
        with pytest.raises(ConfigError, match="attached already"):
            attach(pipe)
        for copied in (copy.deepcopy, copy.copy, pickle.dumps):
            with pytest.raises(ConfigError, match=r"detach\(\) first"):
                copied(pipe)


def test_without_a_checkpoint_on_disk() -> None:
    pipe = make_sd1()
    with attach(pipe) as lean, pytest.raises(BackendUnavailable, match="were not opened from one"):
        lean.enable("sequential_offload")


def test_saved_while_attached(pipe: Any, kind: str, tmp_path: Path, expected: np.ndarray) -> None:
    with attach(pipe) as lean:
        lean.enable("sequential_offload")
        pipe.save_pretrained(tmp_path)
    again = opened(kind, {kind: tmp_path})
    assert np.array_equal(draw(again, kind), expected)


def test_detached_it_is_freed(folders: dict[str, Path]) -> None:
    import weakref

    pipe = opened("sd1", folders)
    lean = attach(pipe)
    lean.enable("sequential_offload")
    lean.detach()
    lean.detach()
    with pytest.raises(ConfigError, match="was detached"):
        lean.enable("model_offload")
    assert lean.techniques == ()
    gone = weakref.ref(pipe.unet)
    del pipe, lean
    gc.collect()
    assert gone() is None
