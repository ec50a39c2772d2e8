"""Configs: checked, carried from class to class, saved and opened; short names; tables."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import leandiffusion
import leandiffusion.schedulers as room
from leandiffusion.core.errors import CheckpointNotFound, ConfigError, MalformedFile
from leandiffusion.schedulers import (
    PRESETS,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
    build,
    randn,
    schedulers,
)
from leandiffusion.schedulers.schedule import beta_quantiles, spaced_timesteps

WITH_BETAS = {name for name in schedulers if "trained_betas" in schedulers.get(name).config_keys()}
# What Stable Diffusion 1.5 ships.
SD15 = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


def test_every_class_is_importable_by_name() -> None:
    for name in schedulers:
        assert getattr(room, name).__name__ == name
        assert name in dir(room)
        assert name in leandiffusion.__all__
    with pytest.raises(AttributeError, match="NoSuchScheduler"):
        _ = room.NoSuchScheduler


def test_a_round_trip_across_classes_restores_the_config() -> None:
    first = DDIMScheduler.from_config(SD15)
    assert first.config.skip_prk_steps is True
    back = DDIMScheduler.from_config(EulerDiscreteScheduler.from_config(first.config).config)
    assert back.config == first.config
    assert back.config.clip_sample is False
    assert PNDMScheduler.from_config(back.config).config.skip_prk_steps is True


def test_defaults_are_the_target_class_s_own() -> None:
    assert PNDMScheduler.from_config(SD15).config.timestep_spacing == "leading"
    euler = EulerDiscreteScheduler.from_config(PNDMScheduler.from_config(SD15).config)
    assert euler.config.timestep_spacing == "linspace"


def test_keys_that_no_scheduler_knows_warn_by_name() -> None:
    with pytest.warns(UserWarning, match="no scheduler has a setting beta_ende, zeta;"):
        DDIMScheduler.from_config({**SD15, "zeta": 1, "beta_ende": 0.1})


def test_overrides_must_belong_to_the_class() -> None:
    assert EulerDiscreteScheduler.from_config(SD15, use_karras_sigmas=True).config.use_karras_sigmas is True
    with pytest.raises(ConfigError, match=r"no setting 'use_karas_sigmas'. Did you mean 'use_karras_sigmas'\?"):
        EulerDiscreteScheduler.from_config(SD15, use_karas_sigmas=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDIMScheduler(prediction_type="epsilom"), r"prediction_type='epsilom'.*Did you mean 'epsilon'\?"),
        (lambda: DDIMScheduler(beta_schedule="scaled-linear"), r"beta_schedule=.*Did you mean 'scaled_linear'\?"),
        (lambda: DDIMScheduler(timestep_spacing="leeding"), r"timestep_spacing=.*Did you mean 'leading'\?"),
        (lambda: DDIMScheduler(trained_betas=[]), "trained_betas is empty"),
        (
            lambda: EulerDiscreteScheduler(use_karras_sigmas=True, use_beta_sigmas=True),
            "karras_sigmas and use_beta",
        ),
        (lambda: EulerDiscreteScheduler(final_sigmas_type="none"), "final_sigmas_type='none'"),
        (lambda: EulerDiscreteScheduler(interpolation_type="cubic"), "interpolation_type='cubic'"),
        (lambda: EulerDiscreteScheduler(timestep_type="some"), "timestep_type='some'"),
        (lambda: DPMSolverMultistepScheduler(algorithm_type="dpm++"), "algorithm_type='dpm"),
        (lambda: DPMSolverMultistepScheduler(algorithm_type="dpmsolver"), "final_sigmas_type='sigma_min'"),
        (lambda: DPMSolverMultistepScheduler(solver_order=4), "solver_order=4"),
        (lambda: DPMSolverMultistepScheduler(use_flow_sigmas=True), "use_flow_sigmas=True is not supported"),
        (lambda: DPMSolverMultistepScheduler(prediction_type="flow_prediction"), "flow_prediction"),
        (lambda: UniPCMultistepScheduler(use_dynamic_shifting=True), "use_dynamic_shifting=True"),
        (lambda: UniPCMultistepScheduler(solver_order=0), "solver_order=0"),
        (lambda: UniPCMultistepScheduler(shift_terminal=0.1), "shift_terminal=0.1"),
        (lambda: UniPCMultistepScheduler(predict_x0=False), "final_sigmas_type='sigma_min'"),
        (lambda: room.DDPMScheduler(variance_type="fixed"), "variance_type='fixed'"),
    ],
)
def test_wrong_settings_are_named(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (EulerDiscreteScheduler, {}, "needs one of"),
        (EulerDiscreteScheduler, {"num_inference_steps": 3, "timesteps": [5, 1]}, "pass one"),
        (EulerDiscreteScheduler, {"sigmas": [1.0], "num_inference_steps": 1}, "pass one of them"),
        (EulerDiscreteScheduler, {"sigmas": [1.0]}, "the one after the last"),
        (EulerDiscreteScheduler, {"timesteps": []}, "timesteps is empty"),
        (lambda: EulerDiscreteScheduler(use_karras_sigmas=True), {"timesteps": [5, 1]}, "use_karras_sigmas=True"),
        (DPMSolverMultistepScheduler, {"num_inference_steps": 5, "mu": 1.0}, "mu=1.0 is not supported"),
        (UniPCMultistepScheduler, {"sigmas": [1.0, 0.5]}, "sigmas is not supported"),
        (HeunDiscreteScheduler, {}, "needs num_inference_steps or timesteps"),
        (room.DDPMScheduler, {"timesteps": [5, 9]}, r"timesteps=\[5, 9\]: pass descending"),
        (room.DDPMScheduler, {"timesteps": [1000, 9]}, "descending timesteps from 0 … 999"),
        (PNDMScheduler, {"num_inference_steps": 3}, "skip_prk_steps=True"),
        (LCMScheduler, {"num_inference_steps": 60}, "distilled at 50 timesteps"),
        (LCMScheduler, {"num_inference_steps": 4, "original_inference_steps": 2000}, "original_inference_steps=2000"),
        (lambda: DPMSolverMultistepScheduler(timestep_spacing="leading"), {"num_inference_steps": 1000}, "at most 999"),
    ],
)
def test_wrong_schedules_are_named(make: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make().set_timesteps(**arguments)


def test_lcm_warns_of_timesteps_it_was_not_distilled_at() -> None:
    with pytest.warns(UserWarning, match="not those that this model was distilled at"):
        LCMScheduler().set_timesteps(timesteps=[998, 500])


def test_a_timestep_past_training_is_named() -> None:
    scheduler = DDIMScheduler(steps_offset=1)
    scheduler.set_timesteps(1000)
    with pytest.raises(ConfigError, match=r"timestep 1000 is outside 0 … 999.*steps_offset=1"):
        scheduler.step(torch.zeros(1, 1, 2, 2), scheduler.timesteps[0], torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("name", list(schedulers))
def test_saved_and_opened_again(name: str, tmp_path: Path) -> None:
    betas = np.linspace(0.001, 0.02, 20)
    own = {"trained_betas": betas} if name in WITH_BETAS else {}
    first = schedulers.get(name).from_config(SD15, num_train_timesteps=20, **own)
    first.save_pretrained(tmp_path / "scheduler")
    written = json.loads((tmp_path / "scheduler/scheduler_config.json").read_text())
    assert written["_class_name"] == name
    assert "_use_default_values" not in written
    again = schedulers.get(name).from_pretrained(tmp_path, subfolder="scheduler")
    assert name not in WITH_BETAS or torch.equal(again.alphas_cumprod, first.alphas_cumprod)
    assert again.config.skip_prk_steps is True
    other = schedulers.get(name).from_pretrained(tmp_path / "scheduler", prediction_type="v_prediction")
    assert other.config.prediction_type == "v_prediction"


def test_opening_errors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match=r"has no scheduler_config\.json: name a folder"):
        DDIMScheduler.from_pretrained(tmp_path)
    with pytest.raises(CheckpointNotFound, match="not a local folder, and offline and not cached"):
        DDIMScheduler.from_pretrained("nobody/nothing", local_files_only=True, cache_dir=tmp_path)
    (tmp_path / "scheduler_config.json").write_text("{")
    with pytest.raises(MalformedFile, match=r"scheduler_config\.json is not valid JSON"):
        DDIMScheduler.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_short_names(name: str) -> None:
    scheduler = build(name, SD15)
    assert type(scheduler).__name__ == PRESETS[name].class_name
    for key, value in PRESETS[name].overrides.items():
        assert scheduler.config[key] == value
    assert scheduler.config.beta_end == 0.012


def test_every_class_has_a_short_name_and_class_names_work_too() -> None:
    # A model trained with betas draws noise with EDM's steps; one trained as EDM names them in its own config.
    assert {preset.class_name for preset in PRESETS.values()} == set(schedulers) - {"EDMEulerScheduler"}
    assert isinstance(build("DDIMScheduler"), DDIMScheduler)
    with pytest.raises(ConfigError, match=r"unknown scheduler 'dpm\+\+-karas'. Did you mean 'dpm\+\+-karras'\?"):
        build("dpm++-karas")


@pytest.mark.parametrize("a", [0.6, 1.0, 2.5])
def test_beta_quantiles_against_scipy(a: float) -> None:
    """Absolute tolerance 1e-12, far below the float32 that sigmas are rounded to."""
    stats = pytest.importorskip("scipy.stats")
    p = np.linspace(0, 1, 101)
    np.testing.assert_allclose(beta_quantiles(p, a), stats.beta.ppf(p, a, a), rtol=0, atol=1e-12)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_spaced_timesteps_descend_and_stay_inside(spacing: str) -> None:
    for steps in range(1, 1001):
        t = spaced_timesteps(spacing, steps, 1000)
        assert len(t) == steps
        assert t[0] <= 999
        assert t[-1] >= 0
        assert (np.diff(t) < 0).all()


def test_setting_timesteps_by_hand_is_followed() -> None:
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(10)
    scheduler.timesteps = torch.tensor([900, 500, 100])
    assert scheduler.index_for_timestep(500) == 1
    assert scheduler.index_for_timestep(scheduler.timesteps[2]) == 2


def test_generators_and_batches() -> None:
    with pytest.raises(ConfigError, match="2 generators for a batch of 3"):
        randn((3, 1), generator=[torch.Generator(), torch.Generator()])
    pair = randn((2, 5), generator=[torch.Generator().manual_seed(3), torch.Generator().manual_seed(4)])
    assert torch.equal(pair[1:], randn((1, 5), generator=torch.Generator().manual_seed(4)))
    assert randn((1, 2), dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("name", sorted(WITH_BETAS))
@pytest.mark.parametrize("betas", [[1.0] * 8, [0.9999999] * 64, [0.1, 1.0, 0.1]], ids=["ones", "underflow", "one"])
def test_betas_that_leave_no_signal(name: str, betas: list[float]) -> None:
    """Later steps would divide by zero."""
    with pytest.raises(ConfigError, match="betas"):
        schedulers.get(name)(trained_betas=betas, num_train_timesteps=len(betas))


@pytest.mark.parametrize("name", sorted(n for n in WITH_BETAS if "Euler" in n or "Multistep" in n or "LMS" in n))
def test_a_last_beta_of_one(name: str) -> None:
    """Sigma would be infinite."""
    with pytest.raises(ConfigError, match="finite sigma"):
        schedulers.get(name)(trained_betas=[0.1, 0.5, 1.0], num_train_timesteps=3)


@pytest.mark.parametrize("sigmas", [[1, 0, 0], [5, 5, 0, 0], [0, 0], [3, -1, 0], [float("nan"), 0], [float("inf"), 0]])
def test_sigmas_that_a_step_would_divide_by(sigmas: list[float]) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        EulerDiscreteScheduler().set_timesteps(sigmas=sigmas)


@pytest.mark.parametrize("sigmas", [[5, 5, 1, 0], [1, 2, 3], [4, 2]])
def test_sigmas_that_stay_or_rise(sigmas: list[float]) -> None:
    """Staying changes nothing, rising adds noise."""
    scheduler = EulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=sigmas)
    x = torch.ones(1, 4, 2, 2)
    for t in scheduler.timesteps:
        x = scheduler.step(scheduler.scale_model_input(x, t) * 0.5, t, x).prev_sample
    assert x.isfinite().all()


def test_stochastic_steps_up() -> None:
    scheduler = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")
    with pytest.raises(ConfigError, match="descending"):
        scheduler.set_timesteps(timesteps=[10, 500, 0])
    lu = DPMSolverMultistepScheduler(
        trained_betas=[1e-5] * 4 + [0.9] * 4, num_train_timesteps=8, algorithm_type="sde-dpmsolver",
        final_sigmas_type="sigma_min", use_lu_lambdas=True,
    )  # fmt: skip
    lu.set_timesteps(4)
    assert lu.sigmas[-1] <= lu.sigmas[-2], "not above it by rounding"
