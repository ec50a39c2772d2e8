"""Which files make up the weights: variants in both namings, shards, pickles, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leandiffusion.core.errors import CheckpointNotFound, ConfigError, MalformedFile, UnsafeFormat
from leandiffusion.weights.files import variants_of, weight_files

STEM = "diffusion_pytorch_model"
NEW = [f"{STEM}.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
OLD = [f"{STEM}-0000{i}-of-00002.fp16.safetensors" for i in (1, 2)]
PLAIN = [f"{STEM}-0000{i}-of-00002.safetensors" for i in (1, 2)]


def fill(folder: Path, names: list[str], index: str | None = None) -> Path:
    for name in names:
        (folder / name).touch()
    if index:
        (folder / index).write_text(json.dumps({"weight_map": {f"t{i}": name for i, name in enumerate(names)}}))
    return folder


def found(folder: Path, **options: object) -> list[str]:
    return [path.name for path in weight_files(folder, STEM, **options)]  # type: ignore[arg-type]


def test_single_files(tmp_path: Path) -> None:
    fill(tmp_path, [f"{STEM}.safetensors", f"{STEM}.fp16.safetensors", "model.safetensors", f"{STEM}.bin"])
    assert found(tmp_path) == [f"{STEM}.safetensors"]
    assert found(tmp_path, variant="fp16", use_safetensors=True) == [f"{STEM}.fp16.safetensors"]
    assert variants_of([p.name for p in tmp_path.iterdir()], STEM) == [None, "fp16"]


@pytest.mark.parametrize(
    ("names", "index", "variant"),
    [
        (PLAIN, f"{STEM}.safetensors.index.json", None),
        (NEW, f"{STEM}.safetensors.index.fp16.json", "fp16"),
        (OLD, f"{STEM}.safetensors.fp16.index.json", "fp16"),
        (OLD, f"{STEM}.safetensors.index.fp16.json", "fp16"),  # written by one version of diffusers
        (NEW, None, "fp16"),
        (OLD, None, "fp16"),
        (PLAIN, None, None),
    ],
    ids=["plain", "new", "old", "mixed", "new without index", "old without index", "plain without index"],
)
def test_shards(tmp_path: Path, names: list[str], index: str | None, variant: str | None) -> None:
    fill(tmp_path, names, index)
    assert found(tmp_path, variant=variant) == names
    with pytest.raises(CheckpointNotFound, match="It has"):
        found(tmp_path, variant="fp16" if variant is None else None)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    fill(tmp_path, PLAIN, f"{STEM}.safetensors.index.json")
    (tmp_path / PLAIN[1]).unlink()
    with pytest.raises(CheckpointNotFound, match=PLAIN[1]):
        found(tmp_path)
    (tmp_path / f"{STEM}.safetensors.index.json").unlink()
    with pytest.raises(CheckpointNotFound, match=f"Incomplete shards: {PLAIN[0]}"):
        found(tmp_path)


@pytest.mark.parametrize(
    ("text", "error"),
    [("{", "not valid JSON"), ("{}", "weight_map"), ('{"weight_map": {"a": "../../x"}}', "outside")],
)
def test_broken_indexes(tmp_path: Path, text: str, error: str) -> None:
    fill(tmp_path, PLAIN)
    (tmp_path / f"{STEM}.safetensors.index.json").write_text(text)
    with pytest.raises(MalformedFile, match=error):
        found(tmp_path)


def test_only_pickles(tmp_path: Path) -> None:
    fill(tmp_path, [f"{STEM}.bin", "config.json"])
    with pytest.raises(UnsafeFormat, match=r"only pickled weights.*save_file"):
        found(tmp_path)
    with pytest.raises(ConfigError, match="use_safetensors=False"):
        found(tmp_path, use_safetensors=False)


def test_a_variant_that_is_not_there(tmp_path: Path) -> None:
    fill(tmp_path, [f"{STEM}.safetensors", f"{STEM}.non_ema.safetensors"])
    with pytest.raises(CheckpointNotFound, match=r"no .*\.fp16\.safetensors.*variant='non_ema'") as caught:
        found(tmp_path, variant="fp16")
    assert "plain weights" in str(caught.value)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match="holds: nothing"):
        found(tmp_path)
    with pytest.raises(CheckpointNotFound, match="no such folder"):
        found(tmp_path / "missing")
