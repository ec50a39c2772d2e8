"""Techniques of this library on diffusers' own pipelines, beside diffusers' own offloading: full width, random weights.

    python benchmarks/attached.py [--models sd15 flux] [--rounds 2] [--size 256] [--out FILE.jsonl]

'flux' has the width of Flux.1 and one double and two single blocks of it. Each row of each round is a process of its
own; rows take turns. Memory is the process's peak (VmHWM) from after switching on to the end of the call; a step is the
median of those after the first. On a CPU diffusers can offload in one way, group offloading to files of its own; on a
GPU its sequential offloading is measured too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS = {
    "resident": "diffusers, everything in memory",
    "sequential": "attach, sequential_offload",
    "model": "attach, model_offload",
    "theirs_group": "diffusers, group offloading of leaves to disk",
    "theirs_sequential": "diffusers, sequential offloading",
}
STEPS = 4


def make(kind: str, folder: Path) -> None:
    """Save the model in diffusers' layout, float32."""
    import diffusers
    import torch

    torch.manual_seed(0)
    if kind == "sd15":
        network = ("unet", diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768))
        pipe, channels = diffusers.StableDiffusionPipeline, 4
        scheduler: Any = diffusers.DDIMScheduler()
        others = {"text_encoder": None, "tokenizer": None, "safety_checker": None, "feature_extractor": None}
        others["requires_safety_checker"] = False  # type: ignore[assignment]
    else:
        network = ("transformer", diffusers.FluxTransformer2DModel(num_layers=1, num_single_layers=2))
        pipe, channels, scheduler = diffusers.FluxPipeline, 16, diffusers.FlowMatchEulerDiscreteScheduler()
        others = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    vae = diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=channels, shift_factor=0.1,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    pipe(vae=vae, scheduler=scheduler, **{network[0]: network[1]}, **others).save_pretrained(folder)


def draw(kind: str, folder: str, row: str, size: int) -> dict[str, Any]:
    """Draw once with that row's way of offloading; bytes, seconds, and the picture's digest."""
    import diffusers
    import torch

    from leandiffusion import attach
    from leandiffusion.measure.memory import peak_rss, reset_peak

    cls = diffusers.StableDiffusionPipeline if kind == "sd15" else diffusers.FluxPipeline
    absent = [name for name in ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2") if kind == "flux" or
              not name.endswith("_2")]  # fmt: skip
    pipe: Any = cls.from_pretrained(folder, **dict.fromkeys(absent))
    pipe.set_progress_bar_config(disable=True)
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    if row in ("sequential", "model"):
        attach(pipe).enable(f"{row}_offload")
    elif row == "theirs_group":
        where = tempfile.mkdtemp(dir=Path(folder).parent)
        pipe.enable_group_offload(device, offload_type="leaf_level", offload_to_disk_path=where)
    elif row == "theirs_sequential":
        pipe.enable_sequential_cpu_offload()
    else:
        pipe.to(device)
    made = torch.Generator().manual_seed(0)
    given = {"prompt_embeds": torch.randn(1, 77, 768 if kind == "sd15" else 4096, generator=made)}
    if kind == "sd15":
        given["negative_prompt_embeds"] = torch.randn(1, 77, 768, generator=made)
    else:
        given["pooled_prompt_embeds"] = torch.randn(1, 768, generator=made)
    times: list[float] = []

    def step(pipe: Any, i: int, t: Any, tensors: Any) -> dict[str, Any]:
        times.append(time.perf_counter())
        return {}

    reset_peak()
    picture = pipe(**given, height=size, width=size, num_inference_steps=STEPS, output_type="pt",
                   generator=torch.Generator().manual_seed(0), callback_on_step_end=step).images  # fmt: skip
    seconds = statistics.median(b - a for a, b in itertools.pairwise(times))
    return {"peak": peak_rss(), "step": seconds, "mean": float(picture.double().mean())}


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["sd15", "flux"], choices=["sd15", "flux"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "leandiffusion-attached")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--draw", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.draw:
        print("\n" + json.dumps(draw(*json.loads(asked.draw))))
        return
    rows = [row for row in ROWS if row != "theirs_sequential" or torch.accelerator.is_available()]
    for kind in asked.models:
        folder = asked.work / kind
        if not (folder / "model_index.json").exists():
            make(kind, folder)
        found: dict[str, list[dict[str, Any]]] = {row: [] for row in rows}
        for _ in range(asked.rounds):
            for row in rows:
                command = [sys.executable, __file__, "--draw", json.dumps([kind, str(folder), row, asked.size])]
                out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                found[row].append(json.loads(out.splitlines()[-1]))
                line = {"model": kind, "size": asked.size, "row": row, **found[row][-1]}
                if asked.out:
                    with asked.out.open("a") as file:
                        file.write(json.dumps(line) + "\n")
        for row in rows:
            ratios = [one["step"] / base["step"] for one, base in zip(found[row], found["resident"], strict=True)]
            peak = max(one["peak"] for one in found[row]) / 2**20
            spread = f"{statistics.median(ratios):.2f} of resident ({min(ratios):.2f}-{max(ratios):.2f})"
            print(f"{kind} {asked.size} px, {ROWS[row]}: peak {peak:.0f} MiB, step {spread}", flush=True)


if __name__ == "__main__":
    main()
