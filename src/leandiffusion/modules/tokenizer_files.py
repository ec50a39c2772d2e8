"""Reading a folder with a CLIP tokenizer: what transformers writes, in its older and its newer layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from ..core.config import read_json
from ..core.errors import CheckpointNotFound, MalformedFile
from ..core.wording import show

FILES = (
    "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip
"""Every file that a tokenizer may consist of."""


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer folder, read: `vocab` token -> id, `merges` by priority, `added_tokens` id -> token, `settings`."""

    folder: Path
    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    added_tokens: dict[int, AddedToken]
    settings: dict[str, Any]

    def malformed(self, reason: str) -> MalformedFile:
        """The error for files that are readable one by one and do not fit each other."""
        return MalformedFile(f"the tokenizer in {self.folder} cannot be built: {reason}")


def as_token(value: str | Mapping[str, Any] | AddedToken) -> AddedToken:
    """A special token from the three ways in which files and callers write one."""
    if isinstance(value, AddedToken):
        return value
    if isinstance(value, str):
        return AddedToken(value, special=True, normalized=False)
    flags = {key: bool(value[key]) for key in ("lstrip", "rstrip", "single_word", "normalized") if key in value}
    return AddedToken(str(value["content"]), special=bool(value.get("special", True)), **flags)


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read vocab.json and merges.txt, else tokenizer.json, and the settings beside them.

    Raises CheckpointNotFound naming what the folder lacks, MalformedFile naming the file and place that is wrong.
    """
    serialized = _optional(folder / "tokenizer.json")
    vocab_file, merges_file = folder / "vocab.json", folder / "merges.txt"
    if vocab_file.is_file() and merges_file.is_file():
        vocab, merges = _checked_vocab(read_json(vocab_file), vocab_file), _read_merges(merges_file)
    elif serialized:
        vocab, merges = _from_serialized(serialized, folder / "tokenizer.json")
    else:
        lacking = "no such folder" if not folder.is_dir() else f"it has {sorted(p.name for p in folder.iterdir())}"
        raise CheckpointNotFound(
            f"no CLIP tokenizer in {folder}: expected vocab.json and merges.txt, or tokenizer.json; {lacking}."
        )
    settings, added = _read_settings(folder, serialized)
    return TokenizerFiles(folder, vocab, merges, added, settings)


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _checked_vocab(vocab: Any, path: Path) -> dict[str, int]:
    if not isinstance(vocab, dict) or not vocab:
        raise MalformedFile(f"{path} holds no vocabulary: expected an object of tokens and their ids.")
    for token, index in vocab.items():
        if type(index) is not int or index < 0:
            raise MalformedFile(f"{path} gives token {show(token)} the id {show(index)}: ids are whole numbers from 0.")
    if len(set(vocab.values())) < len(vocab):
        raise MalformedFile(f"{path} gives one id to several tokens: every token needs an id of its own.")
    return vocab


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise MalformedFile(f"{path} is not UTF-8 text ({error}). Download or save the tokenizer again.") from error
    merges = []
    for number, line in enumerate(lines, start=1):
        pair = line.split()
        if not pair or (number == 1 and line.startswith("#version")):
            continue
        if len(pair) != 2:
            raise MalformedFile(f"{path} line {number} is {show(line)}: expected two tokens with a space between them.")
        merges.append((pair[0], pair[1]))
    return merges


def _from_serialized(serialized: dict[str, Any], path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = serialized.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or not isinstance(model.get("merges"), list):
        raise MalformedFile(f"{path} holds no byte-pair encoding: expected 'model' with type 'BPE', vocab and merges.")
    merges = []
    for entry in model["merges"]:
        pair = entry.split(" ") if isinstance(entry, str) else entry
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(token, str) for token in pair):
            raise MalformedFile(f"{path} has the merge {show(entry)}: expected two tokens.")
        merges.append((pair[0], pair[1]))
    return _checked_vocab(model.get("vocab"), path), merges


def _read_settings(folder: Path, serialized: dict[str, Any]) -> tuple[dict[str, Any], dict[int, AddedToken]]:
    """Settings by name, and added tokens by id.

    A config that lists `added_tokens_decoder` stands alone. Older ones are overruled by special_tokens_map.json (SD2
    names its real padding token only there) and completed by added_tokens.json and the list in tokenizer.json.
    """
    settings = _optional(folder / "tokenizer_config.json")
    try:
        if "added_tokens_decoder" in settings:
            added = {int(index): as_token(token) for index, token in settings["added_tokens_decoder"].items()}
        else:
            settings = {**settings, **_optional(folder / "special_tokens_map.json")}
            plain = _optional(folder / "added_tokens.json")
            added = {int(index): AddedToken(text, normalized=True) for text, index in plain.items()}
            added |= {int(token["id"]): as_token(token) for token in serialized.get("added_tokens", [])}
        by_text = {token.content: token for token in added.values()}
        for name, value in settings.items():
            if name.endswith("_token") and value is not None:
                token = as_token(value)
                settings[name] = by_text.get(token.content, token)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise MalformedFile(
            f"the special tokens in the tokenizer files of {folder} are unreadable: {show(error)}."
        ) from error
    length = settings.get("model_max_length", 0)
    if isinstance(length, bool) or not isinstance(length, int | float):
        raise MalformedFile(f"{folder}: the tokenizer's model_max_length={show(length)} must be a whole number.")
    return settings, added
