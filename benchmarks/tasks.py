"""What each task takes beside text to image, at full size: peak memory by stage and time of a step.

    python -m benchmarks.tasks --work FOLDER [--model shape:sd15] [--size 256] [--steps 4] [--rounds 2] [--out FILE]

Text to image, image to image, inpainting (with a UNet of four channels, which blends), and text to image with a LoRA
of rank 16 on every attention layer and with a ControlNet, each with weights in memory and with sequential offload.
Every row is drawn in a process of its own, in turns; pictures are drawn anew at a strength of 1, so that all run the
same steps. The checkpoint, the LoRA and the ControlNet have random weights and are made in FOLDER, once. Peaks are
compared without what a ControlNet's weights take where they are in memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tools.script_record import RESULTS, spread, write_record
from tqdm.auto import tqdm

from leandiffusion.bench.run.models import find_controlnet, find_model
from leandiffusion.core.units import format_bytes
from leandiffusion.modules.controlnet import ControlNetModel
from leandiffusion.offload.units import weight_bytes

CONTROLLED = "text to image, ControlNet"
TASKS = ("text to image", "image to image", "inpainting", "text to image, LoRA", CONTROLLED)
RESIDENCE = ("in memory", "sequential offload")
RANK = 16

PROGRAM = """
import json, sys
import numpy as np
import torch
from PIL import Image
from leandiffusion.bench.run.meter import ProcessMeter
from leandiffusion.measure.memory import peak_rss
from leandiffusion.modules.controlnet import ControlNetModel
from leandiffusion.pipelines import open_pipeline
asked = json.loads(sys.argv[1])
names = {"image to image": "image-to-image", "inpainting": "inpainting"}
task, parts = names.get(asked["task"]), {}
if "ControlNet" in asked["task"]:
    task = "text-to-image with ControlNet"
    parts["controlnet"] = ControlNetModel.from_pretrained(asked["controlnet"], dtype=torch.float32)
pipe = open_pipeline(asked["model"], dtype=torch.float32, device="cpu", task=task, **parts)
pipe.set_progress_bar_config(disable=True)
if asked["residence"] != "in memory":
    pipe.enable_sequential_cpu_offload()
if "LoRA" in asked["task"]:
    pipe.load_lora_weights(asked["lora"])
size = asked["size"]
arguments = {"height": size, "width": size, "num_inference_steps": asked["steps"]}
picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8))
if asked["task"] in names:
    arguments |= {"image": picture, "strength": 1.0}
if parts:
    arguments["image"] = picture
if asked["task"] == "inpainting":
    mask = Image.new("L", (size, size))
    mask.paste(255, (0, 0, size // 2, size))
    arguments["mask_image"] = mask
if asked["task"] == "image to image":
    del arguments["height"], arguments["width"]
meter = ProcessMeter("cpu")
pipe.watch = meter.stage
def after_step(*_):
    meter.step()
    return {}
pipe("a red circle", generator=torch.Generator().manual_seed(0), callback_on_step_end=after_step, **arguments)
meter.close()
print(json.dumps({"peak": max([*meter.peaks.values(), peak_rss()]), "peaks": meter.peaks, "seconds": meter.seconds,
                  "steps": meter.steps[1:]}))
"""


def make_lora(checkpoint: str, path: Path) -> Path:
    """A LoRA of random weights, made once."""
    if not path.exists():
        from leandiffusion.modules.processors import attention_layers
        from leandiffusion.pipelines import open_pipeline

        generator, tensors = torch.Generator().manual_seed(0), {}
        for name, layer in attention_layers(open_pipeline(checkpoint).unet):
            for part in ("to_q", "to_k", "to_v", "to_out.0"):
                rows, columns = layer.get_submodule(part).weight.shape
                for side, shape in (("lora_A", (RANK, columns)), ("lora_B", (rows, RANK))):
                    tensors[f"unet.{name}.{part}.{side}.weight"] = 0.01 * torch.randn(shape, generator=generator)
        save_file(tensors, path)
    return path


def draw(**asked: Any) -> dict[str, Any]:
    """What one row took, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(asked)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{asked}: {done.stderr}")
    return json.loads(done.stdout)


def figures_of(found: list[dict[str, Any]], plain: list[dict[str, Any]], weights: int) -> dict[str, Any]:
    """Of one row: median peak in bytes, steps in seconds, and both against text to image's, round by round; peaks less
    `weights`, the bytes of those in memory that text to image does not have."""
    steps = [statistics.median(each["steps"]) for each in found]
    return {
        "peak": statistics.median(each["peak"] for each in found),
        "peaks": found[0]["peaks"],
        "steps": steps,
        "further weights": weights,
        "peak against text to image": [(a["peak"] - weights) / b["peak"] for a, b in zip(found, plain, strict=True)],
        "step against text to image": [
            step / statistics.median(b["steps"]) for step, b in zip(steps, plain, strict=True)
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default="shape:sd15")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu-tasks.json")
    asked = parser.parse_args()
    checkpoint = find_model(asked.model, asked.work)["checkpoint"]
    lora = make_lora(checkpoint, asked.work / f"{Path(checkpoint).name}-lora.safetensors")
    controlnet = find_controlnet(asked.model, asked.work)
    with torch.device("meta"):
        weights = weight_bytes(ControlNetModel.from_config(ControlNetModel.load_config(controlnet)))  # in float32
    rows = [(task, residence) for residence in RESIDENCE for task in TASKS]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {row: [] for row in rows}
    for task, residence in tqdm(rows * asked.rounds, unit="row"):
        told = draw(
            model=checkpoint, task=task, residence=residence, size=asked.size, steps=asked.steps, lora=str(lora),
            controlnet=str(controlnet),
        )  # fmt: skip
        found[task, residence].append(told)
    figures = {}
    for (task, residence), each in found.items():
        further = weights if task == CONTROLLED and residence == RESIDENCE[0] else 0
        figures[f"{task}, {residence}"] = figures_of(each, found[TASKS[0], residence], further)
    settings = {
        "model": asked.model,
        "size": asked.size,
        "steps": asked.steps,
        "rounds": asked.rounds,
        "dtype": "float32",
    }
    write_record(asked.out, Path(__file__).name, settings, figures)
    print("| task | peak | against text to image | step against text to image |\n|---|---:|---|---|")
    for title, told in figures.items():
        peak, step = (spread(told[f"{name} against text to image"]) for name in ("peak", "step"))
        print(f"| {title} | {format_bytes(int(told['peak']))} | {peak} | {step} |")


if __name__ == "__main__":
    main()
