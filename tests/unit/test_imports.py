"""What importing costs: the package and its help must answer before torch could even be loaded."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import leandiffusion

HEAVY = ["torch", "numpy", "transformers", "diffusers", "PIL", "huggingface_hub"]


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def loaded_after(code: str) -> set[str]:
    """Which of the heavy modules a fresh interpreter has after running `code`."""
    report = f"import sys, json; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    return set(json.loads(run(f"{code}\n{report}").splitlines()[-1]))


def test_the_probe_sees_a_heavy_import():
    assert "PIL" in loaded_after("import PIL")


def test_processes_import_the_package_that_is_tested_wherever_they_begin(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("import leandiffusion; print(leandiffusion.__file__)").strip() == leandiffusion.__file__


@pytest.mark.parametrize(
    "code",
    [
        "import leandiffusion",
        "import leandiffusion; leandiffusion.ConfigError; dir(leandiffusion)",
        "import leandiffusion.core.config, leandiffusion.core.units",
        "import leandiffusion.measure.memory, leandiffusion.measure.environment as e; e.available_memory()",
    ],
)
def test_light_imports(code):
    assert loaded_after(code) == set()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["generate", "--help"], ["batch", "--help"], ["demo", "--help"], ["--version"]]
)
def test_help_loads_nothing_heavy(arguments):
    code = f"""
from leandiffusion.cli.app import app
try:
    app({arguments!r})
except SystemExit as leaving:
    assert not leaving.code
"""
    assert loaded_after(code) == set()


def test_wrong_usage_loads_no_torch():
    code = """
from leandiffusion.cli.app import app
try:
    app(["generate", "a circle", "--size", "100x100"])
except SystemExit as leaving:
    assert leaving.code == 2
"""
    assert loaded_after(code) == set()


def test_no_oracle_is_imported_by_any_of_our_modules():
    """diffusers and accelerate are for tests; running the package must not need them installed."""
    code = """
import importlib, pkgutil, sys
import leandiffusion
for module in pkgutil.walk_packages(leandiffusion.__path__, "leandiffusion."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
found = [name for name in ("diffusers", "accelerate", "transformers") if name in sys.modules]
assert not found, found
"""
    run(code)


def test_public_names_are_listed_and_reachable():
    assert {"StableDiffusionPipeline", "ConfigError", "__version__"} <= set(leandiffusion.__all__)
    assert set(leandiffusion.__all__) <= set(dir(leandiffusion))
    for name in leandiffusion.__all__:
        assert getattr(leandiffusion, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="NoSuchPipeline"):
        leandiffusion.NoSuchPipeline  # noqa: B018


@pytest.mark.parametrize("offload", [None, "sequential", "model"])
def test_drawing_loads_no_compiler(offload):
    """Symbolic algebra, which torch's compiler and its distributed tensors need, takes 40 MB."""
    code = f"""
import sys, warnings
from leandiffusion import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained("demo", offload={offload!r})
pipe.set_progress_bar_config(disable=True)
pipe("a large red circle on a white background", height=64, width=64, num_inference_steps=1)
print([name for name in ("sympy", "torch._dynamo", "torch.distributed.tensor") if name in sys.modules])
"""
    assert run(code).splitlines()[-1] == "[]"


def test_planning_loads_no_library_that_its_plans_leave_out():
    """OpenVINO takes 26 MB of memory to import."""
    code = """
import sys, torch
from leandiffusion.families import families
from leandiffusion.plan.budget import Budget
from leandiffusion.plan.make import make_plan
from leandiffusion.plan.predict import Predictor
from leandiffusion.plan.profile import DeviceProfile
from leandiffusion.plan.sketch import Blueprint
from leandiffusion.run.size import CallSize
sys.path.insert(0, "tests/unit/plan")
from profiles import a_profile
host = torch.device("cpu")
model = Blueprint.of_family(families.get("sd1"), torch.float32, host)
plan = make_plan(Predictor(model, CallSize(64, 64, 1, True), 2, a_profile()), Budget(4 << 30))
assert "openvino" in plan.unused
print([name for name in ("openvino", "sympy", "torch._dynamo", "torch.distributed.tensor") if name in sys.modules])
"""
    assert run(code).splitlines()[-1] == "[]"
