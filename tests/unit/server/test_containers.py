"""Dockerfile and compose.yaml agree with each other, and with what the command line takes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from leandiffusion.cli.app import app

ROOT = Path(__file__).parents[3]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]


def parsed(arguments: list[str]) -> dict[str, Any]:
    """What the command line makes of them; it exits for what it does not take."""
    command: Any = typer.main.get_command(app)
    name, *rest = arguments
    return command.commands[name].make_context(name, rest).params


def said(instruction: str) -> list[str]:
    found = re.findall(rf"^{instruction} (.*)$", DOCKERFILE, re.MULTILINE)
    return json.loads(found[-1])


def test_the_image_serves_where_others_can_reach_it() -> None:
    assert said("ENTRYPOINT") == ["leandiffusion"]
    asked = parsed(said("CMD"))
    assert asked["host"] == "0.0.0.0"
    assert f"EXPOSE {asked['port']}" in DOCKERFILE
    assert f"127.0.0.1:{asked['port']}/healthz" in DOCKERFILE


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_one_that_the_image_can_be(name: str) -> None:
    service = SERVICES[name]
    asked = parsed(service["command"].split())
    assert service["ports"] == [f"127.0.0.1:{asked['port']}:{asked['port']}"]
    assert "LEANDIFFUSION_API_KEY" in service["environment"]  # without one it would not start
    build = service["build"] if isinstance(service["build"], dict) else {"context": service["build"]}
    assert (ROOT / build["context"] / "Dockerfile").is_file()
    assert all(f"ARG {argument}" in DOCKERFILE for argument in build.get("args", ()))
    named = [volume.partition(":")[0] for volume in service["volumes"] if not volume.startswith(".")]
    assert {*named} <= {*COMPOSE["volumes"]}
    assert all(volume.split(":")[1] in DOCKERFILE for volume in service["volumes"])
    grace = int(service["stop_grace_period"].removesuffix("s"))
    assert grace > asked["drain"], "Docker kills what is not done by then"
