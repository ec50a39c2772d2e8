"""Other programs draw what this library draws: same words, same noise, same guidance, same scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers

from leandiffusion import (
    AutoencoderKL,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from leandiffusion.bench.peers import peers
from leandiffusion.bench.run.own import Own
from leandiffusion.bench.workload import Job, Row, Workload
from leandiffusion.core.errors import BackendUnavailable
from leandiffusion.demo import model_folder

STEPS = 2
EVENTS = ["text", "denoise", *["step"] * STEPS, "decode"]
OWN = Row("own", "own", "float32")


class Noted:
    """A meter that notes what it is told, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.events.append(name)
        yield

    def step(self) -> None:
        self.events.append("step")


def workload(batch: int = 1, half: str = "bfloat16", device: str = "cpu", size: int = 128) -> Workload:
    return Workload(model="demo", size=size, steps=STEPS, batch=batch, half=half, device=device, repeat=1, seed=3)


def row(peer: str, name: str) -> Row:
    return next(row for row in peers.get(peer).rows(workload()) if row.name == name)


def rows_in(*dtypes: str) -> list[Any]:
    """(peer, row) of every peer's usual rows of these dtypes. Skipped without importing: OpenVINO would phone home."""
    found = []
    for peer in peers:
        missing = [name for name in peers.get(peer).requires if find_spec(name) is None]
        skip = pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")
        names = [row.name for row in peers.get(peer).rows(workload()) if row.dtype in dtypes and not row.asked]
        found += [pytest.param(peer, name, marks=skip, id=name) for name in names]
    return found


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for what is prepared, as a run has it."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def draw(work: Path) -> Callable[..., tuple[Any, list[str]]]:
    """Prepare and draw a row: the picture, and what the meter was told."""

    def run(
        row: Row, batch: int = 1, folder: Path | None = None, size: int = 128, steps: int = STEPS
    ) -> tuple[Any, list[str]]:
        job = Job(row, workload(batch, size=size), str(folder or model_folder()), str(work), None)
        drawer, meter = Own if row.peer is None else peers.get(row.peer), Noted()
        drawer.prepare(job)
        return drawer(job).draw(steps, meter), meter.events

    return run


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("peer", "name"), rows_in("float32"))
def test_float32_draws_the_same(peer: str, name: str, batch: int, draw: Any) -> None:
    """Within one level of 255: kernels sum in another order. The packaged weights are float16, so that storing them so
    loses nothing."""
    picture, events = draw(row(peer, name), batch)
    expected, own_events = draw(OWN, batch)
    assert events == own_events == EVENTS
    assert (picture.shape, picture.dtype) == ((batch, 128, 128, 3), np.float32)
    assert np.abs(picture - expected).max() <= 1 / 255


@pytest.mark.parametrize(("peer", "name"), rows_in("half", "bfloat16"))
def test_half_precision_starts_from_the_same_noise(peer: str, name: str, draw: Any) -> None:
    """In eight steps of bfloat16 pictures end 0.01 apart on average or less; those of another seed 0.28."""
    try:
        picture, _ = draw(row(peer, name), steps=8)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    assert np.abs(picture - draw(OWN, steps=8)[0]).mean() < 0.03


@pytest.mark.parametrize(("peer", "name"), rows_in("float32"))
def test_rows_without_pictures(peer: str, name: str, draw: Any) -> None:
    picture, events = draw(replace(row(peer, name), pictures=False))
    assert picture is None
    assert events == EVENTS[:-1]


# -- SDXL and others, tiny -------------------------------------------------------------------------------------------

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = [*ALPHABET, *(letter + "</w>" for letter in ALPHABET), "<|startoftext|>", "<|endoftext|>"]


def make_parts(**unet: Any) -> dict[str, Any]:
    """What both families have, with random weights: 32x32 pictures."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}
    blocks |= {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
    halves = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return {
        "unet": UNet2DConditionModel(
            sample_size=16, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=8, attention_head_dim=4,
            **blocks, **unet,
        ).eval(),
        "vae": AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, **halves).eval(),
        "text_encoder": make_text_encoder(CLIPTextModel, 32), "tokenizer": make_tokenizer(),
        "scheduler": DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
    }  # fmt: skip


def make_text_encoder(cls: Any, width: int, **config: Any) -> Any:
    return cls(
        vocab_size=len(TOKENS), hidden_size=width, intermediate_size=width, num_hidden_layers=2, num_attention_heads=4,
        bos_token_id=len(TOKENS) - 2, eos_token_id=len(TOKENS) - 1, **config,
    ).eval()  # fmt: skip


def make_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer({token: i for i, token in enumerate(TOKENS)}, [], model_max_length=77)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """By family: the folder of a tiny checkpoint. Its scheduler has an offset of 0, which diffusers' SD1 corrects."""

    def make_sdxl() -> Any:
        added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
        parts = make_parts(cross_attention_dim=72, projection_class_embeddings_input_dim=24 + 6 * 4, **added)
        second = make_text_encoder(CLIPTextModelWithProjection, 40, projection_dim=24)
        return StableDiffusionXLPipeline(**parts, text_encoder_2=second, tokenizer_2=make_tokenizer())

    def make_sd1(**unet: Any) -> Any:
        return StableDiffusionPipeline(**make_parts(cross_attention_dim=32, **unet), requires_safety_checker=False)

    makers = {"sd1": make_sd1, "sdxl": make_sdxl, "distilled": lambda: make_sd1(time_cond_proj_dim=8)}
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            makers[name]().save_pretrained(made[name])
        return made[name]

    return get


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize(("peer", "name"), rows_in("float32"))
def test_both_families(peer: str, name: str, family: str, tiny: Callable[[str], Path], draw: Any) -> None:
    """Within two levels of 255: these weights are float32, and OpenVINO stores them as float16."""
    picture, events = draw(row(peer, name), folder=tiny(family), size=32)
    assert events == EVENTS
    assert np.abs(picture - draw(OWN, folder=tiny(family), size=32)[0]).max() <= 2 / 255


# -- OpenVINO's own --------------------------------------------------------------------------------------------------

openvino_only = pytest.mark.skipif(find_spec("openvino") is None, reason="needs openvino")


@openvino_only
def test_a_guidance_distilled_model_is_refused(tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    job = Job(row("openvino", "openvino_f32"), workload(size=32), str(tiny("distilled")), str(tmp_path), None)
    with pytest.raises(BackendUnavailable, match="distilled"):
        peers.get("openvino").prepare(job)
    assert not list(tmp_path.iterdir())


@openvino_only
def test_what_is_prepared_is_used_again(tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    """By rows of either precision; another batch is another shape."""
    prepare, rows = peers.get("openvino").prepare, peers.get("openvino").rows(workload())

    def files(row: Row, batch: int) -> dict[Path, int]:
        prepare(Job(row, workload(batch, size=32), str(tiny("sd1")), str(tmp_path), None))
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    first = files(rows[0], 1)
    assert sorted(path.parent.name for path in first if path.suffix == ".xml") == ["text_encoder", "unet", "vae"]
    assert files(rows[1], 1) == first
    assert len(files(rows[0], 2)) == 2 * len(first)


@openvino_only
def test_a_precision_that_the_cpu_lacks(work: Path) -> None:
    asked = replace(row("openvino", "openvino_bf16"), settings={"INFERENCE_PRECISION_HINT": "f8"})
    with pytest.raises(BackendUnavailable, match="f8 on this CPU"):
        peers.get("openvino")(Job(asked, workload(), str(model_folder()), str(work), None))
