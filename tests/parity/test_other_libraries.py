"""What other libraries do with networks: export, trace, convert, compile, offload, gather, take to pieces.

Each way gives what calling the network gives: exactly, except where it compiles its own kernels (1e-4 of numbers of the
order of 1, in float32).
"""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import openvino
import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook, dispatch_model, infer_auto_device_map
from accelerate.utils import find_batch_size, send_to_device
from diffusers.hooks import apply_group_offloading, apply_layerwise_casting
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from leandiffusion import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from leandiffusion.core.output import Output

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch.jit's own, and openvino's of it
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:accelerate"),
]


@dataclass
class Case:
    network: nn.Module
    inputs: dict[str, Tensor]

    def expected(self) -> Tensor:
        with torch.no_grad():
            return first(self.network(**self.inputs))

    @property
    def args(self) -> tuple[Tensor, ...]:
        return tuple(self.inputs.values())


def first(output: Any) -> Tensor:
    """The first result, however it was handed over: as ours, as a dict, or as a tuple."""
    return next(iter(output.values())) if isinstance(output, dict) else output[0]


def _unet() -> Case:
    network = UNet2DConditionModel(
        block_out_channels=(8, 8), norm_num_groups=4, cross_attention_dim=12, attention_head_dim=2, layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    inputs = {"sample": torch.randn(2, 4, 6, 6), "timestep": torch.tensor(3)}
    return Case(network, inputs | {"encoder_hidden_states": torch.randn(2, 5, 12)})


def _vae() -> Case:
    types = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    network = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, **types)
    return Case(network, {"sample": torch.randn(2, 3, 8, 8)})


def _text() -> Case:
    network = CLIPTextModel(
        vocab_size=100, hidden_size=12, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, eos_token_id=99,
    )  # fmt: skip
    return Case(network, {"input_ids": torch.tensor([[1, 5, 99], [2, 99, 0]])})


@pytest.fixture(params=[_unet, _vae, _text], ids=["unet", "vae", "text"])
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    made: Case = request.param()
    made.network.eval()
    return made


def is_close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Within float32's rounding, 1e-5 of the largest: layers that nobody watches may multiply by oneDNN."""
    return torch.allclose(one, other, rtol=0, atol=1e-5 * float(other.abs().max()))


# Up to ten seconds each on a slow machine: torch and OpenVINO compile a network.
@pytest.mark.parametrize(("strict", "return_dict"), [(True, True), (False, True), (False, False)])
def test_exported_programs(case: Case, strict: bool, return_dict: bool) -> None:
    """One of them saved and loaded too: the file names the output's type."""
    keywords = {"return_dict": return_dict}
    program = torch.export.export(case.network, case.args, kwargs=keywords, strict=strict)
    if strict:
        torch.export.save(program, file := io.BytesIO())
        file.seek(0)
        program = torch.export.load(file)
    output = program.module()(*case.args, **keywords)
    assert is_close(first(output), case.expected())
    assert isinstance(output, Output) is return_dict


@pytest.mark.parametrize("gradients", [True, False])
def test_traces(case: Case, gradients: bool) -> None:
    """With its check, which torch runs without gradients, and with inputs by place and by name."""
    with torch.set_grad_enabled(gradients):
        by_place = torch.jit.trace(case.network, case.args, strict=False)
        by_name = torch.jit.trace(case.network, example_kwarg_inputs=case.inputs, strict=False)
    assert is_close(first(by_place(*case.args)), case.expected())
    assert is_close(first(by_name(**case.inputs)), case.expected())


def test_openvino(case: Case) -> None:
    """With gradients on, as in a script that has said nothing about them."""
    converted = openvino.convert_model(case.network, example_input=case.args)
    result = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(
        [tensor.numpy() for tensor in case.args]
    )
    torch.testing.assert_close(torch.from_numpy(result[0]), case.expected(), atol=1e-4, rtol=1e-4)


def test_one_compiled_graph(case: Case) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(case.network, backend="eager", fullgraph=True)
    with torch.no_grad():
        output = compiled(*case.args)
    assert isinstance(output, Output)
    assert is_close(first(output), case.expected())


