"""One drawing by itself: what the UNet is given in each step, and what callbacks, tasks and controls change of it."""

from __future__ import annotations

import ast
import copy
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import leandiffusion
from leandiffusion import ConfigError, DDIMScheduler, UNet2DConditionModel
from leandiffusion.measure.work import count_flops
from leandiffusion.modules.transformer import Attention
from leandiffusion.run.callback import Callback
from leandiffusion.run.conditioning import Conditioning
from leandiffusion.run.run import Run
from leandiffusion.run.tasks.base import Task
from leandiffusion.run.tasks.text_to_image import TextToImage

NAMES = ("latents", "prompt_embeds")
SHAPE = (1, 4, 8, 8)
Make = Callable[..., Run]


class Spy:
    """Records what each call of a UNet is given."""

    def __init__(self, unet: Any) -> None:
        self.unet, self.config = unet, unet.config
        self.calls: list[tuple[torch.Tensor, dict[str, Any]]] = []

    def __call__(self, x: torch.Tensor, t: torch.Tensor, **inputs: Any) -> Any:
        self.calls.append((x, inputs))
        return self.unet(x, t, **inputs)


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=8, cross_attention_dim=32,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip


@pytest.fixture(autouse=True)
def without_gradients() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture
def make(unet: UNet2DConditionModel) -> Make:
    def make(task: Task | None = None, *, scale: float = 7.5, steps: int = 3, **settings: Any) -> Run:
        scheduler = DDIMScheduler()
        scheduler.set_timesteps(steps)
        model = SimpleNamespace(
            unet=Spy(settings.pop("unet", unet)), scheduler=scheduler, guidance_scale=scale, guidance_rescale=0.0,
            interrupt=False, device=torch.device("cpu"), dtype=torch.float32,
        )  # fmt: skip
        run = Run(
            model=model, task=task or TextToImage(torch.Generator().manual_seed(0)), shape=SHAPE,
            conditioning_of=lambda tensors: Conditioning(tensors["prompt_embeds"]), timesteps=scheduler.timesteps,
            **settings,
        )  # fmt: skip
        run.condition_on({"prompt_embeds": torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(1))})
        return run

    return make


def test_a_prediction_is_one_call_of_the_unet(make: Make, unet: UNet2DConditionModel) -> None:
    """Both halves at once, combined as Ho & Salimans 2022 write it: to the last bit, being the same operations."""
    run, x = make(), torch.randn(SHAPE)
    prediction = run.predict(x, 1)
    [(given, inputs)] = run.model.unet.calls
    assert torch.equal(given, torch.cat([x, x]))
    assert list(inputs) == ["encoder_hidden_states"], "what is None is not passed, for UNets that take nothing else"
    unconditional, conditional = unet(given, run.times[1], **inputs).sample.chunk(2)
    assert torch.equal(prediction, unconditional + 7.5 * (conditional - unconditional))


def test_nothing_else_calls_the_unet() -> None:
    """In the rooms that draw; techniques call it to trace it, benchmarks to count its operations."""
    package = Path(leandiffusion.__file__).parent
    calls = [
        file.relative_to(package).as_posix()
        for room in ("run", "pipelines", "families")
        for file in (package / room).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "unet"
    ]
    assert calls == ["run/run.py"]


@pytest.mark.parametrize(("steps", "calls"), [(3, 3), (1, 1)])
def test_as_many_calls_as_steps(make: Make, steps: int, calls: int) -> None:
    run, done = make(steps=steps), []
    assert run.length == steps
    run.denoise(lambda: done.append(1))
    assert (len(run.model.unet.calls), len(done)) == (calls, steps)


def test_the_conditioning_lasts_as_long_as_its_tensors(make: Make) -> None:
    """What is computed from it once, such as keys and values, is valid for as long as it is the same object."""
    seen: list[Conditioning] = []

    def change(model: Any, i: int, t: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any] | None:
        seen.append(run.conditioning)
        if i == 1:
            tensors["prompt_embeds"] = tensors["prompt_embeds"] * 2
        return tensors

    run = make(steps=4, callback=Callback(change, NAMES, NAMES))
    run.denoise()
    assert [each is seen[0] for each in seen] == [True, True, False, False]
    assert seen[2] is seen[3]
    assert torch.equal(seen[3].embeds, 2 * seen[0].embeds)


def test_rows_that_do_not_fit_are_found_before_the_unet_runs(make: Make) -> None:
    run = make(scale=1.0)
    with pytest.raises(ConfigError, match="prompt_embeds has 2 rows and this step predicts 1"):
        run.denoise()
    assert run.model.unet.calls == []


