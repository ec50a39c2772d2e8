"""Prompts -> embeddings, with one CLIP text encoder."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from ..core.errors import ConfigError


def tokenize(tokenizer: Any, texts: list[str], length: int | None = None, name: str = "prompt") -> Tensor:
    """Texts -> ids (B, T), padded and cut to `length` (the tokenizer's own unless given), warning of what was cut.

    ConfigError for a `length` beyond what the encoder reads: that of embeddings which were encoded in pieces.
    """
    length, most = int(length or tokenizer.model_max_length), tokenizer.model_max_length
    if length > most:
        raise ConfigError(
            f"prompt_embeds has {length} tokens and the text encoder reads {most}, so {name} cannot be encoded at that "
            f"length: pass negative embeddings of the same shape too, such as '' encoded and repeated to {length} "
            "tokens, or guidance_scale=1."
        )
    for text in texts:
        whole = tokenizer([text], padding=False, truncation=False)["input_ids"][0]
        if len(whole) > length:
            lost = tokenizer.decode(whole[length - 1 : -1])
            warnings.warn(
                f"{name} has {len(whole)} tokens and the text encoder reads {length}: this part was cut off and has "
                f"no effect: {lost!r}",
                stacklevel=2,
            )
    return tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


def check_clip_skip(clip_skip: Any, text_encoder: Any, *, penultimate: bool) -> None:
    """ConfigError unless `clip_skip` is None or a number of layers that the encoder can go without."""
    most = text_encoder.config.num_hidden_layers - penultimate
    whole = isinstance(clip_skip, int) and not isinstance(clip_skip, bool)
    if clip_skip is not None and not (whole and 0 <= clip_skip <= most):
        raise ConfigError(f"clip_skip={clip_skip!r}: pass 0 to {most}, the layers to leave out at the end.")


def encode_text(
    text_encoder: Any, ids: Tensor, *, clip_skip: int | None = None, penultimate: bool = False
) -> tuple[Tensor, Tensor]:
    """Ids (B, T) -> embeddings (B, T, C), and the encoder's first output: (B, P) of one that projects.

    SD1 and SD2 read the last layer's normalised output, or with `clip_skip` an earlier layer's, normalised too; SDXL
    (`penultimate`) the layer before the last as it is, counting `clip_skip` from there.
    """
    ids = ids.to(text_encoder.device)
    if not penultimate and clip_skip is None:
        output = text_encoder(ids)
        return output[0], output[0]
    output = text_encoder(ids, output_hidden_states=True)
    hidden = output.hidden_states[-(clip_skip or 0) - 1 - penultimate]
    if penultimate:
        return hidden, output[0]
    body = getattr(text_encoder, "text_model", text_encoder)  # transformers 5 has no inner text_model
    return body.final_layer_norm(hidden), output[0]
