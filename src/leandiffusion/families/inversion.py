"""Textual inversions: vectors, learned from a few pictures, that stand for a word (Gal et al. 2022).

They are put beside a text encoder's token table, which stays as it is and where it is, and their words beside the
tokenizer's vocabulary. Files are safetensors: diffusers' (the word is the tensor's name), AUTOMATIC1111's
(`emb_params`, and the file's name is the word), and those for SDXL's two encoders (`clip_l`, `clip_g`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import CheckpointNotFound, ConfigError, NotSupported, TensorMismatch, UnsafeFormat
from ..core.hub import local_path
from ..core.wording import show
from ..modules.text import AddedTokens, CLIPTextModel
from ..modules.tokenizer import CLIPTokenizer
from ..weights.header import PICKLE_SUFFIXES, read_header
from ..weights.kinds import INVERSION, mistaken
from ..weights.one_file import find_one_file
from ..weights.opened import OpenFile

USUAL = "learned_embeds.safetensors"
"""What diffusers calls the file in a folder."""

_UNNAMED = ("emb_params", "string_to_param", "*")
_ENCODERS = {"clip_l": "", "clip_g": "_2"}  # names in files for SDXL -> ends of our components' names
_WIDTHS = {768: "Stable Diffusion 1, or SDXL's first text encoder", 1024: "Stable Diffusion 2",
           1280: "SDXL's second text encoder"}  # fmt: skip

CONVERT = (
    "python -c \"import torch, safetensors.torch as s; d = torch.load('IN', weights_only=True); d = "
    "d.get('string_to_param', d); s.save_file({'emb_params' if k == '*' else k: v.detach().clone() for k, v in "
    "d.items()}, 'OUT.safetensors')\""
)


@dataclass(frozen=True, eq=False)
class Learned:
    """The vectors (n, C) of a word; `suffix` says for which text encoder, None for whichever has that width."""

    word: str
    vectors: Tensor
    suffix: str | None = None


def find_file(
    path_or_id: str | Path, weight_name: str | None = None, *, subfolder: str | None = None, **hub: Any
) -> Path:
    """The .safetensors file that is meant: the path itself, or in that folder or hub repository `weight_name`, else the
    usual name, else the only one there.

    `hub`: revision, cache_dir, local_files_only, token. CheckpointNotFound names what there is; UnsafeFormat where
    there are only pickles.
    """
    path = local_path(path_or_id)
    if path.suffix in PICKLE_SUFFIXES:
        raise _pickled(str(path))
    if path.is_file():
        return path
    if path.is_dir():
        return find_file(find_one_file(path, weight_name, USUAL, _only_pickles, subfolder=subfolder))
    if path.suffix == ".safetensors" or len(path.parts) > 2 or path.is_absolute():
        raise CheckpointNotFound(
            f"{path} does not exist: give an embedding's .safetensors file, its folder, or a hub id."
        )
    if weight_name is not None and weight_name.endswith(PICKLE_SUFFIXES):
        raise _pickled(f"{weight_name} of {path_or_id} on the hub")
    return find_one_file(path_or_id, weight_name, USUAL, _only_pickles, subfolder=subfolder, **hub)


def _only_pickles(where: str, names: list[str]) -> UnsafeFormat:
    return _pickled(where)


def _pickled(where: str) -> UnsafeFormat:
    return UnsafeFormat(
        f"{where}: embeddings in pickles can run any code and are refused. Convert one that you trust: {CONVERT}"
    )


def read_inversion(
    source: Any, token: str | Sequence[str] | None = None, weight_name: str | None = None, **hub: Any
) -> list[Learned]:
    """The words of a file, a folder or a hub id (`hub` as of `find_file`), of a state dict or a tensor (n, C); several
    for several encoders.

    `token` is the word to use instead of the file's own; a list of them gives each vector its word. Raises ConfigError
    for what is no inversion, and what `find_file` and reading raise.
    """
    where, stem = "the state dict", None
    if isinstance(source, str | Path):
        path = find_file(source, weight_name, **hub)
        where, stem = str(path), path.stem
        file, entries = OpenFile.at(path), read_header(path).entries
        if other := mistaken(path, entries, INVERSION):
            raise TensorMismatch(other)
        tensors: Any = {}
        for name, entry in entries.items():
            tensors[name] = torch.empty(entry.shape, dtype=entry.dtype)
            file.read(entry, tensors[name])
    else:
        tensors = {"*": source} if isinstance(source, Tensor) else source
    if not isinstance(tensors, Mapping):
        raise ConfigError(f"a {type(source).__name__} is no textual inversion: give a path, a state dict or a tensor.")
    return [
        learned
        for suffix, named in _by_encoder(tensors, where).items()
        for learned in _words(*named, suffix, token, stem, where)
    ]


def _by_encoder(tensors: Mapping[str, Any], where: str) -> dict[str | None, tuple[str | None, Tensor]]:
    """By the encoder that they are for: what the file calls the word, if it does, and the vectors."""
    if set(tensors) <= set(_ENCODERS) and tensors:
        return {_ENCODERS[name]: (None, tensor) for name, tensor in tensors.items()}
    nested = tensors.get("string_to_param")
    if isinstance(nested, Mapping) and len(nested) == 1:
        return {None: (tensors.get("name"), next(iter(nested.values())))}
    unnamed = [name for name in tensors if name in _UNNAMED or name.startswith("string_to_param.")]
    if len(unnamed) == 1:
        return {None: (None, tensors[unnamed[0]])}
    if len(tensors) == 1:
        return {None: next(iter(tensors.items()))}
    some = ", ".join(map(str, list(tensors)[:3])) or "nothing"
    raise TensorMismatch(
        f"{where} is no textual inversion: expected one tensor, 'emb_params', or 'clip_l' and 'clip_g'; found "
        f"{len(tensors)}: {some}{' …' * (len(tensors) > 3)}"
    )


def _words(
    own: str | None, vectors: Any, suffix: str | None, token: Any, stem: str | None, where: str
) -> list[Learned]:
    if not isinstance(vectors, Tensor) or not vectors.is_floating_point() or vectors.ndim not in (1, 2):
        found = f"shape {tuple(vectors.shape)}" if isinstance(vectors, Tensor) else f"a {type(vectors).__name__}"
        raise TensorMismatch(f"{where} is no textual inversion: expected vectors (n, channels), found {found}.")
    vectors = vectors.detach().reshape(-1, vectors.shape[-1])
    if not len(vectors) or not vectors.isfinite().all():
        raise TensorMismatch(f"{where}: its {len(vectors)} vectors are empty, or hold NaN or infinity.")
    if isinstance(token, list | tuple):
        if len(token) != len(vectors):
            raise ConfigError(f"{len(token)} tokens for {len(vectors)} vectors of {where}: give one word, or one each.")
        return [Learned(check_word(word), row[None], suffix) for word, row in zip(token, vectors, strict=True)]
    word = own or stem if token is None else token
    if word is None:
        raise ConfigError(f"{where} does not say for which word it stands: pass token=.")
    return [Learned(check_word(word), vectors, suffix)]


def check_word(word: Any) -> str:
    """`word` if prompts can hold it as one: ConfigError for what is no text, is empty, or has spaces in it."""
    if not isinstance(word, str) or not word or any(character.isspace() for character in word):
        raise ConfigError(f"token={word!r}: give a word without spaces, such as <cat-toy>.")
    return word


def _kind(width: int) -> str:
    return f"as of {_WIDTHS.get(width, 'another family')}"


@dataclass(frozen=True)
class Reader:
    """A tokenizer and its text encoder. ConfigError if one is missing, NotSupported if one is not this library's."""

    tokenizer: Any
    text_encoder: Any

    def __post_init__(self) -> None:
        for name, part, kind in (
            ("tokenizer", self.tokenizer, CLIPTokenizer), ("text_encoder", self.text_encoder, CLIPTextModel),
        ):  # fmt: skip
            if part is None:
                raise ConfigError(f"there is no {name}, which textual inversion needs: set pipe.{name} = ….")
            if not isinstance(part, kind):
                raise NotSupported(
                    f"the {name} is a {type(part).__name__} of {type(part).__module__.partition('.')[0]}: textual "
                    "inversion needs this library's own, as from_pretrained opens it."
                )

    @property
    def width(self) -> int:
        """Channels of a token's vector."""
        return self.text_encoder.get_input_embeddings().embedding_dim

    def check(self, learned: Sequence[Learned]) -> None:
        """ConfigError for words that are taken, TensorMismatch for vectors of another encoder."""
        taken = {word.lower() for word in self.tokenizer.get_vocab()}
        for each in learned:
            width, names = each.vectors.shape[1], self.tokenizer.names_of(each.word, len(each.vectors))
            if width != self.width:
                raise TensorMismatch(
                    f"the vectors of {show(each.word)} have {width} channels, {_kind(width)}, and this text encoder "
                    f"has {self.width}, {_kind(self.width)}: it takes embeddings that were learned for it."
                )
            if clash := [name for name in names if name.lower() in taken]:
                raise ConfigError(
                    f"{clash[0]!r} is a token already: give another word by token=, or unload_textual_inversion first."
                )
            taken |= {name.lower() for name in names}

    def set(self, vectors: Mapping[str, Tensor]) -> None:
        """Let these words stand for their vectors (n, C), and no others."""
        ids = self.tokenizer.set_words({word: len(rows) for word, rows in vectors.items()})
        embeddings = self.text_encoder.text_model.embeddings
        embeddings.added = (
            AddedTokens(torch.tensor(ids), torch.cat([*vectors.values()]), dict(vectors)) if ids else None
        )

    @property
    def loaded(self) -> dict[str, Tensor]:
        """The vectors by word."""
        added = self.text_encoder.text_model.embeddings.added
        return {} if added is None else dict(added.by_word)