def test_a_control_adds_inputs_of_the_unet(make: Make, unet: UNet2DConditionModel) -> None:
    """Residuals as a ControlNet's, of every step: noughts change nothing, to the last bit; others do."""
    shapes = [(2, 16, 8, 8), (2, 16, 8, 8), (2, 16, 4, 4), (2, 32, 4, 4)]
    steps: list[int] = []

    def residuals(value: float) -> Any:
        def control(run: Run, given: torch.Tensor, i: int) -> dict[str, Any]:
            assert given.shape == (2, 4, 8, 8)
            steps.append(i)
            return {
                "down_block_additional_residuals": [torch.full(shape, value) for shape in shapes],
                "mid_block_additional_residual": torch.full(shapes[-1], value),
            }

        return control

    plain = make().denoise()
    assert torch.equal(make(controls=[residuals(0.0)]).denoise(), plain)
    assert steps == [0, 1, 2]
    assert not torch.equal(make(controls=[residuals(0.1)]).denoise(), plain)


def test_both_texts_share_a_sample_beside_a_control(make: Make, unet: UNet2DConditionModel) -> None:
    """What a ControlNet adds differs by text, and comes in where the UNet has repeated its sample."""
    rows: list[int] = []
    shapes = [(2, 16, 8, 8), (2, 16, 8, 8), (2, 16, 4, 4), (2, 32, 4, 4)]
    given: dict[str, Any] = {
        "down_block_additional_residuals": [torch.linspace(-1, 1, 2).view(2, 1, 1, 1).expand(s) for s in shapes],
        "mid_block_additional_residual": torch.full(shapes[-1], 0.5),
    }

    def call(shared: bool) -> Any:
        def run_unet(run: Run, sample: torch.Tensor, i: int, inputs: Any) -> torch.Tensor:
            rows.append(len(sample))
            predicted.append(unet(sample if shared else torch.cat([sample, sample]), run.times[i], **inputs).sample)
            return predicted[-1]

        return run_unet

    predicted: list[torch.Tensor] = []
    for shared in (True, False):
        run = make(controls=[lambda *_: given])
        run.model.unet = unet
        run.call = call(shared)
        with torch.no_grad():
            run.predict(torch.linspace(-1, 1, 256).view(1, 4, 8, 8), 0)
    assert rows == [1, 1]
    assert (predicted[0] - predicted[1]).abs().max() < 1e-5 * predicted[1].abs().max()  # sums in another order


class Inpainting(Task):
    """A second task, as a model of nine channels has it: a mask and a masked picture beside the latents."""

    extra_channels = 5

    def __init__(self) -> None:
        self.mask, self.known = torch.ones(1, 1, 8, 8), torch.full(SHAPE, 0.5)
        self.mask[..., :4] = 0
        self.steps: list[int] = []

    def first_latents(self, run: Run) -> torch.Tensor:
        noise = torch.randn(run.shape, generator=torch.Generator().manual_seed(0))
        return run.scheduler.add_noise(self.known, noise, run.timesteps[:1])

    def unet_input(self, run: Run, x: torch.Tensor, i: int) -> torch.Tensor:
        return torch.cat([super().unet_input(run, x, i), self.mask, self.known * (1 - self.mask)], dim=1)

    def after_step(self, run: Run, x: torch.Tensor, i: int) -> torch.Tensor:
        self.steps.append(i)
        return self.mask * x + (1 - self.mask) * self.known


def test_another_task_needs_nothing_of_the_loop(make: Make, unet: UNet2DConditionModel) -> None:
    nine = UNet2DConditionModel(**{**unet.config, "in_channels": 9}).eval()
    task = Inpainting()

    def look(model: Any, i: int, t: torch.Tensor, tensors: dict[str, Any]) -> None:
        assert torch.equal(tensors["latents"][..., :4], task.known[..., :4]), "after the task has had its way"

    run = make(task, unet=nine, callback=Callback(look, NAMES, NAMES))
    x = run.denoise()
    assert [given.shape for given, _ in run.model.unet.calls] == [(2, 9, 8, 8)] * 3
    assert task.steps == [0, 1, 2]
    assert x.shape == SHAPE
    assert not torch.equal(x[..., 4:], task.known[..., 4:])


def test_our_unet_is_given_one_sample_for_both_texts(make: Make, unet: UNet2DConditionModel) -> None:
    run, x = make(), torch.randn(SHAPE)
    spied = run.predict(x, 0)
    assert len(run.model.unet.calls[0][0]) == 2  # a network that is not ours
    rows: list[int] = []
    forward = UNet2DConditionModel.forward

    def spy(self: UNet2DConditionModel, sample: torch.Tensor, *args: Any, **inputs: Any) -> Any:
        rows.append(len(sample))
        return forward(self, sample, *args, **inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UNet2DConditionModel, "forward", spy)
        run.model.unet = unet
        shared = run.predict(x, 0)
    assert rows == [1]
    assert torch.allclose(shared, spied, rtol=0, atol=1e-5 * float(spied.abs().max()))


