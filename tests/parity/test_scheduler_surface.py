"""What scripts touch of a scheduler besides whole runs: attributes, fresh schedulers, other schedulers' configs.

Numbers are compared within 1e-5 of the largest, as in test_schedulers; settings, types and shapes exactly.
"""

from __future__ import annotations

import warnings
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leandiffusion.core.errors import ConfigError
from leandiffusion.schedulers import schedulers

diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:diffusers.*", "ignore::FutureWarning:diffusers.*", "ignore:__array_wrap__ must accept"
)

NAMES = sorted(schedulers)
SHAPE = (2, 4, 4, 4)
DPM, UNIPC = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
DEIS, SINGLESTEP, EDM = "DEISMultistepScheduler", "DPMSolverSinglestepScheduler", "EDMEulerScheduler"

# Public names of diffusers that are not here, or are of another type, and why.
METHODS_OF_THE_SOLVER = {  # the parts of a step; here they are private, since a step's state is
    "convert_model_output", "dpm_solver_first_order_update", "multistep_dpm_solver_second_order_update",
    "multistep_dpm_solver_third_order_update", "multistep_uni_c_bh_update", "multistep_uni_p_bh_update",
    "model_outputs", "lower_order_nums", "last_sample", "timestep_list", "cur_model_output", "cur_sample",
    "dt", "prev_derivative", "deis_first_order_update", "multistep_deis_second_order_update",
    "multistep_deis_third_order_update", "singlestep_dpm_solver_second_order_update",
    "singlestep_dpm_solver_third_order_update", "singlestep_dpm_solver_update", "noise_sampler", "mid_point_sigma",
}  # fmt: skip
NOT_OURS = {"push_to_hub", "register_for_auto_class", "get_config_dict", "extract_init_dict"}  # of its own machinery
FLOW = {"stretch_shift_to_terminal", "time_shift"}  # flow matching is refused
ABSENT = METHODS_OF_THE_SOLVER | NOT_OURS | FLOW | {"one"}
FRESH = {"timesteps", "sigmas"}  # of solvers that cannot step yet: whole numbers, and the sigma after the last


def both(name: str, **settings: Any) -> tuple[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(diffusers, name)(**settings), schedulers.get(name)(**settings)


def kind(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return "tensor", tuple(value.shape), value.dtype
    return "dict" if isinstance(value, dict) else type(value)


def surface(scheduler: Any) -> dict[str, Any]:
    names = [name for name in dir(scheduler) if not name.startswith("_")]
    values = {name: getattr(scheduler, name) for name in names if name not in scheduler.config}
    return {name: "method" if callable(value) else kind(value) for name, value in values.items()}


@pytest.mark.parametrize("name", NAMES)
def test_public_names_and_their_types(name: str) -> None:
    theirs, ours = both(name)
    for fresh in (True, False):
        if not fresh:
            for each in (theirs, ours):
                each.set_timesteps(10)
        expected, found = surface(theirs), surface(ours)
        assert expected.keys() - found.keys() <= ABSENT
        other = {key for key in expected.keys() & found.keys() if expected[key] != found[key]}
        steps_at_once = name.startswith(("DDPM", "EulerDiscrete", "Heun", "LMS"))
        assert other <= (FRESH if fresh and not steps_at_once else set())


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("DDPM", "Euler", "Heun", "LMS"))])
def test_fresh_schedulers_step_through_training(name: str) -> None:
    theirs, ours = both(name)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    states = []
    for each in (theirs, ours):
        state = x
        for t in each.timesteps[:3]:
            arguments = {} if name.startswith(("Heun", "LMS")) else {"generator": torch.Generator().manual_seed(1)}
            state = each.step(torch.tanh(each.scale_model_input(state, t)), t, state, **arguments).prev_sample
        states.append(state)
    assert (states[0] - states[1]).abs().max() <= 1e-5 * states[0].abs().max()


