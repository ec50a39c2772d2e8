"""LoRA adapters of a pipeline, and layers of one that was trained, as a file that diffusers reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..core.errors import ConfigError
from ..lora.adapters import adapters_of
from ..lora.save import FILE, check_layers, layers_of, write_lora

Layers = Mapping[str, Tensor] | nn.Module | None


class LoraSaving:
    """Mixin of the pipelines."""

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | Path,
        unet_lora_layers: Layers = None,
        text_encoder_lora_layers: Layers = None,
        *,
        text_encoder_2_lora_layers: Layers = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Callable[..., Any] | None = None,
        safe_serialization: bool = True,
        unet_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_2_lora_adapter_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the layers of a LoRA to `save_directory`/pytorch_lora_weights.safetensors, or `weight_name`.

        Layers are state dicts as `peft.get_peft_model_state_dict` gives them, by network; those of an adapter that a
        pipeline has loaded are `pipe.lora_layers(name)`: `pipe.save_lora_weights(folder, **pipe.lora_layers("night"))`.
        The metadata are PEFT's settings of a network. `save_function` is called with tensors and path instead of
        writing; processes that are not the main one write nothing.

        ConfigError where there are no layers, for names that are no LoRA's, and for pickles.
        """
        if not safe_serialization:
            raise ConfigError("safe_serialization=False asks for a pickle, which is not written: leave it out.")
        given = {
            "unet": (unet_lora_layers, unet_lora_adapter_metadata),
            "text_encoder": (text_encoder_lora_layers, text_encoder_lora_adapter_metadata),
            "text_encoder_2": (text_encoder_2_lora_layers, text_encoder_2_lora_adapter_metadata),
        }
        tensors: dict[str, Tensor] = {}
        settings: dict[str, Any] = {}
        for network, (layers, told) in given.items():
            named = layers.state_dict() if isinstance(layers, nn.Module) else layers or {}
            check_layers(network, named)
            tensors |= {f"{network}.{name}": tensor for name, tensor in named.items()}
            settings |= {f"{network}.{name}": value for name, value in (told or {}).items()} if named else {}
        if not tensors:
            raise ConfigError("there are no layers to save: pass unet_lora_layers, or those of a text encoder.")
        path = Path(save_directory) / (weight_name or FILE)
        if path.parent.is_file():
            raise ConfigError(f"{path.parent} is a file: save_directory names a folder.")
        if not is_main_process:
            return
        if save_function is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_function(tensors, str(path))
        else:
            write_lora(path, tensors, settings)

    def lora_layers(self: Any, adapter_name: str | None = None) -> dict[str, dict[str, Tensor]]:
        """The factors of a loaded adapter, by the keywords of `save_lora_weights`; the only one's unless named.

        What was read in another layout comes in diffusers'; the adapter's own scale is multiplied in, weights that
        `set_adapters` gave are not. ConfigError for one that is not loaded, NotSupported for LoHa and LoKr.
        """
        networks = self._lora_networks()
        loaded = sorted({name for network in networks.values() for name in adapters_of(network).loaded})
        if adapter_name is None and len(loaded) != 1:
            raise ConfigError(f"{len(loaded)} adapters are loaded ({', '.join(loaded) or 'none'}): name one of them.")
        [name] = self._known_adapters(loaded[0] if adapter_name is None else adapter_name)
        pieces = {component: adapters_of(network).loaded.get(name) for component, network in networks.items()}
        return {f"{component}_lora_layers": layers_of(found) for component, found in pieces.items() if found}
