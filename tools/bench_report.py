"""Draws benchmarks/README.md and its plots from committed records: `python -m tools.bench_report`, or `make report`."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from leandiffusion.bench.record import Records, read_records
from leandiffusion.bench.report.against import comparisons, has_peers, in_words
from leandiffusion.bench.report.describe import device_name, headline, model_name, suite_of, title_of
from leandiffusion.bench.report.plots import PLOTS, draw_plots, plot_path
from leandiffusion.bench.report.tables import markdown
from leandiffusion.core.errors import LeanError
from tools.predictions import draw, read_predictions
from tools.predictions import headline as machine
from tools.predictions import markdown as compared

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"

INTRODUCTION = """\
# Benchmarks

What each technique does to time, memory and the picture, and how other programs fare with the same work. This page is
drawn from the records in [{folder}]({folder}) by `make report`; a test fails when the two differ.

Every row is drawn by a process of its own, which opens the model, warms up and then draws. Rows take turns in rounds,
so that a machine that becomes slower does so for all of them. Figures are medians over the rounds with the least and
the greatest value; ratios are taken within a round before their median is. Memory is the most that the process held at
any time, loading included.

To repeat it: `make bench` and `make bench-compiled` on a CPU, `make bench-gpu` on a CUDA GPU, or a suite by hand, such
as

```sh
leandiffusion bench published --model shape:sd15 --size 512 --peers diffusers,openvino
leandiffusion bench compare OLD.jsonl NEW.jsonl --fail-over 10%
```
"""

NOTHING = "No records are committed.\n"

LOSSES = """\
Our fastest row of the same precision against each other program's, in step time, decoding and peak memory:
"""


PLANNED = """\
## Predicted against measured

What the planner says of peak memory and time before it reads a weight (`leandiffusion plan`), and what the same call
then took. Each combination was drawn by a process of its own. To repeat it: `make bench-plan`.
"""


def page(folder: Path) -> str:
    """The whole page, from the records in the folder and the plots that lie beside them. ConfigError for a broken file.

    Links are relative to the folder's parent, where the page belongs.
    """
    runs = {path: read_records(path) for path in record_files(folder)}
    parts = [INTRODUCTION.format(folder=folder.name), *_scripts(folder.parent)]
    if runs:
        parts += ["## Slower than a peer\n", _losses(runs)]
    else:
        parts.append(NOTHING)
    parts += _predictions(folder.parent / "plan")
    parts += [_section(folder, path, records) for path, records in runs.items()]
    return "\n".join(parts)


def record_files(folder: Path) -> list[Path]:
    """The files of records in the folder, in order of names."""
    return sorted(folder.glob("*.jsonl"))


def main(folder: Path = RESULTS) -> Path:
    """Draw the plots and write the page; where it lies. ConfigError and BackendUnavailable as the parts raise them."""
    for path in record_files(folder):
        draw_plots(read_records(path), path.with_suffix(""))
    for path in record_files(folder.parent / "plan"):
        run, combinations = read_predictions(path)
        draw(combinations, path.with_suffix(".png"), machine(run))
    target = folder.parent / "README.md"
    target.write_text(page(folder), encoding="utf-8")
    return target


def _section(folder: Path, path: Path, records: Records) -> str:
    plots = [
        (f"{shows}: {headline(records)}", f"{folder.name}/{plot.name}")
        for name, shows in PLOTS.items()
        if (plot := plot_path(path.with_suffix(""), name)).exists()
    ]
    link = f"[{path.name}]({folder.name}/{path.name})"
    return f"{markdown(records, level=2, pictures=plots)}\nRecords: {link}. Again: `{command(records)}`\n"


def _predictions(folder: Path) -> list[str]:
    """The planner's figures against those measured, for each machine whose records lie in the folder."""
    parts = [PLANNED] if record_files(folder) else []
    for path in record_files(folder):
        run, combinations = read_predictions(path)
        plot = f"![Predicted against measured: {machine(run)}]({folder.name}/{path.stem}.png)"
        link = f"Records: [{path.name}]({folder.name}/{path.name})."
        parts += [f"### {machine(run)}\n", plot, "", compared(combinations), link + "\n"]
    return parts


def command(records: Records) -> str:
    """What measures these rows again, on a machine like that one."""
    load, rows = records.run.workload, records.run.rows
    measured = [row for row in rows if records.measured(row)]
    options = {
        "model": model_name(records),
        "size": None if suite_of(records).own_sizes else load["size"],  # there rows have their own
        "steps": load["steps"],
        "batch": load["batch"],
        "repeat": load["repeat"],
        "dtype": load["half"],
        "device": load["device"],
        "peers": ",".join(dict.fromkeys(peer for row in measured if (peer := rows[row].get("peer")))),
        "rows": ",".join(measured),
    }
    return f"leandiffusion bench {records.run.suite} " + " ".join(f"--{k} {v}" for k, v in options.items() if v)


def _losses(runs: dict[Path, Records]) -> str:
    """Every figure in which our comparable row is behind a peer's; and what could not be compared."""
    lines, open_questions, compared = [], [], False
    for path, records in runs.items():
        found = comparisons(records)
        where = f"{suite_of(records).title} ({path.stem}; {device_name(records)}; {records.run.started[:10]})"
        if not found:
            reason = "none could be compared" if has_peers(records) else "none was asked for"
            open_questions.append(f"- {where}: no other program; {reason}.")
        for peer in dict.fromkeys(comparison.peer for comparison in found):
            alike = next((each for each in found if each.peer == peer and each.comparable), None)
            if alike is None:
                open_questions.append(f"- {where}: no row of ours has the precision of “{title_of(records, peer)}”.")
                continue
            compared = True
            ours = title_of(records, alike.ours)
            lines += [
                f"- {where}: “{ours}” is **{in_words(what, ratio, title_of(records, peer))}**."
                for what, ratio in alike.losses()
            ]
    if compared and not lines:
        lines = ["- None: wherever another program was measured, our row was not behind it."]
    return "\n".join([LOSSES, *lines, *open_questions]) + "\n"


def _scripts(folder: Path) -> list[str]:
    """The folder's own scripts, with the first line of what they say of themselves."""
    lines = []
    for path in sorted(folder.glob("*.py")):
        about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        lines.append(f"- [{path.name}]({path.name}): {about.partition(chr(10))[0]}")
    return ["Single questions have scripts of their own:\n", "\n".join(lines) + "\n"] if lines else []


if __name__ == "__main__":
    try:
        print(main(*map(Path, sys.argv[1:2])))
    except LeanError as error:
        sys.exit(f"Error: {error}")
