"""LoRA adapters of a pipeline: loading, choosing, weighing, merging, under diffusers' names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.registry import did_you_mean
from ..lora.adapters import Adapters, adapters_of, change, place_all
from ..lora.find import find_lora
from ..lora.fit import fit
from ..lora.fuse import check_fusible, fuse, unfuse
from ..lora.read import read_lora
from ..lora.weights import by_block, check_weight
from ..modules.lora import call_scale, scaled
from ..techniques.traced_unet import Traced
from ..techniques.traffic import traffic

NOTHING_LOADED = "no LoRA is loaded, so there is nothing that it would scale: leave it out, or load_lora_weights first."


class Lora:
    """Mixin of the pipelines.

    Adapters belong to the networks: pipelines that share these (`from_pipe`) share them, and what one switches the
    others see. They change between calls, or in a callback of the only call that runs, and ConfigError is raised
    meanwhile.
    """

    _lora_loadable_modules: ClassVar[list[str]] = ["unet", "text_encoder", "text_encoder_2"]

    # -- loading -----------------------------------------------------------------------------------------------------

    def load_lora_weights(
        self: Any,
        pretrained_model_name_or_path_or_dict: str | Path | Mapping[str, Tensor],
        adapter_name: str | None = None,
        *,
        weight_name: str | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        use_safetensors: bool | None = None,
        low_cpu_mem_usage: bool = True,
        hotswap: bool = False,
    ) -> None:
        """Load a LoRA, and switch it on in place of those that are: a .safetensors file, a folder or hub id with
        `weight_name` in it, a state dict, or 'night', which belongs to the demo model.

        Layouts of diffusers, PEFT, kohya and LyCORIS (LoCon, LoHa, LoKr) are read, for UNet and text encoders.
        `adapter_name` is what it is called from then on, 'default_0' and so on unless given; a name that is taken is an
        error, with `hotswap` the new one takes its place. Weights stay as they are, whatever `low_cpu_mem_usage` says:
        what the LoRA adds is computed beside them.

        Raises UnsafeFormat for pickles, CheckpointNotFound, TensorMismatch for another model's LoRA, for a checkpoint,
        and for tensors that are not known, NotSupported for DoRA. If it fails the pipeline is as it was.
        """
        if use_safetensors is False:
            raise ConfigError("use_safetensors=False asks for pickled weights, which are refused: leave it out.")
        source = pretrained_model_name_or_path_or_dict
        if not isinstance(source, Mapping):
            source = find_lora(
                source, weight_name=weight_name, subfolder=subfolder, revision=revision, cache_dir=cache_dir,
                local_files_only=local_files_only, token=token,
            )  # fmt: skip
        networks = self._lora_networks()
        taken = {name for network in networks.values() for name in adapters_of(network).loaded}
        name = next(n for i in range(len(taken) + 1) if (n := f"default_{i}") not in taken)
        name = name if adapter_name is None else adapter_name
        if not isinstance(name, str) or not name or "." in name:
            raise ConfigError(f"adapter_name={name!r}: give a name without dots, such as 'night'.")
        if name in taken and not hotswap:
            raise ConfigError(
                f"an adapter {name!r} is loaded already: give another adapter_name, or delete_adapters({name!r}) first."
            )
        fitted = fit(read_lora(source), networks)
        changed: dict[str, Adapters] = {}
        for component, network in networks.items():
            adapters = adapters_of(network).copy()
            adapters.loaded.pop(name, None)
            adapters.loaded |= {name: fitted[component]} if component in fitted else {}
            adapters.weights = {name: 1.0} if component in fitted else {}
            adapters.enabled = True
            changed[component] = adapters
        self._change_lora(changed)

    def unload_lora_weights(self: Any, reset_to_overwritten_params: bool = False) -> None:
        """Remove all adapters: the networks are as they were before, the same weights bit for bit.

        Those that were merged stay merged until `unfuse_lora`.
        """
        changed = {}
        for component, network in self._lora_networks().items():
            adapters = adapters_of(network)
            if adapters.loaded:
                changed[component] = adapters.copy()
                changed[component].loaded, changed[component].weights = {}, {}
        self._change_lora(changed)

    def delete_adapters(self: Any, adapter_names: list[str] | str) -> None:
        """Remove adapters of those names. ConfigError for one that is not loaded."""
        names = self._known_adapters(adapter_names)
        changed = {}
        for component, network in self._lora_networks().items():
            adapters = changed[component] = adapters_of(network).copy()
            for name in names:
                adapters.loaded.pop(name, None)
                adapters.weights.pop(name, None)
        self._change_lora(changed)

    # -- which are on ------------------------------------------------------------------------------------------------

    def set_adapters(self: Any, adapter_names: list[str] | str, adapter_weights: Any = None) -> None:
        """Switch on exactly these, with a weight each, 1 unless given.

        A weight is a number, or a dict: `{"unet": …, "text_encoder": …}` by network, and for the UNet
        `{"down": …, "mid": …, "up": {"block_0": …, "block_1": [0.2, 0.4, 0.6]}}` by its transformers. ConfigError for
        adapters that are not loaded, for parts that there are not, and for another number of weights than of names.
        """
        names = self._known_adapters(adapter_names)
        weights = list(adapter_weights) if isinstance(adapter_weights, list | tuple) else [adapter_weights] * len(names)
        if len(weights) != len(names):
            raise ConfigError(
                f"{len(weights)} adapter_weights for {len(names)} adapters: give one for each, or one for all."
            )
        networks = self._lora_networks()
        changed = {}
        for component, network in networks.items():
            adapters = changed[component] = adapters_of(network).copy()
            adapters.weights = {
                name: self._weight_of(name, weight, component, network)
                for name, weight in zip(names, weights, strict=True)
                if name in adapters.loaded
            }
        self._change_lora(changed)

    def disable_lora(self: Any) -> None:
        """Switch all adapters off: networks compute as if none were loaded. `enable_lora` switches them on again."""
        self._switch_lora(False)

    def enable_lora(self: Any) -> None:
        """Undo `disable_lora`."""
        self._switch_lora(True)

    def get_active_adapters(self: Any) -> list[str]:
        """Names of the adapters that are chosen, in order, whether or not `disable_lora` switched them off."""
        return list(dict.fromkeys(n for net in self._lora_networks().values() for n in adapters_of(net).weights))

    def get_list_adapters(self: Any) -> dict[str, list[str]]:
        """Names of the adapters that are loaded, by network."""
        loaded = {name: list(adapters_of(network).loaded) for name, network in self._lora_networks().items()}
        return {name: adapters for name, adapters in loaded.items() if adapters}

    @property
    def lora_scale(self) -> float:
        """What all adapters are multiplied by in the running call: `cross_attention_kwargs={"scale": …}`; 1 outside."""
        return call_scale()

    # -- merging -----------------------------------------------------------------------------------------------------

    def fuse_lora(
        self: Any,
        components: list[str] | str | None = None,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | str | None = None,
    ) -> None:
        """Merge adapters, the active ones unless named, into the weights of `components`, all unless given.

        Steps then cost nothing extra. The former weights are left to the checkpoint that they came from; those that are
        not there as they are in memory are kept, which takes their size. `safe_fusing` raises NonFiniteError rather
        than merge what is not finite. ConfigError where weights travel from disk, as no merged ones are there.
        """
        check_weight(lora_scale, "lora_scale")
        names = self.get_active_adapters() if adapter_names is None else self._known_adapters(adapter_names)
        networks = {name: net for name, net in self._fusible(components).items() if adapters_of(net).loaded}
        for name, network in networks.items():
            check_fusible(name, network)
        with self._changing_lora():
            fused = {}
            try:
                for component, network in networks.items():
                    adapters = adapters_of(network)
                    own = [name for name in names if name in adapters.loaded and name not in adapters.fused_names]
                    if own:
                        fused[component] = fuse(network, adapters, own, lora_scale, check=safe_fusing)
            except BaseException:
                for component, adapters in fused.items():
                    former = adapters_of(networks[component])
                    unfuse(networks[component], adapters)
                    former.placed = None
                raise
            change(networks, fused)

    def unfuse_lora(self: Any, components: list[str] | str | None = None) -> None:
        """Undo `fuse_lora`: weights are as they were, bit for bit, read from the checkpoint where they are there."""
        networks = {name: net for name, net in self._fusible(components).items() if adapters_of(net).fused_names}
        with self._changing_lora():
            change(networks, {name: unfuse(network, adapters_of(network)) for name, network in networks.items()})

    @property
    def fused_loras(self: Any) -> set[str]:
        """Names of the adapters that are merged."""
        return {name for network in self._lora_networks().values() for name in adapters_of(network).fused_names}

    @property
    def num_fused_loras(self) -> int:
        """How many adapters are merged."""
        return len(self.fused_loras)

    # -- within ------------------------------------------------------------------------------------------------------

    def _lora_networks(self: Any) -> dict[str, nn.Module]:
        """The networks that adapters can be put on, by component name; a traced UNet's own."""
        parts = {name: self.components.get(name) for name in self._lora_loadable_modules}
        own = {name: part.unet if isinstance(part, Traced) else part for name, part in parts.items()}
        own = {name: getattr(part, "_orig_mod", part) for name, part in own.items()}
        return {name: part for name, part in own.items() if isinstance(part, nn.Module)}

    def _fusible(self: Any, components: list[str] | str | None) -> dict[str, nn.Module]:
        networks = self._lora_networks()
        wanted = list(networks) if components is None else [components] if isinstance(components, str) else components
        if not wanted or not networks.keys() >= {*wanted}:
            raise ConfigError(f"components={components!r}: give some of {', '.join(networks)}.")
        return {name: networks[name] for name in wanted}

    def _known_adapters(self: Any, names: list[str] | str) -> list[str]:
        names = [names] if isinstance(names, str) else list(names)
        loaded = {name for network in self._lora_networks().values() for name in adapters_of(network).loaded}
        for name in names:
            if name not in loaded:
                raise ConfigError(
                    f"no adapter {name!r} is loaded.{did_you_mean(str(name), sorted(loaded))} Loaded are: "
                    f"{', '.join(sorted(loaded)) or 'none'}."
                )
        if len(set(names)) < len(names):
            raise ConfigError(f"adapter names {names} hold one twice: give each once, with the sum of its weights.")
        return names

    def _weight_of(self, name: str, weight: Any, component: str, network: nn.Module) -> Any:
        if isinstance(weight, Mapping) and weight.keys() & {*self._lora_loadable_modules}:
            if unknown := [part for part in weight if part not in self._lora_loadable_modules]:
                raise ConfigError(
                    f"weights of {name!r}: {unknown[0]!r} is none of {', '.join(self._lora_loadable_modules)}."
                )
            weight = weight.get(component)
        elif isinstance(weight, Mapping) and component != "unet":
            weight = None
        if component == "unet":
            return by_block(network, weight, name)
        return check_weight(weight, f"the weight of {name!r} in the {component}")

    def _switch_lora(self: Any, enabled: bool) -> None:
        changed = {}
        for component, network in self._lora_networks().items():
            if adapters_of(network).loaded:
                changed[component] = adapters_of(network).copy()
                changed[component].enabled = enabled
        self._change_lora(changed)

    def _change_lora(self: Any, changed: dict[str, Adapters]) -> None:
        with self._changing_lora():
            change(self._lora_networks(), changed)

    @contextmanager
    def _changing_lora(self: Any) -> Iterator[None]:
        with self._stack.between_steps(), traffic.changing(self._lora_networks().values()):
            yield

    def _place_lora(self: Any) -> None:
        """As a call begins: bring factors to where the weights are now."""
        place_all(self._lora_networks().values())

    @contextmanager
    def _lora_scaled(self: Any, scale: float | None) -> Iterator[None]:
        """Have all adapters weigh `scale` times as much meanwhile. ConfigError where none is loaded, for what is no
        number, and where compiled blocks would not see it."""
        if scale is None:
            yield
            return
        scale = check_weight(scale, "scale")
        if not self.get_list_adapters():
            raise ConfigError(f"cross_attention_kwargs or lora_scale of {scale}: {NOTHING_LOADED}")
        if scale != 1 and self._stack.find("compile") is not None:
            raise ConfigError(
                f"a scale of {scale}: compiled blocks do not see the scale of a call. Use set_adapters(names, "
                "weights), which compiles them anew, or switch compiling off."
            )
        with scaled(scale):
            yield
