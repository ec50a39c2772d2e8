"""Samplers under the names that AUTOMATIC1111's web UI has for them."""

from __future__ import annotations

from typing import Any

from ..core.registry import did_you_mean
from ..core.wording import show
from .errors import ApiError

_NAMES = {
    "euler": "Euler",
    "euler-a": "Euler a",
    "heun": "Heun",
    "lms": "LMS",
    "dpm2": "DPM2",
    "dpm2-a": "DPM2 a",
    "dpm++": "DPM++ 2M",
    "dpm++-sde": "DPM++ 2M SDE",
    "dpm-sde": "DPM++ SDE",
    "ddim": "DDIM",
    "pndm": "PLMS",
    "unipc": "UniPC",
    "lcm": "LCM",
}
KARRAS = "-karras"
AUTOMATIC = ("automatic", "uniform", "normal", "")
"""Schedule types that leave the sampler's own."""


def samplers() -> dict[str, str]:
    """Names in the web UI by our short names: without schedules, which it chooses apart."""
    from ..schedulers import PRESETS

    return {short: _NAMES.get(short, short) for short in PRESETS if not short.endswith(KARRAS)}


def described() -> list[dict[str, Any]]:
    """As /sdapi/v1/samplers lists them."""
    from ..schedulers import PRESETS

    return [
        {
            "name": name,
            "aliases": [short, *([f"{name} Karras", short + KARRAS] if short + KARRAS in PRESETS else [])],
            "options": {},
        }
        for short, name in samplers().items()
    ]


def scheduler_of(sampler: str | None, schedule: str | None) -> str | None:
    """Our short name for a sampler, by any of its names, and a schedule type: 'DPM++ 2M' and 'Karras', 'Euler a'. None
    for the model's own. ApiError for others."""
    from ..schedulers import PRESETS

    kind = (schedule or "").lower()
    if kind not in (*AUTOMATIC, "karras"):
        raise ApiError(
            f"scheduler={show(schedule)}: schedule types here are 'Automatic' and 'Karras'.", param="scheduler"
        )
    if not sampler:
        if kind == "karras":
            raise ApiError("scheduler: Karras belongs to a sampler, so name one in sampler_name.", param="scheduler")
        return None
    known = {alias.lower(): alias for each in described() for alias in (each["name"], *each["aliases"])}
    shorts = {name.lower(): short for short, name in samplers().items()}
    asked = sampler.lower()
    if asked not in known:
        names = list(samplers().values())
        raise ApiError(
            f"sampler_name: there is no {show(sampler)}.{did_you_mean(sampler, names)} Known: {', '.join(names)}.",
            param="sampler_name",
        )  # fmt: skip
    ends = asked.endswith((" karras", KARRAS))
    plain = asked.removesuffix(" karras").removesuffix(KARRAS)
    short = shorts.get(plain, plain) + (KARRAS if ends or kind == "karras" else "")
    if short not in PRESETS:
        raise ApiError(f"scheduler: {show(sampler)} has no Karras schedule. Leave it out.", param="scheduler")
    return short


def eta_of(short: str | None) -> float | None:
    """The share of noise that a sampler adds in each step; None where the web UI has no such setting of it."""
    name = (short or "").removesuffix(KARRAS)
    if name.endswith(("-a", "sde")):
        return 1.0
    return 0.0 if name == "ddim" else None
