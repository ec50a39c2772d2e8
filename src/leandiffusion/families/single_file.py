"""Open a whole checkpoint from one .safetensors file in the original layout, without any network access."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..core.config import read_json
from ..core.errors import CheckpointNotFound, ConfigError, TensorMismatch
from ..core.notices import warn
from ..core.once import once
from ..modules.base import openers
from ..weights.check import named_for
from ..weights.convert import Entries, under
from ..weights.header import read_header
from ..weights.load import fill_network, read_config
from ..weights.read import TensorReader
from .base import UNET_PREFIX, Family, NetworkSpec, detect, families
from .folder import UNNEEDED, component_class

PREDICTIONS = ("epsilon", "v_prediction", "sample")
_SD2_BASE_STEPS = 875_000  # training steps noted in the 512 px model's files


@once
def detect_file(path: Path) -> Family:
    """The family that a single file belongs to, told from its header. Raises what `detect` and `read_header` raise."""
    return detect(read_header(path).entries, path)


def open_single_file(
    path: str | Path,
    *,
    dtype: torch.dtype | Mapping[str, torch.dtype] | None = None,
    device: str | torch.device | None = None,
    components: Mapping[str, Any] | None = None,
    leave_out: Mapping[str, tuple[str, ...]] = UNNEEDED,
    family: str | None = None,
    prediction_type: str | None = None,
    config: str | Path | None = None,
    original_config: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
    on_disk: bool = False,
) -> dict[str, Any]:
    """Every component of a whole checkpoint by name, straight from one file in the original layout.

    `family`, a name such as 'sd1', wins over detection. `prediction_type` ('epsilon', 'v_prediction', 'sample') says
    what the UNet predicts where the file cannot: SD2 at 512 px predicts noise, at 768 px velocity. `config` is a local
    pipeline folder whose config.json files replace the built-in ones. Of `original_config`, a local .yaml of the
    training code, the `parameterization` is read. `dtype`, `device`, `components`, `leave_out`, `progress`, `on_disk`:
    as in `open_folder`.

    Raises UnsafeFormat for pickles, MalformedFile, TensorMismatch, WeightsError for files of another kind, ConfigError
    for wrong arguments. Nothing is downloaded.
    """
    path = Path(path).expanduser()
    entries = read_header(path).entries
    kind = families.get(family) if family else detect_file(path)
    settled = False
    if config is not None:
        kind, settled = _configured(kind, Path(config).expanduser())
    prediction = prediction_type or _original_prediction(original_config)
    kind = _predicting(kind, entries, path, prediction, settled)
    given = dict(components or {})
    opened: dict[str, Any] = dict.fromkeys(kind.absent)
    for name, spec in kind.networks.items():
        if name in given:
            continue
        if progress is not None:
            progress(name)
        chosen = dtype.get(name, dtype.get("default")) if isinstance(dtype, Mapping) else dtype
        unneeded = leave_out.get(spec.class_name)
        opened[name] = _open_network(
            spec, name, entries, path, dtype=chosen, device=device, leave_out=unneeded, on_disk=on_disk
        )
    for name, settings in kind.tokenizers.items():
        if name not in given:
            opened[name] = component_class("CLIPTokenizer").standard(**settings)
    if "scheduler" not in given:
        class_name, values = kind.scheduler
        opened["scheduler"] = component_class(class_name).from_config(values)
    return opened | given


def _open_network(
    spec: NetworkSpec,
    name: str,
    entries: Entries,
    path: Path,
    *,
    dtype: torch.dtype | None,
    device: str | torch.device | None,
    leave_out: tuple[str, ...] | None,
    on_disk: bool,
) -> torch.nn.Module:
    cls = component_class(spec.class_name)
    found = next((inside for prefix in (spec.prefix, *spec.elsewhere) if (inside := under(entries, prefix))), None)
    if not found:
        raise TensorMismatch(
            f"{path} has no {name}: expected tensors named {spec.prefix}…. Pass {name}=…, opened from elsewhere."
        )
    named = named_for(cls, spec.convert(found, spec.config))
    return fill_network(
        cls, spec.config, named, config_source=name, dtype=dtype, device=device, leave_out=leave_out, on_disk=on_disk
    )


def open_unet(
    cls: type[Any],
    path: Path,
    *,
    config: Path | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> Any:
    """The UNet of a whole checkpoint, or of a file that holds it alone, with or without the prefix of whole ones.

    `config` is the folder of its config.json, or of a pipeline.
    """
    entries = read_header(path).entries
    if "input_blocks.0.0.weight" in entries:
        entries = {f"{UNET_PREFIX}{name}": entry for name, entry in entries.items()}
    kind = detect(entries, path)
    if config is not None:
        folder = config / "unet" if (config / "unet").is_dir() else config
        kind = kind.with_config("unet", **{k: v for k, v in read_config(folder).items() if not k.startswith("_")})
    spec = kind.networks["unet"]
    named = named_for(cls, spec.convert(under(entries, UNET_PREFIX), spec.config))
    return fill_network(cls, spec.config, named, config_source=str(path), dtype=dtype, device=device, on_disk=True)


openers.add("UNet2DConditionModel", open_unet)


def family_of_file(path: Path) -> Family:
    """The family of a whole checkpoint in one file, with the settings it is opened with, from its header alone.

    Raises as `open_single_file` does.
    """
    entries = read_header(path).entries
    return _predicting(detect_file(path), entries, path, None, settled=False)


def _configured(kind: Family, folder: Path) -> tuple[Family, bool]:
    """The family with the settings of a pipeline folder in place of its own, component by component.

    True with it when a scheduler was among them: then what the UNet predicts is known.
    """
    if not folder.is_dir():
        raise CheckpointNotFound(
            f"config={str(folder)!r} is not a local folder: it must hold the folders of components."
        )
    for name in kind.networks:
        if (folder / name / "config.json").is_file():
            values = {k: v for k, v in read_config(folder / name).items() if not k.startswith("_")}
            kind = kind.with_config(name, **values)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    if scheduler.is_file():
        values = read_json(scheduler)
        kind = kind.replaced_scheduler(values.get("_class_name", kind.scheduler[0]), values)
    return kind, scheduler.is_file()


def _original_prediction(path: str | Path | None) -> str | None:
    """What the training configuration says the UNet predicts: noise, unless its parameterization is "v"."""
    if path is None:
        return None
    file = Path(path).expanduser()
    if not file.is_file():
        raise CheckpointNotFound(
            f"original_config={str(path)!r} is not a local file. It is not fetched from the network."
        )
    return (
        "v_prediction" if re.search(r"""parameterization:\s*["']?v["']?\s*$""", file.read_text(), re.M) else "epsilon"
    )


