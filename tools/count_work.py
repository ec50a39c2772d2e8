"""Counts the work that the demo model takes: `python -m tools.count_work` records it in tests/unit/bench/work.json.

A test counts again and compares, so that no optimisation is lost unnoticed, on whatever machine it runs.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from leandiffusion import StableDiffusionPipeline
from leandiffusion.attention import backends
from leandiffusion.core.config import read_json, write_json
from leandiffusion.measure.work import allocated_bytes, count_flops
from leandiffusion.modules.transformer import set_attention_backend
from leandiffusion.run.conditioning import Conditioning
from leandiffusion.run.decoding import decode
from leandiffusion.run.run import Run
from leandiffusion.run.tasks.text_to_image import TextToImage

RECORD = Path(__file__).parents[1] / "tests" / "unit" / "bench" / "work.json"
HOW = "`python -m tools.count_work` records it: commit work.json"

ROWS = 16  # of the picture in a strip: eight strips
SLACK, SLACK_ELSEWHERE = 0.05, 0.20
"""By how much bytes may exceed what is recorded: with the torch version and kind of processor that were recorded, where
nothing but the processor's vector width is left to differ, and with others, whose kernels allocate as they please."""

Work = dict[str, Any]
Networks = StableDiffusionPipeline


def count(names: Collection[str] | None = None) -> Work:
    """Operations and bytes of the demo model at 128 px in float32, and the torch and processor that they belong to.

    `names` are the calls to count, all of them unless given.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with very many, convolutions go another way
    try:
        with torch.no_grad():
            flops, bytes_ = _flops(names), _bytes(names)
    finally:
        torch.set_num_threads(threads)
    return {
        "torch": torch.__version__.partition("+")[0],
        "machine": platform.machine(),
        "flops": flops,
        "bytes": bytes_,
    }


def _flops(names: Collection[str] | None) -> dict[str, int]:
    pipe = open_demo()
    for network in (pipe.unet, pipe.vae):
        set_attention_backend(network, backends.get("plain"))  # torch does not count its own kernels on a CPU
    return {
        name: count_flops(lambda call=call: call(pipe))
        for name, call in CALLS.items()
        if names is None or name in names
    }


def _bytes(names: Collection[str] | None) -> dict[str, dict[str, int]]:
    pipe = open_demo()
    works: dict[str, Callable[[], object]] = {name: lambda call=call: call(pipe) for name, call in CALLS.items()}
    works["open and step, sequential offload"] = _open_and_step
    counted: dict[str, dict[str, int]] = {}
    for name, work in works.items():
        if names is None or name in names:
            work()  # what is made once is made now
            found = allocated_bytes(work)
            counted[name] = {"peak": found.peak, "total": found.total}
    return counted


def _open_and_step() -> Networks:
    """Opening is part of it, since that is where what stays in memory is taken. Returned, so as to last to the end."""
    pipe = open_demo(offload="sequential")
    step(pipe)
    return pipe


def open_demo(**options: Any) -> Networks:
    """The packaged model in float32, on the CPU."""
    pipe = StableDiffusionPipeline.from_pretrained("demo", device="cpu", dtype=torch.float32, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def step(pipe: Networks) -> torch.Tensor:
    """One guided prediction for one picture."""
    config = pipe.unet.config
    words = torch.ones(2, pipe.tokenizer.model_max_length, config.cross_attention_dim)
    pipe._guidance_scale, pipe._guidance_rescale = 7.5, 0.0
    run = Run(
        model=pipe, task=TextToImage(), conditioning_of=lambda tensors: Conditioning(tensors["prompt_embeds"]),
        shape=(1, 4, 16, 16), timesteps=torch.tensor([500]),
    )  # fmt: skip
    run.condition_on({"prompt_embeds": words})
    return run.predict(latents(1), 0)


def one(pipe: Networks) -> torch.Tensor:
    """A picture decoded."""
    return decode(pipe.vae, latents(1))


def four_sliced(pipe: Networks) -> torch.Tensor:
    """Four pictures decoded, one after the other."""
    pipe.vae.enable_slicing()
    pictures = decode(pipe.vae, latents(4))
    pipe.vae.disable_slicing()
    return pictures


def one_tiled(pipe: Networks) -> torch.Tensor:
    """A picture decoded in strips."""
    pipe.vae.enable_tiling(rows=ROWS)
    picture = decode(pipe.vae, latents(1))
    pipe.vae.disable_tiling()
    return picture


CALLS: Mapping[str, Callable[[Networks], torch.Tensor]] = {
    "step": step, "decode": one, "decode of 4, sliced": four_sliced, "decode, tiled": one_tiled,
}  # fmt: skip


def latents(batch: int) -> torch.Tensor:
    """Those of `batch` pictures of 128 px: (batch, 4, 16, 16)."""
    return torch.linspace(-1, 1, batch * 4 * 16 * 16).reshape(batch, 4, 16, 16)


def problems(recorded: Mapping[str, Any], counted: Mapping[str, Any]) -> list[str]:
    """Where `counted` is not what `recorded` allows, in words; empty when all is well.

    Operations have to be the same: more are a loss, and fewer a gain that must be recorded to be kept. They are not
    compared with those of another kind of processor, which convolves by another algorithm. Bytes may be fewer, or more
    by the slack.
    """
    found = [
        f"{name} is counted but not recorded, or the other way round. {HOW}."
        for kind in ("flops", "bytes")
        for name in recorded[kind].keys() ^ counted[kind].keys()
    ]
    same_machine = recorded["machine"] == counted["machine"]
    for name, was in recorded["flops"].items() if same_machine else ():
        now = counted["flops"].get(name, was)
        if now > was:
            found.append(f"{name}: {now:,} operations, {was:,} recorded: something is computed that was not before.")
        elif now < was:
            found.append(f"{name}: {now:,} operations, {was:,} recorded: a gain. {HOW}.")
    slack = SLACK if same_machine and recorded["torch"] == counted["torch"] else SLACK_ELSEWHERE
    for name, figures in recorded["bytes"].items():
        for figure, was in figures.items():
            now = counted["bytes"].get(name, figures)[figure]
            if now > was * (1 + slack):
                found.append(
                    f"{name}: {now:,} bytes allocated ({figure}), {was:,} recorded and {slack:.0%} more allowed: "
                    f"something is kept or copied that was not before. If it is worth it, {HOW}."
                )
    return found


def main() -> None:
    """Record, and say what changed."""
    counted = count()
    if RECORD.exists():
        print(*problems(read_json(RECORD), counted), sep="\n")
    write_json(RECORD, counted)
    print(RECORD)


if __name__ == "__main__":
    main()
