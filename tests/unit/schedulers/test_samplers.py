"""What every scheduler must do, joined by being registered: arrive, repeat, keep calls apart, read no device."""

import math
import threading
import warnings
from typing import Any

import pytest
import torch

from leandiffusion.core.errors import ConfigError
from leandiffusion.schedulers import DDPMScheduler, EDMEulerScheduler, LMSDiscreteScheduler, Scheduler, schedulers
from leandiffusion.schedulers.brownian import BrownianPath

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SHAPE = (2, 4, 4, 4)


def make(name: str, **settings: Any) -> Any:
    own = {"clip_sample": False, "set_alpha_to_one": True, "skip_prk_steps": True, **SD, **settings}
    cls = schedulers.get(name)
    return cls(**{key: value for key, value in own.items() if key in cls.config_keys()})


def run(scheduler: Any, seed: int = 0, timesteps: torch.Tensor | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SHAPE, generator=generator) * scheduler.init_noise_sigma
    drawn = {"generator": generator} if "generator" in scheduler.step.__code__.co_varnames else {}
    for t in scheduler.timesteps if timesteps is None else timesteps:
        output = torch.tanh(scheduler.scale_model_input(x, t))
        x = scheduler.step(output, t, x, **drawn).prev_sample
    return x


ABOVE_NO_NOISE = {"DEISMultistepScheduler", "LCMScheduler", "TCDScheduler"}  # where these end, or noise anew


OTHER_STATES = {"EDMEulerScheduler"}  # whose model predicts in another form: tested by itself below