def _predicting(kind: Family, entries: Entries, path: Path, prediction: str | None, settled: bool) -> Family:
    """The family with the scheduler that fits what the UNet predicts: as asked, as the file tells, or as is usual."""
    if prediction is not None:
        if prediction not in PREDICTIONS:
            raise ConfigError(f"prediction_type={prediction!r} is none of {', '.join(PREDICTIONS)}.")
    elif settled:
        return kind
    elif "v_pred" in entries:  # a mark that fine-tuning tools leave
        prediction = "v_prediction"
    elif kind.ambiguous_prediction:
        prediction = _sd2_prediction(kind, entries, path)
    changes: dict[str, Any] = {"rescale_betas_zero_snr": True} if "ztsnr" in entries else {}
    kind = kind.with_scheduler(**({"prediction_type": prediction} if prediction else {}), **changes)
    if kind.ambiguous_prediction and prediction == "epsilon":
        kind = kind.with_config("unet", sample_size=64)
    return kind


def _sd2_prediction(kind: Family, entries: Entries, path: Path) -> str:
    if kind.networks["unet"].config["in_channels"] == 9:
        return "epsilon"  # the one inpainting model predicts noise
    if (steps := entries.get("global_step")) is not None and steps.shape == ():
        [(_, value)] = TensorReader(None, torch.device("cpu")).read_all({"global_step": steps})
        if int(value) == _SD2_BASE_STEPS:
            return "epsilon"
    warn(
        f"{path} is a {kind.title} file, which does not tell whether it predicts noise (512 px models) or velocity "
        "(768 px): assuming prediction_type='v_prediction'. If pictures are mere noise or blotches it is "
        "'epsilon'. Pass prediction_type to settle it."
    )
    return "v_prediction"
