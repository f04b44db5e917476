"""The shape of the code: who may import whom, what files are called and how long they grow."""

import ast
import importlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("models", "search", "service", "worker")
LONGEST = 500  # lines
# The lists of the structures and of their public layers are the point of these.
NOT_EMPTY = [ROOT / "models" / name / "__init__.py" for name in ("structures", "structured")]


def python_files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [str(command), "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_is_loaded_from_the_root_of_the_repository(name: str) -> None:
    file = importlib.import_module(name).__file__
    assert file is not None
    assert Path(file).resolve() == ROOT / name / "__init__.py"


def test_no_file_inside_a_package_bears_a_packages_name() -> None:
    """`import models` must never find a file of that name first."""
    taken = {f"{name}.py" for name in PACKAGES}
    assert [path for path in python_files(*PACKAGES) if path.name in taken] == []


def test_every_file_opens_with_a_sentence() -> None:
    silent = [
        path
        for path in python_files(*PACKAGES, "tests", "examples", "benchmarks")
        if not (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").strip()
    ]
    assert silent == []


def test_no_file_grows_too_long() -> None:
    long = [
        path
        for path in python_files(*PACKAGES, "tests", "examples", "benchmarks")
        if len(path.read_text(encoding="utf-8").splitlines()) > LONGEST
    ]
    assert long == []


def test_a_packages_own_file_holds_its_sentence_and_nothing_else() -> None:
    def is_only_a_sentence(path: Path) -> bool:
        # Migrations are run through their package, and jobs are one vocabulary in several files.
        body = ast.parse(path.read_text(encoding="utf-8")).body
        return len(body) == 1 and isinstance(body[0], ast.Expr)

    owned = [
        path
        for path in python_files("models", "search", "worker")
        if path.name == "__init__.py" and path not in NOT_EMPTY
    ]
    owned += [ROOT / "service" / "__init__.py"]
    assert [path for path in owned if not is_only_a_sentence(path)] == []


def test_the_tests_are_no_package() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_nothing_is_unpickled() -> None:
    def loads(path: Path) -> bool:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = [
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        ] + [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        torch_load = any(
            isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load"
            for node in ast.walk(tree)
        )
        return torch_load or bool({"pickle", "dill", "joblib"} & set(modules))

    assert [path for path in python_files(*PACKAGES) if loads(path)] == []


def test_the_import_contracts_are_kept() -> None:
    found = lint_imports(ROOT)
    assert found.returncode == 0, found.stdout + found.stderr


WRONG = [
    (
        "service/settings.py",
        "import torch",
        "the service starts without torch, and never calls the worker",
    ),
    (
        "models/cost.py",
        "import service",
        "models know nothing of the search, the service and the worker",
    ),
    ("models/spec.py", "import torch", "specs, costs, plans and drawings need no torch"),
    ("search/plan.py", "import sqlalchemy", "a search runs without the service"),
    (
        "service/queue.py",
        "import search.plan",
        "the queue carries ids: it imports neither task, row nor search",
    ),
]


def test_a_wrong_import_is_caught(tmp_path: Path) -> None:
    """The test of the test above: all wrong imports at once, in a copy."""
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for file, statement, _ in WRONG:
        with (tmp_path / file).open("a", encoding="utf-8") as opened:
            opened.write(f"\n{statement}\n")
    found = lint_imports(tmp_path)
    assert found.returncode != 0
    said = " ".join(found.stdout.split())
    for *_, contract in WRONG:
        assert f"{contract} BROKEN" in said, said
