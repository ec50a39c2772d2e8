"""Conditioning on one CLIP text encoder's last layer: SD1 and SD2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..run import inputs
from ..run.conditioning import Conditioning, Tensors, both_halves
from .conditioner import Conditioner
from .emphasis import WEIGHTED
from .prompts import Reading, check_clip_skip


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A call's prompt under the names of its arguments: texts, or embeddings (B, T, C) that stand for them."""

    prompt: Any
    negative_prompt: Any
    prompt_embeds: Any
    negative_prompt_embeds: Any

    def check(self, *, guided: bool = True) -> tuple[list[str] | None, list[str] | None]:
        """The texts to encode and the negative ones; None where embeddings stand for them, or guidance is off."""
        inputs.check_one_of("prompt", self.prompt, "prompt_embeds", self.prompt_embeds)
        texts = inputs.check_texts("prompt", self.prompt)
        batch = len(texts or inputs.check_embeddings("prompt_embeds", self.prompt_embeds))
        if not guided:
            return texts, None
        return texts, inputs.check_negative(self.negative_prompt, self.negative_prompt_embeds, batch)


@dataclass(frozen=True)
class OneEncoder(Conditioner):
    """`tokenizer` and `text_encoder`. Negative embeddings are always the last layer's, whatever `clip_skip`."""

    callback_tensors: ClassVar[tuple[str, ...]] = ("latents", "prompt_embeds", "negative_prompt_embeds")

    tokenizer: Any
    text_encoder: Any

    def encode(
        self, prompt: Prompt, *, guided: bool, clip_skip: int | None, reading: Reading
    ) -> dict[str, Tensor | None]:
        """As `Conditioner.encode`: two embeddings (B, T, C)."""
        texts, negatives = prompt.check(guided=guided)
        length = self.length(prompt, guided=guided, reading=reading)
        if texts or negatives:
            check_clip_skip(clip_skip, self.text_encoder, penultimate=False)
        positive, negative = prompt.prompt_embeds, prompt.negative_prompt_embeds if guided else None
        if texts:
            reading.tell(texts)
            positive, _ = reading.encode(
                self.text_encoder, self.tokenizer, texts, length, "prompt", clip_skip=clip_skip
            )  # fmt: skip
        positive = inputs.check_embeddings("prompt_embeds", positive)
        if negatives:
            negative, _ = reading.encode(self.text_encoder, self.tokenizer, negatives, length, "negative_prompt")
        inputs.check_same_shape("prompt_embeds", positive, "negative_prompt_embeds", negative)
        return {"prompt_embeds": positive, "negative_prompt_embeds": negative}

    def length(self, prompt: Prompt, *, guided: bool, reading: Reading) -> int:
        """As `Conditioner.length`."""
        texts, negatives = prompt.check(guided=guided)
        given = prompt.prompt_embeds
        if not (texts or negatives):
            return given.shape[1]
        self.require("text_encoder", "tokenizer", otherwise="pass prompt_embeds and negative_prompt_embeds")
        if texts and reading.syntax == WEIGHTED and guided:
            given = prompt.negative_prompt_embeds
        return reading.length([(self.tokenizer, [*(texts or []), *(negatives or [])])], given)

    @staticmethod
    def tensors(positive: Tensor, negative: Tensor | None) -> dict[str, Tensor | None]:  # type: ignore[override]
        """Unconditional and conditional embeddings in one batch, and the negative ones (B, T, C) alone."""
        return {"prompt_embeds": both_halves(negative, positive), "negative_prompt_embeds": negative}

    @staticmethod
    def conditioning(tensors: Tensors) -> Conditioning:
        """The embeddings, unconditional and conditional."""
        return Conditioning(tensors["prompt_embeds"])  # type: ignore[arg-type]
