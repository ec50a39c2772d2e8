"""Schedulers step for step against diffusers', over whole runs with a smooth stand-in for the network.

Tolerance: every step's state within 1e-5 of diffusers', relative to its largest entry, in float32. Both sides run free,
so rounding adds up over the steps. Where diffusers' own float32 coefficients lose more than that to cancellation
(`exact_table`), its sigma table is widened to float64 first, which leaves the algorithm as it is. Third-order SDE steps
extrapolate second differences of float32 states over a long last step, which magnifies their rounding: 2e-5, as DEIS.
"""

import inspect
import warnings
from collections.abc import Iterator
from itertools import product
from typing import Any

import diffusers
import pytest
import torch

import leandiffusion.schedulers as ours
from leandiffusion.schedulers import PRESETS, build, schedulers

# diffusers hands tensors to numpy.array, which numpy 2 warns about, and has deprecations of its own
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:diffusers.*",
    "ignore::FutureWarning:diffusers.*",
    "ignore:__array_wrap__ must accept",
    "ignore:Should have t[ab]:UserWarning:torchsde",  # the last sigma, rounded, lies a little before the path's start
)

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
STEPS = (1, 2, 5, 20, 50)
SPACINGS = ("leading", "linspace", "trailing")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
TOLERANCE = 1e-5
SHAPE = (2, 4, 4, 4)

DPM, UNIPC, EULER, LMS = (
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
    "LMSDiscreteScheduler",
)
DEIS = "DEISMultistepScheduler"
SINGLESTEP, SDE, EDM = "DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler", "EDMEulerScheduler"
KDPM2 = ("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")
KARRAS, EXPONENTIAL, BETA = ({f"use_{shape}_sigmas": True} for shape in ("karras", "exponential", "beta"))
LAST = {"final_sigmas_type": "sigma_min"}

