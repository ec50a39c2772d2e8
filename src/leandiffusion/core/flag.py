"""An option of the command line that switches one technique on, as the technique declares it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Flag:
    """An option of `leandiffusion generate`.

    Without `value` it takes none: `Flag("--vae-tiling", "Decode in strips, without seams.")`.

    With `setting` its value is for that setting of the technique: one of `words`, or a whole number from 1 up if
    `number` says of what; where there is neither, a number, true, false, none or text, for which `value` stands in the
    help. With `value` alone, that word picks the technique among those that share the option, and its help:
    `--offload model`.

    An empty `help` means that `generate` has the option for more than this technique, so that none is made for it.
    """

    name: str
    help: str = ""
    value: str = ""
    setting: str = ""
    words: tuple[str, ...] = ()
    number: str = ""

    def __str__(self) -> str:
        """As it may be typed: '--attention-slicing auto'."""
        return f"{self.name} {self.value}".strip()
