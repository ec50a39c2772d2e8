"""What the pipelines with ControlNets have in common: the component, its pictures, and checks of both."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

from torch import Tensor, nn

from ..core.errors import ConfigError
from ..lora.fit import WIDTHS
from ..modules.multicontrolnet import MultiControlNetModel
from ..run.controls import Guide, Guides
from .cropping import Box
from .from_pictures import check_rows, preprocess
from .image_processor import VaeImageProcessor

R = TypeVar("R", bound=Any)


class WithControlNet:
    """Mixin of the pipelines. `controlnet` is a ControlNetModel, or several, each with a picture of its own."""

    controlnet: Any = None
    vae_scale_factor: int

    @cached_property
    def control_image_processor(self) -> VaeImageProcessor:
        """Pictures to tensors in [0, 1]."""
        return VaeImageProcessor(vae_scale_factor=self.vae_scale_factor, do_convert_rgb=True, do_normalize=False)

    def _take_controlnet(self: Any, controlnet: Any) -> Any:
        """The component, several as one, in diffusers' class for them too; None where there is no UNet either, as in a
        pipeline that encodes prompts. ConfigError for what is none, and for one of another family than the UNet."""
        if controlnet is None and self.unet is None:
            return None
        nets = _nets(controlnet)
        for net in nets:
            if not hasattr(net, "config") or "conditioning_channels" not in net.config:
                raise ConfigError(
                    f"controlnet is a {type(net).__name__}: pass ControlNetModel.from_pretrained(…), or a list of them."
                )
            _check_family(net, self.unet)
        is_whole = isinstance(controlnet, MultiControlNetModel) or nets[0] is controlnet
        return controlnet if is_whole else MultiControlNetModel(nets)

    def _controls(self: Any, request: R, *, takes_size: bool = False, box: Box | None = None) -> tuple[R, list[Guides]]:
        """The request and its controls. With `takes_size` the first picture says how large to draw, where nothing
        else does; with a `box` that part of the pictures is seen. ConfigError for pictures and numbers that do not fit
        the ControlNets."""
        nets = _nets(self.controlnet)
        several = isinstance(self.controlnet, MultiControlNetModel)
        pictures = _for_each(request.control_image, len(nets)) if several else [request.control_image]
        settings = request.for_each(len(nets))
        height, width = (request.height, request.width) if takes_size else self._pixels(request)
        seen = []
        for picture, net in zip(pictures, nets, strict=True):
            tensor = preprocess("the ControlNet's picture", self.control_image_processor, picture, height, width, box)
            height, width = tensor.shape[-2:] if height is None or width is None else (height, width)
            seen.append(self._control_rows(tensor, net, request.batch, height, width))
        guesses = request.guess_mode or any(net.config.get("global_pool_conditions", False) for net in nets[:1])
        guides = [Guide(net, rows, *each) for net, rows, each in zip(nets, seen, settings, strict=True)]
        return replace(request, height=height, width=width), [Guides(guides, guesses)]

    def _control_rows(self, picture: Tensor, net: Any, batch: int, height: int, width: int) -> Tensor:
        """Pictures for each of the batch: of n each B / n times in a row, as prompts are; one is left one."""
        channels = net.config["conditioning_channels"]
        if picture.shape[1] != channels:
            raise ConfigError(f"the ControlNet's picture has {picture.shape[1]} channels, and it sees {channels}.")
        if tuple(picture.shape[-2:]) != (height, width):
            found = f"{picture.shape[-1]}x{picture.shape[-2]}"
            raise ConfigError(f"the ControlNet's picture is {found}, and {width}x{height} are drawn: make it as large.")
        check_rows("the ControlNet's picture", picture, batch)
        return picture if len(picture) == 1 else picture.repeat_interleave(batch // len(picture), dim=0)


def _for_each(pictures: Any, count: int) -> list[Any]:
    """What each of so many ControlNets sees: an entry of the list. Where the entries are lists, each is of one prompt,
    with a picture for each ControlNet, as diffusers reads them. ConfigError for other numbers than `count`."""
    given = list(pictures) if isinstance(pictures, list | tuple) else [pictures]
    by_prompt = [each for each in given if isinstance(each, list | tuple)]
    if not by_prompt:
        if len(given) != count:
            raise ConfigError(
                f"there are {count} ControlNets and {len(given)} pictures for them: pass a list of as many."
            )
        return given
    wrong = next((len(each) for each in by_prompt if len(each) != count), None)
    if wrong is not None or len(by_prompt) < len(given):
        found = "pictures beside lists" if wrong is None else f"a list of {wrong} pictures"
        raise ConfigError(
            f"there are {count} ControlNets, and among their pictures is {found}: pass a picture for each ControlNet, "
            f"or for each prompt a list of {count}, one for each ControlNet, such as [[edges, pose], [edges, pose]]."
        )
    return [list(each) for each in zip(*by_prompt, strict=True)]


def _nets(controlnet: Any) -> list[Any]:
    """One or several, of a list or of a network that holds them. ConfigError where there is none."""
    held = getattr(controlnet, "nets", controlnet)
    nets = list(held) if isinstance(held, list | tuple | nn.ModuleList) else [controlnet]
    if nets in ([], [None]):
        raise ConfigError("controlnet is missing: pass ControlNetModel.from_pretrained(…), or a list of them.")
    return nets


def _check_family(net: Any, unet: Any) -> None:
    own, other = (_text_width(each) for each in (net, unet))
    if own != other and None not in (own, other):
        made, have = (WIDTHS.get(each, f"a model whose text has {each} channels") for each in (own, other) if each)
        raise ConfigError(f"this ControlNet was made for {made}, and this model is {have}: take one made for it.")


def _text_width(network: Any) -> int | None:
    width = getattr(getattr(network, "config", None), "cross_attention_dim", None)
    return width if isinstance(width, int) else None
