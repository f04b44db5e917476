"""A real server in a thread, and searches played through by hand in the place of a worker."""

import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from models.cost import layer_cost, network_macs, network_parameters
from models.forms import Form
from models.spec import LayerSpec, NetworkSpec
from models.structures import BlockDiagonal, Dense, Gblr, LowRank, Rectangle, Structure
from search.latency_table import WHOLE
from search.plan import PlannedTrial, planned_trials
from search.profile_report import (
    AllocatedLayer,
    AllocationReport,
    MenuCurve,
    ProfiledLayer,
    ProfileReport,
    TimesReport,
)
from search.report import BudgetResult, Importance, Report, ReportRow
from search.resolved import ResolvedSearch, resolve
from search.spec import SearchSpec
from service import jobs
from service.api.app import create_app
from service.artifacts import ArtifactStore
from service.db.migrations import upgrade
from service.db.session import Database
from service.queue import celery_app
from service.settings import Settings, get_settings

LEASE = timedelta(seconds=60)
SPEC: dict[str, Any] = {
    "name": "digits by hand",
    "tags": ["test"],
    "model": {"kind": "mlp", "hidden": [32, 32]},
    "dataset": "digits",
    "budget": {"ratio": 0.3},
    "compute": {"trials": 2},
    "space": {"baselines": ["uniform_low_rank", "block_diagonal"]},
}


@dataclass(frozen=True)
class Service:
    """A running server, and its rows and files from within."""

    url: str
    settings: Settings
    database: Database
    http: httpx.Client
    files: ArtifactStore = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", ArtifactStore(self.settings.home))

    def submit(self, **changes: Any) -> str:
        answer = self.http.post("/searches", json=SPEC | changes)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])


