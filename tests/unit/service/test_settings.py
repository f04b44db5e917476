"""What an installation may set, and what it gets if it sets nothing."""

from pathlib import Path

import pytest
from pydantic import ValidationError
from sqlalchemy import make_url

from service.settings import Settings


def test_nothing_needs_to_be_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings()
    assert settings.database == f"sqlite:///{tmp_path.resolve()}/.matnas/matnas.db"
    assert settings.data_folder == tmp_path.resolve() / ".matnas" / "data"
    assert settings.broker_url == "filesystem://"
    assert settings.host == "127.0.0.1"


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATNAS_DATABASE_URL", "postgresql://db/matnas")
    monkeypatch.setenv("MATNAS_LEASE_SECONDS", "90")
    settings = Settings()
    assert settings.database == "postgresql://db/matnas"
    assert settings.lease_seconds == 90


def test_a_broker_that_is_none_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATNAS_BROKER_URL", "foo://x")
    with pytest.raises(ValidationError, match="redis://"):
        Settings()


@pytest.mark.parametrize("text", ["a.lan, b.lan", '["a.lan", "b.lan"]', "b.lan,a.lan,"])
def test_hosts_are_listed_as_people_write_them(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("MATNAS_ALLOWED_HOSTS", text)
    assert Settings().allowed_hosts == {"a.lan", "b.lan"}


def test_a_key_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATNAS_API_KEY", "mtn_0_secret")
    assert "secret" not in repr(Settings())


def test_a_setting_may_stand_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("p@ss/word\n")
    (tmp_path / "lease").write_text("90\n")
    monkeypatch.setenv("MATNAS_DATABASE_URL", "postgresql+psycopg://matnas@postgres/matnas")
    monkeypatch.setenv("MATNAS_DATABASE_PASSWORD_FILE", str(tmp_path / "password"))
    monkeypatch.setenv("MATNAS_LEASE_SECONDS_FILE", str(tmp_path / "lease"))
    settings = Settings()
    assert make_url(settings.database).password == "p@ss/word"
    assert settings.database.startswith("postgresql+psycopg://matnas:p%40ss%2Fword@postgres/")
    assert settings.lease_seconds == 90
    assert "p@ss" not in repr(settings)
    monkeypatch.setenv("MATNAS_DATABASE_URL", "postgresql://matnas:own@postgres/matnas")
    monkeypatch.setenv("MATNAS_LEASE_SECONDS", "30")
    assert make_url(Settings().database).password == "own"
    assert Settings().lease_seconds == 30
    monkeypatch.setenv("MATNAS_API_KEY_FILE", str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError):
        Settings()


def test_a_data_folder_elsewhere_is_not_seen_from_here(tmp_path: Path) -> None:
    assert Settings(home=tmp_path).sees_data
    assert Settings(home=tmp_path, data=tmp_path).sees_data
    assert not Settings(home=tmp_path, data=tmp_path / "elsewhere").sees_data


def test_trials_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert Settings().trial_threads == 8
    assert Settings(worker_concurrency=3).trial_threads == 2
    assert Settings(worker_concurrency=99).trial_threads == 1
    assert Settings(worker_concurrency=3, threads=5).trial_threads == 5


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "70000"), ("LEASE_SECONDS", "0"), ("MAX_ATTEMPTS", "-1"), ("ALLOWED_HOSTS", "[a")],
)
def test_what_makes_no_sense_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"MATNAS_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()
