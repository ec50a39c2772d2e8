"""One repository on the hub, through huggingface_hub: its cache, its resuming of downloads, its offline mode."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ..core.errors import CheckpointNotFound, WeightsError

log = logging.getLogger(__name__)

# Every checkpoint has one of these; asking for the first of them turns a revision into a commit.
_FIRST_FILES = ("model_index.json", "config.json", "scheduler_config.json", "tokenizer_config.json")


class HubRepository:
    """Names and files of one repository. `offline` uses the cache alone, as does the setting HF_HUB_OFFLINE=1."""

    def __init__(self, name: str, cache_dir: str | Path | None, token: str | bool | None, offline: bool) -> None:
        from huggingface_hub import constants

        self.name = name
        self.cache = Path(cache_dir or constants.HF_HUB_CACHE)
        self.offline = offline or constants.HF_HUB_OFFLINE
        self._options: dict[str, Any] = {"repo_id": name, "cache_dir": self.cache, "token": token}

    def open(self, revision: str | None, subfolders: list[str] | None) -> tuple[Path, list[str]]:
        """Resolve a branch, tag or commit once: the cache folder of that commit, and the names of its files.

        Offline, the names are of what is cached. Raises CheckpointNotFound and WeightsError.
        """
        folder = self._resolve(revision, subfolders or [])
        return folder, self._cached(folder) if self.offline else self._listed(folder)

    def fetch(self, folder: Path, files: list[str]) -> None:
        """Bring files of the commit that `folder` is of into it. What is there already is not asked for again."""
        if self.offline or all((folder / name).is_file() for name in files):
            return
        from huggingface_hub import snapshot_download

        try:
            snapshot_download(**self._options, revision=folder.name, allow_patterns=files)
        except Exception as error:  # of whichever HTTP library the installed huggingface_hub uses
            raise self._explained(error, folder.name) from error

    def _resolve(self, revision: str | None, subfolders: list[str]) -> Path:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        last: Exception | None = None
        for name in (*_FIRST_FILES, *(f"{sub}/{first}" for sub in subfolders for first in _FIRST_FILES[1:])):
            try:
                found = hf_hub_download(
                    **self._options, filename=name, revision=revision, local_files_only=self.offline
                )
                return Path(found).parents[name.count("/")]
            except EntryNotFoundError as error:
                last = error
                if isinstance(error, LocalEntryNotFoundError) and not self.offline:
                    break  # not reachable: asking for other files would fail alike
            except Exception as error:  # of whichever HTTP library the installed huggingface_hub uses
                raise self._explained(error, revision) from error
        assert last is not None
        raise self._explained(last, revision) from last

    def _listed(self, folder: Path) -> list[str]:
        from huggingface_hub import HfApi

        try:
            return HfApi(token=self._options["token"]).list_repo_files(self.name, revision=folder.name)
        except Exception as error:  # the first file came from the cache because the hub can not be reached
            log.warning("%s: the hub can not be reached (%s): using what is cached.", self.name, type(error).__name__)
            self.offline = True
            return self._cached(folder)

    def _cached(self, folder: Path) -> list[str]:
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    def _explained(self, error: Exception, revision: str | None) -> WeightsError:
        from huggingface_hub import errors

        at = f" at revision {revision!r}" if revision else ""
        match error:
            case errors.LocalEntryNotFoundError():
                why = "offline" if self.offline else "the hub can not be reached"
                return CheckpointNotFound(
                    f"{self.name!r}{at} is not a local folder, and {why} and not cached: searched {self.cache}. Go "
                    "online once (local_files_only=False, HF_HUB_OFFLINE=0), give cache_dir, or give a folder's path."
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