@pytest.mark.parametrize("count", [1, 2, 30, 1500])
@pytest.mark.parametrize("name", sorted(set(NAMES) - {EDM}))
def test_trained_betas_of_any_length(name: str, count: int, tmp_path: Path) -> None:
    betas = np.linspace(0.001, 0.02, count)
    if count == 1 and name.startswith(("Heun", "LMS")):  # there the search for a sigma's timestep needs two
        schedulers.get(name)(trained_betas=betas)
        return
    theirs, ours = both(name, trained_betas=betas)
    assert torch.equal(ours.betas, theirs.betas)
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    ours.save_pretrained(tmp_path)
    assert torch.equal(schedulers.get(name).from_pretrained(tmp_path).betas, theirs.betas)


def test_timesteps_beyond_trained_betas_are_named() -> None:
    scheduler = schedulers.get("DDIMScheduler")(trained_betas=[0.1, 0.3])
    scheduler.set_timesteps(10)
    with pytest.raises(ConfigError, match="timestep 900 is outside 0 … 1"):
        scheduler.step(torch.zeros(SHAPE), 900, torch.zeros(SHAPE))


@pytest.mark.parametrize("written", ["as it is", "with all settings"])
@pytest.mark.parametrize("source", NAMES)
def test_every_config_makes_every_scheduler(source: str, written: str) -> None:
    """Of either library, from a scheduler or a file, and back again."""
    for origin in both(source):
        config = dict(origin.config)
        if written == "with all settings":
            config.pop("_use_default_values")
        for target in NAMES:
            if {source, target} in ({DEIS, DPM}, {DEIS, SINGLESTEP}) and written == "with all settings":
                solver = source if target == DEIS else target
                here = schedulers.get(solver).from_config(schedulers.get(DEIS).from_config(config).config)
                assert here.config.algorithm_type == "dpmsolver++"
                continue  # there this raises: an algorithm 'deis' has no final sigma of zero
            if target == EDM and config.get("sigma_min", 0) is None:
                here = schedulers.get(EDM).from_config(config)
                assert (here.config.sigma_min, here.config.sigma_max) == (0.002, 80.0)
                continue  # there this raises: it computes with None
            there, here = getattr(diffusers, target).from_config(config), schedulers.get(target).from_config(config)
            assert {key: here.config[key] for key in here.config_keys()} == {
                key: there.config[key] for key in here.config_keys()
            }
            ours = schedulers.get(target).from_config(config)
            over = getattr(diffusers, source).from_config(ours.config)
            back = schedulers.get(source).from_config(ours.config)
            assert {key: back.config[key] for key in back.config_keys()} == {
                key: over.config[key] for key in back.config_keys()
            }


def test_a_variance_of_none_is_the_small_one() -> None:
    small, none = (schedulers.get("DDPMScheduler")(variance_type=kind) for kind in ("fixed_small", None))
    x = torch.ones(SHAPE)
    steps = [each.step(x, 500, x, generator=torch.Generator().manual_seed(0)).prev_sample for each in (small, none)]
    assert torch.equal(*steps)


SIGMAS = [{}, *({f"use_{shape}": True} for shape in ("karras_sigmas", "exponential_sigmas", "beta_sigmas"))]
ALGORITHMS = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")
SOLVERS: list[tuple[str, dict[str, Any]]] = [
    *((DPM, {"algorithm_type": each, "solver_type": "midpoint"}) for each in ALGORITHMS),
    *((DPM, {"algorithm_type": each, "solver_type": "heun"}) for each in ALGORITHMS),
    *((DPM, {"algorithm_type": each, "use_lu_lambdas": True}) for each in ALGORITHMS),
    *((UNIPC, {"solver_type": each, "predict_x0": x0}) for each, x0 in product(("bh1", "bh2"), (True, False))),
]


