"""Where a checkpoint lies: a local folder, or a hub id whose files are fetched into the hub's cache.

Only what will be opened is fetched: configs, tokenizer files, and per component the safetensors of one variant.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.aside import is_aside
from ..core.config import read_json
from ..core.errors import CheckpointNotFound, ConfigError, UnsafeFormat, VariantNotFound
from ..core.hub import HubRepository, check_hub_id, local_path, repository, settings_folder
from ..core.once import once
from ..core.replacing import finish_saving
from .files import choose_weights, variants_of
from .header import CONVERT_PICKLE, PICKLE_SUFFIXES

log = logging.getLogger(__name__)

INDEX_FILE = "model_index.json"
_STEMS = ("diffusion_pytorch_model", "model")
_VARIANT_BRANCHES = ("fp16", "bf16")  # half-precision weights once lay on branches of these names


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk. `variant` is the one to open, which is not always the one asked for."""

    folder: Path
    variant: str | None


def find_checkpoint(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    use_safetensors: bool | None = None,
    subfolders: Iterable[str] | None = None,
    without: Collection[str] = (),
) -> Checkpoint:
    """A local folder as it is; otherwise a hub id, fetched at one commit into `cache_dir` (None: the hub's default).

    `subfolders` restricts what is fetched to those components, `without` leaves some out. `revision="fp16"`, in early
    checkpoints the name of a branch, means the fp16 variant; where only the branch exists, its plain weights. In a
    local folder, an interrupted save is completed first.

    Raises CheckpointNotFound (no such path, id, revision or variant; offline and not cached, naming the cache),
    UnsafeFormat when a component has only pickles, ConfigError for use_safetensors=False.
    """
    if use_safetensors is False:
        raise ConfigError("use_safetensors=False asks for pickled weights, which are refused: leave it out.")
    branch = revision if revision in _VARIANT_BRANCHES and variant in (None, revision) else None
    folder = local_path(path_or_id)
    if folder.is_dir():
        for each in (folder, *(folder / sub for sub in _subfolders(folder))):
            finish_saving(each)
        found = branch and any(variant_files(_names_in(folder, sub), branch) for sub in ("", *_subfolders(folder)))
        return Checkpoint(folder, variant or (branch if found else None))
    _refuse_files(folder)
    check_hub_id(str(path_or_id))
    hub = repository(str(path_or_id), cache_dir, token, local_files_only)
    wanted = None if subfolders is None else list(subfolders)
    if branch:
        try:
            return Checkpoint(_fetch(hub, None, branch, wanted, without), branch)
        except CheckpointNotFound as error:
            log.info("%s: trying the branch %s, because: %s", path_or_id, branch, error)
            return Checkpoint(_fetch(hub, branch, None, wanted, without), None)
    return Checkpoint(_fetch(hub, revision, variant, wanted, without), variant)


def find_index(path_or_id: str | Path, *, revision: str | None = None, **where: Any) -> Path:
    """The folder with a checkpoint's model_index.json, from where `find_checkpoint` will take the rest.

    `where`: cache_dir, local_files_only, token. Raises CheckpointNotFound and WeightsError for ids.
    """
    if revision in _VARIANT_BRANCHES:
        try:
            return settings_folder(path_or_id, [INDEX_FILE], **where)
        except CheckpointNotFound:
            pass  # offline, say, and only the branch of that name is cached
    return settings_folder(path_or_id, [INDEX_FILE], revision=revision, **where)


