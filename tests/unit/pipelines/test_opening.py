"""Opening and saving whole pipelines: the class that fits, wrong arguments, what is left out and read back."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from leandiffusion import (
    AutoencoderKL,
    BackendUnavailable,
    CheckpointNotFound,
    ConfigError,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    NotSupported,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    TensorMismatch,
    UNet2DConditionModel,
    VariantNotFound,
)
from leandiffusion.families import single_file
from leandiffusion.pipelines import from_folder, open_pipeline
from leandiffusion.weights.stored import StoredTensor

Draw = Callable[..., torch.Tensor]
Folders = dict[str, Path]
STEM = "diffusion_pytorch_model"
SD1_NAMES = {
    "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3),
    "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(320, 768),
}
"""What an SD1 checkpoint in one file is recognised by."""
CLASSES = {"sd1": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}


# -- what fits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CLASSES)
def test_the_folder_says_which_class(folders: Folders, build: Any, draw: Draw, family: str) -> None:
    pipe = build["quiet"](open_pipeline(folders[family]))
    assert type(pipe) is CLASSES[family]
    assert torch.equal(draw(pipe), draw(build[family]()))
    half = DiffusionPipeline.from_pretrained(folders[family], torch_dtype=torch.bfloat16)
    assert (type(half), half.dtype) == (CLASSES[family], torch.bfloat16)
    assert torch.equal(draw(build["quiet"](CLASSES[family].from_pretrained(str(folders[family])))), draw(pipe))


@pytest.mark.parametrize(("opened", "cls"), [("sd1", StableDiffusionXLPipeline), ("sdxl", StableDiffusionPipeline)])
def test_the_wrong_class_reads_no_weights(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, opened: str, cls: Any
) -> None:
    monkeypatch.setattr(from_folder, "open_folder", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(ConfigError, match=rf"{CLASSES[opened].__name__}.* (has|lacks) text_encoder_2.*open_pipeline"):
        cls.from_pretrained(folders[opened])


def test_a_pipeline_that_is_not_supported(folders: Folders, tmp_path: Path) -> None:
    shutil.copytree(folders["sd1"], tmp_path / "video")
    index = tmp_path / "video" / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "TextToVideoSDPipeline"))
    with pytest.raises(ConfigError, match="asks for 'TextToVideoSDPipeline'; supported are StableDiffusionPipeline"):
        open_pipeline(tmp_path / "video")


def test_an_inpainting_folder_opens_and_says_why_it_cannot_draw(build: Any, tmp_path: Path) -> None:
    build["sd1"](unet=build["unet"](in_channels=9)).save_pretrained(tmp_path)
    pipe = open_pipeline(tmp_path)
    assert pipe.unet.config.in_channels == 9
    with pytest.raises(ConfigError, match=r"9 channels .* inpainting .*InpaintPipeline.from_pipe.* open another model"):
        pipe("a cat")


def test_a_single_file_goes_to_the_class_it_was_made_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Told from the names and shapes of its tensors; nothing else of the file is read for that."""
    save_file(SD1_NAMES, tmp_path / "sd1.safetensors")
    called: list[Any] = []
    for cls in CLASSES.values():
        monkeypatch.setattr(
            cls, "from_single_file", classmethod(lambda cls, path, **kw: called.append((cls, path, kw)))
        )
    open_pipeline(tmp_path / "sd1.safetensors", dtype=torch.float16, vae=None)
    assert called == [
        (StableDiffusionPipeline, tmp_path / "sd1.safetensors", {"dtype": torch.float16, "device": None, "vae": None})
    ]
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"Stable Diffusion 1 checkpoint, lacks text_encoder_2.*open_pipeline"):
        StableDiffusionXLPipeline.from_single_file(tmp_path / "sd1.safetensors")
    with pytest.raises(ConfigError, match=r"'vea'\. Did you mean 'vae'"):
        StableDiffusionPipeline.from_single_file(tmp_path / "sd1.safetensors", vea=None)