@pytest.mark.parametrize(("name", "settings"), SOLVERS, ids=str)
def test_a_last_sigma_that_stays_changes_nothing(name: str, settings: dict[str, Any]) -> None:
    """'sigma_min' after a schedule that ends there: the last step has no length. diffusers gives the same, or NaN."""
    for shape, (lowered, order) in product(SIGMAS, ((True, 2), (False, 3))):
        if (shape and "use_lu_lambdas" in settings) or (order == 3 and settings.get("algorithm_type", "")[:3] == "sde"):
            continue
        chosen = settings | shape | {
            "final_sigmas_type": "sigma_min", "lower_order_final": lowered, "solver_order": order,
            "beta_schedule": "scaled_linear",
        }  # fmt: skip
        finals = []
        for each in both(name, **chosen):
            each.set_timesteps(6)
            x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
            arguments = {"generator": torch.Generator().manual_seed(1)} if name == DPM else {}
            for t in each.timesteps:
                before, x = x, each.step(0.9 * torch.tanh(x), t, x, **arguments).prev_sample
            finals.append(x)
            if isinstance(each, schedulers.get(name)) and each.sigmas[-1] == each.sigmas[-2] and name == DPM:
                assert torch.equal(x, before)  # UniPC still corrects the state before the last
        assert finals[1].isfinite().all()
        if finals[0].isfinite().all() and not exact_there(name, settings):
            assert (finals[0] - finals[1]).abs().max() <= 1e-4 * finals[0].abs().max()


def exact_there(name: str, settings: dict[str, Any]) -> bool:
    """Whether diffusers' float32 coefficients lose too much to compare with: see test_schedulers.exact_table."""
    return name == UNIPC and not settings["predict_x0"]


@pytest.mark.parametrize("name", [DPM, UNIPC])
def test_timesteps_outside_the_schedule(name: str) -> None:
    for each in both(name):
        each.set_timesteps(10)
        assert each.index_for_timestep(1234) == 9


@pytest.mark.parametrize("name", ["DDPMScheduler", "LCMScheduler"])
def test_previous_timesteps(name: str) -> None:
    theirs, ours = both(name)
    assert theirs.previous_timestep(500) == ours.previous_timestep(500) == 499
    for each in (theirs, ours):
        each.set_timesteps(timesteps=[999, 759, 499, 259])
    assert ours.custom_timesteps is theirs.custom_timesteps is True
    for t in (999, 499, 259):
        assert ours.previous_timestep(t).item() == theirs.previous_timestep(t).item()


def test_multistep_from_outputs_set_by_hand() -> None:
    """PNDM's `ets` may be filled by the caller; then step_plms needs no warm-up."""
    past = [torch.full(SHAPE, value) for value in (0.1, 0.2, 0.15, 0.05)]
    results = []
    for each in both("PNDMScheduler"):
        each.set_timesteps(10)
        each.ets = past[:]
        x = torch.ones(SHAPE)
        results.append(each.step_plms(0.1 * x, int(each.timesteps[12]), x).prev_sample)
    assert (results[0] - results[1]).abs().max() <= 1e-5 * results[0].abs().max()
    fresh = schedulers.get("PNDMScheduler")()
    fresh.set_timesteps(10)
    with pytest.raises(ConfigError, match="12 Runge-Kutta calls"):
        fresh.step_plms(past[0], 100, past[0])
    fresh.counter = 12
    with pytest.raises(ConfigError, match="step_prk for call 13"):
        fresh.step_prk(past[0], 100, past[0])


@pytest.mark.parametrize("name", NAMES)
def test_unused_keywords_are_returned_when_asked_for(name: str, tmp_path: Path) -> None:
    theirs, ours = both(name)
    ours.save_pretrained(tmp_path)
    for cls in (type(theirs), type(ours)):
        built, unused = cls.from_pretrained(tmp_path, return_unused_kwargs=True, zeta=1, num_train_timesteps=900)
        assert isinstance(built, cls)
        assert unused["zeta"] == 1
        assert "num_train_timesteps" not in unused
        assert built.config.num_train_timesteps == 900
    assert "_use_default_values" not in type(ours).from_pretrained(tmp_path).config
    with pytest.raises(ConfigError, match="push_to_hub"):
        ours.save_pretrained(tmp_path, push_to_hub=True)