@contextmanager
def _environment(home: Path) -> Iterator[None]:
    """Messages go where the environment says, whatever the application was given."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MATNAS_HOME", str(home))
        get_settings.cache_clear()
        celery_app.cache_clear()
        yield
    get_settings.cache_clear()
    celery_app.cache_clear()


@contextmanager
def serving(home: Path, **choices: Any) -> Iterator[Service]:
    settings = Settings(home=home, **choices)
    upgrade(settings.database)
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = uvicorn.Config(create_app(settings), log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    database = Database(settings.database)
    try:
        with _environment(home), httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
            while not server.started:
                time.sleep(0.01)
            yield Service(url, settings, database, http)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
        database.dispose()


def begin(service: Service, search_id: str, number: int) -> jobs.Claim:
    """Take a trial as a worker would."""
    with service.database.write() as session:
        claim = jobs.claim(
            session, f"{search_id}-{number}", owner="hand", now=datetime.now(UTC), lease=LEASE
        )
    assert claim is not None, f"trial {number} may not start"
    return claim


def report_curve(service: Service, claim: jobs.Claim, values: Mapping[int, float]) -> None:
    """Say where a trial stands."""
    stage = jobs.Stage("training", max(values), 2 * max(values), "epoch")
    points = [jobs.Point("validation_loss", step, value) for step, value in values.items()]
    with service.database.write() as session:
        jobs.record(session, claim, stage=stage, points=points)


def end(service: Service, claim: jobs.Claim, ending: jobs.Ending) -> None:
    """End a trial as a worker would."""
    with service.database.write() as session:
        assert jobs.finish(session, claim, ending, now=datetime.now(UTC))


def play(service: Service, search_id: str, *, until: int | None = None) -> None:
    """Run every trial of a search, or those below `until`, with made results."""
    with service.database.read() as session:
        view = jobs.get_search(session, search_id, now=datetime.now(UTC))
        trials = jobs.list_trials(session, search_id, now=datetime.now(UTC))
    resolved = resolve(view.spec)
    for trial in trials[:until]:
        claim = begin(service, search_id, trial.number)
        if claim.planned.kind == "measurement":
            ending = jobs.Ending("COMPLETE", report=made_report(view.spec, resolved))
        else:
            report_curve(service, claim, {1: 1.0, 2: loss_of(claim.planned)})
            folder = service.files.attempt(search_id, trial.number, claim.attempt) / "export"
            folder.mkdir(parents=True)
            network = made_network(claim.planned, resolved)
            (folder / "network.json").write_text(network.model_dump_json())
            (folder / "network.safetensors").write_bytes(bytes(range(200)))
            service.files.save(search_id, trial.number, claim.attempt)
            ending = jobs.Ending(
                "COMPLETE",
                network=network,
                metrics={"validation_loss": loss_of(claim.planned), "test_accuracy": 0.9},
                profile=made_profile(resolved) if trial.kind == "reference" else None,
                times=made_times(claim.planned, resolved),
            )
        end(service, claim, ending)


def made_profile(resolved: ResolvedSearch) -> ProfileReport:
    """Rank 1 and dense on every menu, and the former chosen."""
    layers, chosen = [], []
    for layer in resolved.layers:
        low, dense = layer.rows + layer.columns, layer.rows * layer.columns
        curve = MenuCurve(
            kind="low rank",
            structures=("low rank, 1",),
            macs=(layer.tokens * low,),
            parameters=(low,),
            errors=(0.25,),
            harms=(0.5,),
        )
        layers.append(
            ProfiledLayer(
                name=layer.name,
                rows=layer.rows,
                columns=layer.columns,
                tokens=layer.tokens,
                sensitivity=2.0,
                rule=None,
                menu=(curve,),
            )
        )
        chosen.append(
            AllocatedLayer(
                layer=layer.name,
                kind="low rank",
                structure=LowRank(rank=1),
                cost=curve.macs[0],
                share=low / dense,
                error=0.25,
                harm=0.5,
            )
        )
    allocation = AllocationReport(
        budget=resolved.budget,
        cost=sum(one.cost for one in chosen),
        harm=0.5 * len(chosen),
        bound=0.5 * len(chosen),
        layers=tuple(chosen),
    )
    return ProfileReport(
        quantity=resolved.quantity,
        dense_cost=resolved.dense_cost,
        layers=tuple(layers),
        allocations=(allocation,),
        left_dense=(),
        times=made_times_report(resolved) if resolved.quantity == "latency" else None,
    )


def made_times_report(resolved: ResolvedSearch) -> TimesReport:
    """A millisecond for every layer."""
    return TimesReport(
        batch=64,
        network_seconds=0.004,
        dense_seconds=(0.001,) * len(resolved.layers),
        smallest_cost=120_000,
    )


def made_times(planned: PlannedTrial, resolved: ResolvedSearch) -> dict[str, int] | None:
    """Where the budget is in time, all layers take as long as each other."""
    if resolved.quantity != "latency":
        return None
    whole = WHOLE if planned.kind == "reference" else resolved.budget - planned.number
    return {layer.name: whole // len(resolved.layers) for layer in resolved.layers}


def loss_of(planned: PlannedTrial) -> float:
    return {"reference": 0.1, "baseline": 0.5}.get(planned.kind, 0.3) + 0.01 * planned.number


def made_network(planned: PlannedTrial, resolved: ResolvedSearch) -> NetworkSpec:
    return resolved.network.with_structures(
        {layer.name: _structure(planned, layer) for layer in resolved.layers}
    )


def _structure(planned: PlannedTrial, layer: LayerSpec) -> Structure:
    match planned.family or planned.kind:
        case "uniform_low_rank":
            return LowRank(rank=max(1, min(layer.rows, layer.columns) // 8))
        case "block_diagonal":
            return BlockDiagonal(blocks=8)
        case "candidate":
            return Gblr(rectangles=_rectangles(layer, planned.number))
        case _:
            return Dense()


def _rectangles(layer: LayerSpec, number: int) -> tuple[Rectangle, ...]:
    rows, columns = layer.rows, layer.columns
    tile = Rectangle(
        row_start=0,
        row_count=rows // 4,
        column_start=columns // 2,
        column_count=columns // 4,
        rank=min(rows, columns) // 4,
    )
    wide = Rectangle(
        row_start=rows // 2 + number,
        row_count=rows - 2,
        column_start=columns - 3,
        column_count=columns // 2,
        rank=2,
    )
    return (tile, wide)


def made_report(spec: SearchSpec, resolved: ResolvedSearch) -> Report:
    rows = {
        planned.number: _row(planned, resolved)
        for planned in (
            planned
            for planned in planned_trials(spec)
            if planned.kind != "measurement" and not planned.repeat
        )
    }
    baselines = tuple(row for row in rows.values() if row.kind == "baseline")
    candidates = tuple(row for row in rows.values() if row.kind == "candidate")
    return Report(
        quantity=resolved.quantity,
        budget=resolved.budget,
        dense_cost=resolved.dense_cost,
        budget_macs=resolved.budget,
        eligible_dense_macs=resolved.dense_cost,
        eligible=resolved.eligible,
        threads=1,
        latency_batch=64,
        other_load=0.0,
        reference=rows[0],
        baselines=baselines,
        candidates=candidates,
        best_candidate=candidates[0],
        winner=candidates[0],
        results=tuple(
            BudgetResult(
                index=index,
                share=budget / resolved.dense_cost,
                budget=budget,
                budget_macs=budget,
                best_candidate=best,
                winner=best,
            )
            for index, budget in enumerate(resolved.budgets)
            for best in [next(r.number for r in candidates if r.budget_index in (index, None))]
        ),
        front=(0, candidates[0].number),
        reference_point=(1.1, 1.1, 1.1),
        hypervolume=0.25,
        importances=tuple(
            Importance(budget_index=index, name="shrink", fanova=0.75, ped_anova=0.5)
            for index in range(len(resolved.budgets))
        ),
    )


def _forms(planned: PlannedTrial, layers: Sequence[LayerSpec]) -> dict[str, Form]:
    """What has a structure runs by it, but for the first layer of every candidate."""
    if planned.kind != "candidate":
        kinds = {layer.name: layer.structure.kind for layer in layers}
        return {name: "structured" for name, kind in kinds.items() if kind != "dense"}
    names = [layer.name for layer in layers]
    return {name: "dense" if name == names[0] else "sliced" for name in names}


def _row(planned: PlannedTrial, resolved: ResolvedSearch) -> ReportRow:
    network, times = made_network(planned, resolved), made_times(planned, resolved)
    layers = [layer for layer in network.layers if layer.name in resolved.eligible]
    return ReportRow(
        number=planned.number,
        name=planned.name,
        kind=planned.kind,
        budget_index=None if planned.kind == "reference" else planned.group,
        budget=None if planned.kind == "reference" else resolved.budgets[planned.budget_index],
        validation_loss=loss_of(planned),
        validation_accuracy=0.9,
        test_loss=0.4,
        test_accuracy=0.9,
        cost=sum(layer_cost(layer, resolved.counted) for layer in layers)
        if times is None
        else sum(times.values()),
        times=times,
        predicted_latency_ratio=None if times is None else 0.65,
        smallest_step=None,
        macs=sum(layer_cost(layer, "macs") for layer in layers),
        parameters=sum(layer_cost(layer, "parameters") for layer in layers),
        network_macs=network_macs(network),
        network_parameters=network_parameters(network),
        latency_ratio=0.7,
        latency_quartiles=(0.6, 0.8),
        forms=_forms(planned, layers),
        epochs=8,
        network=network,
    )
