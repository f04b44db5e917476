"""The files that deploy the service are well formed and refer to what exists."""

import importlib.metadata
import json
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.main import get_command

from search.resolved import resolve
from search.spec import SearchSpec
from service import cli

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return content


def test_the_compose_file_obeys_the_schema_of_compose(compose: dict[str, Any]) -> None:
    vendored = files("check_jsonschema.builtin_schemas.vendor") / "compose-spec.json"
    jsonschema.validate(compose, json.loads(vendored.read_text()))


def test_every_command_of_the_compose_file_exists(compose: dict[str, Any]) -> None:
    entry = importlib.metadata.entry_points(group="console_scripts", name="matnas")
    assert [point.value for point in entry] == ["service.cli:app"]
    root = get_command(cli.app)
    ours = [body["command"] for body in compose["services"].values() if "build" in body]
    assert ours
    for program, *words in ours:
        assert program == "matnas"
        command: Any = root
        for word in words:
            command = command.commands[word]


def test_every_build_target_is_a_stage_of_the_dockerfile(compose: dict[str, Any]) -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    stages = {line.split()[-1] for line in lines if line.startswith("FROM")}
    targets = {body["build"]["target"] for body in compose["services"].values() if "build" in body}
    assert targets == {"api", "worker"}
    assert targets <= stages


def test_ports_are_published_on_loopback_only_and_no_password_is_given(
    compose: dict[str, Any],
) -> None:
    published = [port for body in compose["services"].values() for port in body.get("ports", ())]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert ":?" in compose["services"]["postgres"]["environment"]["POSTGRES_PASSWORD"]


def test_every_service_waits_for_what_it_needs(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for body in services.values():
        for name, how in body.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[name]
    for name in ("api", "worker"):
        assert "migrate" in services[name]["depends_on"]


def test_the_api_installs_without_torch_and_developers_get_everything() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {line.partition(">")[0].partition("[")[0] for line in requirements}

    assert not {"torch", "optuna", "scipy"} & names(project["dependencies"])
    assert {"torch", "optuna", "scipy"} <= names(project["optional-dependencies"]["worker"])
    assert "matnas[worker]" in project["optional-dependencies"]["dev"]


def test_the_api_starts_where_nothing_that_trains_is_installed() -> None:
    absent = ("torch", "optuna", "scipy", "sklearn", "mlxtend", "einops", "jaxtyping", "psutil")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}));"
        "from service.api.app import create_app; create_app(); import service.cli"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_everything_the_images_need_is_let_through_by_dockerignore() -> None:
    kept = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        word
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY")
        for word in line.split()[1:-1]
    }
    assert copied == kept


def test_the_demonstration_can_be_submitted() -> None:
    spec = SearchSpec.model_validate_json((ROOT / "examples" / "mnist_vit.json").read_text())
    resolved = resolve(spec)
    assert 0.14 < resolved.budget / resolved.dense_cost <= 0.15
