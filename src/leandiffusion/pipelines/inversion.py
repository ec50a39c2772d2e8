"""Textual inversions of a pipeline: loading and unloading under diffusers' names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, TensorMismatch
from ..families.inversion import Learned, Reader, check_word, read_inversion
from ..run.inputs import refuse


class TextualInversion:
    """Mixin of the pipelines."""

    def load_textual_inversion(
        self: Any,
        pretrained_model_name_or_path: Any,
        token: str | Sequence[str] | None = None,
        tokenizer: Any = None,
        text_encoder: Any = None,
        *,
        weight_name: str | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        use_safetensors: bool | None = None,
    ) -> None:
        """Let a word stand for learned vectors: a .safetensors file, its folder or hub id, a state dict, a tensor
        (n, C), or a list of these, with as many tokens.

        The word is `token`, else the one that the file has, else the file's name. `tokenizer` and `text_encoder` say
        for which encoder, else the vectors' width does; a file for SDXL's two encoders is for both. The token table of
        the encoder is not touched. Nothing changes unless everything can be loaded.

        Raises ConfigError for words that are taken, TensorMismatch for vectors of another family, CheckpointNotFound
        for missing files, UnsafeFormat for pickles.
        """
        if use_safetensors is False:
            raise ConfigError("use_safetensors=False asks for pickles, which are refused: leave it out.")
        several = isinstance(pretrained_model_name_or_path, list)
        sources = pretrained_model_name_or_path if several else [pretrained_model_name_or_path]
        tokens = list(token) if several and isinstance(token, list | tuple) else [token] * len(sources)
        if len(tokens) != len(sources) or (several and isinstance(token, str) and len(sources) > 1):
            raise ConfigError(f"token={token!r} for {len(sources)} textual inversions: pass a list with one for each.")
        read = zip(sources, tokens, strict=True)
        hub: dict[str, Any] = {
            "subfolder": subfolder, "revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only
        }  # fmt: skip
        learned = [each for source, word in read for each in read_inversion(source, word, weight_name, **hub)]
        chosen = self._readers(tokenizer, text_encoder)
        added: dict[str, list[Learned]] = {}
        for each in learned:
            added.setdefault(_suffix_for(each, chosen), []).append(each)
        for suffix, some in added.items():
            chosen[suffix].check(some)
        for suffix, some in added.items():
            chosen[suffix].set(chosen[suffix].loaded | {each.word: each.vectors for each in some})

    def unload_textual_inversion(
        self: Any, tokens: str | Sequence[str] | None = None, tokenizer: Any = None, text_encoder: Any = None
    ) -> None:
        """Take these words away, or all of them. Without any left, tokenizer and encoder are what they were before.

        ConfigError for words that were not loaded.
        """
        wanted = [tokens] if isinstance(tokens, str) else tokens and list(tokens)
        chosen = self._readers(tokenizer, text_encoder).values()
        known = {word for reader in chosen for word in reader.loaded}
        if unknown := [word for word in wanted or () if check_word(word) not in known]:
            raise ConfigError(f"{unknown[0]!r} was not loaded: loaded are {', '.join(sorted(known)) or 'none'}.")
        for reader in chosen:
            kept = {} if wanted is None else {w: rows for w, rows in reader.loaded.items() if w not in wanted}
            if len(kept) < len(reader.loaded):
                reader.set(kept)

    def maybe_convert_prompt(self, prompt: Any, tokenizer: Any) -> Any:
        """The prompt as it is: the tokenizer knows which words stand for several tokens."""
        return prompt

    def _readers(self: Any, tokenizer: Any, text_encoder: Any) -> dict[str, Reader]:
        """Tokenizers and encoders by the ends of their names: those given, else all that the pipeline has."""
        if self._under_way:
            raise ConfigError("a call is running, whose prompt may hold such words: load and unload between calls.")
        if (tokenizer is None) != (text_encoder is None):
            refuse({"tokenizer": tokenizer, "text_encoder": text_encoder}, "pass both, or neither")
        if tokenizer is not None:
            return {"": Reader(tokenizer, text_encoder)}
        ends = [end for end in ("", "_2") if getattr(self, f"text_encoder{end}", None) is not None] or [""]
        return {end: Reader(getattr(self, f"tokenizer{end}"), getattr(self, f"text_encoder{end}")) for end in ends}


def _suffix_for(learned: Learned, readers: dict[str, Reader]) -> str:
    """Which of the encoders the vectors are for: the one that the file says, else the first of their width."""
    if learned.suffix is not None and len(readers) > 1:
        return learned.suffix
    fitting = [end for end, reader in readers.items() if reader.width == learned.vectors.shape[1]]
    if learned.suffix == "_2" and not fitting:
        raise TensorMismatch("this embedding is for SDXL's two text encoders, and this model has one: open SDXL.")
    return fitting[0] if fitting else next(iter(readers))
