"""Tiled VAE: strips of the picture are decoded one after the other, without seams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..core.flag import Flag
from ..modules.vae import AutoencoderKL
from ..modules.vae_tiles import check_tile_rows
from ..run.size import CallSize
from . import techniques
from .base import Exactness, Phase, Price, Technique
from .hooks import Undo, set_attribute, together
from .subject import Subject
from .switchable import Switchable
from .vae_slicing import why_not_switched

FEW_ROWS = 16
"""What the planner tries besides strips that are chosen by the size."""


@techniques.register("vae_tiling")
@dataclass(frozen=True)
class VaeTiling(Technique):
    """Strips share their borders and the statistics of the whole picture, so the result is the untiled one.

    `rows` of the picture are decoded at a time, chosen by the size unless given. ConfigError for fewer than 8.
    """

    rows: int | None = None

    name: ClassVar[str] = "vae_tiling"
    title: ClassVar[str] = "Tiled VAE decode and encode"
    phase: ClassVar[Phase] = Phase.SLICING
    exactness: ClassVar[Exactness] = Exactness.EXACT
    calls: ClassVar[tuple[str, ...]] = ("enable_vae_tiling()", "vae.enable_tiling()")
    flag: ClassVar[Flag] = Flag("--vae-tiling", "Decode in strips, without seams.")
    bench_row: ClassVar[tuple[str, str]] = ("memory", "VAE tiling")
    traced: ClassVar[tuple[str, ...]] = ("picture", "decode")
    price: ClassVar[Price] = Price(
        saves="Most of the decoder's working memory, which is what large pictures need most.",
        costs="Some time: borders of strips and the widest layer are computed more than once.",
        use="Pictures of 768 pixels and more on small devices. Unlike other tools' tiling it shows no seams.",
        refuses="A VAE without tiles. Another library's is tiled in its own way, with a warning.",
    )

    def __post_init__(self) -> None:
        check_tile_rows(self.rows)

    def why_not(self, subject: Subject) -> list[str]:
        reasons = why_not_switched(subject, "use_tiling")
        if not reasons and self.rows is not None and not isinstance(subject.vae, AutoencoderKL):
            reasons = [f"its VAE is a {type(subject.vae).__name__}, which chooses its tiles itself: leave out rows"]
        return reasons

    def notes(self, subject: Subject) -> list[str]:
        if isinstance(subject.vae, AutoencoderKL):
            return []
        return [
            f"the {type(subject.vae).__name__} of another library decodes tiles apart and blends them, which changes "
            "the picture a little and can show seams."
        ]

    @classmethod
    def candidates(cls, subject: Subject, call: CallSize) -> list[Technique]:
        return [cls(), cls(rows=FEW_ROWS)]

    def apply(self, subject: Subject) -> Undo:
        own = {"tile_rows": self.rows} if isinstance(subject.vae, AutoencoderKL) else {}
        values = {"use_tiling": True, **own}
        return together(set_attribute(subject.vae, name, value) for name, value in values.items())


class VaeTilingMethods(Switchable):
    """Methods of the pipelines."""

    def enable_vae_tiling(self, rows: int | None = None) -> None:
        """Decode in strips of so many rows of the picture, without seams; chosen by the size unless given."""
        self.enable("vae_tiling", rows=rows)

    def disable_vae_tiling(self) -> None:
        """Undo `enable_vae_tiling`."""
        self.disable("vae_tiling")
