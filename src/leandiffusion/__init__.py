"""Lean Diffusion: Stable Diffusion inference made for little memory and much speed.

Public names are imported on first use, so `import leandiffusion` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

from .core.libraries import set_up_libraries

__version__ = "0.1.0"

_ROOMS = {
    "core.errors": [
        "BackendUnavailable", "BudgetError", "CheckpointNotFound", "ConfigError", "LeanError", "MalformedFile",
        "NonFiniteError", "NotSupported", "TensorMismatch", "UnsafeFormat", "VariantNotFound", "WeightsError",
    ],
    "modules.controlnet": ["ControlNetModel"],
    "modules.multicontrolnet": ["MultiControlNetModel"],
    "modules.unet": ["UNet2DConditionModel"],
    "modules.vae": ["AutoencoderKL"],
    "modules.vae_tiny": ["AutoencoderTiny"],
    "modules.text": ["CLIPTextModel", "CLIPTextModelWithProjection"],
    "modules.tokenizer": ["CLIPTokenizer"],
    "modules.safety": ["StableDiffusionSafetyChecker"],
    "pipelines.attached": ["attach"],
    "pipelines.auto": ["AutoPipelineForImage2Image", "AutoPipelineForInpainting", "AutoPipelineForText2Image"],
    "pipelines.base": ["DiffusionPipeline"],
    "pipelines.perturbed_pipelines": [
        "StableDiffusionPAGPipeline", "StableDiffusionPAGImg2ImgPipeline", "StableDiffusionPAGInpaintPipeline",
        "StableDiffusionControlNetPAGPipeline", "StableDiffusionControlNetPAGImg2ImgPipeline",
        "StableDiffusionControlNetPAGInpaintPipeline", "StableDiffusionXLPAGPipeline",
        "StableDiffusionXLPAGImg2ImgPipeline", "StableDiffusionXLPAGInpaintPipeline",
        "StableDiffusionXLControlNetPAGPipeline", "StableDiffusionXLControlNetPAGImg2ImgPipeline",
        "StableDiffusionXLControlNetPAGInpaintPipeline",
    ],
    "pipelines.preview": ["Preview"],
    "pipelines.stable_diffusion": ["StableDiffusionPipeline"],
    "pipelines.stable_diffusion_controlnet": ["StableDiffusionControlNetPipeline"],
    "pipelines.stable_diffusion_controlnet_img2img": ["StableDiffusionControlNetImg2ImgPipeline"],
    "pipelines.stable_diffusion_controlnet_inpaint": ["StableDiffusionControlNetInpaintPipeline"],
    "pipelines.stable_diffusion_img2img": ["StableDiffusionImg2ImgPipeline"],
    "pipelines.stable_diffusion_inpaint": ["StableDiffusionInpaintPipeline"],
    "pipelines.stable_diffusion_xl": ["StableDiffusionXLPipeline"],
    "pipelines.stable_diffusion_xl_controlnet": ["StableDiffusionXLControlNetPipeline"],
    "pipelines.stable_diffusion_xl_controlnet_img2img": ["StableDiffusionXLControlNetImg2ImgPipeline"],
    "pipelines.stable_diffusion_xl_controlnet_inpaint": ["StableDiffusionXLControlNetInpaintPipeline"],
    "pipelines.stable_diffusion_xl_img2img": ["StableDiffusionXLImg2ImgPipeline"],
    "pipelines.stable_diffusion_xl_inpaint": ["StableDiffusionXLInpaintPipeline"],
    "plan.plan": ["Plan"],
    "schedulers": [
        "DDIMScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler",
        "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler", "EDMEulerScheduler", "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler", "HeunDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LCMScheduler", "LMSDiscreteScheduler",
        "PNDMScheduler", "TCDScheduler", "UniPCMultistepScheduler",
    ],
}  # fmt: skip
set_up_libraries()  # here, because schedulers and networks that users build make tensors too

_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = ["__version__", *_ROOM_OF]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'leandiffusion' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_ROOM_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOM_OF])