def _dispatch(network: nn.Module, folder: str) -> None:
    places = {name: ("disk", "cpu")[i % 2] for i, (name, _) in enumerate(network.named_children())}
    dispatch_model(network, places, main_device="cpu", offload_dir=folder)


def _infer(network: nn.Module, folder: str) -> None:
    places = infer_auto_device_map(network, max_memory={"cpu": 20_000, "disk": 10**9})
    dispatch_model(network, places, main_device="cpu", offload_dir=folder)


def _in_groups(**settings: Any) -> Callable[[nn.Module, str], None]:
    def apply(network: nn.Module, folder: str) -> None:
        apply_group_offloading(network, onload_device=torch.device("cpu"), **settings)

    return apply


OFFLOADING: dict[str, Callable[[nn.Module, str], Any]] = {
    "cpu_offload": lambda network, _: cpu_offload(network, execution_device=torch.device("cpu"), offload_buffers=True),
    "cpu_offload_with_hook": lambda network, _: cpu_offload_with_hook(network, "cpu"),
    "dispatch_model": _dispatch,
    "infer_auto_device_map": _infer,
    "groups of leaves": _in_groups(offload_type="leaf_level"),
    "groups of blocks": _in_groups(offload_type="block_level", num_blocks_per_group=1),
    "layerwise casting": lambda network, _: apply_layerwise_casting(network, torch.float32, torch.float32),
}


@pytest.mark.parametrize("apply", OFFLOADING.values(), ids=OFFLOADING)
def test_offloading_of_other_libraries(case: Case, apply: Callable[[nn.Module, str], Any]) -> None:
    expected = case.expected()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        apply(case.network, folder)
        output = case.network(**case.inputs)
        assert is_close(first(output), expected)
        assert is_close(first(case.network(*case.args)), expected), "a second time"


def test_outputs_are_moved_gathered_and_copied(case: Case) -> None:
    with torch.no_grad():
        output = case.network(**case.inputs)
    gathered = type(output)((name, output[name]) for name in output)  # as torch.nn.parallel.gather makes one
    pickled = pickle.loads(pickle.dumps(output))
    mapped = torch.utils._pytree.tree_map(lambda tensor: tensor, output)
    for made in (send_to_device(output, "cpu"), gathered, pickled, mapped, copy.copy(output), copy.deepcopy(output)):
        assert type(made) is type(output)
        assert list(made) == list(output)
        assert torch.equal(first(made), first(output))
        assert made.to_tuple()[0] is made[0] is getattr(made, next(iter(made)))
    assert find_batch_size(output) == 2


def test_what_a_module_was_given_and_gave_stays(case: Case) -> None:
    """Hooks may keep what they see, and a block may be run again on its inputs, as checkpoints of gradients do."""
    seen: list[tuple[nn.Module, tuple[Any, ...], Any, Any, Any]] = []

    def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.append((module, args, output, copy.deepcopy(args), copy.deepcopy(output)))

    hooks = [module.register_forward_hook(keep) for module in case.network.modules()]
    with torch.no_grad():
        case.network(**case.inputs)
    for hook in hooks:
        hook.remove()
    assert len(seen) > 20
    for module, args, output, args_then, output_then in seen:
        torch.testing.assert_close((args, output), (args_then, output_then), rtol=0, atol=0, msg=type(module).__name__)


def test_every_block_can_be_checkpointed(case: Case) -> None:
    """Gradients are those of an ordinary call."""

    def gradients() -> list[Tensor]:
        case.network.zero_grad()
        first(case.network(**case.inputs)).float().square().sum().backward()
        return [p.grad.clone() for p in case.network.parameters() if p.grad is not None]

    expected = gradients()
    blocks = [m for m in case.network.modules() if type(m).__name__.endswith(("Block", "Layer", "Block2D"))]
    for block in blocks:
        block.forward = _checkpointed(block.forward)  # type: ignore[method-assign]
    torch.testing.assert_close(gradients(), expected)
    assert len(blocks) > 1


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    parameters = inspect.signature(forward)

    def run(*args: Any, **kwargs: Any) -> Any:
        parameters.bind(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
