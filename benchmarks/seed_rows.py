"""Rows of searches as years of use would leave them, the same for the same seed."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, final

from models.cost import layer_cost
from models.structures import BlockDiagonal, LowRank, Structure
from search.plan import PlannedTrial, planned_trials
from search.resolved import ResolvedSearch, resolve
from search.spec import LearnerSettings, SearchSpec

# The last of them has just been asked for at this moment.
NEWEST = datetime(2026, 11, 1, tzinfo=UTC)
APART = timedelta(minutes=10)
BASELINES = 5
CURVES = ("training_loss", "validation_loss")
TAGS = ("nightly", "paper", "baseline", "ablation", "customer-a", "customer-b", "retry", "draft")
WORKERS = tuple(f"host-{number}/{1000 + number}" for number in range(16))
MODELS: Sequence[Mapping[str, Any]] = (
    {"model": {"kind": "mlp", "hidden": [64, 64]}, "dataset": "digits"},
    {"model": {"kind": "mlp", "hidden": [256, 128]}, "dataset": "mnist-5k"},
    {
        "model": {"kind": "vit", "patch": 7, "width": 64, "depth": 2, "heads": 4},
        "dataset": "mnist-5k",
    },
    {
        "model": {"kind": "vit", "patch": 7, "width": 96, "depth": 3, "heads": 4},
        "dataset": "fashion-mnist",
    },
)
# Of a hundred searches so many end like this, or have not ended.
STATES = (
    *(("SUCCEEDED",) * 86 + ("FAILED",) * 5 + ("CANCELLED",) * 5),
    *("RUNNING", "PAUSED", "QUEUED", "SUCCEEDED"),
)
SEARCH_COLUMNS = (
    *("id", "name", "model", "dataset", "spec", "state", "reason", "sentence", "version"),
    *("quantity", "budget", "dense_cost", "smallest_cost", "eligible", "network", "bests"),
    *("created_at", "started_at", "ended_at", "priority", "best_loss"),
)
TRIAL_COLUMNS = (
    *("id", "search_id", "number", "kind", "family", "repeat", "budget_index", "name", "state"),
    *("reason", "sentence", "attempt", "losses", "owner", "lease_until", "hinted_at", "ready_at"),
    *("settings", "network", "metrics", "cost", "loss", "latency_ratio", "phase", "done", "total"),
    *("unit", "begun_at", "ran_seconds", "started_at", "ended_at"),
)
POINT_COLUMNS = ("trial_id", "name", "step", "value")
EVENT_COLUMNS = (
    *("search_id", "trial_number", "attempt", "kind", "state", "reason", "sentence", "actor"),
    *("request_id", "at"),
)
COLUMNS: Mapping[str, Sequence[str]] = {
    "searches": SEARCH_COLUMNS,
    "search_tags": ("search_id", "tag"),
    "trials": TRIAL_COLUMNS,
    "metric_points": POINT_COLUMNS,
    "metric_latest": POINT_COLUMNS,
    "events": EVENT_COLUMNS,
}

Rows = dict[str, list[tuple[object, ...]]]


@final
@dataclass(frozen=True, slots=True)
class Plan:
    """What all searches of one kind have in common, worked out once."""

    spec: SearchSpec
    resolved: ResolvedSearch
    trials: Sequence[PlannedTrial]
    networks: Sequence[tuple[str, int]]  # found ones, as JSON, with what they cost
    settings: Sequence[str]

    @staticmethod
    def of(changes: Mapping[str, Any], *, trials: int, draw: random.Random) -> "Plan":
        """Plan a search of so many trials in all."""
        spec = SearchSpec.model_validate(
            {**changes, "budget": {"ratio": 0.3}, "compute": {"trials": trials - BASELINES - 2}}
        )
        resolved = resolve(spec)
        found = [_network(resolved, draw) for _ in range(32)]
        settings = [
            LearnerSettings(shrink=draw.uniform(0.01, 0.5), sigma_start=draw.uniform(0.02, 0.3))
            for _ in range(32)
        ]
        return Plan(
            spec, resolved, planned_trials(spec), found, [one.model_dump_json() for one in settings]
        )


@final
@dataclass(frozen=True, slots=True)
class Search:
    """One search while its rows are made: the last trial that was begun, and the best ones."""

    id: str
    created: datetime
    state: str
    last: int
    steps: int
    bests: list[tuple[float, dict[str, object]]] = field(default_factory=list)


def plans(*, trials: int, draw: random.Random) -> list[Plan]:
    """One of each kind."""
    return [Plan.of(changes, trials=trials, draw=draw) for changes in MODELS]


def rows_of(plan: Plan, *, age: int, points: int, draw: random.Random) -> Rows:
    """All rows of one search, which so many others are younger than."""
    rows: Rows = {table: [] for table in COLUMNS}
    search_id = f"srch_{draw.getrandbits(128):032x}"
    created = NEWEST - age * APART
    state = draw.choice(STATES) if age else "RUNNING"
    last = _last_begun(state, len(plan.trials), draw)
    one = Search(search_id, created, state, last, max(1, points // len(CURVES)))
    for planned in plan.trials:
        _trial(rows, plan, planned, one, draw)
    loss, best = min(one.bests, key=lambda found: found[0], default=(None, None))
    tags = draw.sample(TAGS, draw.randrange(3))
    name = draw.choice((None, f"search {draw.randrange(3000)}"))
    spec = plan.spec.model_copy(update={"name": name, "tags": tuple(tags), "seed": age})
    resolved = plan.resolved
    ended = created + timedelta(hours=1) if state in ("SUCCEEDED", "FAILED", "CANCELLED") else None
    began = created + timedelta(seconds=2)
    reason = {"FAILED": "error", "CANCELLED": "user_cancel"}.get(state, "")
    rows["searches"].append(
        (
            *(search_id, name, spec.model.kind, spec.dataset, spec.model_dump_json(), state),
            *(reason, "", 4, resolved.quantity, resolved.budget, resolved.dense_cost),
            *(resolved.smallest_cost, json.dumps(resolved.eligible)),
            *(resolved.network.model_dump_json(), json.dumps([best]), created),
            *(None if state == "QUEUED" else began, ended),
            *(draw.choice((0, 0, 0, 5, -5)), loss),
        )
    )
    rows["search_tags"] += [(search_id, tag) for tag in tags]
    told = [("QUEUED", created)]
    told += [] if state == "QUEUED" else [("RUNNING", began)]
    told += [] if ended is None else [(state, ended)]
    rows["events"] += [
        (search_id, None, None, "search", name, "", "", "client", None, at) for name, at in told
    ]
    return rows


def many(*, searches: int, trials: int, points: int, largest: int, seed: int) -> Iterator[Rows]:
    """Each search's rows, the newest last, which has `largest` trials."""
    draw = random.Random(seed)
    usual = plans(trials=trials, draw=draw)
    for age in range(searches - 1, 0, -1):
        yield rows_of(draw.choice(usual), age=age, points=points, draw=draw)
    large = Plan.of(MODELS[0], trials=largest, draw=draw)
    yield rows_of(large, age=0, points=points, draw=draw)


