"""A batch on the machines of a Ray cluster: one pipeline in each actor, the same files.

Ray Data gives jobs to actors and starts those that died again. A job that was done before its actor died is found in
the folder, which all machines share, so that each picture is drawn once.
"""

from __future__ import annotations

import importlib
import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from ..core.errors import BackendUnavailable, LeanError
from ..drawing.techniques import TechniqueOptions
from .folder import CannotWrite, Folder
from .jobs import Job
from .work import Result, Worker

MOST_BLOCKS = 10_000
"""Parts that a list is cut into: what is done again when an actor dies in one."""


def work(
    jobs: Sequence[Job], folder: Folder, techniques: TechniqueOptions, address: str, actors: int | None = None
) -> Iterator[Result]:
    """Draw the jobs on the cluster at `address` ('auto', 'HOST:PORT', or 'local' for one of its own on this machine).

    There is one actor for each GPU of the cluster, where it has none for each machine; or as many as `actors` says,
    which share the processors. Each opens models with the plan of its own machine. `folder` and all files that are
    drawn with have to be there under the same paths on all machines.

    BackendUnavailable without Ray, LeanError where the cluster does not answer, CannotWrite as `Worker.work`.
    """
    ray = _ray()
    _connect(ray, address)
    try:
        data = ray.data.from_items(
            [{"number": number, "job": pickle.dumps(job)} for number, job in enumerate(jobs)],
            override_num_blocks=max(1, min(len(jobs), MOST_BLOCKS)),
        )
        each = _resources(ray, actors)
        count = each.pop("actors")
        drawn = data.map(
            Actor,
            fn_constructor_args=(str(folder.path.resolve()), techniques, os.getcwd()),
            compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=2),
            max_restarts=-1,
            max_task_retries=-1,
            **each,
        )
        for row in drawn.iter_rows():
            if row["stop"]:
                raise CannotWrite(row["stop"])
            yield Result(jobs[row["number"]], row["seconds"], row["error"] or None, row["flagged"])
    finally:
        ray.shutdown()


class Actor:
    """Draws jobs in a process of its own, on whichever machine."""

    def __init__(self, folder: str, techniques: TechniqueOptions, working_folder: str) -> None:
        with suppress(OSError):  # where relative paths are meant to begin, if it is there
            os.chdir(working_folder)
        self._worker = Worker(Folder(folder), techniques, _quiet)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """What became of the row's job, as fields of `Result`; in 'stop' why no picture can be written any more."""
        said = {"number": row["number"], "seconds": 0.0, "error": "", "flagged": False, "stop": ""}
        try:
            (result,) = self._worker.work([pickle.loads(row["job"])])
        except CannotWrite as error:
            return said | {"stop": str(error)}
        return said | {"seconds": result.seconds or 0.0, "error": result.error or "", "flagged": result.flagged}


def _quiet(pipe: Any, job: Job) -> None:
    pipe.set_progress_bar_config(disable=True)


def _ray() -> Any:
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.data")
    except ImportError as error:
        raise BackendUnavailable(
            f"--ray needs Ray, which is not here ({error}): pip install 'leandiffusion[ray]'."
        ) from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


def _connect(ray: Any, address: str) -> None:
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except Exception as error:  # of whatever kind, when one does not answer or cannot be started
        raise LeanError(
            f"no Ray cluster answers at {address}: {error} Start one with `ray start --head`, or use --ray local."
        ) from error
    ray.data.DataContext.get_current().enable_progress_bars = False


def _resources(ray: Any, actors: int | None) -> dict[str, Any]:
    """How many actors there are, and what each asks for."""
    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0))
    nodes = [node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"]]
    count = actors or gpus or len(nodes)
    cpus = max(1, int(min(there.get("CPU", 1) // count, *nodes, there.get("CPU", 1))))
    share = {"num_gpus": min(1.0, gpus / count)} if gpus else {}
    return {"actors": count, "num_cpus": cpus, **share}
