"""A search as a terminal shows it: a line while it runs, tables when it has ended."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from models.cost import dense_cost, layer_cost
from models.spec import LayerSpec
from search.report import Report, ReportRow
from service.client import Client, Event, SearchAnswer, TrialAnswer
from service.words import UNITS, duration, in_words

MEASURED = "[dim]latency: time over the dense reference's, on {threads} thread(s)[/dim]"


def watch(client: Client, search_id: str, console: Console) -> SearchAnswer:
    """Show a search until it has ended: a bar on a terminal, plain lines elsewhere."""
    columns = (
        TextColumn("[bold]{task.fields[state]}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TextColumn("{task.fields[doing]}"),
    )
    search = client.get(search_id)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("search", total=None, state=search.state, doing="")
        said = ""
        for news in client.watch(search_id):
            if isinstance(news, Event):
                console.print(event_line(news), highlight=False)
                continue
            search = news
            done, total = search.progress.done, search.progress.total
            bar.update(task, completed=done, total=total, state=search.state, doing=doing(search))
            if not console.is_terminal and doing(search) != said:
                said = doing(search)
                console.print(f"{done} of {total} {search.progress.unit}: {said}", highlight=False)
    return search


def doing(search: SearchAnswer) -> str:
    """What a search is doing, how good it has become and how long it will take."""
    parts = [search.progress.phase]
    if search.best is not None:
        parts.append(f"best loss {search.best.validation_loss:.4f} ({search.best.name})")
    if search.progress.eta_seconds is not None:
        parts.append(f"about {duration(search.progress.eta_seconds)} left")
    return " · ".join(part for part in parts if part)


def event_line(event: Event) -> Text:
    """One transition, dimmed unless it is bad news."""
    who = "search" if event.trial_number is None else f"trial {event.trial_number}"
    why = ": ".join(part for part in (event.reason, event.sentence) if part)
    style = "red" if event.state in {"FAILED", "LOST"} else "dim"
    return Text(f"{who} {event.state}{f' ({why})' if why else ''}", style=style)


def report_table(report: Report) -> Table:
    """The evidence: what was found beside every plain choice at the same budget."""
    title = f"budget {report.budget:,} of {report.dense_cost:,} {UNITS[report.quantity]}"
    table = Table(
        title=title, box=box.SIMPLE_HEAVY, caption=MEASURED.format(threads=report.threads)
    )
    table.add_column("network")
    headings = ("validation loss", "test accuracy", "MACs", "parameters", "of budget", "latency")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in (report.reference, *report.baselines, *report.candidates):
        table.add_row(*_report_cells(row, report), style=_style(row, report))
    return table


def _style(row: ReportRow, report: Report) -> str:
    if row.number == report.winner.number:
        return "bold green"
    return "dim" if row.kind == "reference" else ""


def _report_cells(row: ReportRow, report: Report) -> tuple[str, ...]:
    accuracy = "" if row.test_accuracy is None else f"{row.test_accuracy:.2%}"
    winner = " (winner)" if row.number == report.winner.number else ""
    return (
        f"{row.name}{winner}",
        f"{row.validation_loss:.4f}",
        accuracy,
        f"{row.macs:,}",
        f"{row.parameters:,}",
        f"{row.cost / report.budget:.1%}",
        f"{row.latency_ratio:.2f}",
    )


def layers_table(report: Report) -> Table:
    """What the winner is made of, layer by layer."""
    winner = report.winner
    table = Table(title=f"what was found: {winner.name}", box=box.SIMPLE_HEAVY)
    table.add_column("layer")
    table.add_column("shape", justify="right")
    table.add_column("structure")
    table.add_column(UNITS[report.quantity], justify="right")
    table.add_column("of dense", justify="right")
    for layer in winner.network.layers:
        if layer.name in report.eligible:
            table.add_row(*_layer_cells(layer, report))
    return table


def _layer_cells(layer: LayerSpec, report: Report) -> tuple[str, ...]:
    cost = layer_cost(layer, report.quantity)
    return (
        layer.name,
        f"{layer.rows} x {layer.columns}",
        in_words(layer.structure),
        f"{cost:,}",
        f"{cost / dense_cost(layer, report.quantity):.1%}",
    )


def trials_table(trials: Sequence[TrialAnswer]) -> Table:
    """The trials of a search that has no report yet."""
    table = Table(box=box.SIMPLE_HEAVY)
    for heading in ("", "trial", "state", "validation loss", "cost", "why"):
        table.add_column(heading)
    for trial in trials:
        loss = "" if trial.validation_loss is None else f"{trial.validation_loss:.4f}"
        cost = "" if trial.cost is None else f"{trial.cost:,}"
        why = trial.sentence or trial.reason
        table.add_row(str(trial.number), trial.name, trial.state, loss, cost, why)
    return table