def _last_begun(state: str, trials: int, draw: random.Random) -> int:
    """The number of the last trial that was begun."""
    match state:
        case "SUCCEEDED":
            return trials - 1
        case "QUEUED":
            return -1
        case _:
            return draw.randrange(BASELINES + 1, trials - 1)


def _trial(
    rows: Rows, plan: Plan, planned: PlannedTrial, search: Search, draw: random.Random
) -> None:
    search_id, state = search.id, search.state
    number, trial_id = planned.number, f"{search_id}-{planned.number}"
    begun = search.created + timedelta(seconds=2 + 30 * number)
    seconds = 20 + 10 * draw.random()
    ended = begun + timedelta(seconds=seconds)
    standing_now = _trial_state(search, planned, draw)
    worker = draw.choice(WORKERS)
    running, waits = standing_now == "RUNNING", standing_now in ("WAITING", "CANCELLED")
    complete = standing_now in ("COMPLETE", "PRUNED")
    losses = _curve(search.steps, draw)
    network, cost = plan.networks[draw.randrange(len(plan.networks))]
    trained = not waits and planned.kind != "measurement"
    metrics, loss = None, losses[-1] if trained else None
    if standing_now == "COMPLETE" and loss is not None:
        metrics = json.dumps(
            {"validation_loss": loss, "validation_accuracy": 1 - loss / 3, "cost": cost}
        )
        if planned.kind == "reference":
            cost = plan.resolved.dense_cost
        elif cost <= plan.resolved.budget:
            search.bests.append((loss, _best(planned, loss, cost, plan.resolved.budget)))
    found = complete and planned.kind != "measurement"
    rows["trials"].append(
        (
            *(trial_id, search_id, number, planned.kind, planned.family, planned.repeat),
            *(planned.budget_index, planned.name, standing_now, "", "", 0 if waits else 1, 0),
            *(None if waits else worker, ended + timedelta(days=365) if running else None),
            *(None, None, draw.choice(plan.settings) if planned.kind == "candidate" else None),
            *(network if found else None, metrics, cost if found else None, loss),
            *(draw.uniform(0.3, 1.1) if found and state == "SUCCEEDED" else None,),
            *(("training", 3, 10, "epoch") if running else (None, None, None, None)),
            *(None if waits else begun, 0.0 if waits or running else seconds),
            *(None if waits else begun, None if running or waits else ended),
        )
    )
    if trained:
        curves = [(name, factor) for name, factor in zip(CURVES, (0.8, 1.0), strict=True)]
        for name, factor in curves:
            rows["metric_points"] += [
                (trial_id, name, step, factor * value) for step, value in enumerate(losses, 1)
            ]
            newest = (trial_id, name, len(losses), factor * losses[-1])
            rows["metric_latest"].append(newest)
    told: list[tuple[str, datetime, str]] = [("WAITING", search.created, "client")]
    told += [] if waits else [("RUNNING", begun, f"worker {worker}")]
    told += [] if waits or running else [(standing_now, ended, f"worker {worker}")]
    rows["events"] += [
        (search_id, number, 0 if name == "WAITING" else 1, "trial", name, "", "", actor, None, at)
        for name, at, actor in told
    ]


