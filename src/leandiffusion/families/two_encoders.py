"""Conditioning on two text encoders side by side, pooled text, and sizes: SDXL (Podell et al. 2023, sec. 2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..run import inputs
from ..run.conditioning import Conditioning, Tensors, both_halves
from .conditioner import Conditioner
from .emphasis import WEIGHTED
from .prompts import Reading, check_clip_skip

Size = tuple[int, int]
OTHERWISE = "pass prompt_embeds, pooled_prompt_embeds and their negative_ ones"


@dataclass(frozen=True, kw_only=True)
class PromptPair:
    """A call's prompts under the names of its arguments: texts, or embeddings (B, T, C) and pooled ones (B, P).

    `zeros`: no negative prompt at all stands for embeddings of zeros instead of an encoded empty text.
    """

    prompt: Any
    prompt_2: Any
    negative_prompt: Any
    negative_prompt_2: Any
    prompt_embeds: Any
    negative_prompt_embeds: Any
    pooled_prompt_embeds: Any
    negative_pooled_prompt_embeds: Any
    zeros: bool

    @property
    def negative_is_zeros(self) -> bool:
        """Whether the negative embeddings are zeros."""
        return self.zeros and self.negative_prompt is None and self.negative_prompt_embeds is None

    def check(self, *, guided: bool = True) -> tuple[inputs.BothTexts | None, inputs.BothTexts | None]:
        """The texts to encode and the negative ones; None where there is nothing to encode."""
        texts = inputs.check_both_texts(self.prompt, self.prompt_2, self.prompt_embeds, self.pooled_prompt_embeds)
        batch = len(texts[0] if texts else self.prompt_embeds)
        if not guided:
            return texts, None
        if self.negative_is_zeros:
            negative_2 = {"negative_prompt_2": self.negative_prompt_2}
            inputs.refuse(negative_2, "pass negative_prompt too, '' for nothing")
            return texts, None
        return texts, inputs.check_both_negatives(
            self.negative_prompt, self.negative_prompt_2, self.negative_prompt_embeds,
            self.negative_pooled_prompt_embeds, batch,
        )  # fmt: skip


@dataclass(frozen=True)
class TwoEncoders(Conditioner):
    """`tokenizer` and `text_encoder` (CLIP-L; the encoder may be None), `tokenizer_2` and `text_encoder_2` (bigG)."""

    callback_tensors: ClassVar[tuple[str, ...]] = (
        "latents", "prompt_embeds", "negative_prompt_embeds", "add_text_embeds", "add_time_ids",
        "negative_pooled_prompt_embeds", "negative_add_time_ids",
    )  # fmt: skip

    tokenizer: Any
    text_encoder: Any
    tokenizer_2: Any
    text_encoder_2: Any

    def encode(
        self, prompt: PromptPair, *, guided: bool, clip_skip: int | None, reading: Reading
    ) -> dict[str, Tensor | None]:
        """As `Conditioner.encode`: two embeddings (B, T, C1 + C2), and two pooled ones (B, P)."""
        texts, negatives = prompt.check(guided=guided)
        length = self.length(prompt, guided=guided, reading=reading)
        if texts or negatives:
            self._check_clip_skip(clip_skip)
        embeds, pooled = prompt.prompt_embeds, prompt.pooled_prompt_embeds
        if texts:
            reading.tell(texts[0])
            embeds, encoded = self._encode("prompt", texts, length, reading, clip_skip)
            pooled = encoded if pooled is None else pooled
        negative = negative_pooled = None
        if guided and prompt.negative_is_zeros:
            negative, negative_pooled = torch.zeros_like(embeds), torch.zeros_like(pooled)
        elif guided:
            negative, negative_pooled = prompt.negative_prompt_embeds, prompt.negative_pooled_prompt_embeds
            if negatives:
                negative, encoded = self._encode("negative_prompt", negatives, length, reading)
                negative_pooled = encoded if negative_pooled is None else negative_pooled
        inputs.check_same_shape("prompt_embeds", embeds, "negative_prompt_embeds", negative)
        inputs.check_same_shape("pooled_prompt_embeds", pooled, "negative_pooled_prompt_embeds", negative_pooled)
        return {
            "prompt_embeds": embeds, "negative_prompt_embeds": negative,
            "pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": negative_pooled,
        }  # fmt: skip

    def length(self, prompt: PromptPair, *, guided: bool, reading: Reading) -> int:
        """As `Conditioner.length`: the longest that either encoder makes of its texts."""
        texts, negatives = prompt.check(guided=guided)
        given = prompt.prompt_embeds
        if not (texts or negatives):
            return given.shape[1]
        if texts and reading.syntax == WEIGHTED and guided:
            given = prompt.negative_prompt_embeds
        encoders = self._encoders()
        both = [[*one, *other] for one, other in zip(texts or ([], []), negatives or ([], []), strict=True)]
        read = zip(encoders, both[-len(encoders) :], strict=True)
        return reading.length([(tokenizer, some) for (tokenizer, _), some in read], given)

    @staticmethod
    def tensors(  # type: ignore[override]
        positive: Tensor, negative: Tensor | None, pooled: Tensor, negative_pooled: Tensor | None, time_ids: Tensor,
        negative_time_ids: Tensor,
    ) -> dict[str, Tensor | None]:  # fmt: skip
        """Text, pooled text and sizes (B, 6), unconditional and conditional in one batch, and the negative ones
        alone."""
        return {
            "prompt_embeds": both_halves(negative, positive),
            "negative_prompt_embeds": negative,
            "add_text_embeds": both_halves(negative_pooled, pooled),
            "add_time_ids": both_halves(None if negative is None else negative_time_ids, time_ids),
            "negative_pooled_prompt_embeds": negative_pooled,
            "negative_add_time_ids": negative_time_ids,
        }

    @staticmethod
    def conditioning(tensors: Tensors) -> Conditioning:
        """Text, pooled text and sizes, unconditional and conditional."""
        added = {"text_embeds": tensors["add_text_embeds"], "time_ids": tensors["add_time_ids"]}
        return Conditioning(tensors["prompt_embeds"], added)  # type: ignore[arg-type]

    def _encoders(self) -> list[tuple[Any, Any]]:
        """The tokenizers and encoders that are there. ConfigError without the second; SDXL may go without the first."""
        self.require("text_encoder_2", "tokenizer_2", otherwise=OTHERWISE)
        if self.text_encoder is None:
            return [(self.tokenizer_2, self.text_encoder_2)]
        self.require("tokenizer", otherwise=OTHERWISE)
        return [(self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2)]

    def _check_clip_skip(self, clip_skip: int | None) -> None:
        for _, text_encoder in self._encoders():
            check_clip_skip(clip_skip, text_encoder, penultimate=True)

    def _encode(
        self, name: str, both: inputs.BothTexts, length: int, reading: Reading, clip_skip: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Both encoders' embeddings side by side (B, T, C1 + C2), and the second's pooled output (B, P)."""
        encoders = self._encoders()
        hidden, pooled = [], None
        for (tokenizer, text_encoder), texts in zip(encoders, both[-len(encoders) :], strict=True):
            known_as = name if texts == both[0] else f"{name}_2"
            embeds, pooled = reading.encode(
                text_encoder, tokenizer, texts, length, known_as, clip_skip=clip_skip, penultimate=True
            )  # fmt: skip
            hidden.append(embeds)
        return torch.cat(hidden, dim=-1), inputs.check_embeddings("the output of text_encoder_2", pooled, ndim=2)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """SDXL's size conditioning: sizes in pixels (height, width) and crops (top, left), under a call's names.

    None stands for the picture's own size; the `negative_` ones are those of the unconditional half.
    """

    original_size: Size | None
    crops_coords_top_left: Size
    target_size: Size | None
    negative_original_size: Size | None
    negative_crops_coords_top_left: Size
    negative_target_size: Size | None

    def time_ids(self, own: Size, batch: int) -> tuple[Tensor, Tensor]:
        """Rows (B, 6) of original size, crop and target size, and those of the unconditional half, the same if None.

        `own` is the picture's size. ConfigError for what is no pair, and negative sizes that are given by half.
        """
        given = self.original_size, self.target_size
        shown = [own if size is None else size for size in given]
        rows = _rows("", shown[0], self.crops_coords_top_left, shown[1], batch)
        original, corner = self.negative_original_size, self.negative_crops_coords_top_left
        target = self.negative_target_size
        if original is None and target is None and corner in ((0, 0), [0, 0]):
            return rows, rows
        if original is None or target is None:
            raise ConfigError(
                f"negative_original_size={original}, negative_target_size={target}: pass both, also when "
                "negative_crops_coords_top_left is given."
            )
        return rows, _rows("negative_", original, corner, target, batch)


def _rows(prefix: str, original: Size, corner: Size, target: Size, batch: int) -> Tensor:
    named = {"original_size": original, "crops_coords_top_left": corner, "target_size": target}
    for name, pair in named.items():
        inputs.check_pair(f"{prefix}{name}", pair)
    return torch.tensor([[float(value) for pair in named.values() for value in pair]]).repeat(batch, 1)
