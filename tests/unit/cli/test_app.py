from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import leandiffusion

SLOW_DRAWING = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background is started without
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored, and drawing leaves that so
from leandiffusion import demo
from leandiffusion.cli import app, generate
class Pipe:
    scheduler = None
    def set_progress_bar_config(self, **_): pass
    def __call__(self, **_):
        print("drawing", flush=True)
        time.sleep(60)
demo.DEFAULTS = {}
generate.open_model = lambda options, technique_options, say: Pipe()
sys.argv = ["leandiffusion", "generate", "a ring", "--out", sys.argv[1]]
app.main()
"""


def test_ctrl_c_while_drawing_is_code_130_and_leaves_no_file(tmp_path):
    command = [sys.executable, "-c", SLOW_DRAWING, str(tmp_path / "ring.png")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "drawing\n", process.communicate()
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Interrupted." in told
    assert "Traceback" not in told
    assert list(tmp_path.iterdir()) == []


def test_without_arguments_help_is_shown_as_wrong_usage(studio):
    result = studio.run()
    assert result.exit_code == 2
    assert "generate" in result.output


def test_help_shows_examples_that_this_command_line_accepts(studio):
    result = studio.run("generate", "--help")
    assert result.exit_code == 0
    assert 'leandiffusion generate "a large yellow star on a blue' in result.stdout


def test_version(studio):
    assert studio.run("--version").stdout == f"leandiffusion {leandiffusion.__version__}\n"


def test_env_for_people_and_as_json(studio):
    table = studio.run("env")
    assert table.exit_code == 0
    told = json.loads(studio.run("env", "--json").stdout)
    assert told["versions"]["leandiffusion"] == leandiffusion.__version__
    for fact in (told["versions"]["torch"], told["cpu"]["model"], told["memory"]["total"]):
        assert fact in table.stdout


def test_the_module_runs_as_the_command():
    result = subprocess.run(
        [sys.executable, "-m", "leandiffusion", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout == f"leandiffusion {leandiffusion.__version__}\n"
