"""diffusers drawing a row, with what its documentation recommends for the device.

From "Accelerate inference" and its forerunner "Memory and speed": half precision, channels-last, cuDNN's autotuner,
TF32 for float32, torch's scaled_dot_product_attention (what diffusers chooses by itself), and torch.compile.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..drawer import Meter
from ..workload import GUIDANCE, PROMPT, Job, Row, Workload
from . import peers

EMBEDDINGS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
"""What encode_prompt returns, under the names that a call takes. SD1 and SD2 have the first two."""

NOISE = (
    "`torch_dtype` is deprecated",  # every version understands it, and only newer ones its new name
    "The configuration file of this scheduler",  # of one that is replaced at once
    "Dynamo detected a call to a `functools.lru_cache`",
    "`torch.jit.script_method` is deprecated",
)
"""How warnings begin that are about diffusers' and torch's own insides."""


@peers.register("diffusers")
class Diffusers:
    """Opens the model with diffusers. A row's settings: `channels_last` lays out UNet and VAE so; `cudnn_benchmark` and
    `tf32` switch these on; `compile` is torch.compile's mode for the UNet and the VAE's decoder, with `fullgraph`."""

    requires: ClassVar[tuple[str, ...]] = ("diffusers", "transformers", "accelerate")

    def __init__(self, job: Job) -> None:
        import torch

        self._job = job
        diffusers: Any = importlib.import_module("diffusers")
        pipe = _open(diffusers, job.checkpoint, getattr(torch, job.dtype))
        pipe.set_progress_bar_config(disable=True)
        pipe.to(job.workload.device)
        _switch_on(pipe, job.row.settings)
        self._pipe = pipe

    @classmethod
    def rows(cls, workload: Workload) -> list[Row]:
        cuda = workload.device.startswith("cuda")
        usual = {"channels_last": True, **({"cudnn_benchmark": True} if cuda else {})}
        full = {**usual, **({"tf32": True} if cuda else {})}
        compiled = {**usual, "compile": "max-autotune" if cuda else "default", "fullgraph": True}
        rows = [Row("diffusers_fp32", "diffusers fp32", "float32", peer="diffusers", settings=full)]
        if workload.half != "float32":
            why = "compiling takes minutes"
            rows += [
                Row("diffusers_half", "diffusers half", peer="diffusers", settings=usual),
                Row("diffusers_compile", "diffusers compiled", peer="diffusers", settings=compiled, asked=why),
            ]
        return rows

    @classmethod
    def prepare(cls, job: Job) -> None:
        return None

    def draw(self, steps: int, meter: Meter) -> np.ndarray[Any, Any] | None:
        import torch

        with torch.no_grad(), _without_noise():
            with meter.stage("text"):
                embeddings = self._encode()
            with meter.stage("denoise"):
                latents = self._denoise(steps, embeddings, meter)
            if not self._job.row.pictures:
                return None
            with meter.stage("decode"):
                pictures = self._decode(latents)
        return pictures.permute(0, 2, 3, 1).float().cpu().numpy()

    def _encode(self) -> dict[str, Any]:
        prompts = [PROMPT] * self._job.workload.batch
        found = self._pipe.encode_prompt(
            prompts, device=self._pipe.device, num_images_per_prompt=1, do_classifier_free_guidance=True
        )
        return dict(zip(EMBEDDINGS, found, strict=False))

    def _denoise(self, steps: int, embeddings: Mapping[str, Any], meter: Meter) -> Any:
        from ..loop import starting_noise

        side, pipe = self._job.size, self._pipe
        noise = starting_noise(pipe, self._job.workload, side).to(pipe.device, pipe.unet.dtype)

        def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            meter.step()
            return {}

        return pipe(
            height=side, width=side, num_inference_steps=steps, guidance_scale=GUIDANCE, latents=noise,
            output_type="latent", callback_on_step_end=after_step, **embeddings,
        ).images  # fmt: skip

    def _decode(self, latents: Any) -> Any:
        """Pictures (B, 3, H, W) in [0, 1], as diffusers' pipelines end: SDXL's float16 VAE overflows, so they cast up
        and back."""
        import torch

        pipe = self._pipe
        vae, dtype = pipe.vae, pipe.vae.dtype
        upcast = hasattr(pipe, "text_encoder_2") and dtype == torch.float16 and vae.config.force_upcast
        if upcast:
            vae.to(torch.float32)
        image = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
        if upcast:
            vae.to(dtype)
        return pipe.image_processor.postprocess(image, output_type="pt")


def _open(diffusers: Any, folder: str, dtype: Any) -> Any:
    """The checkpoint as a diffusers pipeline on the CPU, with DDIM, and without a safety checker: no row runs one."""
    path = Path(folder)
    with _without_noise():
        if path.is_file():
            pipe = _pipeline_class(diffusers, path).from_single_file(folder, torch_dtype=dtype)
            pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
            return pipe
        where: dict[str, Any] = {"local_files_only": path.is_dir()}
        index = diffusers.DiffusionPipeline.load_config(folder, **where)
        without = {name: None for name in ("safety_checker", "feature_extractor", "image_encoder") if name in index}
        without |= {"requires_safety_checker": False} if "safety_checker" in index else {}
        pipe = diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, **without, **where)
        # Not from pipe.scheduler: the pipeline changed old settings there, and rows shall run the same timesteps.
        pipe.scheduler = diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler", **where)
    return pipe


def _pipeline_class(diffusers: Any, path: Path) -> Any:
    from ...families.base import detect
    from ...weights.header import read_header

    return getattr(diffusers, detect(read_header(path).entries, path).pipeline)


@contextmanager
def _without_noise() -> Iterator[None]:
    """Without warnings that say nothing of the drawing, but would stand in the row's notes."""
    with warnings.catch_warnings():
        for start in NOISE:
            warnings.filterwarnings("ignore", message=start)
        yield


def _switch_on(pipe: Any, settings: Mapping[str, Any]) -> None:
    import torch

    backends: Any = torch.backends
    if settings.get("cudnn_benchmark"):
        backends.cudnn.benchmark = True
    if settings.get("tf32"):
        backends.cuda.matmul.fp32_precision = backends.cudnn.conv.fp32_precision = "tf32"
    if settings.get("channels_last"):
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    if mode := settings.get("compile"):
        options = {"mode": mode, "fullgraph": bool(settings.get("fullgraph"))}
        pipe.unet = torch.compile(pipe.unet, **options)
        pipe.vae.decode = torch.compile(pipe.vae.decode, **options)