@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", sorted(set(schedulers) - ABOVE_NO_NOISE - OTHER_STATES))
def test_one_known_picture_is_reached(name: str, prediction: str, steps: int) -> None:
    """With a single possible picture c the best prediction is known, and every sampler must end at c.

    Tolerance 2e-4: epsilon predictions form x_0 by dividing by sqrt(abar) = 0.07 in float32, several times over.
    """
    if (name, prediction) == ("PNDMScheduler", "v_prediction"):
        pytest.skip("its multistep formula mixes the velocities of different timesteps, so it is not exact here")
    c = torch.linspace(-1, 1, 64).reshape(1, 4, 4, 4)
    scheduler = make(name, prediction_type=prediction, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    scales_input = hasattr(scheduler, "_predict_denoised") and scheduler.init_noise_sigma != 1
    for t in scheduler.timesteps:
        x_in = scheduler.scale_model_input(x, t)
        if scales_input:  # at fractional timesteps abar is that of the sigma in use
            sigma = scheduler._sigmas[scheduler.step_index]
            alpha, noise = (sigma**2 + 1) ** -0.5, sigma * (sigma**2 + 1) ** -0.5
        else:
            alpha, noise = scheduler.alphas_cumprod[t] ** 0.5, (1 - scheduler.alphas_cumprod[t]) ** 0.5
        eps = (x_in - alpha * c) / noise
        output = {"epsilon": eps, "v_prediction": alpha * eps - noise * c, "sample": c.expand(SHAPE)}[prediction]
        x = scheduler.step(output, t, x).prev_sample
    assert (x - c).abs().max() < 2e-4


@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize("schedule", ["karras", "exponential"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_reaches_the_one_known_picture(prediction: str, schedule: str, steps: int) -> None:
    """As above, with the output for which c_skip x + c_out output = c. Tolerance 2e-4: 2^-24 of states up to 400, over
    c_out of a half."""
    c = torch.linspace(-1, 1, 64).reshape(1, 4, 4, 4)
    scheduler = EDMEulerScheduler(prediction_type=prediction, sigma_schedule=schedule)
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps[0] == pytest.approx(math.log(80) / 4, rel=1e-6)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        assert scheduler.scale_model_input(x, t).std() < 2
        variance = math.exp(4 * t) ** 2 + 0.25
        c_skip, c_out = 0.25 / variance, math.exp(4 * t) * 0.5 / math.sqrt(variance)
        output = (c - c_skip * x) / (c_out if prediction == "epsilon" else -c_out)
        x = scheduler.step(output, t, x).prev_sample
    assert (x - c).abs().max() < 2e-4


def test_edm_at_levels_of_ones_own() -> None:
    scheduler = EDMEulerScheduler(final_sigmas_type="sigma_min")
    scheduler.set_timesteps(sigmas=[40.0, 3.0, 0.5])
    assert scheduler.sigmas.tolist() == [40.0, 3.0, 0.5, 0.5]
    assert torch.equal(scheduler.timesteps, scheduler.sigmas[:3].log() / 4)
    for wrong in ([], [1.0, 2.0], [3.0, 0.0], [float("inf"), 1.0]):
        with pytest.raises(ConfigError, match="each below the one before"):
            scheduler.set_timesteps(sigmas=wrong)
    with pytest.raises(ConfigError, match="one of num_inference_steps or sigmas"):
        scheduler.set_timesteps(3, sigmas=[3.0, 2.0, 1.0])
    for settings in ({"sigma_min": 90.0}, {"sigma_min": 0.0}, {"sigma_data": 0.0}, {"rho": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            EDMEulerScheduler(**settings)


def test_noise_of_a_seed_is_one_brownian_path() -> None:
    """However it is cut: increments add up, and are of the variance that their length has. Each picture of a batch has
    the noise that it has alone."""
    path = BrownianPath((4, 32, 32), 0.03, 14.6, 5, torch.float32)
    whole = path.increment(0.03, 14.6)
    parts = [path.increment(low, high) for low, high in ((0.03, 0.4), (0.4, 7.3), (7.3, 14.6))]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-5, atol=1e-5)  # float32
    for part, length in zip([*parts, whole], (0.37, 6.9, 7.3, 14.57), strict=True):
        assert part.var().item() == pytest.approx(length, rel=0.1)  # of 4096 draws: deviation 2.2%
    assert not path.increment(3.0, 3.0).any()

    def drawn(x: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        scheduler = make("DPMSolverSDEScheduler")
        scheduler.set_timesteps(3)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(scheduler.scale_model_input(x, t)), t, x, generator=generators).prev_sample
        return x

    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    both = drawn(x, [3, 4])
    assert torch.equal(both[1:], drawn(x[1:], [4]))
    assert not torch.equal(both, drawn(x, [3, 5]))
    with pytest.raises(ConfigError, match="3 seeds of noise for a batch of 2"):
        drawn(x, [1, 2, 3])


@pytest.mark.parametrize("name", list(schedulers))
def test_nothing_is_read_from_the_device(name: str) -> None:
    """Timesteps on the meta device hold no values: any read of one raises. The result is that of readable ones."""
    readable, unreadable = make(name), make(name)
    readable.set_timesteps(6)
    unreadable.set_timesteps(6, device="meta")
    assert unreadable.timesteps.device.type == "meta"
    assert torch.equal(run(readable), run(unreadable))


@pytest.mark.parametrize("name", list(schedulers))
def test_numbers_serve_as_timesteps(name: str) -> None:
    scheduler = make(name)
    scheduler.set_timesteps(6)
    expected = run(scheduler.clone())
    assert torch.equal(run(scheduler.clone(), timesteps=scheduler.timesteps.tolist()), expected)
    assert torch.equal(run(scheduler.clone(), timesteps=scheduler.timesteps.clone()), expected)


@pytest.mark.parametrize("name", list(schedulers))
def test_clones_share_no_state(name: str) -> None:
    """Eight threads, each on a clone of one scheduler, get bit for bit what they get alone."""
    shared = make(name)
    shared.set_timesteps(8)
    alone = [run(shared.clone(), seed) for seed in range(8)]
    together: list[torch.Tensor | None] = [None] * 8
    barrier = threading.Barrier(8)

    def work(seed: int) -> None:
        mine = shared.clone()
        barrier.wait()
        together[seed] = run(mine, seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, actual in zip(alone, together, strict=True):
        assert actual is not None
        assert torch.equal(expected, actual)
    assert shared.step_index is None


@pytest.mark.parametrize("name", list(schedulers))
def test_a_clone_starts_afresh_and_computes_nothing(name: str) -> None:
    scheduler = make(name)
    scheduler.set_timesteps(5)
    expected = run(scheduler.clone())
    x = torch.zeros(SHAPE)
    scheduler.step(scheduler.scale_model_input(x, scheduler.timesteps[0]), scheduler.timesteps[0], x)
    twin = scheduler.clone()
    for table in {"alphas_cumprod", "sigmas"} & vars(twin).keys():
        assert vars(twin)[table] is vars(scheduler)[table]
    assert twin.config == scheduler.config
    assert torch.equal(run(twin), expected)
    twin.set_timesteps(3)
    assert scheduler.num_inference_steps == 5


@pytest.mark.parametrize("name", list(schedulers))
def test_tuples_and_shapes(name: str) -> None:
    scheduler = make(name)
    scheduler.set_timesteps(5)
    x, t = torch.zeros(SHAPE), scheduler.timesteps[0]
    x_in = scheduler.scale_model_input(x, t)
    as_tuple = scheduler.clone()
    as_tuple.scale_model_input(x, t)
    out = scheduler.step(x_in + 0.5, t, x, **seeded(scheduler))
    pair = as_tuple.step(x_in + 0.5, t, x, return_dict=False, **seeded(scheduler))
    assert isinstance(pair, tuple)
    assert len(pair) == len(out.to_tuple())
    for one, other in zip(pair, out.to_tuple(), strict=True):
        assert one.shape == SHAPE
        assert torch.equal(one, other)
    assert len(scheduler) == 1000


def seeded(scheduler: Any) -> dict[str, Any]:
    drawn = "generator" in scheduler.step.__code__.co_varnames
    return {"generator": torch.Generator().manual_seed(0)} if drawn else {}


@pytest.mark.parametrize("steps", [0, -3, 1001, 2.5, "ten", True])
@pytest.mark.parametrize("name", list(schedulers))
def test_impossible_step_counts(name: str, steps: Any) -> None:
    with pytest.raises(ConfigError, match=f"num_inference_steps={steps!r}.* 1 to 1000"):
        make(name).set_timesteps(steps)


# As in diffusers; others step through training.
NEEDS_A_SCHEDULE = ("DDIM", "DEIS", "DPMSolverM", "DPMSolverSi", "LCM", "PNDM", "TCD", "UniPC")


@pytest.mark.parametrize("name", [name for name in schedulers if name.startswith(NEEDS_A_SCHEDULE)])
def test_step_before_set_timesteps(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}.step before set_timesteps"):
        make(name).step(torch.zeros(SHAPE), 999, torch.zeros(SHAPE))


def test_ddpm_walks_all_of_training_without_a_schedule() -> None:
    scheduler = DDPMScheduler()
    assert scheduler.previous_timestep(500) == 499
    assert scheduler.step(torch.zeros(SHAPE), 500, torch.zeros(SHAPE)).prev_sample.isfinite().all()


@pytest.mark.parametrize(
    "name", [n for n in schedulers if n not in ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler")]
)
def test_steps_past_the_end_and_strange_timesteps(name: str) -> None:
    scheduler: Scheduler = make(name)
    scheduler.set_timesteps(3)
    if name.startswith(("DEIS", "DPMSolverM", "DPMSolverSi", "UniPC")):  # they take it for the last, as in diffusers
        assert scheduler.index_for_timestep(998.5) == 2
    else:
        with pytest.raises(ConfigError, match=r"timestep 998\.5 is not in the schedule"):
            scheduler.index_for_timestep(998.5)
    run(scheduler)
    with pytest.raises(ConfigError, match="steps were taken"):
        run(scheduler)


@pytest.mark.parametrize("name", [n for n in schedulers if schedulers.get(n).__name__.startswith(("Euler", "LMS"))])
def test_forgetting_to_scale_the_input_warns(name: str) -> None:
    scheduler = make(name)
    scheduler.set_timesteps(3)
    with pytest.warns(UserWarning, match="scale_model_input"):
        scheduler.step(torch.zeros(SHAPE), scheduler.timesteps[0], torch.zeros(SHAPE))


def test_lms_weights_integrate_polynomials_exactly() -> None:
    """Order k is exact for slopes of degree below k: relative tolerance 1e-9, float64 throughout."""
    scheduler = make("LMSDiscreteScheduler", use_karras_sigmas=True)
    assert isinstance(scheduler, LMSDiscreteScheduler)
    scheduler.set_timesteps(20)
    sigmas = scheduler.sigmas.double().tolist()
    for order in (1, 2, 3, 4):
        for t in range(3, 20):
            weights = [scheduler.get_lms_coefficient(order, t, back) for back in range(order)]
            for degree in range(order):
                found = sum(w * sigmas[t - back] ** degree for back, w in enumerate(weights))
                exact = (sigmas[t + 1] ** (degree + 1) - sigmas[t] ** (degree + 1)) / (degree + 1)
                assert found == pytest.approx(exact, rel=1e-9)


def test_eta_and_variance_noise_of_ddim() -> None:
    scheduler = make("DDIMScheduler")
    scheduler.set_timesteps(10)
    x, t = torch.zeros(SHAPE), scheduler.timesteps[0]
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    drawn = scheduler.step(x, t, x, eta=1.0, generator=torch.Generator().manual_seed(0)).prev_sample
    assert torch.equal(drawn, scheduler.step(x, t, x, eta=1.0, variance_noise=noise).prev_sample)
    with pytest.raises(ConfigError, match="pass one of them"):
        scheduler.step(x, t, x, eta=1.0, variance_noise=noise, generator=torch.Generator())
    with pytest.raises(ConfigError, match=r"eta=1\.5"):
        scheduler.step(x, t, x, eta=1.5)


def test_zero_signal_and_epsilon_cannot_meet() -> None:
    for name in ("DDIMScheduler", "DDPMScheduler"):
        scheduler = make(name, rescale_betas_zero_snr=True, timestep_spacing="trailing")
        scheduler.set_timesteps(5)
        with pytest.raises(ConfigError, match="no signal at the first timestep"):
            run(scheduler)


def test_no_warning_escapes_a_run() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in schedulers:
            scheduler = make(name)
            scheduler.set_timesteps(4)
            assert run(scheduler).isfinite().all()
