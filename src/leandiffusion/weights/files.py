"""Which files of a folder hold a network's weights: one file or shards, with or without a variant.

Both variant namings are known: `model.fp16.safetensors`, shards `model.fp16-00001-of-00002.safetensors` with
`model.safetensors.index.fp16.json`; and the older `model-00001-of-00002.fp16.safetensors` with
`model.safetensors.fp16.index.json`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..core.config import read_json
from ..core.errors import CheckpointNotFound, ConfigError, MalformedFile, UnsafeFormat, VariantNotFound
from ..core.once import once
from ..core.wording import show
from .header import CONVERT_PICKLE, PICKLE_SUFFIXES

_SHARD = r"-\d{5}-of-\d{5}"
_STEM = r"(?P<stem>[A-Za-z0-9_]+)"
_SAFE_FILE = re.compile(
    rf"{_STEM}(?:\.(?P<new>[\w-]+?))?(?P<shard>{_SHARD})?(?:\.(?P<old>[\w]+))?\.safetensors$",
)
_INDEX = re.compile(rf"{_STEM}\.safetensors(?:\.(?P<old>\w+))?\.index(?:\.(?P<new>\w+))?\.json$")
_STYLES = ("new", "old")
_PICKLE_STEMS = ("pytorch_model", "diffusion_pytorch_model", "model")


@once
def weight_files(
    folder: Path, stem: str, *, variant: str | None = None, use_safetensors: bool | None = None
) -> list[Path]:
    """The safetensors files in `folder` that make up the weights called `stem`, shards in the order of their names.

    Raises CheckpointNotFound when there are none (naming the variants that there are) or when shards are missing,
    UnsafeFormat when there are only pickles, and ConfigError for use_safetensors=False, which asks for pickles.
    """
    if use_safetensors is False:
        raise ConfigError("use_safetensors=False asks for pickled weights, which are refused: leave it out.")
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    chosen = choose_weights(names, stem, variant)
    if not chosen:
        raise _nothing_chosen(folder, names, stem, variant)
    indexes = [name for name in chosen if name.endswith(".json")]
    if not indexes:
        return [folder / name for name in chosen]
    return _shards(folder / indexes[0], chosen)


def choose_weights(names: list[str], stem: str, variant: str | None) -> list[str]:
    """From file names, those of the weights `stem` in that variant: one file, else shards and their index, else none.

    A single file wins over shards, and the present naming of variants over the older one.
    """
    single = f"{stem}.{variant}.safetensors" if variant else f"{stem}.safetensors"
    if single in names:
        return [single]
    for style in _STYLES:
        shards = [n for n in names if _is_shard(n, stem, variant, style)]
        index = _index_name(stem, variant, style)
        if index in names:
            return [*shards, index]
        if shards and all(f"-of-{len(shards):05d}" in n for n in shards):
            return shards  # all there, the index lost
    return []


def stale_weights(there: Sequence[str], fresh: Sequence[str], *, variant: str | None) -> list[str]:
    """Of the names in a folder, the weights that the `fresh` ones of that variant replace: to be deleted."""
    stems = {match["stem"] for name in fresh if (match := _SAFE_FILE.match(name))}
    known = {f"{stem}.{variant}.safetensors" if variant else f"{stem}.safetensors" for stem in stems}
    known |= {_index_name(stem, variant, style) for stem in stems for style in _STYLES}
    shards = {n for n in there for stem in stems for style in _STYLES if _is_shard(n, stem, variant, style)}
    return [name for name in there if name in known | shards and name not in fresh]


def variants_of(names: list[str], stem: str) -> list[str | None]:
    """Variants of the weights `stem` among file names; None stands for the plain ones."""
    found = set()
    for name in names:
        match = _SAFE_FILE.match(name) or _INDEX.match(name)
        if match and match["stem"] == stem:
            found.add(match["new"] or match["old"])
    return sorted(found, key=lambda v: v or "")


def _is_shard(name: str, stem: str, variant: str | None, style: str) -> bool:
    tag = f".{variant}" if variant else ""
    new, old = (tag, "") if style == "new" else ("", tag)
    return re.fullmatch(rf"{re.escape(stem + new)}{_SHARD}{re.escape(old)}\.safetensors", name) is not None


def _index_name(stem: str, variant: str | None, style: str) -> str:
    if variant is None:
        return f"{stem}.safetensors.index.json"
    return f"{stem}.safetensors." + (f"index.{variant}.json" if style == "new" else f"{variant}.index.json")


def _shards(index: Path, chosen: list[str]) -> list[Path]:
    """The shards that an index lists. Files that it names under the other variant naming are taken as they lie."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()) or not weight_map:
        raise MalformedFile(f"{index} has no usable 'weight_map' (tensor name -> file name). Download it again.")
    listed = sorted(set(weight_map.values()))
    if outside := [name for name in listed if not re.fullmatch(r"\w[\w.-]{0,200}", name)]:
        raise MalformedFile(f"{index} points outside its folder: {show(outside[0])}. Download it again.")
    missing = [name for name in listed if not (index.parent / name).is_file()]
    if missing and len(missing) == len(listed) and (present := [n for n in chosen if n.endswith(".safetensors")]):
        return [index.parent / name for name in present]
    if missing:
        raise CheckpointNotFound(
            f"{index.parent} lacks {len(missing)} of the {len(listed)} shards that {index.name} lists: "
            f"{', '.join(missing[:5])}{' …' * (len(missing) > 5)}. Download them again."
        )
    return [index.parent / name for name in listed]


def _nothing_chosen(folder: Path, names: list[str], stem: str, variant: str | None) -> Exception:
    if not folder.is_dir():
        return CheckpointNotFound(f"no such folder: {folder}")
    wanted = f"{stem}.{variant}.safetensors" if variant else f"{stem}.safetensors"
    if present := variants_of(names, stem):
        told = ", ".join(f"variant={v!r}" if v else "the plain weights (variant=None)" for v in present)
        partial = [n for n in names if _SAFE_FILE.match(n) and re.search(_SHARD, n)]
        shards = f" Incomplete shards: {', '.join(partial[:5])}." if variant in present and partial else ""
        kind = VariantNotFound if variant and variant not in present else CheckpointNotFound
        return kind(f"{folder} has no {wanted}.{shards} It has {told}.")
    if pickles := [n for n in names if n.endswith(PICKLE_SUFFIXES) and n.startswith(_PICKLE_STEMS)]:
        return UnsafeFormat(
            f"{folder} has only pickled weights ({', '.join(pickles[:3])}): opening a pickle can run any code, so they "
            f"are refused. Look for safetensors of the same model (another revision or variant), or convert files that "
            f"you trust into {wanted}: {CONVERT_PICKLE}"
        )
    return CheckpointNotFound(
        f"{folder} has no {wanted}. It holds: {', '.join(names[:8]) or 'nothing'}{' …' * (len(names) > 8)}."
    )
