"""A search as a terminal shows it: a line while it runs, tables when it has ended."""

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from models.cost import UNITS, Quantity
from models.spec import LayerSpec
from search.layer_costs import LayerCosts
from search.report import Report, ReportRow
from service.client import Client, Event, SearchAnswer, TrialAnswer
from service.words import budget_in_words, duration, form_in_words, price, training_in_words

MEASURED = (
    "[dim]trained on {training}\n"
    "latency: time over the dense reference's, on {threads} thread(s)\n"
    "as dense: layers with a structure that run faster as the dense matrix here[/dim]"
)


_COLUMNS = (
    TextColumn("[bold]{task.fields[state]}"),
    BarColumn(bar_width=30),
    TaskProgressColumn(),
    TextColumn("{task.fields[doing]}", markup=False),
)
# How often a log file hears of a search that is only going on.
LINE_SECONDS = 10.0


class KeyLike(Protocol):
    """A key, told by the service or read from the database."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def scopes(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def created_at(self) -> datetime: ...  # noqa: D102
    @property
    def expires_at(self) -> datetime | None: ...  # noqa: D102
    @property
    def revoked_at(self) -> datetime | None: ...  # noqa: D102


def watch(client: Client, search_id: str, console: Console) -> SearchAnswer:
    """Show a search until it has ended: a bar on a terminal, now and then a line elsewhere."""
    search, quiet_until, plain = client.get(search_id), 0.0, not console.is_terminal
    with Progress(*_COLUMNS, console=console, transient=True, disable=plain) as bar:
        task = bar.add_task("search", total=None, state=search.state, doing="")
        for news in client.watch(search_id):
            if isinstance(news, Event):
                if line := event_line(news, client, search_id):
                    console.print(line)
                continue
            search = news
            done, total = search.progress.done, search.progress.total
            bar.update(task, completed=done, total=total, state=search.state, doing=doing(search))
            if plain and time.monotonic() >= quiet_until:
                quiet_until = time.monotonic() + LINE_SECONDS
                console.print(Text(f"{done} of {total} {search.progress.unit}s · {doing(search)}"))
    return search


def doing(search: SearchAnswer) -> str:
    """What a search is doing, how good it has become and how long it will take."""
    parts = [search.progress.phase]
    if search.best is not None:
        parts.append(f"best loss {search.best.validation_loss:.4f} ({search.best.name})")
    if search.progress.eta_seconds is not None and not search.ended:
        parts.append(f"about {duration(search.progress.eta_seconds)} left")
    return " · ".join(part for part in parts if part)


def event_line(event: Event, client: Client, search_id: str) -> Text | None:
    """What is worth a line: a search that moves, a trial that ends or is lost."""
    if event.trial_number is None:
        who, parts = "search", [event.state.lower()]
    elif event.state in {"WAITING", "RUNNING"}:
        return None
    else:
        trial = client.trial(search_id, event.trial_number)
        who, parts = trial.name, [event.state.lower()]
        if event.state == "COMPLETE" and trial.validation_loss is not None:
            parts.append(f"validation loss {trial.validation_loss:.4f}")
        if trial.seconds is not None:
            parts.append(duration(trial.seconds))
    parts.append(event.sentence or event.reason)
    line = Text(f"{who}: {' · '.join(part for part in parts if part)}")
    line.stylize("red" if event.state in {"FAILED", "LOST"} else "dim")
    return line


def report_table(report: Report) -> Table:
    """The evidence: what was found beside every plain choice at the same budget."""
    budgets = [result.budget for result in report.results] or [report.budget]
    table = _table(
        f"budget {budget_in_words(budgets, report.dense_cost, report.quantity)}",
        caption=MEASURED.format(
            threads=report.threads, training=training_in_words(report.execution)
        ),
    )
    table.add_column("network", no_wrap=True)
    timed = report.quantity == "latency"
    headings = (
        "validation\nloss",
        "test\naccuracy",
        *(("layers'\nlatency",) if timed else ("MACs", "parameters")),
        *(("latency,\npredicted",) if timed else ()),
        "latency",
        "as\ndense",
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report.rows:
        table.add_row(*_report_cells(row, report), style=_style(row, report))
    return table


def _table(title: str, caption: str = "") -> Table:
    """Make a table whose columns fit into 80 characters."""
    return Table(
        title=title,
        caption=caption,
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        pad_edge=False,
        collapse_padding=True,
    )


def _style(row: ReportRow, report: Report) -> str:
    if row.number in report.winners:
        return "bold green"
    return "dim" if row.kind == "reference" else ""


def _report_cells(row: ReportRow, report: Report) -> tuple[str, ...]:
    accuracy = "" if row.test_accuracy is None else f"{row.test_accuracy:.2%}"
    winner = " (winner)" if row.number in report.winners else ""
    if report.quantity == "latency":
        predicted = row.predicted_latency_ratio
        costs = price(row.cost, "latency"), "" if predicted is None else f"{predicted:.2f}"
    else:
        costs = f"{row.macs:,}", f"{row.parameters:,}"
    return (
        f"{row.name}{winner}",
        f"{row.validation_loss:.4f}",
        accuracy,
        *costs,
        f"{row.latency_ratio:.2f}",
        f"{len(row.run_dense) or ''}",
    )


def layers_table(report: Report, winner: ReportRow) -> Table:
    """What a winner is made of, layer by layer."""
    table = _table(f"what was found: {winner.name}")
    table.add_column("layer")
    table.add_column("shape", justify="right")
    table.add_column("structure")
    table.add_column(UNITS[report.quantity], justify="right")
    table.add_column("of dense", justify="right")
    for layer in winner.network.layers:
        if layer.name in report.eligible:
            table.add_row(*_layer_cells(layer, report, winner))
    return table


def _layer_cells(layer: LayerSpec, report: Report, winner: ReportRow) -> tuple[str, ...]:
    costs = LayerCosts(report.quantity, winner.times, report.reference.times)
    cost, dense = costs.of(layer) or (None, None)
    words = layer.structure.in_words(), form_in_words(winner.forms.get(layer.name))
    return (
        layer.name,
        f"{layer.rows} x {layer.columns}",
        ", ".join(filter(None, words)),
        "" if cost is None else price(cost, report.quantity),
        "" if cost is None or not dense else f"{cost / dense:.1%}",
    )


def trials_table(trials: Sequence[TrialAnswer], quantity: Quantity) -> Table:
    """The trials of a search that has no report yet."""
    table = _table("trials")
    for heading in ("", "trial", "state", "loss", "cost"):
        table.add_column(heading, no_wrap=True)
    table.add_column("why")
    for trial in trials:
        loss = "" if trial.validation_loss is None else f"{trial.validation_loss:.4f}"
        cost = "" if trial.cost is None else price(trial.cost, quantity)
        why = trial.sentence or trial.reason
        table.add_row(str(trial.number), trial.name, trial.state, loss, cost, Text(why))
    return table


def keys_table(keys: Sequence[KeyLike]) -> Table:
    """Every key, without its secret."""
    table = _table("keys")
    for heading in ("id", "name", "scopes", "made", "expires", "revoked"):
        # Whole in any width: `matnas keys revoke` wants it.
        table.add_column(heading, no_wrap=heading == "id", min_width=16 if heading == "id" else 5)
    for key in keys:
        moments = (
            "" if one is None else f"{one:%Y-%m-%d %H:%M}"
            for one in (key.created_at, key.expires_at, key.revoked_at)
        )
        style = "dim" if key.revoked_at is not None else ""
        table.add_row(key.id, Text(key.name), ", ".join(key.scopes), *moments, style=style)
    return table
