"""The fastest settings that fit: every legal combination, one stage after the other.

Where weights are and in which dtype concerns all stages; everything else concerns one. So the best for a placement is
the best of each stage, and no combination is missed although few are looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch

from ..core.wording import dtype_name
from ..techniques import Technique, techniques
from ..techniques.base import Exactness
from ..techniques.stack import group_of, refuse_each_other, techniques_by_default
from .budget import Budget
from .predict import CASTS, Chosen, Predictor, moves
from .prediction import Prediction

EQUAL = 0.01
"""Times that differ by less are as good as equal: then the more exact, and then the fewer techniques are taken."""

ORDER = tuple(Exactness)

SCOPES = {"encode": ("image", "encode"), "denoise": ("control", "denoise"), "decode": ("picture", "decode")}
"""What is chosen for together: stages of the same networks, by the last of them."""


@dataclass(frozen=True)
class Candidate:
    """A combination and what it takes."""

    techniques: Chosen
    prediction: Prediction


@dataclass(frozen=True)
class Choices:
    """What there is to combine: for all stages together, and for each scope by itself; each an option of several
    techniques, the first of none."""

    overall: Sequence[Chosen]
    by_scope: Mapping[str, Sequence[Chosen]]


def choices(predictor: Predictor, allow: Exactness) -> Choices:
    """Every legal combination of what techniques offer for this call, up to that exactness."""
    offers = _offers(predictor, None, allow)
    by_scope = {scope: list(_combined(offers.get(scope, {}).values())) for scope in SCOPES}
    placed = _placements(predictor, offers["overall"])
    for cast in casts(predictor) if CASTS in offers["overall"] else ():  # what else there is may depend on the dtype
        if dtype_name(predictor.cast((cast,))) not in predictor.profile.products:
            continue  # the device does not compute it
        others = _placements(predictor, _offers(predictor, predictor.cast((cast,)), allow)["overall"])
        placed += [(cast, *option) for option in others if legal((cast, *option))]
    return Choices(placed, by_scope)


def _placements(predictor: Predictor, offers: dict[str, list[Technique]]) -> list[Chosen]:
    """Every combination at one dtype, but for those that leave out what is on by default, takes no memory, and could be
    on."""
    defaults = [offers[name][0] for name in techniques_by_default() if name in offers]
    defaults = [each for each in defaults if not predictor.library_bytes((each,))]
    combined = _combined(offered for name, offered in offers.items() if name != CASTS)
    return [chosen for chosen in combined if not any(legal((*chosen, default)) for default in defaults)]


def casts(predictor: Predictor) -> list[Technique]:
    """Other dtypes that there are for such weights."""
    return techniques.get(CASTS).candidates(predictor.sketch().subject, predictor.call)


def _offers(predictor: Predictor, cast: torch.dtype | None, allow: Exactness) -> dict[str, dict[str, list[Technique]]]:
    """What techniques offer networks of that dtype, by the scope that they concern and by name."""
    subject = predictor.sketch(cast).subject
    offers: dict[str, dict[str, list[Technique]]] = {"overall": {}}
    for name in techniques:
        cls = techniques.get(name)
        if ORDER.index(cls.exactness) > ORDER.index(allow):
            continue
        if usable := [each for each in cls.candidates(subject, predictor.call) if not each.why_not(subject)]:
            offers.setdefault(scope_of(cls), {})[name] = usable
    return offers


def scope_of(cls: type[Technique]) -> str:
    """The one scope that a technique concerns, or 'overall'."""
    divides = cls.unet_calls is not Technique.unet_calls or cls.predictions is not Technique.predictions
    stages = {*cls.traced, *(("denoise",) if divides else ())}
    scopes = [scope for scope, own in SCOPES.items() if stages & {*own}]
    return scopes[0] if len(scopes) == 1 and not moves(cls) else "overall"


def _combined(offers: Iterable[list[Technique]]) -> Iterator[Chosen]:
    for picked in product(*([None, *offer] for offer in offers)):
        chosen = tuple(each for each in picked if each is not None)
        if legal(chosen):
            yield chosen


def legal(chosen: Sequence[Technique]) -> bool:
    """Whether they can be on together."""
    pairs = ((one, other) for i, one in enumerate(chosen) for other in chosen[:i])
    return not any(refuse_each_other(one, other) or group_of(one) == group_of(other) for one, other in pairs)


def best_by_placement(predictor: Predictor, choices: Choices, budget: Budget) -> list[Candidate]:
    """For each way of placing weights that fits at all the fastest combination that fits, the best first."""
    found: list[Candidate] = []
    for placed in choices.overall:
        if not budget.fits(0, predictor.host_bytes(placed)):
            continue
        parts = [_best(predictor, scope, placed, choices.by_scope[scope], budget) for scope in SCOPES]
        if all(parts):
            found.append(_joined(predictor, placed, [part for part in parts if part]))
    return ranked(found)


def leanest(predictor: Predictor, choices: Choices) -> Candidate:
    """The combination that takes least memory, and of those the fastest."""
    found: list[Candidate] = []
    for placed in choices.overall:
        parts: list[tuple[Chosen, Prediction]] = []
        for scope in SCOPES:
            tried = _tried(predictor, scope, placed, choices.by_scope[scope])
            parts.append(min(tried, key=lambda each: (each[1].peak, each[1].seconds)))
        found.append(_joined(predictor, placed, parts))
    return min(found, key=lambda each: (each.prediction.peak, each.prediction.host, each.prediction.seconds))


def everything(predictor: Predictor, choices: Choices) -> list[Candidate]:
    """All combinations, but for those that are both slower and larger in a scope than another of the same placement."""
    found: list[Candidate] = []
    for placed in choices.overall:
        fronts = [_front(_tried(predictor, scope, placed, choices.by_scope[scope])) for scope in SCOPES]
        found += [_joined(predictor, placed, parts) for parts in product(*fronts)]
    return found


def ranked(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Fastest first; of those as good as equally fast the more exact, then the one with fewer techniques."""
    left, order = sorted(candidates, key=lambda each: each.prediction.seconds), []
    while left:
        limit = left[0].prediction.seconds * (1 + EQUAL)
        equal = [each for each in left if each.prediction.seconds <= limit]
        first = min(equal, key=lambda each: (inexactness(each.techniques), len(each.techniques), each.prediction.peak))
        order.append(first)
        left.remove(first)
    return order


