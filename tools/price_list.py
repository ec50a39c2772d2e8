"""docs/techniques.md, drawn from what the techniques declare: `make generated`."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from leandiffusion.techniques import Technique, techniques

PAGE = Path(__file__).parents[1] / "docs" / "techniques.md"

INTRODUCTION = """\
# Techniques: the price list

Everything that trades memory for time, or the other way round: what it saves, what it costs, and what it refuses. This
page is drawn from the techniques' own declarations by `make generated`; `make check` fails when the two differ.

```python
pipe = StableDiffusionPipeline.from_pretrained(path, dtype=torch.float16)
pipe.enable_attention_slicing()  # diffusers' names work …
pipe.enable("vae_tiling", rows=64)  # … and so does every technique by its own
print(*pipe.techniques, sep="\\n")  # what is on, in order, and why
pipe.disable("vae_tiling")  # exactly as it was before
```

Techniques can be switched on in any order; they are applied by phase, so that layout is settled before weights travel
and weights before graphs are recorded. Switching one on again replaces it. What cannot work is refused, with the
reason, before anything changes; a technique that only saves time and that this machine cannot run warns and is left
out.

*Exact* means the same algebra: in float32 within 1e-5 of the plain result. *Rounding* means numbers of lower precision.
*Approximate* means that something else is computed, and the picture is another one: never switched on unasked.

What is chosen for how much memory: [which settings](which-settings.md).

## Offloading: to which tier?

Weights lie on the tier below the device that computes. For a GPU that is the host's memory, pinned as far as half of
what is free. For a CPU it is the checkpoint on disk: weights that nothing has used yet are there still, so that the
model never is in memory as a whole. Of those that were read each is compared with its file once, and one that was
changed since stays in memory. Weights are never copied back, since the masters never leave.

Inside `from_pretrained` the dtype is free: a float16 or bfloat16 checkpoint can travel from disk and be computed in
float32, which is what CPUs without bfloat16 instructions need.

## Together

Every pair that is not refused below is tested. Made for each other:

- half precision, `sequential_offload(slots=1)`, `attention_backend(backend="sdpa")`, VAE tiling: the least memory
- half precision, sequential offload, VAE tiling: a little more memory, and a fifth faster steps
- half precision, model offload, attention slicing: a little more memory, the speed of a resident UNet
- VAE slicing with memory-efficient attention: many pictures per call
- channels-last and a traced or compiled UNet: speed
"""


def in_order() -> list[type[Technique]]:
    """Every technique, in the order of phases."""
    return sorted((techniques.get(name) for name in techniques), key=lambda cls: (cls.phase, cls.title))


def page() -> str:
    """The whole page."""
    kinds = in_order()
    rows = ["| technique | phase | exactness | call | option |", "|---|---|---|---|---|"]
    rows += [
        f"| [{cls.title}](#{_anchor(cls.title)}) | {cls.phase.name.lower()} | {cls.exactness} | `{cls.calls[0]}` | "
        f"{f'`{cls.flag}`' if cls.flag else ''} |"
        for cls in kinds
    ]
    parts = [INTRODUCTION, "## All of them\n", "\n".join(rows) + "\n", *map(_section, kinds), _refusals(kinds)]
    return "\n".join(parts)


def _section(cls: type[Technique]) -> str:
    price, settings = cls.price, [field for field in fields(cls)]  # type: ignore[arg-type] # noqa: C416
    lines = [f"## {cls.title}\n", f"{_summary(cls)}\n"]
    lines += [f"- **Saves**: {price.saves}", f"- **Costs**: {price.costs}", f"- **Use it when**: {price.use}"]
    lines += [f"- **Refuses**: {price.refuses}", f"- **Name**: `{cls.name}`"]
    lines += [f"- **By hand**: {', '.join(f'`{call}`' for call in cls.calls)}"]
    if cls.flag:
        lines.append(f"- **Command line**: `leandiffusion generate … {cls.flag}`")
    if settings:
        lines.append(f"- **Settings**: {', '.join(f'`{f.name}={_default(f)}`' for f in settings)}")
    return "\n".join(lines) + "\n"


def _summary(cls: type[Technique]) -> str:
    """The docstring as running text."""
    return " ".join((cls.__doc__ or "").split())


def _default(field: Any) -> str:
    return "…" if field.default is MISSING else repr(field.default).replace('"', "'")


def _refusals(kinds: list[type[Technique]]) -> str:
    pairs = {tuple(sorted((cls.name, other))) for cls in kinds for other in cls.refuses}
    groups: dict[str, list[str]] = {}
    for cls in kinds:
        if cls.group:
            groups.setdefault(cls.group, []).append(f"`{cls.name}`")
    lines = ["## What refuses what\n", *(f"- `{one}` and `{other}`" for one, other in sorted(pairs))]
    lines += [f"\nOf {' and '.join(names)} each replaces the other." for names in groups.values()]
    return "\n".join(lines) + "\n"


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")
