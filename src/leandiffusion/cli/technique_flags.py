"""The flags that the techniques declare, by technique. Drawn by `make generated`: change the technique instead."""

from __future__ import annotations

from ..core.flag import Flag

FLAGS: dict[str, Flag] = {
    "tf32": Flag(
        name="--tf32",
        help="Float32 products in TF32; on CPUs in bfloat16.",
    ),
    "channels_last": Flag(
        name="--channels-last",
        help="Lay out convolutions as NHWC.",
    ),
    "attention_backend": Flag(
        name="--attention",
        help="Kernel of attention, such as sdpa, flash, xformers.",
        value="BACKEND",
        setting="backend",
    ),
    "vae_slicing": Flag(
        name="--vae-slicing",
        help="Decode a batch picture by picture.",
    ),
    "attention_slicing": Flag(
        name="--attention-slicing",
        help="Compute attention for half of the heads at a time, for one, or for N.",
        value="auto",
        setting="size",
        words=("auto", "max"),
        number="a number of heads",
    ),
    "vae_tiling": Flag(
        name="--vae-tiling",
        help="Decode in strips, without seams.",
    ),
    "int8": Flag(
        name="--int8",
        help="Compute the UNet in eight bits, on the CPU: another picture.",
    ),
    "model_offload": Flag(
        name="--offload",
        help="Keep weights in host memory, for a CPU on disk, until a network, or a layer, needs them.",
        value="model",
    ),
    "sequential_offload": Flag(
        name="--offload",
        help="Keep weights in host memory, for a CPU on disk, until a network, or a layer, needs them.",
        value="sequential",
    ),
    "compile": Flag(
        name="--compile",
        help="Compile UNet and VAE: slow start, faster steps.",
    ),
    "traced_unet": Flag(
        name="--trace",
        help="Run a traced UNet.",
    ),
    "openvino": Flag(
        name="--openvino",
        help="Run UNet and VAE decoder in OpenVINO, on the CPU.",
    ),
    "deep_cache": Flag(
        name="--deep-cache",
        help="Compute the UNet's deep layers in every Nth step only: another picture.",
        value="N",
        setting="interval",
        number="a number of steps",
    ),
    "guidance_interval": Flag(
        name="--guidance-interval",
        help="Guide in a part of the steps only, and halve the work of the others: another picture.",
    ),
    "unet_slicing": Flag(
        name="--unet-slicing",
        help="Make N of a step's predictions at a time.",
        value="N",
        setting="size",
        number="a number of predictions",
    ),
}
