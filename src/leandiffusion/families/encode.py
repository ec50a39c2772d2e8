"""One call of a CLIP text encoder, and which of its outputs count."""

from __future__ import annotations

from typing import Any

from torch import Tensor


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