# (class, settings, arguments of `step`)
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}, {}),
    ("DDIMScheduler", {}, {"eta": 0.7}),
    ("DDIMScheduler", {"thresholding": True, "sample_max_value": 1.5}, {"eta": 1.0}),
    ("DDIMScheduler", {}, {"use_clipped_model_output": True}),
    ("DDPMScheduler", {}, {}),
    ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large"}, {}),
    ("DDPMScheduler", {"thresholding": True, "variance_type": "fixed_small_log"}, {}),
    ("PNDMScheduler", {}, {}),
    ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}, {}),
    ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}, {}),
    *[(LMS, shape, {}) for shape in ({}, KARRAS, EXPONENTIAL, BETA)],
    (LMS, {"steps_offset": 1}, {"order": 2}),
    *[(EULER, shape, {}) for shape in ({}, KARRAS, EXPONENTIAL, BETA, LAST)],
    (EULER, {"interpolation_type": "log_linear"}, {}),
    (EULER, {"timestep_type": "continuous"}, {}),
    (EULER, {"steps_offset": 1}, {"s_churn": 4.0, "s_noise": 1.1}),
    (EULER, {"rescale_betas_zero_snr": True}, {}),
    (EULER, {**KARRAS, "sigma_min": 0.1, "sigma_max": 10.0}, {}),
    ("EulerAncestralDiscreteScheduler", {"steps_offset": 1}, {}),
    ("EulerAncestralDiscreteScheduler", {"rescale_betas_zero_snr": True}, {}),
    *[("HeunDiscreteScheduler", shape, {}) for shape in ({}, KARRAS, EXPONENTIAL, BETA, {"clip_sample": True})],
    *[(name, shape, {}) for name in KDPM2 for shape in ({}, KARRAS, EXPONENTIAL, BETA, {"steps_offset": 1})],
    ("LCMScheduler", {}, {}),
    ("LCMScheduler", {"clip_sample": True, "timestep_scaling": 5.0}, {}),
    *[(DEIS, {"solver_order": order, **shape}, {}) for order in (1, 2, 3) for shape in ({}, KARRAS, EXPONENTIAL)],
    (DEIS, BETA, {}),
    (DEIS, {"thresholding": True, "steps_offset": 1}, {}),
    (DEIS, {"lower_order_final": False, "solver_order": 3}, {}),
    ("TCDScheduler", {}, {}),
    ("TCDScheduler", {}, {"eta": 0.0}),
    ("TCDScheduler", {"steps_offset": 1}, {"eta": 0.8}),
    *[
        (DPM, {"solver_order": order, "solver_type": solver, "algorithm_type": algorithm, **LAST}, {})
        for order, solver in ((1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint"))
        for algorithm in ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")
        if (order, algorithm) != (3, "sde-dpmsolver")
    ],
    *[(DPM, shape, {}) for shape in ({}, KARRAS, EXPONENTIAL, BETA, {"use_lu_lambdas": True})],
    *[(DPM, {**KARRAS, "algorithm_type": "sde-dpmsolver++", "solver_order": order}, {}) for order in (2, 3)],
    (DPM, {"thresholding": True, "steps_offset": 1}, {}),
    (DPM, {"thresholding": True, "algorithm_type": "dpmsolver", **LAST}, {}),
    (DPM, {"lower_order_final": False, "solver_order": 3}, {}),
    (DPM, {"euler_at_final": True, **LAST}, {}),
    (DPM, {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}, {}),
    (DPM, {"rescale_betas_zero_snr": True}, {}),
    *[
        (SINGLESTEP, {"solver_order": order, "solver_type": solver, "algorithm_type": algorithm, **LAST}, {})
        for order, solver in ((1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint"), (3, "heun"))
        for algorithm in ("dpmsolver", "dpmsolver++", "sde-dpmsolver++")
    ],
    *[(SINGLESTEP, {"solver_order": 2, **shape}, {}) for shape in ({}, KARRAS, EXPONENTIAL, BETA)],
    *[(SINGLESTEP, {"solver_order": 3, **shape}, {}) for shape in ({}, KARRAS, EXPONENTIAL, BETA)],
    *[(SINGLESTEP, {"solver_order": order, "lower_order_final": True, **LAST}, {}) for order in (2, 3)],
    (SINGLESTEP, {"thresholding": True, "algorithm_type": "sde-dpmsolver++"}, {}),
    (SINGLESTEP, {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}, {}),
    *[(SDE, shape, {}) for shape in ({}, KARRAS, EXPONENTIAL, BETA, {"steps_offset": 1})],
    (SDE, {"noise_sampler_seed": [3, 4]}, {}),
    (SDE, {}, {"s_noise": 0.7}),
    *[(EDM, {"sigma_schedule": kind, **last}, {}) for kind in ("karras", "exponential") for last in ({}, LAST)],
    (EDM, {"sigma_max": 120.0, "sigma_data": 1.0, "rho": 5.0}, {"s_churn": 4.0, "s_noise": 1.1}),
    *[
        (UNIPC, {"solver_order": order, "solver_type": solver, "predict_x0": x0, **LAST}, {})
        for order in (1, 2, 3)
        for solver in ("bh1", "bh2")
        for x0 in (True, False)
    ],
    *[(UNIPC, shape, {}) for shape in ({}, KARRAS, EXPONENTIAL, BETA, {**KARRAS, **LAST})],
    (UNIPC, {"lower_order_final": False, "disable_corrector": [0, 2], **LAST}, {}),
    (UNIPC, {"thresholding": True, "rescale_betas_zero_snr": True, "steps_offset": 1}, {}),
]

# diffusers cannot run these itself; ours can.
ABSENT_THERE = {
    ("PNDMScheduler", "prediction"): "sample",
    ("EulerAncestralDiscreteScheduler", "prediction"): "sample",
    **{(name, "prediction"): "sample" for name in (*KDPM2, SDE)},
}


def exact_table(name: str, settings: dict[str, Any]) -> bool:
    """Whether diffusers' float32 coefficients are themselves further than 1e-5 off (against float64 ones)."""
    return (
        name == DEIS
        or (name == SINGLESTEP and settings.get("algorithm_type") == "dpmsolver")
        or (name == LMS and any(settings.get(key) for key in (*KARRAS, *EXPONENTIAL)))
        or (name == "EulerAncestralDiscreteScheduler" and settings.get("rescale_betas_zero_snr"))
        or (name == UNIPC and settings.get("predict_x0") is False)
        or (name in (DPM, SINGLESTEP) and third_order_sde(settings))
    )


def third_order_sde(settings: dict[str, Any]) -> bool:
    return settings.get("solver_order") == 3 and settings.get("algorithm_type") == "sde-dpmsolver++"


def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Smooth in state and time, of order one: as well conditioned as a trained network."""
    return 0.9 * torch.tanh(0.7 * x + 0.1) + 0.2 * torch.cos(1.3 * x + float(t) / 300)


def states(
    scheduler: Any, start: int = 0, dtype: torch.dtype = torch.float32, **arguments: Any
) -> Iterator[torch.Tensor]:
    """Every state of a run from `timesteps[start]` with seeded noise."""
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * float(scheduler.init_noise_sigma)
    x = x.to(dtype)
    if "generator" in inspect.signature(scheduler.step).parameters:
        arguments["generator"] = torch.Generator().manual_seed(1)
    for t in scheduler.timesteps[start:]:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t).to(dtype), t, x, **arguments).prev_sample
        yield x


def theirs(name: str, **settings: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the plain dpmsolver algorithms are marked deprecated there
        return getattr(diffusers, name)(**settings)


def both(name: str, settings: dict[str, Any]) -> tuple[Any, Any]:
    return theirs(name, **settings), getattr(ours, name)(**settings)


def usual(name: str, **settings: Any) -> dict[str, Any]:
    """Stable Diffusion's settings, and these, as far as the class has them; noise by seed where it draws its own."""
    chosen = {**SD, "noise_sampler_seed": 1, **settings}
    return {key: value for key, value in chosen.items() if key in schedulers.get(name).config_keys()}


def seen(timesteps: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
    """Timesteps to compare to the last bit. Where float64 ones come of a Beta distribution's quantiles, SciPy's differ
    from ours in the 14th digit: those are compared in the float32 that networks compute them in."""
    return timesteps.float() if timesteps.dtype == torch.float64 and settings.get("use_beta_sigmas") else timesteps


def assert_same_run(name: str, settings: dict[str, Any], steps: Any, start: int = 0, **arguments: Any) -> None:
    reference, scheduler = both(name, settings)
    for each in (reference, scheduler):
        each.set_timesteps(**(steps if isinstance(steps, dict) else {"num_inference_steps": steps}))
    assert torch.equal(seen(reference.timesteps, settings), seen(scheduler.timesteps, settings))
    assert reference.timesteps.dtype == scheduler.timesteps.dtype
    assert float(reference.init_noise_sigma) == pytest.approx(float(scheduler.init_noise_sigma), rel=1e-7)
    if exact_table(name, settings):
        reference.sigmas = reference.sigmas.double()
    if start:
        for each in (reference, scheduler):
            if hasattr(each, "set_begin_index"):
                each.set_begin_index(start)
    runs = zip(states(reference, start, **arguments), states(scheduler, start, **arguments), strict=True)
    for index, (expected, actual) in enumerate(runs):
        assert expected.isfinite().all(), "the reference is no oracle here"
        error = ((expected - actual).abs().max() / expected.abs().max()).item()
        # DEIS there makes eps of v by way of x_0, whose rounding one step over the whole range magnifies. EDM's states
        # are as large as 500 where x_0, which one such step leaves of them, is of order one: 2^-24 of 500.
        allowed = TOLERANCE * (3 if name == EDM else 2 if third_order_sde(settings) or name == DEIS else 1)
        assert error <= allowed, f"{name} {settings} {steps}: step {index} differs by {error:.1e}"


def runnable(name: str, settings: dict[str, Any], prediction: str, steps: int) -> bool:
    """Whether diffusers itself can run this combination."""
    if ABSENT_THERE.get((name, "prediction")) == prediction:
        return False
    if prediction not in schedulers.get(name).prediction_types:
        return False  # EDM has no such models, here neither
    if name == "PNDMScheduler" and not settings.get("skip_prk_steps") and steps < 4:
        return False  # its Runge-Kutta warm-up takes four steps
    # Rounded to whole timesteps, the first two coincide, and it then starts with the second.
    return not (name in (DPM, SINGLESTEP, UNIPC, DEIS) and settings.get("use_beta_sigmas") and steps == 50)


def compare(name: str, settings: dict[str, Any], arguments: dict[str, Any], prediction: str, runs: Any) -> None:
    for spacing, steps in runs:
        if runnable(name, settings, prediction, steps):
            chosen = usual(name, prediction_type=prediction, timestep_spacing=spacing) | settings
            assert_same_run(name, chosen, steps, **arguments)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", list(schedulers))
def test_whole_runs(name: str, prediction: str) -> None:
    """Every spacing and step count, with Stable Diffusion's settings."""
    settings = {"skip_prk_steps": True, "steps_offset": 1} if name == "PNDMScheduler" else {}
    compare(name, settings, {}, prediction, product(SPACINGS, STEPS))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("name", "settings", "arguments"), CASES, ids=str)
def test_settings(name: str, settings: dict[str, Any], arguments: dict[str, Any], prediction: str) -> None:
    """Every other setting, with each spacing once."""
    compare(name, settings, arguments, prediction, zip(SPACINGS, (20, 2, 5), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("name", "settings", "arguments"), CASES, ids=str)
def test_settings_everywhere(name: str, settings: dict[str, Any], arguments: dict[str, Any], prediction: str) -> None:
    compare(name, settings, arguments, prediction, product(SPACINGS, STEPS))


def test_every_scheduler_is_compared() -> None:
    assert {name for name, _, _ in CASES} == set(schedulers)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("name", sorted(set(schedulers) - {EDM}))
def test_training_tables_are_identical(name: str, beta_schedule: str) -> None:
    settings = {"beta_schedule": beta_schedule}
    if "rescale_betas_zero_snr" in schedulers.get(name).config_keys():
        settings |= {"rescale_betas_zero_snr": True}
    reference, scheduler = both(name, settings)
    assert torch.equal(reference.betas, scheduler.betas)
    assert torch.equal(reference.alphas_cumprod, scheduler.alphas_cumprod)


@pytest.mark.parametrize(
    ("name", "schedule"), [("DDPMScheduler", "sigmoid"), ("DDPMScheduler", "laplace"), ("HeunDiscreteScheduler", "exp")]
)
def test_rare_beta_schedules_are_identical(name: str, schedule: str) -> None:
    assert torch.equal(theirs(name, beta_schedule=schedule).betas, getattr(ours, name)(beta_schedule=schedule).betas)


@pytest.mark.parametrize("steps", [3, 7, 30, 333, 999])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", sorted(set(schedulers) - {"LCMScheduler", "TCDScheduler"}))
def test_schedules_of_odd_lengths_are_identical(name: str, spacing: str, steps: int) -> None:
    settings = usual(name, timestep_spacing=spacing) | ({"skip_prk_steps": True} if name == "PNDMScheduler" else {})
    reference, scheduler = both(name, settings)
    for each in (reference, scheduler):
        each.set_timesteps(steps)
    assert torch.equal(reference.timesteps, scheduler.timesteps)
    if hasattr(reference, "sigmas"):
        assert torch.allclose(reference.sigmas, scheduler.sigmas, rtol=2e-7, atol=0)  # one float32 rounding


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        (EULER, {"timesteps": [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]}),
        (EULER, {"sigmas": [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0]}),
        ("DDPMScheduler", {"timesteps": [999, 700, 321, 20, 0]}),
        ("HeunDiscreteScheduler", {"timesteps": [999, 700, 321, 20, 0]}),
        *[(name, {"timesteps": [999, 700, 321, 20, 3]}) for name in (DPM, SINGLESTEP)],
        *[
            (name, steps)
            for name in ("LCMScheduler", "TCDScheduler")
            for steps in (
                {"timesteps": [999, 759, 499, 259]},
                {"num_inference_steps": 4, "strength": 0.6},
                {"num_inference_steps": 8, "original_inference_steps": 100},
            )
        ],
    ],
)
def test_custom_schedules(name: str, steps: dict[str, Any]) -> None:
    assert_same_run(name, usual(name), steps)


# Started part-way, LMS there weights the few slopes it knows as if it knew four; ours lowers the order.
PART_WAY = sorted(set(schedulers) - {LMS})


@pytest.mark.parametrize("name", sorted(set(PART_WAY) - {"PNDMScheduler", "DDPMScheduler", "DDIMScheduler"}))
def test_runs_that_start_part_way(name: str) -> None:
    """With `begin_index`, as image-to-image does. A step of order two starts on an even entry."""
    assert_same_run(name, usual(name), 10, start=4)


@pytest.mark.parametrize("name", PART_WAY)
def test_runs_that_start_part_way_without_being_told(name: str) -> None:
    reference, scheduler = both(name, usual(name))
    for each in (reference, scheduler):
        each.set_timesteps(10)
    start = 4 if name != "PNDMScheduler" else 0  # PNDM's warm-up cannot be skipped into
    for expected, actual in zip(states(reference, start), states(scheduler, start), strict=True):
        assert (expected - actual).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("name", list(schedulers))
def test_add_noise(name: str) -> None:
    """Tolerance 1e-6: one formula, float32 on both sides."""
    reference, scheduler = both(name, usual(name))
    x, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    for each in (reference, scheduler):
        each.set_timesteps(10)
    for timesteps in (scheduler.timesteps[3:4], scheduler.timesteps[[2, 6]], scheduler.timesteps[[0, -1]]):
        expected, actual = (each.add_noise(x, noise, timesteps) for each in (reference, scheduler))
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    if hasattr(reference, "set_begin_index"):
        for each in (reference, scheduler):
            each.set_begin_index(6)
        expected, actual = (each.add_noise(x, noise, scheduler.timesteps[6:7]) for each in (reference, scheduler))
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "LCMScheduler", "TCDScheduler"])
def test_velocity(name: str) -> None:
    reference, scheduler = both(name, usual(name))
    x, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 701])
    expected, actual = (each.get_velocity(x, noise, t) for each in (reference, scheduler))
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


