"""Options of a picture: what is checked, how it is told, and what they are completed from."""

from __future__ import annotations

from typing import Any

import pytest

from leandiffusion import demo
from leandiffusion.drawing.options import DrawingOptions, resolve
from leandiffusion.drawing.wrong import OptionError
from leandiffusion.pictures.record import Recipe


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("prompt", None, "say what to draw"),
        ("prompt", 7, "a text"),
        ("model", ["a"], "a text"),
        ("steps", 0, "1 to 100000"),
        ("steps", 2.0, "a whole number"),
        ("steps", True, "a whole number"),
        ("seed", -1, "out of range"),
        ("seed", 2**63, "out of range"),
        ("width", 100, "96 or 104"),
        ("height", 4, "use 8"),
        ("height", 80_000, "8 to 65536"),
        ("guidance_scale", float("nan"), "guidance scale"),
        ("guidance_scale", -1, "guidance scale"),
        ("guidance_scale", 1001.0, "0 to 1000"),
        ("guidance_scale", "7", "a number"),
        ("dtype", "int8", "bf16 (bfloat16)"),
        ("scheduler", "eulr", "'euler'"),
        ("device", "toaster", "toaster"),
        ("prompt_syntax", "odd", "'odd' is unknown"),
        ("strength", 0.5, "it belongs to image"),
        ("mask", "m.png", "it belongs to image"),
        ("resize", "fit", "it belongs to image"),
        ("guess_mode", "yes", "true or false"),
        ("guess_mode", True, "it belongs to controlnet"),
        ("control_guidance_end", 1.5, "not a share"),
        ("pag_scale", -1, "use 0 to 1000"),
        ("pag_layers", ["mid"], "it belongs to pag_scale"),
        ("lora", "x.safetensors", "a list of texts"),
        ("lora", ["nowhere.safetensors"], "nowhere.safetensors"),
        ("embeddings", ["nowhere.pt:<s>"], "nowhere.pt"),
        ("controlnet", ["net"], ""),
    ],
)
def test_each_wrong_option_is_named(field: str, value: Any, told: str) -> None:
    with pytest.raises(OptionError) as caught:
        resolve(DrawingOptions(**{"prompt": "a ring", field: value}))
    assert caught.value.field == ("control_image" if field == "controlnet" else field)
    assert str(caught.value).startswith(f"{caught.value.field}: ")
    assert told in str(caught.value)


def test_others_may_call_options_by_other_names() -> None:
    with pytest.raises(OptionError) as caught:
        resolve(DrawingOptions(prompt="a {ring}", controlnet=("{net}",)))
    assert caught.value.told(str.upper) == "there are 1 CONTROLNET and 0 CONTROL_IMAGE: give a picture for each."
    odd = OptionError("mask", "{reason}, see {image}", reason="{braces} stay")
    assert (str(odd), odd.told(str.upper)) == ("mask: {braces} stay, see image", "{braces} stay, see IMAGE")


def test_values_are_kept_in_one_form() -> None:
    made = resolve(DrawingOptions(prompt="a", model="m", guidance_scale=7, dtype="BF16", lora=[], seed=3))  # type: ignore[arg-type]
    assert (made.guidance_scale, made.dtype, made.lora) == (7.0, "bfloat16", ())
    assert type(made.guidance_scale) is float


def test_the_demo_model_brings_its_own_settings() -> None:
    made = resolve(DrawingOptions(prompt="a ring"))
    assert (made.model, made.steps) == ("demo", demo.DEFAULTS["steps"])
    assert resolve(DrawingOptions(prompt="a ring", model="other")).steps is None
    assert len({resolve(DrawingOptions(prompt="a ring")).seed for _ in range(3)}) == 3


def test_what_belongs_to_a_model_or_picture_stays_with_it() -> None:
    recipe = Recipe("m", "a ring", "", 3, 9, 4.5, None, 64, 64, "float32", "cpu", vae="v", image="a.png", mask="b.png")
    assert DrawingOptions().like(recipe).mask == "b.png"
    assert DrawingOptions(model="m").like(recipe).vae == "v"
    other = DrawingOptions(model="n", image="c.png").like(recipe)
    assert (other.vae, other.mask, other.seed, other.prompt) == (None, None, 3, "a ring")
