"""Whatever way torch has of writing to a weight counts while weights travel, and after they are in memory again.

Each edit is made to a plain network and to an offloaded one; both must then compute the same, bit for bit. Host memory
as the tier below needs no accelerator to be tested: the CPU stands for both.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from leandiffusion import ConfigError, UNet2DConditionModel
from leandiffusion.offload.engine import Engine, engine_of
from leandiffusion.offload.policy import Policy
from leandiffusion.techniques.offloading import run_through
from leandiffusion.weights.load import open_network
from leandiffusion.weights.residence import load_from_disk, names_on_disk

CPU = torch.device("cpu")
CONFIG: dict[str, Any] = {
    "sample_size": 8, "layers_per_block": 1, "block_out_channels": (16, 32), "norm_num_groups": 8,
    "cross_attention_dim": 32, "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
INPUTS = (torch.randn(2, 4, 8, 8), torch.tensor(7), torch.randn(2, 5, 32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint") / "unet"
    UNet2DConditionModel(**CONFIG).save_pretrained(folder)
    return folder


def opened(folder: Path, **options: Any) -> UNet2DConditionModel:
    return open_network(UNet2DConditionModel, folder, **options)


def compute(unet: nn.Module) -> Tensor:
    with torch.no_grad():
        return unet(*INPUTS).sample


def linear(unet: Any) -> nn.Linear:
    return unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q


def by_pointer(w: Tensor) -> None:
    data = (ctypes.c_float * w.numel()).from_address(w.data_ptr())
    data[0] = 5.0


def swapped(w: Tensor) -> None:
    torch.utils.swap_tensors(w, nn.Parameter(torch.full(w.shape, 0.25)))


IN_PLACE: dict[str, Callable[[Tensor], Any]] = {
    "mul_": lambda w: w.mul_(2),
    "data.mul_": lambda w: w.data.mul_(2),
    "data.view": lambda w: w.data.view(-1).mul_(2),
    "data.flatten": lambda w: w.data.flatten().mul_(2),
    "data.reshape": lambda w: w.data.reshape(2, -1).mul_(2),
    "detach.view": lambda w: w.detach().view(-1)[3].fill_(9),
    "view": lambda w: w.view(-1).mul_(2),
    "t": lambda w: w.t().mul_(2),
    "T": lambda w: w.T.add_(1),
    "transpose": lambda w: w.data.transpose(0, 1).add_(1),
    "permute": lambda w: w.data.permute(1, 0).add_(1),
    "narrow": lambda w: w.data.narrow(0, 1, 2).zero_(),
    "select": lambda w: w.data.select(0, 1).zero_(),
    "diagonal": lambda w: w.data.diagonal().add_(1),
    "unbind": lambda w: w.data.unbind(0)[1].zero_(),
    "iteration": lambda w: [row.mul_(0.5) for row in w.data],
    "chunk": lambda w: w.data.chunk(2)[1].zero_(),
    "split": lambda w: w.data.split(3)[0].zero_(),
    "expand": lambda w: w.data[None].expand(1, -1, -1).mul_(2),
    "unsqueeze": lambda w: w.data.unsqueeze(0).mul_(2),
    "squeeze": lambda w: w.data.squeeze().mul_(2),
    "unfold": lambda w: w.data.unfold(0, 2, 2).mul_(2),
    "as_strided": lambda w: w.data.as_strided((2, 2), (1, 1)).fill_(3),
    "view dtype": lambda w: w.data.view(torch.int32).zero_(),
    "view_as": lambda w: w.data.view_as(w.data).mul_(3),
    "real": lambda w: w.data.real.mul_(2),
    "index": lambda w: w.__setitem__(2, 5.0),
    "data index": lambda w: w.data.__setitem__((slice(None), 1), -1.0),
    "index then write": lambda w: w[4].add_(100),
    "boolean mask": lambda w: w.data.__setitem__(w.data > 0, 0.0),
    "contiguous": lambda w: w.data.contiguous().mul_(2),
    "copy_": lambda w: w.data.copy_(torch.ones(w.shape)),
    "zero_": lambda w: w.data.zero_(),
    "fill_": lambda w: w.fill_(0.1),
    "clamp_": lambda w: w.data.clamp_(0, 1),
    "init": lambda w: nn.init.constant_(w, 3.0),
    "init normal": lambda w: nn.init.normal_(w, generator=torch.Generator().manual_seed(1)),
    "index_add_": lambda w: w.data.index_add_(0, torch.tensor([1]), torch.ones(1, w.shape[1])),
    "scatter_": lambda w: w.data.scatter_(0, torch.zeros(1, w.shape[1], dtype=torch.int64), 1.0),
    "masked_fill_": lambda w: w.data.masked_fill_(w.data < 0, 0.0),
    "addcmul_": lambda w: w.data.addcmul_(torch.ones(w.shape), torch.ones(w.shape)),
    "foreach": lambda w: torch._foreach_mul_([w.data], 2.0),
    "out=": lambda w: torch.mul(torch.ones(w.shape), 3.0, out=w.data),
    "set_": lambda w: w.set_(torch.full(w.shape, 0.5)),
    "set_ of its data": lambda w: w.data.set_(torch.full(w.shape, 0.5)),  # changes what `data` gave, and not the weight
    "numpy": lambda w: w.detach().numpy().__setitem__(0, 7.0),
    "asarray": lambda w: np.asarray(w.detach()).__setitem__(0, 7.0),
    "dlpack": lambda w: torch.from_dlpack(w.detach()).mul_(2),
    "numpy dlpack": lambda w: np.from_dlpack(w.detach()).view(),
    "storage": lambda w: w.data.untyped_storage().fill_(0),
    "pointer": by_pointer,
    "apply_": lambda w: w.data.apply_(lambda x: x * 2),
    "share_memory_": lambda w: w.data.share_memory_().mul_(2),
    "data =": lambda w: setattr(w, "data", torch.full(w.shape, 0.5)),
    "data = data * 2": lambda w: setattr(w, "data", w.data * 2),
    "data = view of vector": lambda w: setattr(w, "data", torch.arange(w.numel()).float().view_as(w).data),
    "data = clone, then write": lambda w: (setattr(w, "data", w.data.clone()), w.data.mul_(3)),
    "swap_tensors": swapped,
    "+=": lambda w: w.data.__iadd__(1),
}  # fmt: skip
"""Edits through the parameter itself, of a matrix."""


def other_layer(unet: Any) -> None:
    linear(unet).weight = nn.Parameter(torch.ones_like(linear(unet).weight + 0))


def assigned_state(unet: Any) -> None:
    unet.load_state_dict({name: tensor * 0.5 for name, tensor in unet.state_dict().items()}, assign=True)


def replaced_module(unet: Any) -> None:
    old = unet.conv_in
    unet.conv_in = nn.Conv2d(4, 16, 3, padding=1)
    with torch.no_grad():
        unet.conv_in.weight.copy_(old.weight * 2)
        unet.conv_in.bias.zero_()


class Lora(nn.Module):
    """A layer around another, as adapters are put in."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        nn.init.constant_(self.down.weight, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.down(x).sum(-1, keepdim=True)