def inexactness(chosen: Chosen) -> int:
    """0 where all are exact, 1 with rounding, 2 where something else is computed."""
    return max((ORDER.index(each.exactness) for each in chosen), default=0)


def _tried(
    predictor: Predictor, scope: str, placed: Chosen, options: Sequence[Chosen]
) -> list[tuple[Chosen, Prediction]]:
    legal_ones = (option for option in options if legal((*placed, *option)))
    stages = [stage for stage in SCOPES[scope] if stage in predictor.stages]
    return [(option, predictor.part(stages, (*placed, *option))) for option in legal_ones]


def _best(
    predictor: Predictor, scope: str, placed: Chosen, options: Sequence[Chosen], budget: Budget
) -> tuple[Chosen, Prediction] | None:
    """The fastest option of a scope that fits."""
    fitting = [each for each in _tried(predictor, scope, placed, options) if budget.fits(each[1].peak, 0)]
    if not fitting:
        return None
    limit = min(found.seconds for _, found in fitting) * (1 + EQUAL)
    equal = [each for each in fitting if each[1].seconds <= limit]
    return min(equal, key=lambda each: (inexactness(each[0]), len(each[0]), each[1].peak))


def _front(tried: list[tuple[Chosen, Prediction]]) -> list[tuple[Chosen, Prediction]]:
    """Those than which no other is both faster and smaller."""
    kept: list[tuple[Chosen, Prediction]] = []
    for each in sorted(tried, key=lambda each: (each[1].seconds, each[1].peak, len(each[0]))):
        if not kept or each[1].peak < kept[-1][1].peak:
            kept.append(each)
    return kept


def _joined(predictor: Predictor, placed: Chosen, parts: Iterable[tuple[Chosen, Prediction]]) -> Candidate:
    parts = list(parts)
    chosen = (*placed, *(technique for option, _ in parts for technique in option))
    found = {stage: told for _, part in parts for stage, told in part.stages.items()}
    stages = {stage: found[stage] for stage in predictor.stages}
    return Candidate(
        tuple(sorted(chosen, key=lambda each: each.phase)), Prediction(stages, predictor.host_bytes(placed))
    )