def test_learned_variances() -> None:
    for kind in ("learned", "learned_range"):
        settings = {**SD, "variance_type": kind}
        reference, scheduler = theirs("DDPMScheduler", **settings), ours.DDPMScheduler(**settings)
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
        output = torch.cat([network(x, torch.tensor(1)), x.abs().clamp(0.01, 0.9)], dim=1)
        results = []
        for each in (reference, scheduler):
            each.set_timesteps(10)
            # diffusers draws noise for the halved output; the same generator must be used up the same way
            results.append(each.step(output, each.timesteps[2], x, generator=torch.Generator().manual_seed(1)))
        torch.testing.assert_close(results[1].prev_sample, results[0].prev_sample, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 8e-2)])
@pytest.mark.parametrize("name", list(schedulers))
def test_half_precision(name: str, dtype: torch.dtype, tolerance: float) -> None:
    """Roundings (2^-11, 2^-8) that diffusers makes inside the step too: up to 10 of its largest entry's, as LCM's first
    step divides by sqrt(abar) = 0.07."""
    reference, scheduler = both(name, usual(name))
    for each in (reference, scheduler):
        each.set_timesteps(10)
    for expected, actual in zip(states(reference, dtype=dtype), states(scheduler, dtype=dtype), strict=True):
        assert actual.dtype == dtype
        assert (expected.float() - actual.float()).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("name", list(schedulers))
