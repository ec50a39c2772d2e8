"""The stack: order by phase, slipping under, replacing, failing, and staying still during calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from leandiffusion import ConfigError, StableDiffusionPipeline
from leandiffusion.core.errors import BackendUnavailable
from leandiffusion.techniques.base import Exactness, Phase, Price, Technique
from leandiffusion.techniques.hooks import set_attribute, set_global, together
from leandiffusion.techniques.stack import Stack, make
from leandiffusion.techniques.subject import Subject

LOG: list[str] = []


@dataclass(frozen=True)
class Fake(Technique):
    """Logs what is done to it; the name is a setting, so that many can be made."""

    label: str = "a"
    of: Phase = Phase.LAYOUT
    fails: bool = False
    reasons: tuple[str, ...] = ()
    optional: ClassVar[bool] = False
    exactness: ClassVar[Exactness] = Exactness.EXACT
    price: ClassVar[Price] = Price("-", "-", "-", "They do not mix.")
    calls: ClassVar[tuple[str, ...]] = ()
    title: ClassVar[str] = "Fake"

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.label

    @property
    def phase(self) -> Phase:  # type: ignore[override]
        return self.of

    def why_not(self, subject: Subject) -> list[str]:
        return list(self.reasons)

    def apply(self, subject: Subject) -> Callable[[], None]:
        if self.fails:
            raise MemoryError(self.label)
        LOG.append(f"+{self.label}")
        return lambda: LOG.append(f"-{self.label}")


class Grumpy(Fake):
    refuses: ClassVar[tuple[str, ...]] = ("a",)


class Optional(Fake):
    optional: ClassVar[bool] = True


class Pipe:
    def __init__(self) -> None:
        self.unet = nn.Linear(1, 1)

    @property
    def components(self) -> dict[str, Any]:
        return {"unet": self.unet}


@pytest.fixture
def stack() -> Iterator[Stack]:
    LOG.clear()
    pipe = Pipe()  # a stack does not keep its pipeline alive
    yield Stack(Subject(pipe))
    del pipe


def log() -> str:
    text = " ".join(LOG)
    LOG.clear()
    return text


def names(stack: Stack) -> str:
    return " ".join(entry.name for entry in stack.applied)


def test_an_early_phase_is_slipped_under_later_ones(stack: Stack) -> None:
    stack.enable(Fake("graph", Phase.GRAPH), "")
    stack.enable(Fake("slice", Phase.SLICING), "")
    assert log() == "+graph -graph +slice +graph"
    stack.enable(Fake("layout"), "")
    assert log() == "-graph -slice +layout +slice +graph"
    assert names(stack) == "layout slice graph"


def test_only_what_lies_above_is_taken_off(stack: Stack) -> None:
    for name, phase in (("x", Phase.PRECISION), ("y", Phase.LAYOUT), ("z", Phase.GRAPH)):
        stack.enable(Fake(name, phase), "")
    log()
    stack._become([entry for entry in stack.applied if entry.name != "y"])
    assert log() == "-z -y +z"


def test_the_same_again_replaces(stack: Stack) -> None:
    stack.enable(Fake("a"), "first")
    stack.enable(Fake("a", Phase.SLICING), "second")
    assert log() == "+a -a +a"
    assert [entry.why for entry in stack.applied] == ["second"]


def test_what_fails_leaves_what_was(stack: Stack) -> None:
    stack.enable(Fake("a"), "")
    stack.enable(Fake("z", Phase.GRAPH), "")
    log()
    with pytest.raises(MemoryError):
        stack.enable(Fake("b", Phase.SLICING, fails=True), "")
    assert names(stack) == "a z"
    assert log().endswith("+a +z")


def test_refusals_by_name_before_anything_changes(stack: Stack) -> None:
    stack.enable(Fake("a"), "")
    log()
    with pytest.raises(ConfigError, match=r"b and a cannot be on together: They do not mix\."):
        stack.enable(Grumpy("b"), "")
    with pytest.raises(BackendUnavailable, match=r"c cannot be used here: no drive; no fuel\."):
        stack.enable(Fake("c", reasons=("no drive", "no fuel")), "")
    with pytest.warns(UserWarning, match=r"d cannot be used here: no need\. Going on without it"):
        assert not stack.enable(Optional("d", reasons=("no need",)), "")
    assert log() == ""
    assert names(stack) == "a"


def test_nothing_changes_during_a_call(stack: Stack) -> None:
    with stack.call(), pytest.raises(ConfigError, match="while a picture is being drawn"):
        stack.enable(Fake("a"), "")
    stack.enable(Fake("a"), "")


def test_a_replaced_component_is_met_at_the_next_call(stack: Stack) -> None:
    stack.enable(Fake("a"), "")
    stack.subject.pipe.unet = nn.Linear(2, 2)
    log()
    with stack.call():
        assert log() == "-a +a"
    with stack.call():
        assert log() == ""


def test_what_cannot_be_used_with_the_new_component_is_off_and_says_so() -> None:
    pipe: Any = StableDiffusionPipeline.from_pretrained("demo")
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_vae_slicing()
    pipe.enable_attention_slicing()
    pipe.vae = nn.Linear(1, 1)
    with (
        pytest.warns(UserWarning, match=r"vae_slicing is switched off: its VAE is a Linear, which has no use_slicing"),
        pipe._stack.call(),
    ):
        assert [entry.name for entry in pipe.techniques] == ["attention_slicing"]
    assert not hasattr(pipe.vae, "use_slicing")


@dataclass(frozen=True)
class Kernel(Fake):
    """Chooses by the device when it is applied."""

    def apply(self, subject: Subject) -> Callable[[], None]:
        LOG.append(f"{self.label} for {subject.destination}")
        return lambda: None


@dataclass(frozen=True)
class Travel(Fake):
    group: ClassVar[str] = "offload"
    compute_device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable


def test_what_is_chosen_by_the_device_is_chosen_for_the_one_that_weights_travel_to(stack: Stack) -> None:
    stack.enable(Kernel("a"), "")
    gpu = Travel("gpu", Phase.OFFLOAD, compute_device=torch.device("cuda", 1))
    stack.enable(gpu, "")
    assert log() == "a for None a for cuda:1 +gpu"
    stack.enable(Kernel("a"), "")  # slipped under
    assert log() == "-gpu a for cuda:1 +gpu"
    stack.enable(Travel("disk", Phase.OFFLOAD), "")
    assert log() == "-gpu a for cpu +disk"
    stack.disable("attention_slicing")
    assert log() == ""
    stack.clear()
    assert log() == "-disk"
    assert stack.subject.destination is None


def test_after_the_last_call_of_several(stack: Stack) -> None:
    undo = stack.subject.after_calls(lambda: LOG.append("rest"))
    with stack.call():
        with stack.call():
            pass
        assert log() == ""
    assert log() == "rest"
    with pytest.raises(ZeroDivisionError), stack.call():
        raise ZeroDivisionError
    assert log() == "rest"
    undo()
    with stack.call():
        pass
    assert log() == ""


def test_lifting_everything_for_a_moment(stack: Stack) -> None:
    stack.enable(Fake("a"), "")
    stack.enable(Fake("z", Phase.GRAPH), "")
    log()
    stack.lifted(lambda: LOG.append("change"))
    assert log() == "-z -a change +a +z"
    with pytest.raises(ZeroDivisionError):
        stack.lifted(lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    assert names(stack) == "a z"


def test_making_by_name() -> None:
    assert str(make("attention_slicing", {"size": 2})) == "attention_slicing(size=2)"
    assert str(make("vae_slicing", {})) == "vae_slicing"
    with pytest.raises(ConfigError, match="Did you mean 'attention_slicing'"):
        make("attention_slcing", {})
    with pytest.raises(ConfigError, match=r"no setting 'sise'\. Did you mean 'size'\? Its settings: size\.$"):
        make("attention_slicing", {"sise": 2})
    with pytest.raises(ConfigError, match="vae_slicing has no setting 'phase'"):
        make("vae_slicing", {"phase": 1})
    with pytest.raises(ConfigError, match="has its settings"):
        make(Fake(), {"size": 2})


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("sequential_offload", {"granularity": "component"}, "whole components is model offload"),
        ("sequential_offload", {"resident_fraction": 1.5}, "between 0 and 1"),
        ("sequential_offload", {"resident_fraction": "half"}, "between 0 and 1"),
        ("sequential_offload", {"slots": 0}, "whole number from 1 up"),
        ("vae_tiling", {"rows": 3}, "8 or more"),
        ("half_precision", {"dtype": torch.float32}, "float16 or torch.bfloat16"),
        ("attention_backend", {"backend": "fast"}, "unknown attention backend"),
        ("compile", {"parts": ("unet", "text")}, "'text' is none of unet, vae"),
    ],
)
def test_wrong_settings(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(name, settings)


def test_the_pipelines_own_calls() -> None:
    pipe = StableDiffusionPipeline.from_pretrained("demo")
    pipe.enable_attention_slicing(2)
    pipe.enable_vae_slicing()
    pipe.enable_vae_tiling()
    pipe.enable_channels_last()
    pipe.set_attention_backend("plain")
    pipe.enable_model_cpu_offload()
    pipe.enable_sequential_cpu_offload(granularity="block")
    assert [str(entry.technique) for entry in pipe.techniques] == [
        "channels_last", "attention_backend(backend='plain')", "attention_slicing(size=2)", "vae_slicing", "vae_tiling",
        "sequential_offload(granularity='block')",
    ]  # fmt: skip
    assert str(pipe.techniques[0]) == "channels_last [layout, exact]: asked for"
    pipe.remove_all_hooks()
    pipe.enable_attention_slicing(None)
    pipe.disable_vae_slicing()
    pipe.disable_vae_tiling()
    pipe.disable_channels_last()
    pipe.disable_xformers_memory_efficient_attention()
    assert pipe.techniques == ()
    with pytest.warns(UserWarning, match=r"xFormers .* Using the kernel '(flash|openvino)'"):
        pipe.enable_xformers_memory_efficient_attention()
    with pytest.raises(ConfigError, match="unknown technique 'slicing'"):
        pipe.disable("slicing")


def test_opening_with_offload() -> None:
    for offload in ("model", "sequential", "sequential_offload", make("sequential_offload", {"slots": 3})):
        pipe = StableDiffusionPipeline.from_pretrained("demo", offload=offload)
        assert pipe.techniques[0].why == "asked for when opening"
    with pytest.raises(ConfigError, match=r"offload='disk' is none of 'model', 'sequential'"):
        StableDiffusionPipeline.from_pretrained("demo", offload="disk")


def test_an_offloaded_pipeline_says_no_to_moving_and_can_be_saved(tmp_path: Any) -> None:
    pipe = StableDiffusionPipeline.from_pretrained("demo", offload="sequential")
    pipe.save_pretrained(tmp_path / "copy")
    plain = StableDiffusionPipeline.from_pretrained("demo")
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "copy")
    for one, other in zip(plain.unet.parameters(), again.unet.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ConfigError, match=r"sequential_offload is on .* pipe.disable\('sequential_offload'\) first"):
        pipe.to(torch.device("meta"))


def test_attaching_and_taking_off() -> None:
    class Owner:
        shared = 1

    owner = Owner()
    undo = set_attribute(owner, "shared", 2)
    assert owner.shared == 2
    undo()
    assert vars(owner) == {}
    owner.shared = 5
    set_attribute(owner, "shared", 6)()
    assert owner.shared == 5
    undo = set_global(Owner, "shared", 9)
    assert Owner.shared == 9
    undo()
    assert Owner.shared == 1
    done: list[int] = []

    def fail() -> None:
        raise OSError

    with pytest.raises(OSError):
        together([lambda: done.append(1), fail, lambda: done.append(3)])()
    assert done == [3, 1]


def test_a_setting_that_was_changed_meanwhile_stays() -> None:
    """Two pipelines with one of torch's settings on, switched off in the order in which they were switched on."""

    class Torch:
        fast = False

    first, second = set_global(Torch, "fast", True), set_global(Torch, "fast", True)
    first()
    second()
    assert Torch.fast is False


def test_changes_made_before_a_failure_are_undone() -> None:
    log: list[str] = []

    def changes() -> Iterator[Callable[[], None]]:
        for name in "ab":
            log.append(f"+{name}")
            yield lambda name=name: log.append(f"-{name}")
        raise MemoryError

    with pytest.raises(MemoryError):
        together(changes())
    assert log == ["+a", "+b", "-b", "-a"]


def test_replacing_everything_keeps_what_stays_and_refuses_as_a_whole(stack: Stack) -> None:
    a, b, c = Fake("a"), Fake("b", Phase.SLICING), Fake("c", Phase.OFFLOAD)
    stack.enable(a, "test")
    stack.enable(b, "test")
    LOG.clear()
    stack.replace([c, a], "planned")
    assert [entry.name for entry in stack.applied] == ["a", "c"]
    assert "+a" not in LOG  # it stayed on
    with pytest.raises(BackendUnavailable, match="never here"):
        stack.replace([Fake("d", reasons=("never here",))], "planned")
    assert [entry.name for entry in stack.applied] == ["a", "c"]
