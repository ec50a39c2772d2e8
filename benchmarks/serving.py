"""What the server adds to a picture, and what drawing several requests at once gives.

    python -m benchmarks.serving --work FOLDER [--model shape:sd15] [--size 256] [--steps 4] [--rounds 5] [--out FILE]

A server is started in a process of its own. At full size one client asks it for a picture, in turn with this process,
which draws the same one with the library and writes it as PNG too; a first round does not count. Drawing varies from
one call to the next by more than a server adds, so what either takes besides the stages of drawing, as pictures'
records have them, is told too: that is what is added. Then the packaged model is asked for many pictures, by one client
after the other and by eight at once, whose requests the server may draw together.
"""

from __future__ import annotations

import argparse
import base64
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import torch
from PIL import Image
from tests.soak.served import served
from tools.script_record import RESULTS, spread, write_record
from tqdm.auto import tqdm

import leandiffusion
from leandiffusion.bench.run.models import find_model
from leandiffusion.pictures.record import JSON_KEY, PictureRecord

PROMPT = "a red circle"
CLIENTS = 8


def taken(work: Callable[[], Any]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ask(url: str, **fields: Any) -> bytes:
    """The picture that the server draws, as PNG."""
    with httpx2.Client(base_url=url, timeout=600) as client:
        answer = client.post("/v1/images/generations", json={"prompt": PROMPT, **fields}).raise_for_status()
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


def overhead(checkpoint: str, size: int, steps: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """'seconds' of each round, of the server and the library, and what of them is 'besides' the stages of drawing."""
    pipe = leandiffusion.StableDiffusionPipeline.from_pretrained(checkpoint, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)

    def draw() -> Mapping[str, float]:
        generator = torch.Generator().manual_seed(1)
        image = pipe(PROMPT, num_inference_steps=steps, height=size, width=size, generator=generator).images[0]
        image.save(BytesIO(), format="PNG")
        return pipe.last_times

    found: dict[str, dict[str, list[float]]] = {"seconds": {}, "besides": {}}
    fields = {"size": f"{size}x{size}", "num_inference_steps": steps, "seed": 1}
    with served("--model", f"full={checkpoint}", "--dtype", "float32") as url:
        works = {"server": lambda: stages_of(ask(url, **fields)), "library": draw}
        for round_ in tqdm(range(rounds + 1), desc="rounds"):
            for name in ("server", "library") if round_ % 2 else ("library", "server"):
                start = time.perf_counter()
                stages = works[name]()
                passed = time.perf_counter() - start
                if round_:
                    found["seconds"].setdefault(name, []).append(passed)
                    found["besides"].setdefault(name, []).append(passed - sum(stages.values()))
    return found


def stages_of(png: bytes) -> Mapping[str, float]:
    """Seconds of each stage of drawing, from the picture's record."""
    with Image.open(BytesIO(png)) as image:
        return PictureRecord.from_json(image.info[JSON_KEY]).seconds


def throughput(count: int, steps: int, rounds: int) -> dict[str, list[float]]:
    """Pictures per second of each round, by one client and by CLIENTS."""
    found: dict[str, list[float]] = {"one by one": [], f"{CLIENTS} clients": []}

    def one(url: str, seed: int) -> bytes:
        return ask(url, num_inference_steps=steps, seed=seed)

    with served("--model", "demo") as url:
        for round_ in tqdm(range(rounds + 1), desc="rounds"):
            for name, clients in zip(found, (1, CLIENTS), strict=True):
                with ThreadPoolExecutor(clients) as pool:
                    seconds = taken(lambda pool=pool: list(pool.map(lambda seed: one(url, seed), range(count))))
                found[name] += [count / seconds] if round_ else []
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default="shape:sd15")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu-serving.json")
    asked = parser.parse_args()
    checkpoint = find_model(asked.model, asked.work)["checkpoint"]
    found = overhead(checkpoint, asked.size, asked.steps, asked.rounds)
    seconds, besides = found["seconds"], found["besides"]
    ratios = [one / other for one, other in zip(seconds["server"], seconds["library"], strict=True)]
    print(
        f"server {spread(seconds['server'])} s, library {spread(seconds['library'])} s: {spread(ratios)} times as long"
    )
    added = statistics.median(besides["server"]) - statistics.median(besides["library"])
    share = added / statistics.median(seconds["library"])
    told = [f"{name} {spread(besides[name])} s" for name in ("server", "library")]
    print(f"besides drawing: {', '.join(told)}: {share:.1%} added")
    rates = throughput(asked.count, 10, asked.rounds)
    gains = [more / one for one, more in zip(*rates.values(), strict=True)]
    print(*(f"{name}: {spread(found)} pictures/s" for name, found in rates.items()), sep="\n")
    print(f"{CLIENTS} clients against one: {statistics.median(gains):.2f} times as many")
    workload = {name: str(value) for name, value in vars(asked).items() if name not in ("work", "out")}
    results = {**found, "ratio": ratios, "added": share, "pictures_per_second": rates, "gain": gains}
    write_record(asked.out, Path(__file__).name, workload, results)
    print(f"record: {asked.out}")


if __name__ == "__main__":
    main()
