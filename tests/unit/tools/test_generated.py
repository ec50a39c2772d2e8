"""What is drawn from the techniques' declarations is what they declare, and follows a technique that is new."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from tools import generated, price_list

from leandiffusion import StableDiffusionPipeline
from leandiffusion.core.flag import Flag
from leandiffusion.techniques import techniques
from leandiffusion.techniques.switchable import Switchable
from leandiffusion.techniques.vae_slicing import VaeSlicing


@pytest.mark.parametrize("name", generated.FILES)
def test_files_are_what_the_techniques_declare(name: str) -> None:
    assert (generated.ROOT / name).read_text(encoding="utf-8") == generated.FILES[name](), "run `make generated`"


def test_what_is_stale_is_named_with_the_command_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "page.md"
    file.write_text("old")
    monkeypatch.setattr(generated, "ROOT", tmp_path)
    monkeypatch.setattr(generated, "FILES", {"page.md": lambda: "new"})
    assert generated.main(["--check"]) == 1
    assert capsys.readouterr().out.startswith("page.md is not what would be drawn: run `make generated`")
    assert file.read_text() == "old"
    assert generated.main([]) == 0
    assert file.read_text() == "new"
    assert generated.main(["--check"]) == 0


def declare(monkeypatch: pytest.MonkeyPatch, flag: Flag) -> None:
    """A technique more, as long as the test runs."""

    @dataclass(frozen=True)
    class Another(VaeSlicing):
        """Does as sliced decoding does."""

        name: ClassVar[str] = "another"
        title: ClassVar[str] = "Another way"
        flag: ClassVar[Flag | None] = None

    Another.flag = flag
    list(techniques)
    monkeypatch.setitem(techniques._entries, "another", Another)


def test_a_new_technique_is_in_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class AnotherMethods(Switchable):
        def enable_another(self) -> None:
            """Switch it on."""

    AnotherMethods.__module__ = "leandiffusion.techniques.another"
    declare(monkeypatch, Flag("--another", "Another way.", value="HOW", setting="how"))
    assert "[Another way](#another-way)" in price_list.page()
    assert "`leandiffusion generate … --another HOW`" in price_list.page()
    assert '"another": Flag(\n        name="--another",\n' in generated.flags()
    assert "from ..techniques.another import AnotherMethods\n" in generated.methods()
    assert "\n    AnotherMethods,\n" in generated.methods()


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        (Flag("--another", "x" * 200), "another: the help of --another has 200 characters"),
        (Flag("--vae-tiling", "Another way."), "have the option --vae-tiling too"),
        (Flag("--offload", "Another way.", value="another"), "each needs a `value` of its own, the same help"),
    ],
)
def test_flags_that_cannot_be_options(monkeypatch: pytest.MonkeyPatch, flag: Flag, reason: str) -> None:
    declare(monkeypatch, flag)
    with pytest.raises(SystemExit, match=reason):
        generated.flags()


def test_methods_that_the_price_list_names_are_there_and_documented() -> None:
    """`calls` are what users write; those without a dot are calls of the pipeline."""
    named = [call for name in techniques for call in techniques.get(name).calls if "." not in call.split("(")[0]]
    assert len(named) > 10
    for call in named:
        method = getattr(StableDiffusionPipeline, call.split("(")[0])
        assert inspect.getdoc(method)
