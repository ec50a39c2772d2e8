"""The demo model's vocabulary: byte-pair merges learned from its own captions, in CLIP's format."""

from __future__ import annotations

import json
import string

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from leandiffusion import CLIPTokenizer
from tools.demo_world.scenes import caption, sample_scene

from .settings import TEXT_CONFIG

_CAPTIONS = 20_000
_END = "</w>"
_SIZE = 510  # at most; with the two special tokens 512
# What a person may type, in lower case. Other characters become the unknown token.
_ALPHABET = sorted(string.ascii_lowercase + string.digits + string.punctuation)


def train_tokenizer(seed: int) -> CLIPTokenizer:
    """Learn merges from drawn captions, until every caption word is one token (Sennrich et al. 2016)."""
    rng = np.random.default_rng([seed, 7])
    bpe = Tokenizer(models.BPE(end_of_word_suffix=_END))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    letters = [*_ALPHABET, *(letter + _END for letter in _ALPHABET)]
    trainer = trainers.BpeTrainer(vocab_size=_SIZE - len(_ALPHABET), end_of_word_suffix=_END, show_progress=False)
    bpe.train_from_iterator((caption(sample_scene(rng), rng).lower() for _ in range(_CAPTIONS)), trainer)
    merges = [(left, right) for left, right in json.loads(bpe.to_str())["model"]["merges"]]
    merged = dict.fromkeys(left + right for left, right in merges)  # two merges can spell the same token
    tokens = [*letters, *(token for token in merged if token not in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocabulary, merges, model_max_length=TEXT_CONFIG["max_position_embeddings"])
