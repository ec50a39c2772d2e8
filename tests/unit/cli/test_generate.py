from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from leandiffusion.cli import generate
from leandiffusion.cli import like as drawn_like
from leandiffusion.core.errors import CheckpointNotFound
from leandiffusion.pictures.record import read_record


def pixels(path: str | Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def test_a_prompt_becomes_a_numbered_picture_with_its_recipe(studio):
    result = studio.run("generate", "a green ring", "--model", "some/model", "--seed", "5")
    assert result.exit_code == 0, result.output
    assert result.stdout == "outputs/0001-a-green-ring.png\n"  # the path alone: the rest goes to stderr
    record = read_record(Path(result.stdout.strip()))
    assert (record.recipe.model, record.recipe.prompt, record.recipe.seed) == ("some/model", "a green ring", 5)
    assert (record.recipe.steps, record.recipe.guidance_scale) == (50, 7.5)  # the pipeline's own defaults
    assert (record.recipe.width, record.recipe.height, record.recipe.dtype) == (16, 16, "float32")
    assert record.sampler == "DDIMScheduler"
    assert set(record.seconds) == {"load", "encode", "denoise", "decode"}
    assert record.peak_memory["process"] > 2**20
    for told in ("seed 5", "denoise 250 ms", "in all", "peak memory"):
        assert told in result.stderr


def test_every_option_reaches_the_model(studio):
    options = "--model m --negative blue --steps 9 --guidance 4.5 --scheduler euler-a --size 24x32 --dtype bf16"
    result = studio.run("generate", "a ring", *options.split(), "--device", "cpu")
    assert result.exit_code == 0, result.output
    (options,) = studio.opened
    assert (options.model, options.negative_prompt, options.steps, options.guidance_scale) == ("m", "blue", 9, 4.5)
    assert (options.scheduler, options.width, options.height) == ("euler-a", 24, 32)
    assert (options.dtype, options.device) == ("bfloat16", "cpu")
    assert studio.calls == [{"prompt": "a ring", "steps": 9, "guidance_scale": 4.5}]
    recipe = read_record(Path(result.stdout.strip())).recipe
    assert (recipe.width, recipe.height, recipe.scheduler, recipe.negative_prompt) == (24, 32, "euler-a", "blue")


def test_the_demo_model_brings_its_own_settings(studio):
    result = studio.run("generate", "a cat", "--steps", "3")
    assert result.exit_code == 0
    assert studio.calls == [{"prompt": "a cat", "steps": 3, "guidance_scale": 3.0}]
    assert studio.opened[0].model == "demo"
    assert studio.run("generate", "a cat", "--model", "other").exit_code == 0
    assert studio.calls[1] == {"prompt": "a cat", "steps": 50, "guidance_scale": 7.5}  # the pipeline's own


def test_the_same_seed_repeats_and_another_does_not(studio):
    def draw(seed: str, name: str) -> bytes:
        assert studio.run("generate", "a ring", "--seed", seed, "--out", name).exit_code == 0
        return pixels(name)

    assert draw("1", "a.png") == draw("1", "b.png")
    assert draw("1", "a.png") != draw("2", "c.png")


def test_without_a_seed_each_run_draws_another_picture(studio):
    paths = [studio.run("generate", "a ring").stdout.strip() for _ in range(2)]
    assert pixels(paths[0]) != pixels(paths[1])


def test_each_of_several_pictures_can_be_drawn_again_alone(studio):
    result = studio.run("generate", "a ring", "--seed", "10", "--count", "3", "--out", "rings.png")
    assert result.exit_code == 0
    paths = result.stdout.split()
    assert paths == ["rings-1.png", "rings-2.png", "rings-3.png"]
    assert [read_record(Path(path)).recipe.seed for path in paths] == [10, 11, 12]
    assert len(studio.opened) == 1
    assert studio.run("generate", "a ring", "--seed", "12", "--out", "third.png").exit_code == 0
    assert pixels("third.png") == pixels("rings-3.png")
    assert "load" not in read_record(Path("rings-2.png")).seconds


def test_like_draws_the_same_picture_again(studio):
    first = "--model m --negative blue --steps 9 --guidance 4.5 --scheduler dpm++-karras --size 24x32 --seed 3"
    assert studio.run("generate", "a ring\nof “fire”", *first.split(), "--out", "first.png").exit_code == 0
    assert studio.run("generate", "--like", "first.png", "--out", "again.png").exit_code == 0
    assert pixels("again.png") == pixels("first.png")
    assert read_record(Path("again.png")).recipe == read_record(Path("first.png")).recipe
    assert read_record(Path("first.png")).karras


def test_like_tells_of_what_changed_the_picture(studio, monkeypatch):
    """Techniques that compute something else; those that do not are left to whoever draws again."""
    assert studio.run("generate", "a ring", "--model", "m", "--out", "first.png").exit_code == 0
    names = {"deep_cache": "deep_cache(interval=5)", "vae_tiling": "vae_tiling(rows=8)", "gone": "gone"}
    record = replace(read_record(Path("first.png")), techniques=names)
    monkeypatch.setattr(drawn_like, "read_record", lambda path: record)
    told = "drawn with deep_cache(interval=5), which changes it"
    again = ["generate", "--like", "first.png", "--out"]
    assert told in studio.run(*again, "b.png").stderr.replace("\n", " ")
    assert "which changes it" not in studio.run(*again, "c.png", "--enable", "deep_cache:interval=5").stderr


def test_another_vae(studio):
    """In the picture's record, and taken from there, unless another model is asked for."""
    assert studio.run("generate", "a cat", "--model", "m", "--vae", "v.safetensors", "--out", "a.png").exit_code == 0
    record = read_record(Path("a.png"))
    assert record.recipe.vae == "v.safetensors"
    assert "VAE: v.safetensors, " in record.to_a1111()
    assert studio.run("generate", "--like", "a.png", "--out", "b.png").exit_code == 0
    assert studio.run("generate", "--like", "a.png", "--model", "n", "--out", "c.png").exit_code == 0
    assert studio.run("generate", "--like", "a.png", "--vae", "w", "--out", "d.png").exit_code == 0
    assert [options.vae for options in studio.opened] == ["v.safetensors", "v.safetensors", None, "w"]


def test_the_syntax_of_prompts_is_in_the_record(studio):
    asked = ["generate", "a (red:1.3) ring", "--model", "m", "--prompt-syntax", "weighted", "--out", "a.png"]
    assert studio.run(*asked).exit_code == 0
    assert read_record(Path("a.png")).recipe.prompt_syntax == "weighted"
    assert studio.run("generate", "--like", "a.png", "--out", "b.png").exit_code == 0
    assert studio.run("generate", "--like", "a.png", "--prompt-syntax", "plain", "--out", "c.png").exit_code == 0
    assert studio.run("generate", "a [b|c]", "--model", "m", "--out", "d.png").exit_code == 0  # plain: as it is
    assert [options.prompt_syntax for options in studio.opened] == ["weighted", "weighted", "plain", "plain"]
    for wrong, told in (("a [b|c]", "alternation"), ("a (b:1..2)", "no number")):
        result = studio.run("generate", wrong, "--model", "m", "--prompt-syntax", "weighted")
        assert result.exit_code == 2
        assert told in result.stderr
    result = studio.run("generate", "a", "--prompt-syntax", "odd")
    assert result.exit_code == 2
    assert "'odd' is unknown" in result.stderr
    assert len(studio.opened) == 4


def test_embeddings_are_in_the_record(studio, tmp_path):
    for name in ("style", "hands"):
        save_file({"emb_params": torch.ones(2, 32)}, tmp_path / f"{name}.safetensors")
    asked = ["--embedding", "style.safetensors:<s>", "--embedding", "hands.safetensors"]
    assert studio.run("generate", "a <s>", "--model", "m", *asked, "--out", "a.png").exit_code == 0
    named = ("style.safetensors:<s>", "hands.safetensors")
    assert read_record(Path("a.png")).recipe.embeddings == named
    assert studio.run("generate", "--like", "a.png", "--out", "b.png").exit_code == 0
    assert studio.run("generate", "--like", "a.png", "--model", "n", "--out", "c.png").exit_code == 0
    assert [options.embeddings for options in studio.opened] == [named, named, ()]
    for wrong, told in (("nowhere.safetensors", "does not exist"), ("style.safetensors:a b", "without spaces")):
        result = studio.run("generate", "a", "--model", "m", "--embedding", wrong)
        assert result.exit_code == 2
        assert told in result.stderr


def test_like_yields_to_what_is_said(studio):
    studio.run("generate", "a ring", "--seed", "3", "--steps", "9", "--out", "first.png")
    assert studio.run("generate", "--like", "first.png", "--steps", "20", "--out", "more.png").exit_code == 0
    changed, first = read_record(Path("more.png")).recipe, read_record(Path("first.png")).recipe
    assert (changed.steps, changed.seed, changed.prompt) == (20, 3, first.prompt)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["a ring", "--size", "100x64"], "96 or 104"),
        (["a ring", "--size", "0x64"], "use 8"),
        (["a ring", "--size", "big"], "WIDTHxHEIGHT"),
        (["a ring", "--steps", "0"], "--steps"),
        (["a ring", "--steps", "many"], "--steps"),
        (["a ring", "--count", "0"], "--count"),
        (["a ring", "--seed", "-1"], "--seed"),
        (["a ring", "--guidance", "nan"], "guidance scale"),
        (["a ring", "--guidance", "-2"], "guidance scale"),
        (["a ring", "--guidance", "1001"], "use 0 to 1000"),
        (["a ring", "--dtype", "int8"], "bf16"),
        (["a ring", "--scheduler", "eulr"], "'euler'"),
        (["a ring", "--device", "toaster"], "--device"),
        (["a ring", "--out", "ring.jpg"], ".png"),
        (["--like", "missing.png"], "missing.png"),
        (["a ring", "--nonsense"], "--nonsense"),
        ([], "say what to draw"),
    ],
)
def test_wrong_usage_is_code_2_and_opens_nothing(studio, arguments, complaint):
    result = studio.run("generate", *arguments)
    assert result.exit_code == 2
    assert complaint in " ".join(result.stderr.replace("│", " ").split())
    assert studio.opened == []
    assert list(Path().iterdir()) == []


