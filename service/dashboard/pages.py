"""The pages: the list of searches, one search with its evidence, found networks side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, final

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from models.cost import UNITS
from models.forms import Form
from models.spec import LayerSpec
from search.layer_costs import LayerCosts
from search.profile_report import ProfileReport
from search.report import Report
from service import jobs
from service.api.paging import Cursor
from service.db.session import Database, clock
from service.errors import NotYetThere
from service.words import duration, form_in_words, price, training_in_words

HERE = Path(__file__).parent
STATIC = StaticFiles(directory=HERE / "static")
PAGE_LENGTH = 50
COUNTED = LayerCosts("macs")  # networks of several searches are compared by what arithmetic knows

router = APIRouter(default_response_class=HTMLResponse)


@final
@dataclass(frozen=True, slots=True)
class Layer:
    """A line of a layer table."""

    name: str
    rows: int
    columns: int
    words: str
    run: str
    cost: int | None
    share: float | None


@final
@dataclass(frozen=True, slots=True)
class Shown:
    """A network that is shown whole."""

    name: str
    number: int
    layers: Sequence[Layer]


@router.get("/")
def searches(request: Request, cursor: Cursor = None) -> HTMLResponse:
    """List the newest searches."""
    with rows_of(request).read() as session:
        page = jobs.list_searches(
            session,
            jobs.SearchFilter(),
            now=clock(session),
            cursor=cursor,
            limit=PAGE_LENGTH,
        )
    return render(request, "searches.html", page=page)


@router.get("/view/compare")
def compare(
    request: Request, trials: Annotated[list[str] | None, Query(max_length=8)] = None
) -> HTMLResponse:
    """Show 2 to 8 found networks side by side; `trials` repeats, or is separated by commas."""
    ids = [one for text in trials or () for one in text.replace(":", "-").split(",") if one]
    with rows_of(request).read() as session:
        compared = jobs.compare(session, ids, now=clock(session), max_points=2)
    tables = [
        {layer.name: layer for layer in _layers(one.network.layers, one.eligible, COUNTED, {})}
        for one in compared
    ]
    names = list(dict.fromkeys(name for table in tables for name in table))
    totals = [sum(layer.cost or 0 for layer in table.values()) for table in tables]
    return render(
        request, "compare.html", compared=compared, tables=tables, names=names, totals=totals
    )


@router.get("/view/{search_id}")
def search(request: Request, search_id: str) -> HTMLResponse:
    """Show one search: where it stands, its evidence, its trials, its best network."""
    with rows_of(request).read() as session:
        now = clock(session)
        view = jobs.get_search(session, search_id, now=now)
        trials = jobs.list_trials(session, search_id, now=now)
        try:
            report: Report | None = jobs.report(session, search_id)
        except NotYetThere:
            report = None
        try:
            profile: ProfileReport | None = jobs.profile(session, search_id)
        except NotYetThere:
            profile = None
        shown = [
            Shown(trials[number].name, number, layers)
            for number in _to_show(report, view)
            for network in [jobs.network(session, search_id, number)]
            for forms in [_forms(report, number)]
            for costs in [jobs.layer_costs(session, search_id, number)]
            for layers in [_layers(network.layers, view.eligible, costs, forms)]
        ]
    return render(
        request,
        "search.html",
        search=view,
        trials=trials,
        report=report,
        profile=profile,
        shown=shown,
    )


def is_page(path: str) -> bool:
    """Whether what is asked for is read by a person."""
    return path in {"/", "/login", "/logout"} or path.startswith("/view/")


def problem(
    request: Request, status: int, detail: str, headers: Mapping[str, str] | None
) -> HTMLResponse:
    """Say what went wrong to a person."""
    return render(
        request,
        "problem.html",
        status=status,
        headers=headers,
        title=HTTPStatus(status).phrase,
        detail=detail,
        request_id=request.state.request_id,
    )


def _to_show(report: Report | None, search: jobs.SearchView) -> list[int]:
    """Each budget's winner, or the best so far under each."""
    if report is not None:
        return sorted(report.winners)
    return sorted({best.number for best in search.bests if best is not None})


def _forms(report: Report | None, number: int) -> Mapping[str, Form]:
    rows = report.rows if report is not None else ()
    return next((row.forms for row in rows if row.number == number), {})


def _layers(
    layers: Sequence[LayerSpec],
    eligible: Sequence[str],
    costs: LayerCosts,
    forms: Mapping[str, Form],
) -> list[Layer]:
    return [
        Layer(
            layer.name,
            layer.rows,
            layer.columns,
            layer.structure.in_words(),
            form_in_words(forms.get(layer.name)),
            cost,
            cost / dense if cost is not None and dense else None,
        )
        for layer in layers
        if layer.name in eligible
        for cost, dense in [costs.of(layer) or (None, None)]
    ]


def rows_of(request: Request) -> Database:
    """Where this application's rows are."""
    found: Database = request.app.state.database
    return found


def render(
    request: Request,
    template: str,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    **values: Any,
) -> HTMLResponse:
    """Make a page; it knows who asks, if anybody has been let in."""
    asking: jobs.Actor | None = getattr(request.state, "actor", None)
    page = _environment.get_template(template).render(values, status=status, asking=asking)
    return HTMLResponse(page, status, headers)


def _moment(value: datetime) -> str:
    return f"{value:%Y-%m-%d %H:%M} UTC"


_environment = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters |= {
    "duration": duration,
    "moment": _moment,
    "training": training_in_words,
    "unit": UNITS.__getitem__,
    "price": price,
}