# -- what is read ----------------------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file is opened to be described: JSON as a whole, safetensors for their headers."""
    counted: Counter[str] = Counter()
    plain = Path.open

    def counting(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.suffix in (".json", ".safetensors"):
            counted[f"{path.parent.name}/{path.name}"] += 1
        return plain(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", counting)
    return counted


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("shards", [False, True])
def test_opening_a_folder_reads_each_description_once(
    build: Any, tmp_path: Path, reads: Counter[str], family: str, shards: bool
) -> None:
    build[family]().save_pretrained(tmp_path, max_shard_size="20KB" if shards else "1GB")
    for _ in range(2):  # nothing is remembered from one opening to the next
        reads.clear()
        open_pipeline(tmp_path)
        assert reads[f"{tmp_path.name}/model_index.json"] == 1
        headers = {name: count for name, count in reads.items() if name.endswith((".safetensors", ".index.json"))}
        assert len(headers) == len([*tmp_path.rglob("*.safetensors"), *tmp_path.rglob("*.safetensors.index.json")])
        assert set(headers.values()) == {1}


def test_opening_a_file_reads_its_header_and_tells_its_family_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reads: Counter[str]
) -> None:
    """As far as a file gets that has nothing but a UNet's first names: until its text encoder is missed."""
    file, told = tmp_path / "sd1.safetensors", []
    detected = single_file.detect
    monkeypatch.setattr(single_file, "detect", lambda *args: told.append(args) or detected(*args))
    save_file(SD1_NAMES, file)
    with pytest.raises(TensorMismatch, match="has no text_encoder"):
        open_pipeline(file)
    assert reads == {f"{tmp_path.name}/sd1.safetensors": 1}
    assert len(told) == 1


# -- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"safety_cheker": None}, "'safety_cheker'. Did you mean 'safety_checker'"),
        ({"torch_dtpe": None}, "Did you mean 'torch_dtype'"),
        ({"tokenizer_2": None}, "'tokenizer_2'.*Its components: vae, text_encoder"),
        ({"dtype": "float16"}, "dtype='float16': pass torch.float32"),
        ({"dtype": torch.int8}, "dtype=torch.int8"),
        ({"dtype": {"unet": "half"}}, "dtype='half'"),
        ({"dtype": torch.float16, "torch_dtype": torch.float32}, "mean the same thing: give one"),
        ({"device": "warp"}, "device='warp' is not a device"),
        ({"use_safetensors": False}, "pickled weights, which are refused"),
        ({"image_encoder": object()}, "image_encoder"),
    ],
)
def test_nonsense(folders: Folders, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StableDiffusionPipeline.from_pretrained(folders["sd1"], **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(folders: Folders) -> None:
    with pytest.raises(BackendUnavailable, match="'cuda' cannot be used"):
        StableDiffusionPipeline.from_pretrained(folders["sd1"], device="cuda")


@pytest.mark.parametrize("opening", [open_pipeline, StableDiffusionPipeline.from_pretrained])
def test_nothing_there(opening: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match="no such folder"):
        opening(tmp_path / "nowhere")
    with pytest.raises(CheckpointNotFound, match=r"no model_index\.json, so it is not a pipeline folder"):
        opening(tmp_path)


def test_dtypes(folders: Folders) -> None:
    opened = StableDiffusionPipeline.from_pretrained(folders["sd1"])
    assert {opened.unet.dtype, opened.vae.dtype, opened.text_encoder.dtype} == {torch.float32}
    opened = StableDiffusionPipeline.from_pretrained(folders["sd1"], torch_dtype=torch.bfloat16)
    assert {opened.unet.dtype, opened.vae.dtype, opened.text_encoder.dtype} == {torch.bfloat16}
    opened = StableDiffusionPipeline.from_pretrained(folders["sd1"], dtype={"unet": torch.float16})
    assert (opened.unet.dtype, opened.vae.dtype, opened.text_encoder.dtype) == (torch.float16, *[torch.float32] * 2)


def test_components_by_name(folders: Folders, build: Any, draw: Draw) -> None:
    unet, scheduler = build["unet"](), EulerDiscreteScheduler(steps_offset=1)
    pipe = StableDiffusionPipeline.from_pretrained(folders["sd1"], unet=unet, scheduler=scheduler, vae=None)
    assert pipe.unet is unet
    assert pipe.scheduler is scheduler
    assert pipe.vae is None
    assert draw(build["quiet"](pipe), output_type="latent").shape == (1, 4, 8, 8)
    twin = StableDiffusionPipeline.from_pretrained(folders["sd1"], **pipe.components)
    assert twin.components == pipe.components


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("offload", [None, "sequential"])
@pytest.mark.parametrize("kind", ["file", "folder", "pipeline"])
def test_a_vae_by_path(folders: Folders, build: Any, draw: Draw, family: str, kind: str, offload: Any) -> None:
    """Drawn with as the object is. A file does not tell the scale of its latents: it is the checkpoint's."""
    folder = folders[family] / "vae"
    path = {"file": folder / f"{STEM}.safetensors", "folder": folder, "pipeline": folders[family]}[kind]
    plain = StableDiffusionPipeline if family == "sd1" else StableDiffusionXLPipeline
    for given in (path, str(path)):
        pipe = plain.from_pretrained(folders[family], vae=given, dtype=torch.float32, offload=offload)
        assert isinstance(pipe.vae, AutoencoderKL)
        expected = plain.from_pretrained(folders[family]).vae.config
        assert {k: v for k, v in pipe.vae.config.items() if k != "_diffusers_version"}.items() <= expected.items()
    assert torch.equal(draw(build["quiet"](pipe)), draw(build["quiet"](open_pipeline(folders[family]))))


def test_a_vae_alone_for_sdxl_has_its_scale(folders: Folders, build: Any, tmp_path: Path) -> None:
    shutil.copytree(folders["sdxl"], tmp_path / "model", ignore=shutil.ignore_patterns("vae"))
    AutoencoderKL(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).save_pretrained(tmp_path / "vae")  # fmt: skip
    file = tmp_path / "vae" / f"{STEM}.safetensors"
    vae = StableDiffusionXLPipeline.from_pretrained(tmp_path / "model", vae=file).vae
    assert vae.config.scaling_factor == 0.13025


COMPONENTS = {cls: cls.component_names for cls in CLASSES.values()}


@pytest.mark.parametrize(("cls", "name"), [(cls, name) for cls, names in COMPONENTS.items() for name in names])
def test_what_is_no_component(folders: Folders, cls: Any, name: str) -> None:
    folder = folders["sd1" if cls is StableDiffusionPipeline else "sdxl"]
    for wrong in ("a/path", Path("a/path"), 5, True, 1.5, [], {"a": 1}, AutoencoderKL, torch.ones(1), b"x"):
        at = "vae=.* is not a local" if name == "vae" and isinstance(wrong, str | Path) else f"{cls.__name__}: {name}.*"
        with pytest.raises((ConfigError, CheckpointNotFound), match=at) as caught:
            cls.from_pretrained(folder, **{name: wrong})
        assert len(str(caught.value)) < 500
        parts = dict.fromkeys(cls.component_names) | {name: wrong}
        with pytest.raises(ConfigError, match=f"{cls.__name__}: {name}.* expected"):
            cls(**parts)


def test_settings_of_the_folder_and_of_the_caller(folders: Folders, build: Any, tmp_path: Path) -> None:
    assert open_pipeline(folders["sd1"]).config.requires_safety_checker is False
    assert open_pipeline(folders["sd1"], requires_safety_checker=True).config.requires_safety_checker is True
    build["sdxl"](force_zeros_for_empty_prompt=False).save_pretrained(tmp_path)
    assert open_pipeline(tmp_path).config["force_zeros_for_empty_prompt"] is False


# -- saving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CLASSES)
def test_saving_brings_back_what_drawing_does_not_need(
    folders: Folders, build: Any, draw: Draw, tmp_path: Path, family: str
) -> None:
    pipe = build["quiet"](open_pipeline(folders[family], dtype=torch.float16))
    assert all(isinstance(p, StoredTensor) for p in pipe.vae.encoder.parameters())
    pipe.save_pretrained(tmp_path, variant="fp16", max_shard_size="100KB")
    assert (tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json").is_file()
    again = build["quiet"](open_pipeline(tmp_path, variant="fp16", dtype=torch.float32))
    assert torch.equal(draw(again), draw(pipe.to(torch.float32)))
    whole = AutoencoderKL.from_pretrained(tmp_path, subfolder="vae", variant="fp16", dtype=torch.float32)
    original = AutoencoderKL.from_pretrained(folders[family], subfolder="vae", dtype=torch.float16).float()
    picture = torch.randn(1, 3, 64, 64)
    assert torch.equal(whole.encode(picture).latent_dist.mean, original.encode(picture).latent_dist.mean)
    assert again.config == pipe.config


def test_saving_over_itself_and_without_its_source(folders: Folders, build: Any, draw: Draw, tmp_path: Path) -> None:
    shutil.copytree(folders["sd1"], tmp_path / "model")
    pipe = build["quiet"](open_pipeline(tmp_path / "model"))
    plain = draw(pipe)
    pipe.save_pretrained(tmp_path / "model")
    assert torch.equal(draw(build["quiet"](open_pipeline(tmp_path / "model"))), plain)
    pipe = open_pipeline(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    pipe.save_pretrained(tmp_path / "other")  # what drawing left in the files comes from these, which are still open
    saved, original = (AutoencoderKL.from_pretrained(f, subfolder="vae") for f in (tmp_path / "other", folders["sd1"]))
    assert all(torch.equal(tensor, original.state_dict()[name]) for name, tensor in saved.state_dict().items())


def test_saving_notes_absent_parts(build: Any, draw: Draw, tmp_path: Path) -> None:
    pipe = build["sd1"](vae=None)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["vae"] == [None, None]
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"]
    again = build["quiet"](open_pipeline(tmp_path))
    assert again.vae is None
    assert torch.equal(draw(again, output_type="latent"), draw(pipe, output_type="latent"))


def test_what_cannot_be_saved_is_left_out(sd1: Any, build: Any, draw: Draw, tmp_path: Path) -> None:
    plain, unet = draw(sd1), sd1.unet
    sd1.unet = torch.nn.Identity()
    sd1.safety_checker = lambda images, clip_input: (images, None)
    with pytest.warns(UserWarning, match="it is left out") as caught:
        sd1.save_pretrained(tmp_path / "new")
    assert [str(warning.message).split(", which")[0] for warning in caught] == [
        "unet is a Identity", "safety_checker is a function"
    ]  # fmt: skip
    assert not (tmp_path / "new" / "unet").exists()
    assert not (tmp_path / "new" / "safety_checker").exists()
    again = build["quiet"](open_pipeline(tmp_path / "new", unet=unet))
    assert again.safety_checker is None
    assert torch.equal(draw(again), plain)


def test_a_compiled_network_is_saved_as_the_network(sd1: Any, build: Any, draw: Draw, tmp_path: Path) -> None:
    plain = draw(sd1)
    sd1.unet = torch.compile(sd1.unet, backend="eager")
    sd1.vae = torch.compile(sd1.vae, backend="eager")
    # Nearly: a compiled UNet is given a sample for each text, and products of two rows may add in another order.
    assert torch.allclose(draw(sd1), plain, rtol=0, atol=1e-5)
    sd1.save_pretrained(tmp_path)
    with safe_open(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "_orig_mod" in name]  # noqa: SIM118
    assert json.loads((tmp_path / "model_index.json").read_text())["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert torch.equal(draw(build["quiet"](open_pipeline(tmp_path))), plain)


def test_saving_takes_diffusers_arguments_in_their_order(sd1: Any, tmp_path: Path) -> None:
    sd1.save_pretrained(tmp_path, True, "fp16", None)
    assert (tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    for asked in ({"push_to_hub": True}, {"use_flashpack": True}):
        with pytest.raises(NotSupported, match=next(iter(asked))):
            sd1.save_pretrained(tmp_path / "other", **asked)
    assert not (tmp_path / "other").exists()


def test_a_variant_that_is_not_there(sd1: Any, folders: Folders) -> None:
    with pytest.raises(VariantNotFound, match="fp16") as error:
        open_pipeline(folders["sd1"], variant="fp16")
    assert isinstance(error.value, ValueError)
    assert isinstance(error.value, FileNotFoundError)


@pytest.mark.parametrize(
    "given",
    [
        {"force_download": False, "proxies": None, "output_loading_info": False, "custom_pipeline": None},
        {"device_map": None, "max_memory": None, "offload_folder": None, "offload_state_dict": False},
        {"device_map": "cpu"},
        {"device_map": {"": "cpu"}},
        {"resume_download": True, "disable_mmap": True, "trust_remote_code": False, "quantization_config": None},
    ],
)
def test_options_that_ask_for_nothing(folders: Folders, given: dict[str, Any]) -> None:
    assert open_pipeline(folders["sd1"], **given).device == torch.device("cpu")


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        ({"device_map": "balanced"}, "device_map='balanced' is not supported.*offload='model'"),
        ({"device_map": {"unet": "cuda", "vae": "cpu"}}, "device_map=.*one device"),
        ({"force_download": True}, "force_download is not supported: delete"),
        ({"custom_pipeline": "lpw_stable_diffusion"}, "custom_pipeline.*never run"),
        ({"quantization_config": object()}, "quantization_config is not supported: quantized weights"),
        ({"use_auth_token": True}, "use_auth_token.*pass token="),
    ],
)
def test_options_that_ask_for_what_is_not_there(folders: Folders, given: dict[str, Any], instead: str) -> None:
    with pytest.raises(NotSupported, match=instead):
        open_pipeline(folders["sd1"], **given)


def test_no_pickles(sd1: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="safe_serialization=False asks for pickled weights"):
        sd1.save_pretrained(tmp_path / "new", safe_serialization=False)
    assert not (tmp_path / "new").exists()


def test_one_network_alone(folders: Folders, sd1: Any) -> None:
    unet = UNet2DConditionModel.from_pretrained(folders["sd1"], subfolder="unet")
    assert all(torch.equal(a, b) for a, b in zip(unet.parameters(), sd1.unet.parameters(), strict=True))