def test_constructor_keywords_and_defaults(name: str) -> None:
    def settings(cls: type) -> dict[str, Any]:
        found = {key: each.default for key, each in inspect.signature(cls.__init__).parameters.items() if key != "self"}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}

    assert settings(schedulers.get(name)) == settings(getattr(diffusers, name))


@pytest.mark.parametrize("name", list(schedulers))
@pytest.mark.parametrize("method", ["step", "set_timesteps", "add_noise"])
def test_method_keywords(name: str, method: str) -> None:
    def parameters(cls: type) -> list[str]:
        return list(inspect.signature(getattr(cls, method)).parameters)

    more = ["generator"] if (name, method) == (SDE, "step") else []  # so that a call's seed decides the whole picture
    assert parameters(schedulers.get(name)) == parameters(getattr(diffusers, name)) + more


@pytest.mark.parametrize("target", sorted(set(schedulers)))
@pytest.mark.parametrize("source", ["PNDMScheduler", "DDIMScheduler", EULER, DPM])
def test_configs_carry_across_classes_as_there(source: str, target: str) -> None:
    """From one library's config to the other library's class, and with the same settings as there."""
    settings = {**SD, "steps_offset": 1, "prediction_type": "v_prediction"}
    there = getattr(diffusers, target).from_config(theirs(source, **settings).config)
    here = schedulers.get(target).from_config(getattr(ours, source)(**settings).config)
    across = schedulers.get(target).from_config(theirs(source, **settings).config)
    for key in schedulers.get(target).config_keys():
        assert here.config[key] == there.config[key] == across.config[key], key


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_saved_configs_open_in_diffusers(name: str, tmp_path: Any) -> None:
    scheduler = build(name, SD)
    scheduler.save_pretrained(tmp_path)
    opened = getattr(diffusers, type(scheduler).__name__).from_pretrained(tmp_path)
    assert {key: opened.config[key] for key in scheduler.config_keys()} == {
        key: scheduler.config[key] for key in scheduler.config_keys()
    }


def test_noise_is_the_same() -> None:
    from diffusers.utils.torch_utils import randn_tensor

    def generators(count: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(count)]

    for count in (1, 3):
        expected = randn_tensor((3, 4, 2, 2), generator=generators(count), dtype=torch.float16)
        assert torch.equal(ours.randn((3, 4, 2, 2), generator=generators(count), dtype=torch.float16), expected)
    expected = randn_tensor((3, 4, 2, 2), generator=generators(1)[0])
    assert torch.equal(ours.randn((3, 4, 2, 2), generator=generators(1)[0]), expected)


def test_aligned_steps_are_diffusers() -> None:
    there = diffusers.schedulers.AysSchedules
    assert {name: list(schedule) for name, schedule in ours.AysSchedules.items()} == {
        name: schedule for name, schedule in there.items() if "Video" not in name
    }