def _best(planned: PlannedTrial, loss: float, cost: int, budget: int) -> dict[str, object]:
    return {
        "number": planned.number,
        "name": planned.name,
        "kind": planned.kind,
        "validation_loss": loss,
        "cost": cost,
        "budget": budget,
    }


def _trial_state(search: Search, planned: PlannedTrial, draw: random.Random) -> str:
    if planned.number > search.last:
        return "WAITING" if search.state in ("RUNNING", "PAUSED", "QUEUED") else "CANCELLED"
    if planned.number == search.last and search.state != "SUCCEEDED":
        now = {"RUNNING": "RUNNING", "FAILED": "FAILED", "PAUSED": "WAITING"}
        return now.get(search.state, "COMPLETE")
    if planned.kind != "candidate":
        return "COMPLETE"
    return draw.choice(("COMPLETE",) * 7 + ("PRUNED",) * 3)


def _curve(steps: int, draw: random.Random) -> list[float]:
    """What falls, with noise, to a level of its own."""
    level, height = draw.uniform(0.1, 0.6), draw.uniform(0.5, 2.0)
    return [level + height / step * (0.9 + 0.2 * draw.random()) for step in range(1, steps + 1)]


def _network(resolved: ResolvedSearch, draw: random.Random) -> tuple[str, int]:
    chosen: dict[str, Structure] = {}
    for layer in resolved.layers:
        rank = LowRank(rank=draw.randint(1, max(1, min(layer.rows, layer.columns) // 4)))
        chosen[layer.name] = draw.choice((rank, rank, BlockDiagonal(blocks=8)))
    network = resolved.network.with_structures(chosen)
    searched = [layer for layer in network.layers if layer.name in chosen]
    return network.model_dump_json(), sum(layer_cost(layer, resolved.counted) for layer in searched)
