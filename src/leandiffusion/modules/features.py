"""What diffusers' networks offer besides forward: attention kernels and processors, gradient checkpointing, sizes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from ..attention import backends
from ..attention.choose import memory_efficient
from ..core.errors import ConfigError, NotSupported
from .blocks import GradientCheckpointing
from .processors import AttnProcessor2_0, processors_of, set_processors
from .transformer import set_attention_backend

LORA = (
    "adapters are handled by the pipeline that has this network: load_lora_weights, set_adapters, disable_lora, "
    "fuse_lora, unload_lora_weights."
)
OTHER_KERNELS = (
    "this kernel is not supported: set_attention_backend(name) takes those that are, and its error lists them."
)
GROUPS = (
    "enable_group_offload is not here: the pipeline's enable_sequential_cpu_offload(granularity='block') does the "
    "same, and diffusers.hooks.apply_group_offloading(network, …) works on this network too."
)
CASTING = (
    "enable_layerwise_casting is not here: diffusers.hooks.apply_layerwise_casting(network, storage_dtype, "
    "compute_dtype) works on this network too, and network.to(torch.bfloat16) halves its weights."
)
PUSH = "uploading is not here: save_pretrained(folder), then huggingface_hub.upload_folder(folder_path=folder, …)."
PARALLEL = "one network computes on one device here: enable_parallelism is not supported."
QUANTISED = "this network is not quantised: there is nothing to dequantise."
SINGLE_FILE = (
    "a single file is opened as a whole: StableDiffusionPipeline.from_single_file(path), or the XL one, and its "
    "network is a component of that pipeline. Of a VAE alone: AutoencoderKL.from_single_file(path)."
)
AUTO_CLASS = "classes are not registered for loading code from the hub: import the class where it is used."
ATTENTION_WEIGHTS = (
    "weights of attention processors are not loaded or saved by themselves: set_attn_processor with processors that "
    "have theirs, and save_file(processor.state_dict(), path) of safetensors. " + LORA
)


def absent(why: str) -> Any:
    """A method that raises NotSupported, for what diffusers has and scripts may call."""

    def method(*_: Any, **__: Any) -> Any:
        raise NotSupported(why)

    method.__doc__ = f"Raises NotSupported: {why}"
    return method


class Features(nn.Module):
    """Of every network: gradient checkpointing, sizes, compiling; what is not supported raises NotSupported."""

    repeated_blocks: ClassVar[tuple[str, ...]] = ()
    """Classes of the blocks that the network has most of."""

    # What accelerate and diffusers' hooks read about a network, under the names that they read.
    _supports_gradient_checkpointing: ClassVar[bool] = True
    _supports_group_offloading: ClassVar[bool] = True
    _keep_in_fp32_modules: ClassVar[list[str] | None] = None
    _skip_layerwise_casting_patterns: ClassVar[list[str] | None] = None

    load_lora_adapter = save_lora_adapter = add_adapter = set_adapter = set_adapters = absent(LORA)
    enable_adapters = active_adapters = delete_adapters = enable_lora = absent(LORA)
    enable_lora_hotswap = fuse_lora = absent(LORA)
    enable_group_offload, enable_layerwise_casting = absent(GROUPS), absent(CASTING)
    push_to_hub, enable_parallelism = absent(PUSH), absent(PARALLEL)
    from_single_file = classmethod(absent(SINGLE_FILE))
    dequantize, register_for_auto_class = absent(QUANTISED), classmethod(absent(AUTO_CLASS))

    def disable_lora(self) -> None:
        """Nothing happens where no adapters are loaded; NotSupported where some are."""
        if getattr(self, "_adapters", None) is not None:
            raise NotSupported(LORA)

    disable_adapters = unload_lora = unfuse_lora = disable_lora

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether gradient checkpointing is on."""
        return any(
            module.gradient_checkpointing for module in self.modules() if isinstance(module, GradientCheckpointing)
        )

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Callable[..., Any] | None = None) -> None:
        """Keep layers' inputs only and compute layers again for their gradients: less memory, a third more time.

        `gradient_checkpointing_func(layer, *inputs)` runs a layer; torch's own checkpoint unless given.
        """
        self._checkpoint(True, gradient_checkpointing_func)

    def disable_gradient_checkpointing(self) -> None:
        """Undo `enable_gradient_checkpointing`."""
        self._checkpoint(False, None)

    def _checkpoint(self, on: bool, function: Callable[..., Any] | None) -> None:
        for module in self.modules():
            if isinstance(module, GradientCheckpointing):
                module.gradient_checkpointing, module.checkpoint = on, function

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the parameters, and of the buffers unless told otherwise; shared ones counted once."""
        tensors = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def compile_repeated_blocks(self, *args: Any, **kwargs: Any) -> None:
        """`torch.compile` the blocks that the network has most of, in place: far quicker than compiling all of it."""
        blocks = [module for module in self.modules() if type(module).__name__ in self.repeated_blocks]
        if not blocks:
            raise NotSupported(
                f"{type(self).__name__} repeats no block worth compiling: use network.compile() for all."
            )
        for block in blocks:
            block.compile(*args, **kwargs)


class AttentionFeatures(Features):
    """Of networks with attention layers. A pipeline's techniques switch the kernels of UNet and VAE at once."""

    set_use_npu_flash_attention = enable_npu_flash_attention = absent(OTHER_KERNELS)
    set_use_xla_flash_attention = enable_xla_flash_attention = absent(OTHER_KERNELS)

    def fuse_qkv_projections(self) -> None:
        """A warning: the three projections stay apart, which gives the same result."""
        warnings.warn("fused projections are not supported yet: going on without, with the same result.", stacklevel=2)

    def unfuse_qkv_projections(self) -> None:
        """Nothing happens: projections are never fused."""

    def disable_npu_flash_attention(self) -> None:
        """Nothing happens: that kernel is never on."""

    disable_xla_flash_attention = disable_npu_flash_attention

    @property
    def attn_processors(self) -> dict[str, Any]:
        """'<layer>.processor' -> what computes it: a processor that was set, or one that stands for the kernel."""
        return processors_of(self)

    def set_attn_processor(
        self, processor: Callable[..., Tensor] | Mapping[str, Callable[..., Tensor]], _remove_lora: bool = False
    ) -> None:
        """Compute attention with `processor`, or with one for each name of `attn_processors`.

        It is called as processor(layer, hidden_states, encoder_hidden_states=…, attention_mask=…, **arguments), as
        diffusers' own are, which work here too. ConfigError for another number of them.
        """
        set_processors(self, processor)

    def set_default_attn_processor(self) -> None:
        """Back to torch's kernel in every layer, not sliced."""
        set_processors(self, AttnProcessor2_0(backends.get("sdpa")))

    def set_attention_backend(self, backend: str) -> None:
        """Compute attention with the kernel of that name, sliced as before. ConfigError lists the names."""
        kernel = backends.get({"native": "sdpa"}.get(backend, backend))
        if reasons := kernel.why_not(self.device, self.dtype):  # type: ignore[arg-type]
            raise ConfigError(f"attention backend {backend!r} cannot run here: {'; '.join(reasons)}.")
        set_attention_backend(self, kernel)

    def reset_attention_backend(self) -> None:
        """Back to torch's kernel, sliced as before."""
        set_attention_backend(self, backends.get("sdpa"))

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """xFormers' attention where it is installed and runs; elsewhere torch's memory-efficient one, with a
        warning."""
        kernel, reason = memory_efficient(self.device, self.dtype, attention_op)  # type: ignore[arg-type]
        if reason is not None:
            warnings.warn(reason, stacklevel=2)
        set_attention_backend(self, kernel)

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Back to torch's kernel, sliced as before."""
        self.reset_attention_backend()

    def set_use_memory_efficient_attention_xformers(self, valid: bool, attention_op: Any = None) -> None:
        """`enable_xformers_memory_efficient_attention`, or the opposite, under their older name."""
        if valid:
            self.enable_xformers_memory_efficient_attention(attention_op)
        else:
            self.disable_xformers_memory_efficient_attention()
