"""Making a plan: the budget, the search, and the reasons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from ..core.errors import BudgetError, ConfigError
from ..core.registry import did_you_mean
from ..core.units import format_bytes
from ..core.wording import dtype_name
from ..device.capabilities import leaner_dtype
from ..techniques import Technique, techniques
from ..techniques.base import Exactness
from .budget import Budget
from .plan import Plan, Settings, weights_of
from .predict import Predictor
from .prediction import Prediction
from .search import (
    EQUAL,
    ORDER,
    SCOPES,
    Candidate,
    Choices,
    best_by_placement,
    casts,
    choices,
    leanest,
    legal,
    scope_of,
)
from .sketch import Blueprint

RUNNERS_UP = 3
WORTH_SAYING = 0.97
"""Of the least that would do, at most: what is offered as a way to need less."""

LOWER = 0.9
"""Of a plan's peak at most: what is worth falling back on when memory runs out."""

STAGES = {
    "encode": "encoding the prompt", "image": "encoding the image prompt", "picture": "encoding the picture by the VAE",
    "denoise": "a step of the UNet", "decode": "decoding by the VAE",
}  # fmt: skip


def check_allow(allow: str) -> Exactness:
    """'exact', 'rounding' or 'approximate'; ConfigError for anything else."""
    words = [each.value for each in Exactness]
    if allow not in words:
        raise ConfigError(f"allow={allow!r} is none of {', '.join(words)}.{did_you_mean(str(allow), words)}")
    return Exactness(allow)


def make_plan(predictor: Predictor, budget: Budget, allow: str = "exact") -> Plan:
    """The fastest settings that fit `budget`, among those as exact as `allow` says.

    BudgetError when nothing fits: it says the least memory that would do, for what, and what would lower it.
    """
    exactness = check_allow(allow)
    offered = choices(predictor, exactness)
    fitting = best_by_placement(predictor, offered, budget)
    if not fitting:
        raise _too_little(predictor, budget, exactness, offered)
    best, *others = fitting
    blueprint = predictor.blueprint
    return Plan(
        model=blueprint.name,
        device=str(blueprint.device),
        dtype=dtype_name(blueprint.dtype),
        call=predictor.call,
        steps=predictor.steps,
        allow=allow,
        budget=str(budget),
        budget_bytes=budget.device,
        settings=_settings(best),
        runners_up=tuple(map(_settings, others[:RUNNERS_UP])),
        lower=tuple(map(_settings, _lower(best, predictor, offered))),
        unused=dict(_reasons(predictor, best, budget, exactness)),
        unet_weights=weights_of(predictor.sketch().networks["unet"]),
    )


def dtypes_for(blueprint: Blueprint, allow: str) -> tuple[str, ...]:
    """Names of the dtypes that a plan may choose among: those of which the profile has to tell."""
    own = {part.dtype for part in blueprint.networks.values()}
    if check_allow(allow) != Exactness.EXACT and torch.float32 in own:
        own.add(leaner_dtype(blueprint.device))
    return tuple(sorted(dtype_name(dtype) for dtype in own))


def _settings(candidate: Candidate) -> Settings:
    return Settings(candidate.techniques, candidate.prediction)


def _lower(best: Candidate, predictor: Predictor, offered: Choices) -> Iterable[Candidate]:
    """The fastest with at most 90% of the peak, again and again, to the one that takes least."""
    cast = predictor.cast(best.techniques)  # which cannot change while a picture is being drawn
    same = replace(offered, overall=[placed for placed in offered.overall if predictor.cast(placed) == cast])
    peak = int(best.prediction.peak * LOWER)
    while found := best_by_placement(predictor, same, Budget(peak)):
        yield found[0]
        peak = int(found[0].prediction.peak * LOWER)


# -- why not ---------------------------------------------------------------------------------------------------------


def _reasons(predictor: Predictor, best: Candidate, budget: Budget, allow: Exactness) -> Iterable[tuple[str, str]]:
    """Of each technique that is not on, by name, why not."""
    on = {technique.name for technique in best.techniques}
    subject = predictor.sketch().subject
    for name in techniques:
        cls = techniques.get(name)
        if name in on:
            continue
        offered = cls.candidates(subject, predictor.call)
        reasons = [] if cls.loads_library and not offered else (offered or [cls()])[0].why_not(subject)
        if reasons:
            yield name, "; ".join(reasons)
        elif ORDER.index(cls.exactness) > ORDER.index(allow):
            yield name, f"it is {cls.exactness}, and the plan allows {allow}: allow={cls.exactness.value!r} tries it"
        elif cls.candidates.__func__ is Technique.candidates.__func__:  # type: ignore[attr-defined]
            yield name, cls.unplanned
        elif not offered:
            yield name, "there is nothing in such a call that it would lower"
        else:
            yield name, _comparison(predictor, best, offered, budget)


