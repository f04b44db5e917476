"""A real search on real data, from an empty machine to a found network: `make demo`.

It starts the service as `matnas up` does, asks it for `mnist_vit.json` over HTTP, shows what
happens, writes what was found under MATNAS_HOME, and stops everything.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.text import Text

from search.report import Report, ReportRow
from service import terminal
from service.client import Client, Refused, Unreachable
from service.settings import Settings
from service.supervisor import READY, dying_with_us

SPEC = Path(__file__).with_name("mnist_vit.json")
STOP_SECONDS = 20.0


class Failed(Exception):
    """Why there is nothing to show, as a sentence."""


def main() -> int:
    """Run the demonstration; 0 only if the search succeeded."""
    console = Console(highlight=False)
    home = Settings().home
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with service() as url, Client(url) as client:
            console.print(f"the service answers at {url}; its logs are in {home / 'logs'}")
            report = run(client, console, home)
    except (Failed, Refused, Unreachable) as error:
        console.print(Text(f"the demonstration failed: {error}", style="red"))
        return 1
    except KeyboardInterrupt:
        console.print("stopped")
        return 130
    show(report, console, home)
    return 0


@contextmanager
def service() -> Iterator[str]:
    """Run `matnas up` on a free port for as long as the block lasts; gives its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "up", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=dying_with_us(signal.SIGTERM),  # noqa: PLW1509  (there is one thread)
    )
    assert process.stdout is not None
    try:
        yield _url(process)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run(client: Client, console: Console, home: Path) -> Report:
    """Ask for the search, stay with it to its end, and keep what it found."""
    search = client.submit(json.loads(SPEC.read_text()))
    console.print(f"asked for search {search.id}\n")
    try:
        search = terminal.watch(client, search.id, console)
    except KeyboardInterrupt:
        client.cancel(search.id)
        raise
    if search.state != "SUCCEEDED":
        console.print(terminal.trials_table(client.trials(search.id), search.quantity))
        why = search.sentence or search.reason or "see the logs"
        raise Failed(f"the search ended {search.state}: {why}")
    report = client.report(search.id)
    keep(client, search.id, report, home)
    return report


def keep(client: Client, search_id: str, report: Report, home: Path) -> None:
    """Write the table, the drawing and the exported network of the winner under `home`."""
    (home / "demo.json").write_text(json.dumps(table(report), indent=2) + "\n")
    drawing = client.drawing(search_id, report.winner.number)
    (home / "structure.svg").write_text(drawing)
    network = home / "network"
    network.mkdir(exist_ok=True)
    for file in client.files(search_id):
        if file.trial == report.winner.number:
            client.download(file.link, network / file.name)


def table(report: Report) -> dict[str, object]:
    """Reduce a report to the demonstration's numbers."""
    best = report.best_candidate
    return {
        "budget_macs": report.budget_macs,
        "eligible_dense_macs": report.eligible_dense_macs,
        "reference": _row(report.reference),
        "baselines": [_row(row) for row in report.baselines],
        "best_candidate": None if best is None else _row(best),
        "winner": _row(report.winner),
    }


def show(report: Report, console: Console, home: Path) -> None:
    """End with what was found, and where it is."""
    console.print(terminal.report_table(report))
    console.print(terminal.layers_table(report, report.winner))
    console.print(f"the table:    {home / 'demo.json'}")
    console.print(f"the picture:  {home / 'structure.svg'}")
    console.print(f"the network:  {home / 'network'}")
    console.print("\nTo look at it in the browser: make up, then open http://127.0.0.1:8000")


def _row(row: ReportRow) -> dict[str, object]:
    keys = {"name", "validation_loss", "test_accuracy", "macs", "parameters", "latency_ratio"}
    return row.model_dump(mode="json", include=keys)


def _url(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(READY):
            # What it says later (a worker that was restarted) must not fill the pipe.
            threading.Thread(target=_pass_on, args=(process.stdout,), daemon=True).start()
            return line.removeprefix(READY).strip()
        sys.stdout.write(line)
    raise Failed(f"the service did not start (exit code {process.wait()})")


def _pass_on(lines: Iterator[str]) -> None:
    for line in lines:
        sys.stdout.write(line)
        sys.stdout.flush()


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[1])
    sys.exit(main())