def test_a_failure_is_code_1_and_one_line(studio, monkeypatch):
    def fail(options, technique_options, say):
        raise CheckpointNotFound(f"no model\nat {options.model}")

    monkeypatch.setattr(generate, "open_model", fail)
    result = studio.run("generate", "a ring", "--model", "nowhere")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "Error: no model at nowhere (--verbose shows where)"
    assert "Traceback" not in result.stderr
    assert list(Path("outputs").iterdir()) == []
    assert "Traceback" in studio.run("generate", "a ring", "--model", "nowhere", "--verbose").stderr


def test_unexpected_errors_keep_their_name(studio, monkeypatch):
    def fail(options, technique_options, say):
        raise MemoryError

    monkeypatch.setattr(generate, "open_model", fail)
    assert "Error: MemoryError" in studio.run("generate", "a ring").stderr


def test_an_unwritable_place_is_found_before_the_model_opens(studio):
    Path("file").write_text("")
    result = studio.run("generate", "a ring", "--out", "file/below/")
    assert result.exit_code == 1
    assert "cannot write to" in result.stderr
    assert studio.opened == []


def test_a_device_that_is_not_here_is_a_failure(studio):
    result = studio.run("generate", "a ring", "--device", "cuda:99")
    assert result.exit_code == 1
    assert "cuda:99" in result.stderr
    assert studio.opened == []


def test_warnings_are_notes_without_a_file_name(studio, monkeypatch):
    def warn(options, technique_options, say):
        warnings.warn("the prompt was cut after 'ring'", UserWarning)
        return studio.open(options, technique_options)

    monkeypatch.setattr(generate, "open_model", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = studio.run("generate", "a ring")
    assert result.exit_code == 0
    assert "Note: the prompt was cut after 'ring'\n" in result.stderr


def test_show_says_why_not_where_it_cannot(studio):
    result = studio.run("generate", "a ring", "--show")
    assert result.exit_code == 0
    assert "not shown here: the output is not a terminal" in result.stderr
    assert "not shown" not in studio.run("generate", "a ring").stderr


def test_demo_draws_its_own_prompt_and_seed(studio):
    result = studio.run("demo", "--out", "demo.png")
    assert result.exit_code == 0, result.output
    recipe = read_record(Path("demo.png")).recipe
    assert (recipe.model, recipe.prompt, recipe.seed, recipe.steps) == ("demo", "a red circle", 7, 12)
    assert result.stdout == "demo.png\n"
    assert studio.run("demo", "--seed", "8", "--out", "other.png").exit_code == 0
    assert pixels("other.png") != pixels("demo.png")