@pytest.mark.parametrize("onlooker", ["hook", "replaced forward", "subclass", "control"])
def test_who_looks_on_sees_a_sample_for_each_text(onlooker: str, make: Make, unet: UNet2DConditionModel) -> None:
    unet, rows = copy.deepcopy(unet), []

    def seen(sample: torch.Tensor) -> None:
        rows.append(len(sample))

    run = make(controls=[lambda run, given, i: seen(given) or {}] if onlooker == "control" else [])
    if onlooker == "hook":
        unet.register_forward_pre_hook(lambda module, args: seen(args[0]))
    if onlooker == "replaced forward":
        forward = unet.forward
        unet.forward = lambda sample, *args, **inputs: seen(sample) or forward(sample, *args, **inputs)
    if onlooker == "subclass":

        class Own(UNet2DConditionModel):
            def forward(self, sample: torch.Tensor, *args: Any, **inputs: Any) -> Any:
                seen(sample)
                return super().forward(sample, *args, **inputs)

        unet.__class__ = Own
    run.model.unet = unet
    run.predict(torch.randn(SHAPE), 0)
    assert rows == [2]


# -- the text's keys and values --------------------------------------------------------------------------------------


def text_flops(run: Run, i: int = 0) -> int:
    return count_flops(lambda: run.predict(torch.ones(SHAPE), i))


def own(make: Make, unet: UNet2DConditionModel, **settings: Any) -> Run:
    run = make(**settings)
    run.model.unet = unet
    return run


def test_the_text_is_projected_once(make: Make, unet: UNet2DConditionModel) -> None:
    run = own(make, unet)
    x = torch.ones(SHAPE)
    layers = [module for module in unet.modules() if isinstance(module, Attention) and module.cross_attention_dim == 32]
    cross = [layer for name, layer in unet.named_modules() if name.endswith("attn2")]
    assert cross
    assert {*cross} <= {*layers}
    projecting = sum(2 * 2 * 2 * 6 * layer.to_k.weight.numel() for layer in cross)  # keys and values of 2 x 6 tokens
    first, later = text_flops(run), text_flops(run, 1)
    assert first - later == projecting
    assert torch.equal(run.predict(x, 1), own(make, unet).predict(x, 1))


def test_other_text_is_another_memory(make: Make, unet: UNet2DConditionModel) -> None:
    run, x = own(make, unet), torch.ones(SHAPE)
    run.predict(x, 0)
    other = torch.randn(2, 6, 32)
    run.condition_on({"prompt_embeds": other})
    fresh = own(make, unet)
    fresh.condition_on({"prompt_embeds": other})
    assert torch.equal(run.predict(x, 0), fresh.predict(x, 0))


@pytest.mark.parametrize("what", ["a weight", "a weight by its data", "the text"])
def test_what_a_callback_writes_counts(what: str, make: Make, unet: UNet2DConditionModel) -> None:
    unet = copy.deepcopy(unet).requires_grad_(False)

    def change(model: Any, i: int, t: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        weight = unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v.weight
        if what == "a weight":
            weight.mul_(-3)
        if what == "a weight by its data":
            weight.data.mul_(-3)
        if what == "the text":
            tensors["prompt_embeds"].mul_(-3)
        return {}

    run, x = own(make, unet, callback=Callback(change, NAMES, NAMES)), torch.ones(SHAPE)
    run.predict(x, 0)
    run._call_back(run.callback, x, 0)
    fresh = own(make, unet)
    fresh.condition_on(run.tensors)
    assert torch.equal(run.predict(x, 0), fresh.predict(x, 0))


@pytest.mark.parametrize("whose", ["patched", "hooked", "another layer", "a hook on the network"])
def test_layers_of_others_are_called_at_every_step(whose: str, make: Make, unet: UNet2DConditionModel) -> None:
    unet = copy.deepcopy(unet)
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    calls: list[int] = []
    forward = attention.to_k.forward
    if whose == "patched":
        attention.to_k.forward = lambda x: calls.append(1) or forward(x)
    if whose == "hooked":
        attention.to_k.register_forward_hook(lambda module, args, out: calls.append(1))
    if whose == "another layer":

        class Lora(torch.nn.Module):
            def __init__(self, inner: torch.nn.Linear) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                calls.append(1)
                return self.inner(x)

        attention.to_k = Lora(attention.to_k)
    if whose == "a hook on the network":
        unet.register_forward_pre_hook(lambda module, args: calls.append(1))
    run = own(make, unet)
    for i in range(3):
        run.predict(torch.ones(SHAPE), i)
    assert len(calls) == 3


def test_drawings_at_once_have_a_memory_each(make: Make, unet: UNet2DConditionModel) -> None:
    x = torch.ones(SHAPE)
    runs = [own(make, unet) for _ in range(4)]
    for n, run in enumerate(runs):
        run.condition_on({"prompt_embeds": torch.full((2, 6, 32), 0.3 * n)})
    expected = [copy.copy(run).predict(x, 0) for run in runs]
    results: dict[int, list[torch.Tensor]] = {}

    def draw(n: int) -> None:
        with torch.no_grad():
            results[n] = [runs[n].predict(x, 0) for _ in range(5)]

    threads = [threading.Thread(target=draw, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(made, expected[n]) for n in range(4) for made in results[n])
