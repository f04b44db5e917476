"""The command line: one clear line for every mistake, and an exit code that says which kind."""

import json
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text
from typer.testing import CliRunner, Result

from search.fetch import CannotFetch
from service import cli
from service.api.routes import events
from service.credentials import KEY, SCOPES
from service.db.session import Database
from service.words import duration
from tests.serving import SPEC, Service, play, serving

runner = CliRunner()
SCOPE_WORDS = [word for scope in SCOPES for word in ("--scope", scope)]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(cli, "out", Console(width=200))


def test_the_command_line_starts_without_what_trains_or_serves() -> None:
    heavy = ("torch", "optuna", "numpy", "sqlalchemy", "alembic", "celery", "fastapi", "uvicorn")
    code = f"import sys, service.cli; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_search_is_submitted_from_a_file_and_from_standard_input(
    service: Service, tmp_path: Path
) -> None:
    path = tmp_path / "search.json"
    path.write_text(json.dumps(SPEC))
    for words, given in (([str(path)], None), (["-"], json.dumps(SPEC))):
        result = runner.invoke(cli.app, ["submit", *words, "--url", service.url], input=given)
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith("srch_")


@pytest.mark.parametrize("on_a_terminal", [True, False])
def test_the_tables_hold_the_evidence(
    service: Service, monkeypatch: pytest.MonkeyPatch, *, on_a_terminal: bool
) -> None:
    search_id = service.submit(name="a [bold] name")
    play(service, search_id)
    shown = StringIO()
    console = Console(width=200, file=shown, force_terminal=on_a_terminal, no_color=True)
    monkeypatch.setattr(cli, "out", console)
    for command in ("watch", "show"):
        result = runner.invoke(cli.app, [command, search_id, "--url", service.url])
        assert result.exit_code == 0, result.output
    text = Text.from_ansi(shown.getvalue()).plain
    assert text.count("a [bold] name: SUCCEEDED") == 2
    assert "candidate 3: complete · validation loss 0.3300" in text
    for word in ("reference", "uniform_low_rank", "candidate 3 (winner)", "layers.0", "1 tile"):
        assert word in text
    assert "run dense" in text
    assert "run sliced" in text


def test_a_watch_of_what_did_not_succeed_fails(service: Service) -> None:
    search_id = service.submit()
    service.http.post(f"/searches/{search_id}/cancel")
    result = runner.invoke(cli.app, ["watch", search_id, "--url", service.url])
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "not JSON"),
        ("[]", "a search is a JSON object"),
        ('{"model": {"kind": "vitt"}}', "Choose one of mlp, vit, mixer, gpt, matrix"),
    ],
)
def test_a_bad_file_is_one_clear_line(service: Service, content: str, sentence: str) -> None:
    result = runner.invoke(cli.app, ["submit", "-", "--url", service.url], input=content)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_file_and_a_missing_service_are_clear_lines(tmp_path: Path) -> None:
    missing = runner.invoke(cli.app, ["submit", str(tmp_path / "no.json")])
    assert (missing.exit_code, "No such file" in missing.stderr) == (2, True)
    nowhere = runner.invoke(cli.app, ["show", "srch_0", "--url", "http://127.0.0.1:9"])
    assert (nowhere.exit_code, "matnas up" in nowhere.stderr) == (3, True)


def test_a_bad_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATNAS_PORT", "high")
    result = runner.invoke(cli.app, ["show", "srch_0"])
    assert (result.exit_code, "MATNAS_PORT" in result.stderr) == (2, True)


@pytest.mark.parametrize("command", ["up", "serve"])
def test_an_address_that_others_reach_is_refused(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MATNAS_HOME", str(tmp_path))
    result = runner.invoke(cli.app, [command, "--host", "0.0.0.0"])
    assert result.exit_code == 2
    assert "matnas keys create NAME --scope read" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_key_opens_other_addresses_until_it_is_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MATNAS_HOME", str(tmp_path))
    monkeypatch.setattr("service.cli.Supervisor.run", lambda self: self._listener.close())
    made = runner.invoke(cli.app, ["keys", "create", "me", "--days", "30"])
    assert made.exit_code == 0, made.output
    key_id = made.stdout.strip().rpartition("_")[0]
    assert KEY.fullmatch(made.stdout.strip())
    open_to_all = ["up", "--host", "0.0.0.0", "--port", "0"]
    assert runner.invoke(cli.app, open_to_all).exit_code == 0
    shown = StringIO()
    monkeypatch.setattr(cli, "out", Console(width=200, file=shown))
    assert runner.invoke(cli.app, ["keys", "list"]).exit_code == 0
    assert key_id in shown.getvalue()
    assert made.stdout.strip() not in shown.getvalue()
    assert runner.invoke(cli.app, ["keys", "revoke", key_id]).exit_code == 0
    assert runner.invoke(cli.app, open_to_all).exit_code == 2
    unknown = runner.invoke(cli.app, ["keys", "revoke", "mtn_0"])
    assert (unknown.exit_code, unknown.stderr) == (2, "matnas: there is no key 'mtn_0'\n")


def test_the_command_line_shows_its_key_and_makes_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path) as service:

        def at_the_service(*words: str) -> Result:
            return runner.invoke(cli.app, [*words, "--url", service.url])

        made = at_the_service("keys", "create", "me", *SCOPE_WORDS)
        assert made.exit_code == 0, made.output
        without = at_the_service("show", "srch_0")
        assert (without.exit_code, "MATNAS_API_KEY" in without.stderr) == (2, True)
        monkeypatch.setenv("MATNAS_API_KEY", made.stdout.strip())
        assert "there is no search" in at_the_service("show", "srch_0").stderr
        lesser = at_the_service("keys", "create", "other").stdout.strip()
        assert at_the_service("keys", "list").exit_code == 0
        assert at_the_service("keys", "revoke", lesser.rpartition("_")[0]).exit_code == 0
        monkeypatch.setenv("MATNAS_API_KEY", lesser)
        assert "has been revoked" in at_the_service("show", "srch_0").stderr


def test_the_database_is_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MATNAS_HOME", str(tmp_path))
    for _ in range(2):
        assert runner.invoke(cli.app, ["db", "upgrade"]).exit_code == 0
    database = Database(f"sqlite:///{tmp_path / 'matnas.db'}")
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("select count(*) from searches").scalar() == 0
    database.dispose()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_durations_are_read_at_a_glance(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_data_are_fetched_into_the_installation_s_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(_work: Path, whole: Path) -> None:
        (whole / "1790.txt").write_text("Fellow citizens")

    def failing(_work: Path, _whole: Path) -> None:
        raise CannotFetch("apt-get is not installed here")

    sources = {"fashion-mnist": failing, "state-of-the-union": fetched}
    monkeypatch.setattr("search.fetch.SOURCES", sources)
    monkeypatch.setenv("MATNAS_HOME", str(tmp_path))
    some = runner.invoke(cli.app, ["data", "state-of-the-union"])
    assert (some.exit_code, some.stderr) == (0, "")
    assert (tmp_path / "data" / "state-of-the-union" / "1790.txt").exists()
    everything = runner.invoke(cli.app, ["data"])
    assert everything.exit_code == 2
    assert "fashion-mnist: apt-get is not installed here" in everything.stderr
    unknown = runner.invoke(cli.app, ["data", "imagenet"])
    assert unknown.exit_code == 2
    assert "imagenet cannot be fetched; choose of fashion-mnist, state-of-the" in unknown.stderr
