"""Which of diffusers' test files speak of classes that are here too, and the names that stand for diffusers' own."""

from __future__ import annotations

FILES = {
    "sd": "pipelines/stable_diffusion/test_stable_diffusion.py",
    "sd2": "pipelines/stable_diffusion_2/test_stable_diffusion.py",
    "sd2_v_pred": "pipelines/stable_diffusion_2/test_stable_diffusion_v_pred.py",
    "sdxl": "pipelines/stable_diffusion_xl/test_stable_diffusion_xl.py",
    "unet": "models/unets/test_models_unet_2d_condition.py",
    "vae": "models/autoencoders/test_models_autoencoder_kl.py",
    "ddim": "schedulers/test_scheduler_ddim.py",
    "ddpm": "schedulers/test_scheduler_ddpm.py",
    "dpm": "schedulers/test_scheduler_dpm_multi.py",
    "euler": "schedulers/test_scheduler_euler.py",
    "euler_a": "schedulers/test_scheduler_euler_ancestral.py",
    "heun": "schedulers/test_scheduler_heun.py",
    "kdpm2": "schedulers/test_scheduler_kdpm2_discrete.py",
    "kdpm2_a": "schedulers/test_scheduler_kdpm2_ancestral.py",
    "lcm": "schedulers/test_scheduler_lcm.py",
    "lms": "schedulers/test_scheduler_lms.py",
    "deis": "schedulers/test_scheduler_deis.py",
    "tcd": "schedulers/test_scheduler_tcd.py",
    "pndm": "schedulers/test_scheduler_pndm.py",
    "unipc": "schedulers/test_scheduler_unipc.py",
}
"""Short name -> file under diffusers' `tests`. Those of the common mixins are imported from these."""

CLASSES = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "DiffusionPipeline",
    "AutoPipelineForText2Image",
    "UNet2DConditionModel",
    "AutoencoderKL",
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)
