"""Texts about a run: its headline, the machine, the work, and what was not measured."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Any

from ...core.units import format_bytes
from ...device.host import is_host
from ..record import Measurement, Records
from ..suites import Suite, suites
from .statistics import Spread

INTERRUPTED = "The run was interrupted: the rows and rounds that were left are missing."


def suite_of(records: Records) -> Suite:
    """The suite that was run; one with the usual columns and plots where none of that name is known any more."""
    name = records.run.suite
    return suites.get(name) if name in suites else Suite(name, title=name)


def headline(records: Records) -> str:
    """'shape:sd15 · 512 px · batch 1 · cpu: AMD EPYC 9R14'; sizes are left out where rows differ in them."""
    load = records.run.workload
    size = () if suite_of(records).own_sizes else (f"{load.get('size')} px",)
    return " · ".join((model_name(records), *size, f"batch {load.get('batch')}", device_name(records)))


def model_name(records: Records) -> str:
    """The model as it was named; of a path its last part only."""
    name = str(records.run.workload.get("model"))
    return name.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1] if name[:1] in "/.~" else name


def device_name(records: Records) -> str:
    """'cpu: AMD EPYC 9R14' or 'cuda: NVIDIA TITAN RTX'."""
    device = str(records.run.workload.get("device"))
    if is_host(device):
        name = _section(records, "cpu").get("model")
    else:
        index = device if ":" in device else f"{device}:0"
        devices = _section(records, "devices")
        name = str(devices.get(index) or devices.get(device) or "").split(", compute capability")[0]
    return f"{device}: {name}" if name else device


def title_of(records: Records, row: str) -> str:
    """The row's title, or its name where it has none."""
    return str(records.run.rows.get(row, {}).get("title") or row)


def facts(records: Records) -> list[tuple[str, str]]:
    """(what, in words) of the machine, the software, the work, the machine's ceilings and the date."""
    found = [
        ("Machine", _machine(records)),
        ("Software", _software(records)),
        ("Work", _work(records)),
        ("Operations", "; ".join(f"{what} {flops(count)}" for what, count in records.run.flops.items())),
        ("Ceilings measured", ceilings(records)),
        ("Started", _date(records.run.started)),
    ]
    return [(what, words) for what, words in found if words]


def troubles(records: Records) -> list[tuple[str, str]]:
    """(title, reason) of each row that was not measured in every round; none is left out."""
    found = []
    for row in records.run.rows:
        rounds, reason = len(records.measured(row)), records.trouble(row)
        if reason is None and not rounds:
            reason = "was not reached" if not records.complete else "gave no measurement"
        if reason is not None:
            reason = " ".join(reason.split())
            where = f"measured in {rounds} of {records.run.workload.get('repeat')} rounds, then " if rounds else ""
            found.append((title_of(records, row), where + reason))
    return found


def settings(records: Records) -> list[tuple[str, str, str]]:
    """(name, title, settings in words) of each row that was measured, and of others whose settings are known."""
    rows = records.run.rows
    return [(row, title_of(records, row), str(rows[row]["about"])) for row in rows if rows[row].get("about")]


def notes(records: Records) -> list[tuple[str, str]]:
    """(titles, note) of what measurements warned of; a note that several rows share is there once."""
    rows: dict[str, list[str]] = {}
    for outcome in records.outcomes:
        if isinstance(outcome, Measurement):
            for note in outcome.notes:
                titles, title = rows.setdefault(" ".join(note.split()), []), title_of(records, outcome.row)
                if title not in titles:
                    titles.append(title)
    return [("; ".join(titles), note) for note, titles in rows.items()]


def ceilings(records: Records) -> str:
    """'float32: matmul 184 GFLOP/s (180–186), conv 225 GFLOP/s; bfloat16: …', over the rounds; memory's rate apart."""
    rounds: dict[int, Mapping[str, Mapping[str, float]]] = {
        outcome.round: outcome.ceiling for outcome in records.outcomes if isinstance(outcome, Measurement)
    }
    values: dict[str, dict[str, list[float]]] = {}
    for ceiling in rounds.values():
        for dtype, kinds in ceiling.items():
            for kind, value in kinds.items() if dtype != "memory" else ():
                values.setdefault(dtype, {}).setdefault(kind, []).append(value)
    parts = [
        f"{dtype}: " + ", ".join(f"{kind} {_rate(Spread.of(each))}" for kind, each in kinds.items())
        for dtype, kinds in values.items()
    ]
    copies = Spread.of(c["memory"]["copy"] for c in rounds.values() if "copy" in c.get("memory", {}))
    return "; ".join(parts + ([f"memory: copy {format_bytes(copies.median)}/s"] if copies else []))


def flops(count: float, per: str = "") -> str:
    """'1.61 TFLOP'; with `per` '/s' a rate."""
    units = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))
    factor, unit = next(((factor, unit) for factor, unit in units if count >= factor), units[-1])
    scaled = count / factor
    return f"{scaled:.0f} {unit}FLOP{per}" if scaled >= 100 else f"{scaled:.3g} {unit}FLOP{per}"


def _rate(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    median, low, high = (flops(value, "/s") for value in (spread.median, spread.low, spread.high))
    if low == high:
        return median
    same = len({text.split()[1] for text in (median, low, high)}) == 1
    return f"{median} ({low.split()[0] if same else low}–{high.split()[0] if same else high})"


def _machine(records: Records) -> str:
    cpu, memory = _section(records, "cpu"), _section(records, "memory")
    return ", ".join(
        _present(
            *_gpu(records),
            cpu.get("model"),
            _with("cores", cpu.get("usable cores") or cpu.get("logical cores")),
            _with("threads", _section(records, "threads").get("intra-op")),
            _with("of memory", memory.get("container limit") or memory.get("total")),
            " ".join(cpu.get("flags") or ()),
        )
    )


def _gpu(records: Records) -> Iterator[Any]:
    if not is_host(str(records.run.workload.get("device"))):
        yield device_name(records).partition(": ")[2]


def _software(records: Records) -> str:
    versions, system = _section(records, "versions"), _section(records, "system")
    ours = f"Lean Diffusion {versions.get('leandiffusion', '')}".rstrip()
    commit = f" (commit {records.run.commit})" if records.run.commit else ""
    peers = dict.fromkeys(row["peer"] for row in records.run.rows.values() if row.get("peer"))
    others = (f"{name} {versions[name]}" for name in ("torch", "python", "xformers", *peers) if versions.get(name))
    return ", ".join(_present(ours + commit, *others, system.get("platform")))


def _work(records: Records) -> str:
    load = records.run.workload
    size = "sizes as listed" if suite_of(records).own_sizes else f"{load.get('size')} px"
    rounds = f"{_count(load.get('repeat'), 'round')} of {_count(load.get('steps'), 'step')}"
    return (
        f"{model_name(records)}, {size}, batch {load.get('batch')}, with guidance, on {load.get('device')}; half "
        f"precision is {load.get('half')}; {rounds} after a warm-up"
    )


def _count(number: Any, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _date(started: str) -> str:
    try:
        return datetime.datetime.fromisoformat(started).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return started


def _section(records: Records, name: str) -> Mapping[str, Any]:
    return records.run.environment.get(name) or {}


def _with(what: str, value: Any) -> str:
    return f"{value} {what}" if value is not None else ""


def _present(*words: Any) -> list[str]:
    return [str(word) for word in words if word]
