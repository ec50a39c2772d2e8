"""Tokens by id and by role, as prompt-weighting tools and scripts ask a tokenizer of transformers for them."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken

from ..core.errors import ConfigError


class TokenNames:
    """Mixin of the tokenizer."""

    padding_side = "right"
    truncation_side = "right"
    is_fast = True
    model_input_names = ("input_ids", "attention_mask")
    _tokenizer: Any
    _roles: dict[str, str]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The tokens, as the vocabulary writes them, of a list or tensor of ids, or the one of a number.

        ConfigError for a number that is not an id.
        """
        listed = ids.tolist() if hasattr(ids, "tolist") else ids
        numbers = [listed] if isinstance(listed, int) else list(listed)
        tokens = [self._tokenizer.id_to_token(number) if number >= 0 else None for number in numbers]
        if None in tokens:
            raise ConfigError(f"{numbers[tokens.index(None)]} is not a token's id: there are {len(self.get_vocab())}.")
        if isinstance(listed, int):
            return tokens[0]
        return [token for token in tokens if not skip_special_tokens or token not in self.all_special_tokens]

    def add_tokens(self, new_tokens: str | AddedToken | list[str | AddedToken], special_tokens: bool = False) -> int:
        """Add tokens that are matched whole, behind those there are, and return how many are new.

        The text encoder needs a row for each: `text_encoder.resize_token_embeddings(len(tokenizer))`.
        """
        tokens = [new_tokens] if isinstance(new_tokens, str | AddedToken) else list(new_tokens)
        if any(not str(token) for token in tokens):
            raise ConfigError("an empty token would match everywhere: give each at least one character.")
        before = len(self.get_vocab())
        add = self._tokenizer.add_special_tokens if special_tokens else self._tokenizer.add_tokens
        add(tokens)
        return len(self.get_vocab()) - before

    def convert_tokens_to_ids(self, tokens: str | list[str]) -> Any:
        """The id of a token, or those of a list of them; that of `unk_token` for what is no token."""
        if isinstance(tokens, str):
            found = self._tokenizer.token_to_id(tokens)
            return self._tokenizer.token_to_id(self._roles["unk_token"]) if found is None else found
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id, added tokens included."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    def get_added_vocab(self) -> dict[str, int]:
        """Tokens that were added to the vocabulary, special ones included, and their ids."""
        return {token.content: index for index, token in self.added_tokens_decoder.items()}

    added_tokens_encoder = property(get_added_vocab, doc="As `get_added_vocab`.")

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Added and special tokens by id."""
        return dict(sorted(self._tokenizer.get_added_tokens_decoder().items()))

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The token of each role: 'bos_token', 'eos_token', 'unk_token', 'pad_token'."""
        return dict(self._roles)

    @property
    def all_special_tokens(self) -> list[str]:
        """The tokens that have a role, each once."""
        return list(dict.fromkeys(self._roles.values()))

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of `all_special_tokens`."""
        return self.convert_tokens_to_ids(self.all_special_tokens)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many tokens `add_special_tokens` adds to a text."""
        return 2
