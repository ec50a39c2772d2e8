"""Names of pictures: everything that decides the pixels, and nothing else."""

from __future__ import annotations

import hashlib
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from leandiffusion import demo
from leandiffusion.batch.fingerprints import Fingerprints, name_of, seed_for, what_decides
from leandiffusion.drawing.options import DrawingOptions, ResolvedOptions
from leandiffusion.drawing.techniques import TechniqueOptions
from leandiffusion.drawing.wrong import OptionError

BASE = ResolvedOptions(prompt="a ring", seed=1)
OTHER: dict[str, Any] = {
    "prompt": "b", "negative_prompt": "c", "prompt_syntax": "weighted", "steps": 3, "guidance_scale": 2.0,
    "scheduler": "ddim", "width": 64, "height": 64, "seed": 2, "dtype": "bfloat16", "strength": 0.5, "resize": "fill",
    "padding_mask_crop": 8, "guess_mode": True, "control_guidance_start": 0.1, "control_guidance_end": 0.9,
    "ip_adapter": ("a.bin",), "ip_image": ("a.bin:0.5",), "pag_scale": 2.0, "pag_layers": ("mid",),
    "model": "a.bin", "vae": "a.bin", "lora": ("a.bin:0.5",), "image": "a.bin", "mask": "a.bin",
    "embeddings": ("a.bin:w",), "controlnet": ("a.bin",), "control_image": ("a.bin",),
}  # fmt: skip
OF_FILES = (
    "model",
    "vae",
    "lora",
    "image",
    "mask",
    "embeddings",
    "controlnet",
    "control_image",
    "ip_adapter",
    "ip_image",
)


def name(options: ResolvedOptions, techniques: TechniqueOptions = TechniqueOptions()) -> str:  # noqa: B008
    return name_of(what_decides(options, techniques, Fingerprints()))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.bin").write_bytes(b"a" * 400_000)


def test_every_option_decides_but_the_device() -> None:
    assert {*OTHER, "device"} == {each.name for each in fields(DrawingOptions)}
    names = [name(replace(BASE, **{field: value})) for field, value in OTHER.items()]
    assert len({name(BASE), *names}) == len(OTHER) + 1
    assert name(replace(BASE, device="cuda")) == name(BASE)
    assert name(replace(BASE, negative_prompt="")) == name(BASE)


@pytest.mark.parametrize("field", OF_FILES)
def test_files_count_by_what_they_hold(field: str) -> None:
    options = replace(BASE, **{field: OTHER[field]})
    before = name(options)
    Path("elsewhere").mkdir()
    Path("a.bin").rename("elsewhere/a.bin")
    moved = (
        tuple(f"elsewhere/{each}" for each in OTHER[field]) if field not in ("model", "vae", "image", "mask") else None
    )
    assert name(replace(BASE, **{field: moved or "elsewhere/a.bin"})) == before
    Path("a.bin").write_bytes(b"a" * 399_999 + b"b")
    assert name(options) != before


def test_a_changed_weight_changes_a_models_folder(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "weights").write_bytes(bytes(4_000_000))
    options = replace(BASE, model=str(folder))
    before = name(options)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").write_text("of a tool")
    assert name(options) == before
    (folder / "unet" / "weights").write_bytes(bytes(3_000_000) + b"\1" * 1_000_000)
    assert name(options) != before


def test_the_packaged_model_and_hub_ids() -> None:
    assert name(replace(BASE, model=str(demo.model_folder()))) == name(BASE)
    assert name(replace(BASE, model="owner/one")) != name(replace(BASE, model="owner/two"))


def test_techniques_count_where_they_change_pixels() -> None:
    assert name(BASE, TechniqueOptions((("vae_tiling", {}), ("sequential_offload", {})))) == name(BASE)
    assert name(BASE, TechniqueOptions(memory="2GiB")) == name(BASE)
    changing = [
        TechniqueOptions((("deep_cache", {}),)),
        TechniqueOptions((("deep_cache", {"interval": 5}),)),
        TechniqueOptions((("half_precision", {"dtype": "bf16"}),)),
        TechniqueOptions(memory="2GiB", allow="rounding"),
        TechniqueOptions(memory="2GiB", allow="approximate"),
    ]
    assert len({name(BASE), *(name(BASE, each) for each in changing)}) == 6


def test_a_file_that_is_not_there_is_told_by_its_option() -> None:
    with pytest.raises(OptionError, match=r"^image: none.png: No such file"):
        name(replace(BASE, image="none.png"))
    with pytest.raises(OptionError, match=r"^lora: none.safetensors does not exist"):
        name(replace(BASE, lora=("none.safetensors",)))


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="there is no such device")
def test_a_device_or_a_pipe_is_not_read_for_ever(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", str(tmp_path / "pipe")):
        with pytest.raises(OSError, match="a device or a pipe"):
            Fingerprints().whole(path)


def test_seeds_follow_from_what_is_asked() -> None:
    decides = what_decides(BASE, TechniqueOptions(), Fingerprints())
    assert seed_for(decides, 0) == seed_for({**decides, "seed": 9}, 0)
    seeds = {seed_for(decides, 0), seed_for(decides, 1), seed_for({**decides, "prompt": "b"}, 0)}
    assert len(seeds) == 3
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_a_name_stays_what_it_was() -> None:
    """Another one would have every picture of every batch drawn again: only with another FORMAT."""
    decides = {"format": 1, "prompt": "ä", "seed": 3, "guidance_scale": 7.0}
    assert name_of(decides) == "09dcf00c60671aaabff021b5bffb8ea8.png"  # sha256sum of the text in the next line
    text = r'{"format":1,"guidance_scale":7.0,"prompt":"\u00e4","seed":3}'
    assert name_of(decides) == f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.png"
