"""One repository on the hub, through huggingface_hub: its cache, its resuming of downloads, its offline mode."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .errors import CheckpointNotFound, ConfigError, WeightsError
from .once import once
from .replacing import finish_saving
from .wording import show, to_length

log = logging.getLogger(__name__)

# Every checkpoint has one of these; asking for the first of them turns a revision into a commit.
_FIRST_FILES = ("model_index.json", "config.json", "scheduler_config.json", "tokenizer_config.json")
_PATIENCE = 10.0  # seconds for the hub to answer, before the cache is used
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def check_hub_id(name: str) -> None:
    """CheckpointNotFound for a name that cannot be a hub id. That it is not a local folder, the caller has checked."""
    if re.match(r"(https?:/|(www\.)?(huggingface\.co|hf\.co)/)", name):
        raise CheckpointNotFound(_about_address(name))
    if len(name) > 200 or not _HUB_ID.fullmatch(name):
        raise CheckpointNotFound(f"no such folder: {name} (and {show(name)} is not a hub id such as 'owner/model').")


def local_path(path_or_id: str | Path) -> Path:
    """The argument as a path with ~ expanded; a path that does not exist for what no file system accepts.

    ConfigError for what is neither a text nor a path.
    """
    if not isinstance(path_or_id, str | os.PathLike):
        raise ConfigError(f"a path or hub id is expected, found {show(path_or_id)}: pass a text such as './model'.")
    try:
        path = Path(path_or_id).expanduser()
        path.is_dir()
    except (OSError, RuntimeError, ValueError):  # too long, or ~ of an unknown user
        return Path("no such path")
    return path


def _about_address(address: str) -> str:
    """What to pass in place of a web address."""
    found = re.match(r"(?:https?:/+)?(?:www\.)?(?:huggingface\.co|hf\.co)/([^/?#]+/[^/?#]+)(?:[/?#](.*))?$", address)
    if found is None:
        return f"{address} is a web address: download the file, and open it with from_single_file."
    inside = re.match(r"(?:blob|resolve)/([^/]+)/(.+?)(?:[?#].*)?$", found[2] or "")
    if inside is not None:
        return (
            f"{address} is the web address of one file: download it (hf download {found[1]} {inside[2]}), and open it "
            f"with from_single_file; or open the whole model, {found[1]!r}, with from_pretrained."
        )
    return f"{address} is a web address: pass the model's hub id, {found[1]!r}."


def settings_folder(
    path_or_id: str | Path,
    files: Iterable[str],
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path:
    """The folder with a component's small files: a local one as it is; for a hub id, those of `files` that it has.

    Raises CheckpointNotFound and WeightsError for ids; whether the files are there is left to the caller.
    """
    folder, inside = local_path(path_or_id), subfolder or ""
    if not folder.is_dir():
        check_hub_id(str(path_or_id))
        hub = repository(str(path_or_id), cache_dir, token, local_files_only)
        folder, there = hub.open(revision, [inside] if inside else None)
        wanted = {f"{inside}/{file}".lstrip("/") for file in files}
        hub.fetch(folder, sorted(wanted.intersection(there)))
    finish_saving(folder)
    finish_saving(folder / inside)
    return folder / inside


def fetch_file(
    name: str,
    choose: Callable[[list[str]], str],
    *,
    usual: str,
    subfolder: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path:
    """One file of a repository on the hub, in its cache: what `choose` picks of the names in `subfolder`.

    `usual` is the name to ask for where names cannot be listed, offline. Raises CheckpointNotFound, WeightsError, and
    what `choose` raises.
    """
    from huggingface_hub import hf_hub_download

    hub = repository(name, cache_dir, token, local_files_only)
    inside = f"{subfolder}/" if subfolder else ""
    commit, names = hub.listed(revision)
    there = [each.removeprefix(inside) for each in names if each.startswith(inside)]
    file = inside + (usual if commit is None else choose(there))
    try:
        return Path(hf_hub_download(**hub.options, filename=file, revision=revision, local_files_only=hub.offline))
    except Exception as error:  # of whichever HTTP library the installed huggingface_hub uses
        raise hub.explained(error, revision) from error


def _first_files(subfolders: list[str]) -> list[str]:
    return [*_FIRST_FILES, *(f"{folder}/{name}" for folder in subfolders for name in _FIRST_FILES[1:])]


class HubRepository:
    """Names and files of one repository. `offline` uses the cache alone, as does the setting HF_HUB_OFFLINE=1.

    What the hub said of a revision is remembered: take a new one to ask anew.
    """

    def __init__(self, name: str, cache_dir: str | Path | None, token: str | bool | None, offline: bool) -> None:
        from huggingface_hub import constants

        self.name = name
        self.cache = Path(cache_dir or constants.HF_HUB_CACHE)
        self.offline = offline or constants.HF_HUB_OFFLINE
        self._unreachable = False
        self.options: dict[str, Any] = {"repo_id": name, "cache_dir": self.cache, "token": token}
        self._known: dict[Any, tuple[Path, list[str]]] = {}

    def open(self, revision: str | None, subfolders: list[str] | None) -> tuple[Path, list[str]]:
        """Resolve a branch, tag or commit once: the cache folder of that commit, and the names of its files.

        Offline, the names are of what is cached. Raises CheckpointNotFound and WeightsError.
        """
        asked = (revision, *(subfolders or ()))
        if asked not in self._known:
            commit, names = self.listed(revision)
            first = [name for name in _first_files(subfolders or []) if commit is None or name in names]
            folder = self._resolve(revision, first)
            if commit not in (None, folder.name):  # the branch moved meanwhile
                names = self.listed(folder.name)[1]
            self._known[asked] = folder, names
        folder, names = self._known[asked]
        return folder, self._cached(folder) if self.offline else names

    def fetch(self, folder: Path, files: list[str]) -> None:
        """Fetch files of a commit into its cache `folder`. Files that are there are not fetched again."""
        if self.offline or all((folder / name).is_file() for name in files):
            return
        from huggingface_hub import snapshot_download

        try:
            snapshot_download(**self.options, revision=folder.name, allow_patterns=files)
        except Exception as error:  # of whichever HTTP library the installed huggingface_hub uses
            raise self.explained(error, folder.name) from error

    def listed(self, revision: str | None) -> tuple[str | None, list[str]]:
        """Commit and file names of a revision; nothing, and offline from now on, when the hub cannot be reached."""
        from huggingface_hub import HfApi, errors

        if self.offline:
            return None, []

        known = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError)
        try:
            info = HfApi().model_info(self.name, revision=revision, token=self.options["token"], timeout=_PATIENCE)
        except known as error:
            raise self.explained(error, revision) from error
        except Exception as error:  # of whichever HTTP library the installed huggingface_hub uses
            log.warning("%s: the hub cannot be reached (%s): using what is cached.", self.name, type(error).__name__)
            self.offline = self._unreachable = True
            return None, []
        return info.sha, [sibling.rfilename for sibling in info.siblings or []]

    def _resolve(self, revision: str | None, first: list[str]) -> Path:
        """The folder of the commit. Asking for one file notes in the cache which commit the revision is."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        missing: Exception = EntryNotFoundError("no such file")
        for name in first:
            try:
                found = hf_hub_download(**self.options, filename=name, revision=revision, local_files_only=self.offline)
                return Path(found).parents[name.count("/")]
            except EntryNotFoundError as error:
                missing = error
            except Exception as error:  # of whichever HTTP library the installed huggingface_hub uses
                raise self.explained(error, revision) from error
        raise self.explained(missing, revision) from missing

    def unfinished(self) -> str:
        """A sentence about downloads of this repository that were cut off and lie in the cache; empty without any."""
        blobs = self.cache / f"models--{self.name.replace('/', '--')}" / "blobs"
        parts = sorted(blobs.glob("*.incomplete")) if blobs.is_dir() else []
        if not parts:
            return ""
        return f" {len(parts)} downloads in {to_length(str(blobs), 120)} are incomplete: go online once to finish them."

    def _cached(self, folder: Path) -> list[str]:
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    def explained(self, error: Exception, revision: str | None) -> WeightsError:
        """The error of ours that says what is wrong, and what to do."""
        from huggingface_hub import errors

        at = f" at revision {revision!r}" if revision else ""
        match error:
            case errors.LocalEntryNotFoundError():
                why = "the hub cannot be reached" if self._unreachable else "offline"
                return CheckpointNotFound(
                    f"{self.name!r}{at} is not a local folder, and {why} and not cached: searched {self.cache}. Go "
                    "online once (local_files_only=False, HF_HUB_OFFLINE=0), give cache_dir, or give a folder's path."
                    + self.unfinished()
                )
            case errors.EntryNotFoundError():
                return CheckpointNotFound(
                    f"{self.name!r}{at} on the hub is not a pipeline or component: it has none of "
                    f"{', '.join(_FIRST_FILES)}. A repository of single files: download one, open it with "
                    "from_single_file."
                )
            case errors.RevisionNotFoundError():
                return CheckpointNotFound(f"{self.name!r} on the hub has no revision {revision!r}: check the name.")
            case errors.GatedRepoError():
                return CheckpointNotFound(
                    f"{self.name!r} is gated: accept its terms at https://huggingface.co/{self.name} and pass token=…"
                )
            case errors.RepositoryNotFoundError():
                return CheckpointNotFound(
                    f"{self.name!r} is neither a local folder nor a model on the hub that this token may see: check "
                    "the spelling; private models need token=…"
                )
            case _:
                return WeightsError(f"{self.name!r}{at} could not be fetched: {type(error).__name__}: {error}")


@once
def repository(name: str, cache_dir: str | Path | None, token: str | bool | None, offline: bool) -> HubRepository:
    """The repository of that name; the same one while a checkpoint is opened, so that the hub is asked once."""
    return HubRepository(name, cache_dir, token, offline)
