"""What is answered where the database was never prepared, or is away."""

from pathlib import Path

import pytest
from sqlalchemy import text

from service.api.routes import artifacts
from service.storage import StorageAway
from tests.serving import serving


def test_missing_tables_name_the_command_that_makes_them(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        with service.database.write() as session:
            for table in ("searches", "alembic_version"):
                session.execute(text(f"DROP TABLE {table}"))
        ready = service.http.get("/readyz")
        assert ready.status_code == 503
        assert (ready.json()["database"], ready.json()["migrations"]) == ("ok", "failing")
        assert any("matnas db upgrade" in remedy for remedy in ready.json()["remedies"])
        refused = service.http.get("/v1/searches")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert "matnas db upgrade" in refused.json()["detail"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_database_that_is_away_is_no_fault_of_ours(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        service.database.dispose()
        file = tmp_path / "matnas.db"
        file.rename(tmp_path / "elsewhere.db")
        file.mkdir()
        for suffix in ("-wal", "-shm"):
            file.with_name(file.name + suffix).unlink(missing_ok=True)
        ready = service.http.get("/readyz").json()
        assert (ready["database"], ready["migrations"]) == ("failing", "failing")
        assert ready["remedies"][0].startswith("the database does not answer")


def test_a_store_that_is_away_is_no_fault_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise StorageAway("s3://bucket does not answer")

    monkeypatch.setattr(artifacts, "make_store", away)
    with serving(tmp_path) as service:
        answer = service.http.get(f"/searches/{service.submit()}/artifacts")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "the store of files" in answer.json()["detail"]
