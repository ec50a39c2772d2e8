"""The methods of the pipelines that switch techniques, from the techniques' files. Drawn by `make generated`."""

from __future__ import annotations

from ..techniques.attention_backend import AttentionBackendMethods
from ..techniques.attention_slicing import AttentionSlicingMethods
from ..techniques.channels_last import ChannelsLastMethods
from ..techniques.compile import CompileMethods
from ..techniques.cudnn_autotune import CudnnAutotuneMethods
from ..techniques.deep_cache import DeepCacheMethods
from ..techniques.guidance_interval import GuidanceIntervalMethods
from ..techniques.int8 import Int8Methods
from ..techniques.model_offload import ModelOffloadMethods
from ..techniques.offloading import OffloadMethods
from ..techniques.openvino import OpenVINOMethods
from ..techniques.packed_weights import PackedWeightsMethods
from ..techniques.sequential_offload import SequentialOffloadMethods
from ..techniques.tf32 import TF32Methods
from ..techniques.traced_unet import TracedUNetMethods
from ..techniques.unet_slicing import UNetSlicingMethods
from ..techniques.vae_slicing import VaeSlicingMethods
from ..techniques.vae_tiling import VaeTilingMethods


class MemoryAndSpeed(
    AttentionBackendMethods,
    AttentionSlicingMethods,
    ChannelsLastMethods,
    CompileMethods,
    CudnnAutotuneMethods,
    DeepCacheMethods,
    GuidanceIntervalMethods,
    Int8Methods,
    ModelOffloadMethods,
    OffloadMethods,
    OpenVINOMethods,
    PackedWeightsMethods,
    SequentialOffloadMethods,
    TF32Methods,
    TracedUNetMethods,
    UNetSlicingMethods,
    VaeSlicingMethods,
    VaeTilingMethods,
):
    """Mixin of the pipelines: the techniques one by one, most of them under diffusers' names."""