def choose_files(names: Iterable[str], components: Iterable[str], variant: str | None) -> list[str]:
    """From the file names of a repository, those to fetch for its `components` (folders; "" is the root).

    A component that lacks the variant contributes its plain weights. Raises CheckpointNotFound when none has the
    variant or a network has no weights at all, UnsafeFormat when it has pickles only.
    """
    folders: dict[str, list[str]] = {}
    for name in sorted(names):
        folder, _, file = name.rpartition("/")
        folders.setdefault(folder, []).append(file)
    chosen = [INDEX_FILE] if INDEX_FILE in folders.get("", []) else []
    wanted = {name: folders.get(name, []) for name in components}
    networks = {name: files for name, files in wanted.items() if "config.json" in files}
    if variant and networks and not any(variant_files(files, variant) for files in networks.values()):
        raise VariantNotFound(f"no component has weights of variant={variant!r}. There are: {_variants(networks)}.")
    for component, files in wanted.items():
        weights = variant_files(files, variant) or variant_files(files, None)
        if component in networks and not weights:
            raise _no_weights(component or "the repository", files)
        settings = [f for f in files if f.endswith((".json", ".txt")) and ".index." not in f and f != INDEX_FILE]
        chosen += [f"{component}/{file}" if component else file for file in (*settings, *weights)]
    return chosen


def variant_files(names: list[str], variant: str | None) -> list[str]:
    """Of the file names of a component's folder, the weights in that variant; empty when there are none."""
    return next((found for stem in _STEMS if (found := choose_weights(names, stem, variant))), [])


@once
def described_in(index: Path) -> Mapping[str, Any]:
    """What a model_index.json says. MalformedFile when it is not a JSON object."""
    return read_json(index)


def index_components(index: Path) -> list[str]:
    """The components that a model_index.json names, without those that are null."""
    described = described_in(index)
    named = {key: value for key, value in described.items() if re.fullmatch(r"[^\W_]\w{0,99}", key)}
    return [k for k, v in named.items() if isinstance(v, list) and len(v) == 2 and isinstance(v[1], str) and v[1]]


def _fetch(
    hub: HubRepository,
    revision: str | None,
    variant: str | None,
    subfolders: list[str] | None,
    without: Collection[str],
) -> Path:
    folder, names = hub.open(revision, subfolders)
    if subfolders is None:
        index = folder / INDEX_FILE
        subfolders = [n for n in index_components(index) if n not in without] if index.is_file() else [""]
        subfolders += _further_folders(index, subfolders, names) if index.is_file() else []
    try:
        files = choose_files(names, [name for name in subfolders if name not in without], variant)
    except (CheckpointNotFound, UnsafeFormat) as error:
        place = f"cached of {hub.name} in {hub.cache} (offline)" if hub.offline else f"on the hub at {hub.name}"
        raise type(error)(f"{place}, {folder.name[:12]}: {error}{hub.unfinished()}") from None
    hub.fetch(folder, files)
    return folder


def _further_folders(index: Path, components: list[str], names: Iterable[str]) -> list[str]:
    """Of several ControlNets as one component only the first lies in its folder; the others' have numbers behind."""
    several = [name for name in components if described_in(index)[name][1] == "MultiControlNetModel"]
    folders = sorted({name.partition("/")[0] for name in names if "/" in name})
    return [each for each in folders for name in several if re.fullmatch(rf"{name}_\d+", each)]


def _refuse_files(path: Path) -> None:
    if path.is_file():
        if path.suffix in PICKLE_SUFFIXES:
            raise UnsafeFormat(f"{path} is a pickle, which is refused. Convert a file that you trust: {CONVERT_PICKLE}")
        raise CheckpointNotFound(f"{path} is a file, expected a folder or a hub id: open a file with from_single_file.")


def _subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not is_aside(path.name))


def _names_in(folder: Path, sub: str) -> list[str]:
    return sorted(path.name for path in (folder / sub).iterdir())


def _variants(networks: dict[str, list[str]]) -> str:
    found = {v for files in networks.values() for stem in _STEMS for v in variants_of(files, stem)}
    return ", ".join(sorted(repr(v) if v else "plain weights (variant=None)" for v in found)) or "no safetensors"


def _no_weights(component: str, files: list[str]) -> Exception:
    if pickles := [f for f in files if f.endswith(PICKLE_SUFFIXES)]:
        return UnsafeFormat(
            f"{component} has only pickled weights ({', '.join(pickles[:3])}): opening a pickle can run any code, "
            f"so they are refused. Look for safetensors in another revision, or convert: {CONVERT_PICKLE}"
        )
    return CheckpointNotFound(f"{component} has no safetensors weights. There are: {_variants({component: files})}.")
