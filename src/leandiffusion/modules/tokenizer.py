"""CLIP's tokenizer: text to ids by byte-level byte-pair encoding, ids back to text.

"Neural Machine Translation of Rare Words with Subword Units", Sennrich et al. 2016, on bytes as in GPT-2, with the word
boundaries, lower-casing and end-of-word mark of "Learning Transferable Visual Models From Natural Language
Supervision", Radford et al. 2021. The encoding itself is done by the `tokenizers` library. No torch is imported before
tensors are asked for, and an instance may be used by several threads at once.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from ..core.config import write_json
from ..core.errors import ConfigError
from ..core.hub import settings_folder
from ..core.output import Batch
from ..core.wording import show
from .tokenizer_files import FILES, as_token, read_tokenizer_files
from .tokenizer_names import TokenNames

END_OF_WORD = "</w>"
DEFAULT_LENGTH = 77
_MOST_TOKENS = 65_536  # of one text, for which padding makes room
# Special tokens, English contractions, runs of letters, single digits, runs of anything else that is not white space.
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


class CLIPTokenizer(TokenNames):
    """Text to token ids, as CLIP was trained with.

    Args: `vocab`, token -> id; `merges`, pairs of tokens in order of priority; the four special tokens, each in the
    vocabulary or in `added_tokens` (id -> token, tokens beyond the vocabulary that are matched whole);
    `model_max_length`, the number of tokens that the text model reads, begin and end included.

    Raises ConfigError for merges that leave the vocabulary and special tokens that it lacks.
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Iterable[tuple[str, str]],
        *,
        unk_token: str | AddedToken = "<|endoftext|>",
        bos_token: str | AddedToken = "<|startoftext|>",
        eos_token: str | AddedToken = "<|endoftext|>",
        pad_token: str | AddedToken = "<|endoftext|>",
        model_max_length: int = DEFAULT_LENGTH,
        do_lower_case: bool = True,
        added_tokens: Mapping[int, AddedToken] | None = None,
    ) -> None:
        if not isinstance(model_max_length, int) or not 2 <= model_max_length <= _MOST_TOKENS:
            raise ConfigError(
                f"model_max_length={show(model_max_length)} must be a whole number from 2, which leaves room for the "
                f"begin and end tokens, to {_MOST_TOKENS}."
            )
        self.model_max_length = model_max_length
        self.do_lower_case = do_lower_case
        self._merges = [(left, right) for left, right in merges]
        tokens = [as_token(token) for token in (bos_token, eos_token, unk_token, pad_token)]
        self._roles: dict[str, str] = dict(zip(ROLES, (token.content for token in tokens), strict=True))
        self._tokenizer = _byte_level_bpe(dict(vocab), self._merges, self._roles["unk_token"], do_lower_case)
        self._add_tokens(added_tokens or {})
        self._ids = {role: self._known_id(role) for role in ROLES}
        self._plain: Tokenizer | None = None  # what it is without `words`, while there are some
        self.words: dict[str, int] = {}
        """Words of textual inversions, and how many tokens each stands for."""

        self.word_sizes: dict[int, int] = {}
        """The same by the id of the first token."""
        # In this order, so that the last flags win where roles share a token: as transformers reads the same files.
        for token in tokens:
            self._tokenizer.add_special_tokens([token])

    @staticmethod
    def names_of(word: str, count: int) -> list[str]:
        """The tokens that a word of several vectors stands for, as diffusers names them."""
        return [word, *(f"{word}_{i}" for i in range(1, count))]

    def set_words(self, words: Mapping[str, int]) -> list[int]:
        """Let these words stand for that many tokens each, and no others; returns the ids of all, in order.

        Without any the tokenizer is what it was before. What `save_pretrained` writes has none of them.
        """
        plain = self._plain or self._tokenizer
        tokens = [name for word, count in words.items() for name in self.names_of(word, count)]
        extended = Tokenizer.from_str(plain.to_str()) if tokens else plain
        extended.add_tokens(tokens)
        ids: list[int] = [extended.token_to_id(token) for token in tokens]  # type: ignore[misc]
        self.words = dict(words)
        place = dict(zip(tokens, ids, strict=True))
        self.word_sizes = {place[word]: count for word, count in words.items()}
        self._tokenizer, self._plain = extended, plain if tokens else None
        return ids

    def _add_tokens(self, added: Mapping[int, AddedToken]) -> None:
        for expected, token in sorted(added.items()):
            (self._tokenizer.add_special_tokens if token.special else self._tokenizer.add_tokens)([token])
            found = self._tokenizer.token_to_id(token.content)
            if found != expected:
                raise ConfigError(f"added token {token.content!r} claims id {expected}, but its place is {found}.")

    def _known_id(self, role: str) -> int:
        index = self._tokenizer.token_to_id(self._roles[role])
        if index is None:
            raise ConfigError(
                f"{role}={self._roles[role]!r} is not in the vocabulary of {len(self)} tokens: add it there, or name "
                "a token that is."
            )
        return index

    @classmethod
    def standard(cls, pad_token: str = "<|endoftext|>", **settings: Any) -> Self:
        """The vocabulary of 49408 tokens that OpenAI's CLIP and OpenCLIP share, which ships with this package.

        SD1 and SDXL's first encoder pad with '<|endoftext|>', SD2 and SDXL's second encoder with '!'.
        """
        packed = resources.files("leandiffusion.modules").joinpath("clip_merges.txt.gz").read_bytes()
        merges = [(left, right) for left, right in map(str.split, gzip.decompress(packed).decode("utf-8").splitlines())]
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokens = [*alphabet, *(letter + END_OF_WORD for letter in alphabet), *(left + right for left, right in merges)]
        vocab = {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
        return cls(vocab, merges, pad_token=pad_token, **settings)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **settings: Any,
    ) -> Self:
        """Open a folder or hub id with vocab.json and merges.txt, or tokenizer.json, and the settings beside them.

        `settings` (the constructor's keywords) win over the files. Raises CheckpointNotFound for missing files and
        MalformedFile for broken ones.
        """
        folder = settings_folder(
            pretrained_model_name_or_path, FILES, subfolder=subfolder, revision=revision, cache_dir=cache_dir,
            local_files_only=local_files_only, token=token,
        )  # fmt: skip
        files = read_tokenizer_files(folder)
        length = files.settings.get("model_max_length", DEFAULT_LENGTH)
        known = {
            **{role: files.settings[role] for role in ROLES if files.settings.get(role) is not None},
            "model_max_length": length if length < 10**9 else DEFAULT_LENGTH,  # transformers writes 1e30 for "not set"
            "do_lower_case": files.settings.get("do_lower_case", True),
            "added_tokens": files.added_tokens,
        }
        try:
            return cls(files.vocab, files.merges, **{**known, **settings})
        except ConfigError as error:
            raise files.malformed(str(error)) from error

    def save_pretrained(self, folder: str | Path) -> None:
        """Write vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json, as transformers reads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        plain = self._plain or self._tokenizer
        vocab = sorted(plain.get_vocab(with_added_tokens=False).items(), key=lambda item: item[1])
        (folder / "vocab.json").write_text(json.dumps(dict(vocab), ensure_ascii=False) + "\n", encoding="utf-8")
        merges = ["#version: 0.2", *(f"{left} {right}" for left, right in self._merges)]
        (folder / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
        flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
        settings = {
            "tokenizer_class": "CLIPTokenizer",
            "add_prefix_space": False,
            "do_lower_case": self.do_lower_case,
            "model_max_length": self.model_max_length,
            "added_tokens_decoder": {
                str(index): {flag: getattr(token, flag) for flag in flags}
                for index, token in sorted(plain.get_added_tokens_decoder().items())
            },
        }
        write_json(folder / "tokenizer_config.json", {**settings, **self._roles})
        write_json(folder / "special_tokens_map.json", self._roles)

    def __call__(
        self,
        text: str | list[str] | tuple[str, ...],
        padding: bool | Literal["max_length", "longest", "do_not_pad"] = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: Literal["pt"] | None = None,
        add_special_tokens: bool = True,
    ) -> Batch:
        """Ids and attention masks of one text (a flat list) or of several (a list of lists).

        `truncation` cuts to `max_length` tokens (`model_max_length` unless given), keeping the end token; `padding`
        fills up to that length ('max_length') or to the longest text here (True, 'longest') on the right.
        `return_tensors="pt"` gives int64 tensors (B, T), of one text too.

        Raises ConfigError for other argument values, for texts that are not str, and for tensors of unequal lengths.
        """
        texts = list(text) if isinstance(text, list | tuple) else [text]
        limit = self.model_max_length if max_length is None else max_length
        rows = [self.encode(each, add_special_tokens, limit if truncation else None) for each in texts]
        widths = [self._padded_width(len(row), rows, padding, limit) for row in rows]
        ids = [row + [self.pad_token_id] * (width - len(row)) for row, width in zip(rows, widths, strict=True)]
        masks = [[1] * len(row) + [0] * (width - len(row)) for row, width in zip(rows, widths, strict=True)]
        if return_tensors is not None:
            return Batch(input_ids=_as_tensor(ids, return_tensors), attention_mask=_as_tensor(masks, return_tensors))
        if not isinstance(text, list | tuple):
            return Batch(input_ids=ids[0], attention_mask=masks[0])
        return Batch(input_ids=ids, attention_mask=masks)

    def _padded_width(self, length: int, rows: list[list[int]], padding: bool | str, limit: int) -> int:
        if padding in (False, "do_not_pad"):
            return length
        if padding in (True, "longest"):
            return max(map(len, rows))
        if padding == "max_length":
            return max(length, limit)
        raise ConfigError(f"padding={padding!r} is unknown: use 'max_length', 'longest' (or True), or False.")

    def encode(self, text: str, add_special_tokens: bool = True, max_length: int | None = None) -> list[int]:
        """Ids of one text between begin and end token, cut to `max_length` ids in all when that is given."""
        ids = self._ids_of(text)
        extra = 2 if add_special_tokens else 0
        if max_length is not None:
            if max_length < extra:
                raise ConfigError(f"max_length={max_length} leaves no room for the begin and end tokens: at least 2.")
            ids = ids[: max_length - extra]
        return [self.bos_token_id, *ids, self.eos_token_id] if add_special_tokens else ids

    def tokenize(self, text: str) -> list[str]:
        """The tokens of one text, as they are written in the vocabulary, without begin and end."""
        return self.convert_ids_to_tokens(self._ids_of(text))

    def _ids_of(self, text: str) -> list[int]:
        """The ids of one text; a word of several tokens stands for all of them, unless it is written out."""
        ids: list[int] = self._encoding(text).ids
        if not any(index in self.word_sizes for index in ids):
            return ids
        found: list[int] = []
        for index, following in zip(ids, [*ids[1:], None], strict=True):
            written_out = following == index + 1
            found += range(index, index + (1 if written_out else self.word_sizes.get(index, 1)))
        return found

    def _encoding(self, text: str) -> Any:
        if not isinstance(text, str):
            raise ConfigError(f"a text must be a str, found {type(text).__name__}: {text!r}.")
        try:
            return self._tokenizer.encode(text, add_special_tokens=False)
        except TypeError as error:  # how the library says that a str has no UTF-8 form
            raise ConfigError(f"{text!r} holds a lone surrogate, half a character: read the text as UTF-8.") from error

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
        """The text of a list or tensor (T,) of ids, or of one id; lower case and spacing as tokenising left them."""
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        text = self._tokenizer.decode([ids] if isinstance(ids, int) else list(ids), skip_special_tokens)
        return text.replace(END_OF_WORD, " ").strip()

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False) -> list[str]:
        """The texts of several lists of ids, or of a tensor (B, T)."""
        return [self.decode(sequence, skip_special_tokens) for sequence in sequences]

    @property
    def vocab_size(self) -> int:
        """Number of tokens in the vocabulary, without added ones; `len(tokenizer)` counts all."""
        return self._tokenizer.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    bos_token = property(lambda self: self._roles["bos_token"], doc="Begins every text.")
    eos_token = property(lambda self: self._roles["eos_token"], doc="Ends every text.")
    unk_token = property(lambda self: self._roles["unk_token"], doc="Stands for bytes that the vocabulary lacks.")
    pad_token = property(lambda self: self._roles["pad_token"], doc="Fills up to the wanted length.")
    bos_token_id = property(lambda self: self._ids["bos_token"])
    eos_token_id = property(lambda self: self._ids["eos_token"])
    unk_token_id = property(lambda self: self._ids["unk_token"])
    pad_token_id = property(lambda self: self._ids["pad_token"])

    def __repr__(self) -> str:
        return f"CLIPTokenizer({len(self)} tokens, model_max_length={self.model_max_length}, {self._roles})"


def _byte_level_bpe(
    vocab: dict[str, int], merges: list[tuple[str, str]], unk_token: str, do_lower_case: bool
) -> Tokenizer:
    try:
        model = BPE(vocab, merges, unk_token=unk_token, continuing_subword_prefix="", end_of_word_suffix=END_OF_WORD)
    except Exception as error:  # the library raises bare Exception, for merges outside the vocabulary among others
        raise ConfigError(f"the merges do not fit the vocabulary of {len(vocab)} tokens: {error}.") from error
    tokenizer = Tokenizer(model)
    lower = [normalizers.Lowercase()] if do_lower_case else []
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), *lower])
    words = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _as_tensor(rows: list[list[int]], kind: str) -> Any:
    if kind != "pt":
        raise ConfigError(f"return_tensors={kind!r} is unknown: use 'pt' for torch tensors, or None for lists.")
    if len({len(row) for row in rows}) > 1:
        raise ConfigError(
            f"texts of {', '.join(str(len(row)) for row in rows)} tokens make no tensor: ask for padding='max_length' "
            "and truncation=True."
        )
    import torch

    return torch.tensor(rows, dtype=torch.int64)
