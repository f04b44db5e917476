"""The files that deploy the service are well formed and refer to what exists."""

import importlib.metadata
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from typer.main import get_command

from search.resolved import resolve
from search.spec import SearchSpec
from service import cli
from service.settings import Settings

ROOT = Path(__file__).parents[3]
KUBERNETES = ROOT / "deploy" / "kubernetes"
KUBERNETES_VERSION = "1.37"


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


def test_ports_are_published_on_loopback_only_and_secrets_are_files(
    compose: dict[str, Any],
) -> None:
    published = [port for body in compose["services"].values() for port in body.get("ports", ())]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    (secret,) = compose["secrets"].values()
    assert set(secret) == {"file"}
    assert "secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    for name in ("migrate", "api", "worker", "postgres"):
        body = compose["services"][name]
        assert body["secrets"] == ["postgres_password"]
        told = body["environment"]
        assert not {name for name in told if "PASSWORD" in name and not name.endswith("_FILE")}


def test_every_service_is_confined(compose: dict[str, Any]) -> None:
    for name, body in compose["services"].items():
        limits = body["deploy"]["resources"]["limits"]
        assert set(limits) == {"cpus", "memory"}
        assert body["security_opt"] == ["no-new-privileges:true"]
        if name != "postgres":  # whose image gives root up by itself
            assert body["user"].partition(":")[0] not in ("", "0", "root")
            assert body["cap_drop"] == ["ALL"]
            assert body["read_only"]
        if name != "migrate":
            assert "healthcheck" in body
    assert compose["networks"]["inside"] == {"internal": True}


def settings_told(environment: Iterable[str]) -> set[str]:
    """Those of ours, as fields of the settings."""
    return {
        name.removeprefix("MATNAS_").removesuffix("_FILE").lower()
        for name in environment
        if name.startswith("MATNAS_")
    }


def test_every_variable_of_the_compose_file_is_a_setting(compose: dict[str, Any]) -> None:
    for body in compose["services"].values():
        assert settings_told(body.get("environment", ())) <= Settings.model_fields.keys()


@pytest.fixture(scope="module")
def manifests() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    for name in kustomization["resources"]:
        found += yaml.safe_load_all((KUBERNETES / name).read_text())
    return found


def test_the_manifests_obey_the_schemas_of_kubernetes(manifests: list[dict[str, Any]]) -> None:
    listed = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
    assert {path.name for path in KUBERNETES.iterdir()} == {*listed, "kustomization.yaml"}
    for manifest in manifests:
        kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)


def pods(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    kinds = ("Deployment", "StatefulSet")
    return {
        one["metadata"]["name"]: one["spec"]["template"]["spec"]
        for one in manifests
        if one["kind"] in kinds
    }


def test_the_manifests_have_the_parts_of_the_compose_file(
    manifests: list[dict[str, Any]], compose: dict[str, Any]
) -> None:
    found = {
        container["name"]: container
        for pod in pods(manifests).values()
        for container in [*pod["containers"], *pod.get("initContainers", ())]
    }
    assert found.keys() == compose["services"].keys()
    (told,) = (one["data"] for one in manifests if one["kind"] == "ConfigMap")
    for name, body in compose["services"].items():
        container = found[name]
        assert container["image"] == body["image"]
        assert container.get("command") == body.get("command")
        own = {variable["name"] for variable in container.get("env", ())}
        assert settings_told({*told, *own}) <= Settings.model_fields.keys()
        if "build" in body:
            assert settings_told(body["environment"]) <= settings_told({*told, *own})
            assert {"limits", "requests"} == container["resources"].keys()


def test_no_pod_runs_as_root_or_may_become_it(manifests: list[dict[str, Any]]) -> None:
    for pod in pods(manifests).values():
        assert pod["securityContext"]["runAsNonRoot"]
        for container in [*pod["containers"], *pod.get("initContainers", ())]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


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