def adapter(unet: Any) -> None:
    attention = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    attention.to_q = Lora(attention.to_q)


def parametrized(unet: Any) -> None:
    class Half(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return w * 0.5

    torch.nn.utils.parametrize.register_parametrization(linear(unet), "weight", Half())


def from_vector(unet: Any) -> None:
    vector = nn.utils.parameters_to_vector(unet.parameters()).detach() * 0.9
    nn.utils.vector_to_parameters(vector, unet.parameters())


def optimised(unet: Any) -> None:
    optimizer = torch.optim.SGD(unet.parameters(), lr=0.1)
    for p in unet.parameters():
        p.grad = torch.full(p.shape, 0.01)
    optimizer.step()


STRUCTURE: dict[str, Callable[[Any], Any]] = {
    "new parameter": other_layer,
    "parameter in the table": lambda u: linear(u)._parameters.update(weight=nn.Parameter(torch.ones(16, 16))),
    "no bias": lambda u: setattr(u.conv_in, "bias", None),
    "deleted and registered": lambda u: (
        u.conv_in.__delattr__("bias"), u.conv_in.register_parameter("bias", nn.Parameter(torch.ones(16)))
    ),
    "buffer in place of a parameter": lambda u: (
        u.conv_in.__delattr__("bias"), u.conv_in.register_buffer("bias", torch.ones(16))
    ),
    "another shape": lambda u: (
        setattr(u.conv_out, "weight", nn.Parameter(torch.ones(6, 16, 3, 3))),
        setattr(u.conv_out, "bias", nn.Parameter(torch.ones(6))),
    ),
    "load_state_dict": lambda u: u.load_state_dict({n: t * 0.5 for n, t in u.state_dict().items()}),
    "load_state_dict, assign": assigned_state,
    "tied": lambda u: setattr(
        u.up_blocks[1].attentions[0].transformer_blocks[0].attn1.to_q, "weight", linear(u).weight
    ),
    "another module": replaced_module,
    "adapter": adapter,
    "parametrization": parametrized,
    "vector_to_parameters": from_vector,
    "optimizer": optimised,
    "apply": lambda u: u.apply(lambda m: m.weight.data.mul_(0.9) if isinstance(m, nn.Conv2d) else None),
    "to float64 and back": lambda u: u.double().float(),
}  # fmt: skip
"""Edits through the modules."""

EDITS = {
    **{name: (lambda u, edit=edit: edit(linear(u).weight)) for name, edit in IN_PLACE.items()},
    **STRUCTURE,
}


Pair = tuple[nn.Module, nn.Module, Engine, Callable[[], None]]


def both(folder: Path, **options: Any) -> Pair:
    plain, travelling = opened(folder), opened(folder, **options)
    engine = Engine({"unet": travelling}, Policy(CPU))
    undo = run_through(engine, CPU)
    assert torch.equal(compute(travelling), compute(plain))
    return plain, travelling, engine, undo


@pytest.fixture(params=[True, False], ids=["opened on disk", "opened in memory"])
def pair(request: pytest.FixtureRequest, folder: Path) -> Pair:
    return both(folder, on_disk=request.param)


@torch.no_grad()
@pytest.mark.parametrize("edit", [name for name in EDITS if name != "storage"])  # one storage holds many weights there
def test_an_edit_counts_in_host_memory(edit: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Policy, "from_disk", False)
    plain, travelling, engine, undo = both(folder)
    EDITS[edit](plain)
    EDITS[edit](travelling)
    engine.rest()  # as at the end of a call: of what was fetched ahead nobody can tell whether it was written to
    expected = compute(plain)
    for _ in range(2):
        assert torch.equal(compute(travelling), expected)
    undo()
    engine.close()
    assert torch.equal(compute(travelling), expected)


@torch.no_grad()
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_an_edit_counts(edit: Callable[[Any], Any], folder: Path) -> None:
    plain, travelling, engine, undo = both(folder, on_disk=True)
    edit(plain)
    edit(travelling)
    expected = compute(plain)
    for _ in range(2):
        assert torch.equal(compute(travelling), expected)
    undo()
    engine.close()
    load_from_disk(travelling)
    assert torch.equal(compute(travelling), expected)
    assert not names_on_disk(travelling)


@torch.no_grad()
@pytest.mark.parametrize("edit", IN_PLACE.values(), ids=IN_PLACE.keys())
def test_an_edit_through_what_was_taken_hold_of_before(edit: Callable[[Any], Any], folder: Path) -> None:
    """The parameter as a script has it from before weights went down, or from while they were there."""
    plain, travelling = opened(folder), opened(folder)
    before = linear(travelling).weight
    engine = Engine({"unet": travelling}, Policy(CPU))
    undo = run_through(engine, CPU)
    assert linear(travelling).weight is before
    compute(travelling)
    edit(before)
    edit(linear(plain).weight)
    assert torch.equal(compute(travelling), compute(plain))
    undo()
    engine.close()
    load_from_disk(travelling)
    assert linear(travelling).weight is before
    edit(before)
    edit(linear(plain).weight)
    assert torch.equal(compute(travelling), compute(plain))


@torch.no_grad()
def test_an_alias_taken_while_weights_travel_goes_on_counting(pair: Any) -> None:
    plain, travelling, engine, undo = pair
    alias, reference = linear(travelling).weight.data, linear(plain).weight.data
    undo()
    engine.close()
    load_from_disk(travelling)
    alias.mul_(2)
    reference.mul_(2)
    assert torch.equal(compute(travelling), compute(plain))


@torch.no_grad()
def test_memory_that_somebody_shares_stays(folder: Path) -> None:
    plain, travelling = opened(folder), opened(folder)
    view, array = linear(travelling).weight.view(-1), travelling.conv_in.bias.detach().numpy()
    engine = Engine({"unet": travelling}, Policy(CPU))
    undo = run_through(engine, CPU)
    assert len(engine.kept) == 2
    view.mul_(2)
    array[:] = 1
    linear(plain).weight.mul_(2)
    plain.conv_in.bias.fill_(1)
    assert torch.equal(compute(travelling), compute(plain))
    undo()
    engine.close()


@torch.no_grad()
@pytest.mark.parametrize("where", ["before", "after"])
def test_an_edit_in_the_midst_of_a_forward(where: str, pair: Any) -> None:
    """By a hook that a user put on a layer: also what has been fetched ahead by then must not be used."""
    plain, travelling, *_ = pair

    def edit(unet: Any) -> Callable[..., None]:
        late = unet.up_blocks[1].attentions[0].transformer_blocks[0].attn2.to_k

        def hook(*_: Any) -> None:
            late.weight.data.view(-1).mul_(1.5)
            linear(unet).weight.data.mul_(1.5)

        return hook

    for unet in (plain, travelling):
        register = unet.conv_in.register_forward_pre_hook if where == "before" else unet.conv_out.register_forward_hook
        register(edit(unet))
    for _ in range(3):
        assert torch.equal(compute(travelling), compute(plain))


@torch.no_grad()
def test_writing_twice_through_a_view_that_is_kept(pair: Any) -> None:
    plain, travelling, *_ = pair
    views = [linear(unet).weight.data.view(-1) for unet in (plain, travelling)]
    for factor in (2, 3, 0.1):
        for view in views:
            view.mul_(factor)
        assert torch.equal(compute(travelling), compute(plain))


@torch.no_grad()
def test_functional_call(pair: Any) -> None:
    plain, travelling, *_ = pair
    parameters = {"conv_in.weight": torch.ones(16, 4, 3, 3)}
    for _ in range(2):
        results = [torch.func.functional_call(unet, parameters, INPUTS).sample for unet in (plain, travelling)]
        assert torch.equal(*results)
        assert torch.equal(compute(travelling), compute(plain))


@torch.no_grad()
def test_half_precision_weights_of_other_data_types(pair: Any) -> None:
    """`network.to(dtype)` of weights that travel changes what is computed with, and not just what is said."""
    plain, travelling, *_ = pair
    plain.to(torch.float64)
    travelling.to(torch.float64)
    assert {p.dtype for p in travelling.parameters()} == {torch.float64}
    inputs = [INPUTS[0].double(), INPUTS[1], INPUTS[2].double()]
    assert torch.equal(travelling(*inputs).sample, plain(*inputs).sample)


def test_a_weak_reference_that_bars_replacing_the_data_is_told(pair: Any) -> None:
    import weakref

    _, travelling, *_ = pair
    weight = linear(travelling).weight
    keeper = weakref.ref(weight)
    with pytest.raises(ConfigError, match=r"assign a new nn\.Parameter"):
        weight.data = torch.ones(16, 16)
    assert keeper() is weight


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.data.set_(torch.ones(4, 4)),
        lambda w: w.data.resize_(4, 4),
        lambda w: w.data.resize_as_(torch.ones(4, 4)),
    ],
)
def test_changing_memory_that_is_not_there_is_refused(change: Callable[[Tensor], Any], pair: Any) -> None:
    plain, travelling, *_ = pair
    with pytest.raises(ConfigError, match="has no memory whose size"):
        change(linear(travelling).weight)
    assert torch.equal(compute(travelling), compute(plain))


def test_what_is_only_read_takes_no_memory(pair: Any) -> None:
    _, travelling, *_ = pair
    for p in travelling.parameters():
        p.norm()
        p.float().sum()
        p.clone()
    assert all(p.on_disk for p in travelling.parameters())


def test_a_network_goes_at_once_with_its_engine(folder: Path) -> None:
    unet = opened(folder)
    engine = Engine({"unet": unet}, Policy(CPU))
    undo = run_through(engine, CPU)
    compute(unet)
    gc.disable()
    try:
        import weakref

        gone = [weakref.ref(unet), weakref.ref(unet.conv_in), weakref.ref(engine)]
        assert engine_of(unet) is engine
        del unet, engine, undo
        assert [reference() for reference in gone] == [None, None, None]
    finally:
        gc.enable()