def _comparison(predictor: Predictor, best: Candidate, offered: Sequence[Technique], budget: Budget) -> str:
    """What switching it on would change: 'would save 0.4 GB and cost 12% of the time, which is not needed'."""
    exchanged = [(each, [other for other in best.techniques if not legal((each, other))]) for each in offered]
    fewest = min(len(without) for _, without in exchanged)
    tried: list[tuple[Technique, list[Technique], Prediction]] = []
    for technique, without in exchanged:
        if len(without) == fewest:
            rest = (other for other in best.techniques if other not in without)
            tried.append((technique, without, predictor.predict((*rest, technique))))
    technique, without, found = min(tried, key=lambda each: (each[2].peak, each[2].seconds))
    now, names = best.prediction, ", ".join(other.name for other in without)
    if not budget.fits(found.peak, found.host):
        return f"in place of {names} it would need {format_bytes(budget.to_ask_for(found.peak))}"
    saved, time = now.peak - found.peak, _in_time(found.seconds / now.seconds - 1)
    instead, scope = f"in place of {names} it " if names else "", scope_of(type(technique))
    if saved >= 0.005 * now.peak:
        return f"{instead}would save {format_bytes(saved)} and {time or 'no time'}, which is not needed"
    if scope != "overall" and now.worst not in SCOPES[scope]:
        return f"{instead}would not lower the peak, which {STAGES[now.worst]} sets{f', and {time}' if time else ''}"
    return f"{instead}would not lower the peak{f' and {time}' if time else ''}"


def _in_time(slower: float) -> str:
    """'cost 12% of the time'; empty for what is as good as equal."""
    return "" if abs(slower) < EQUAL else f"{'cost' if slower > 0 else 'gain'} {abs(slower):.0%} of the time"


# -- nothing fits ----------------------------------------------------------------------------------------------------


def _too_little(predictor: Predictor, budget: Budget, allow: Exactness, offered: Choices) -> BudgetError:
    least = leanest(predictor, offered)
    prediction, call, ask = least.prediction, predictor.call, budget.to_ask_for
    size = f"{call.width}x{call.height}" + (f", {call.batch} pictures at a time" if call.batch > 1 else "")
    needs = format_bytes(ask(prediction.peak)) + (
        f" and {format_bytes(ask(prediction.host))} of host memory" if prediction.host else ""
    )
    if budget.reserves:
        needs += f" ({format_bytes(prediction.peak)} as predicted, the rest for errors of the prediction)"
    told = (
        f"{predictor.blueprint.name} at {size} does not fit in {budget}: the least that would do is {needs}, set by "
        f"{STAGES[prediction.worst]}, with {Settings(least.techniques, prediction)}."
    )
    ways = list(_ways_down(predictor, budget, allow, least))
    return BudgetError(f"{told} {' '.join(ways)}".strip())


def _ways_down(predictor: Predictor, budget: Budget, allow: Exactness, least: Candidate) -> Iterable[str]:
    """What would lower the least, each with what it would be then."""
    peak, ask = least.prediction.peak, budget.to_ask_for
    if allow is Exactness.EXACT:
        rounded = min((predictor.peak((cast, *least.techniques)) for cast in casts(predictor)), default=peak)
        if rounded < WORTH_SAYING * peak:
            yield f"With allow='rounding' (half precision) {format_bytes(ask(rounded))} would do."
    for smaller, words in _smaller_calls(predictor):
        if (needed := smaller.peak(least.techniques)) < WORTH_SAYING * peak:
            yield f"{words} would need {format_bytes(ask(needed))}."


def _smaller_calls(predictor: Predictor) -> Iterable[tuple[Predictor, str]]:
    call = predictor.call
    if call.batch > 1:
        yield predictor.resized(replace(call, batch=1)), "One picture at a time"
    half = replace(call, height=max(call.height // 16, 1) * 8, width=max(call.width // 16, 1) * 8)
    yield predictor.resized(half), f"Pictures of {half.width}x{half.height}"
