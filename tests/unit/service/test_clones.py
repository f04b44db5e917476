"""Searches cloned and warm-started in any order, whatever becomes of those that they began with."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import func, select, update

from search.plan import PlannedTrial, TrialState, planned_trials
from search.sampling import propose
from search.spec import LearnerSettings, SearchSpec
from search.trial import FinishedTrial
from search.warm import EarlierCandidate
from service import jobs
from service.db.tables import Base, EventRow, SearchRow, TrialRow
from tests.serving import LEASE, Service, serving

MOST = 6  # searches in one history
COLD = 2  # of them begun with nothing
FIRST: Mapping[str, Any] = {
    "model": {"kind": "mlp", "hidden": [16, 16]},
    "dataset": "digits",
    "budget": {"ratio": 0.5},
    "compute": {"trials": 3, "parallel": 2},
    "space": {"baselines": []},
}
# What a client changes; no two shares here are equally far from a third.
FINE: tuple[Mapping[str, Any], ...] = (
    {},
    {"budget": {"ratio": 0.2}},
    {"budget": {"ratios": [0.6, 0.3]}},
    {"budget": {"ratio": 0.2}, "sampler": {"name": "random"}},
    {"sampler": {"name": "nsga2"}},
    {"sampler": {"name": "grid"}},
    {"sampler": {"name": "gp"}, "budget": {"ratios": [0.5, 0.25]}},
    {"space": {"baselines": [], "structural_rate": {"low": 2.0, "high": 10.0}}},
    {"space": {"baselines": [], "groups": [2, 4]}, "compute": {"trials": 4}},
    {"seed": 7},
    {"warm_start": None},
)
OTHER: Mapping[str, Any] = {"model": {"kind": "mlp", "hidden": [12]}}
BAD: tuple[Mapping[str, Any], ...] = (
    {"budget": {"ratio": 1e-6}},
    {"compute": {"trials": -1}},
    {"sampler": {"name": "grids"}},
    {"budget": {"ratio": 0.3, "absolute": 1000}},
)
picks = st.integers(0, MOST - 1)
losses = st.sampled_from([0.2, 0.5, 0.7, 0.9, float("nan")])
ends: st.SearchStrategy[TrialState] = st.sampled_from(("COMPLETE", "COMPLETE", "PRUNED", "FAILED"))
Ended = tuple[TrialState, float]
endings: st.SearchStrategy[list[Ended]] = st.lists(st.tuples(ends, losses), min_size=2, max_size=5)


@dataclass
class Kept:
    """What is known of a search without asking the service."""

    id: str
    spec: SearchSpec
    open: jobs.Claim | None = None
    ended: bool = False
    deleted: bool = False
    complete: list[float] = field(default_factory=list)  # shares of candidates that have a loss
    earlier: object = None
    warm_start: object = None
    proposals: tuple[LearnerSettings | None, ...] = ()

    @property
    def shares(self) -> tuple[float, ...]:
        budget = self.spec.budget
        return budget.ratios or (budget.ratio or 0.0,)

    def told_at(self, share: float) -> int:
        """Count the complete candidates of the budget that is nearest to a share."""
        nearest = min(self.shares, key=lambda own: abs(math.log(own / share)))
        return self.complete.count(nearest)


served: list[Service] = []


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One for all histories, which do not know of one another."""
    with serving(tmp_path_factory.mktemp("clones") / "home") as service:
        served.append(service)
        yield
        served.clear()


class Clones(RuleBasedStateMachine):
    """A client that asks for searches, ends them and begins others where they ended."""

    def __init__(self) -> None:
        super().__init__()
        (self.service,) = served
        self.searches: list[Kept] = []

    @initialize(changes=st.sampled_from(FINE), told=endings)
    def ask_and_end(self, changes: Mapping[str, Any], told: list[Ended]) -> None:
        """Begin with a search that has something to tell."""
        self.submit(changes)
        self.go_on(0, told)
        if self.live():
            self.end(0, 0.4)

    @precondition(lambda self: sum(kept.earlier is None for kept in self.searches) < COLD)
    @rule(changes=st.sampled_from(FINE))
    def submit(self, changes: Mapping[str, Any]) -> None:
        answer = self.service.http.post("/searches", json={**FIRST, **changes})
        self.keep(answer.json(), None)

    @rule(pick=picks)
    def begin(self, pick: int) -> None:
        kept = self.searches[pick % len(self.searches)]
        if kept.open is None and not kept.ended:
            kept.open = self.claim(kept)

    @precondition(lambda self: self.live())
    @rule(pick=picks, told=endings)
    def go_on(self, pick: int, told: list[Ended]) -> None:
        live = self.live()
        kept = live[pick % len(live)]
        for state, loss in told:
            if not kept.ended:
                self.finish(kept, state, loss)

    @precondition(lambda self: self.live())
    @rule(pick=picks, loss=losses)
    def end(self, pick: int, loss: float) -> None:
        live = self.live()
        kept = live[pick % len(live)]
        while not kept.ended:
            self.finish(kept, "COMPLETE", loss)

    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        kept = self.searches[pick % len(self.searches)]
        if kept.deleted:
            return
        headers = {"content-type": "application/json"}
        answer = self.service.http.post(f"/searches/{kept.id}/cancel", headers=headers)
        state = self.state(kept)
        assert answer.status_code == (409 if state in ("SUCCEEDED", "FAILED") else 202)
        kept.ended = state not in ("RUNNING", "STOPPING")

    @precondition(lambda self: self.tellers() and len(self.searches) < MOST)
    @rule(pick=picks, changes=st.sampled_from(FINE), cloned=st.booleans())
    def begin_where_one_ended(self, pick: int, changes: Mapping[str, Any], cloned: bool) -> None:
        tellers = self.tellers()
        self.warm_start(self.searches.index(tellers[pick % len(tellers)]), changes, cloned)

    def live(self) -> list[Kept]:
        """List the searches that have not ended."""
        return [kept for kept in self.searches if not kept.ended]

    def tellers(self) -> list[Kept]:
        """List the searches that have ended with complete candidates, and are there."""
        return [kept for kept in self.searches if kept.ended and kept.complete and not kept.deleted]

    @precondition(lambda self: len(self.searches) < MOST)
    @rule(pick=picks, changes=st.sampled_from((*FINE[:2], OTHER, *BAD)), cloned=st.booleans())
    def warm_start(self, pick: int, changes: Mapping[str, Any], cloned: bool) -> None:
        source = self.searches[pick % len(self.searches)]
        path, body = f"/searches/{source.id}/clone", dict(changes)
        if not cloned:
            path, body = "/searches", {**FIRST, "warm_start": source.id, **changes}
        expected = self.expected(source, changes, cloned=cloned)
        before = self.rows()
        answer = self.service.http.post(path, json=body)
        assert answer.status_code == expected, answer.text
        if expected == 202:
            told = "warm_start" not in changes or changes["warm_start"] is not None
            self.keep(answer.json(), source if told else None)
        else:
            again = self.service.http.post(path, json=body)
            assert again.status_code == expected
            assert again.json()["detail"] == answer.json()["detail"]
            assert self.rows() == before

    @precondition(lambda self: any(kept.ended for kept in self.searches))
    @rule(pick=picks)
    def delete(self, pick: int) -> None:
        ended = [kept for kept in self.searches if kept.ended]
        kept = ended[pick % len(ended)]
        if not kept.deleted:
            with self.service.database.write() as session:
                session.delete(session.get_one(SearchRow, kept.id))
            kept.deleted = True

    @precondition(lambda self: any(kept.ended for kept in self.searches))
    @rule(pick=picks)
    def rewrite(self, pick: int) -> None:
        """Let what an ended search has told be something else, which no client can do."""
        ended = [kept for kept in self.searches if kept.ended]
        kept = ended[pick % len(ended)]
        losses = TrialRow.metrics["validation_loss"].as_float()
        with self.service.database.write() as session:
            session.execute(
                update(TrialRow)
                .where(TrialRow.search_id == kept.id, losses < 0.6)
                .values(metrics={"validation_loss": 0.65})
            )

    @invariant()
    def what_a_search_began_with_stays_what_it_was(self) -> None:
        for kept in self.searches:
            if not kept.deleted:
                with self.service.database.read() as session:
                    row = session.get_one(SearchRow, kept.id)
                    assert (row.earlier, row.warm_start) == (kept.earlier, kept.warm_start)

    @precondition(lambda self: any(kept.proposals for kept in self.searches))
    @rule(pick=picks)
    def propose_again(self, pick: int) -> None:
        warm = [kept for kept in self.searches if kept.proposals]
        kept = warm[pick % len(warm)]
        if not kept.deleted:
            assert self.proposals(kept) == kept.proposals

    def expected(self, source: Kept, changes: Mapping[str, Any], *, cloned: bool) -> int:
        """Say how the service answers."""
        if cloned and source.deleted:
            return 404
        if changes in BAD:
            return 422
        if "warm_start" in changes:
            return 202
        if source.deleted:
            return 422
        if not source.ended:
            return 409
        return 422 if changes == OTHER else 202

    def keep(self, answer: Any, source: Kept | None) -> None:
        """Remember a search that was taken on, and compare it with the one it began with."""
        kept = Kept(answer["id"], SearchSpec.model_validate(answer["spec"]))
        with self.service.database.read() as session:
            row = session.get_one(SearchRow, kept.id)
            kept.earlier, kept.warm_start = row.earlier, row.warm_start
        if source is None:
            assert answer["warm_start"] is None
        else:
            told = answer["warm_start"]
            assert told["search_id"] == source.id
            assert told["told"] + told["outside"] == sum(map(source.told_at, kept.shares))
            kept.proposals = self.proposals(kept)
        self.searches.append(kept)

    def proposals(self, kept: Kept) -> tuple[LearnerSettings | None, ...]:
        """Propose a candidate of each budget from nothing but the search's own row."""
        with self.service.database.read() as session:
            row = session.get_one(SearchRow, kept.id)
            spec = SearchSpec.model_validate(row.spec)
            earlier = [EarlierCandidate.model_validate(one) for one in row.earlier or ()]
        last: dict[int, PlannedTrial] = {}
        for planned in planned_trials(spec):
            if planned.kind == "candidate":
                last[planned.budget_index] = planned
        return tuple(propose(spec, planned, (), earlier) for planned in last.values())

    def claim(self, kept: Kept) -> jobs.Claim:
        """Take the first trial that may start."""
        for planned in planned_trials(kept.spec):
            with self.service.database.write() as session:
                taken = jobs.claim(
                    session,
                    f"{kept.id}-{planned.number}",
                    owner="hand",
                    now=datetime.now(UTC),
                    lease=LEASE,
                )
            if taken is not None:
                return taken
        raise AssertionError("a live search has a trial that may start")

    def finish(self, kept: Kept, state: TrialState, loss: float) -> None:
        """End the trial that was begun, or the next; a candidate's settings are proposed twice."""
        claim, kept.open = kept.open or self.claim(kept), None
        is_candidate = claim.planned.kind == "candidate"
        database, now = self.service.database, datetime.now(UTC)
        if self.state(kept) == "STOPPING":
            state = "CANCELLED"
        elif not is_candidate:
            state = "COMPLETE"
        if is_candidate:
            proposed = propose(claim.spec, claim.planned, known(claim), claim.earlier)
            with database.read() as session:
                again = jobs.claimed(session, claim.trial_id, attempt=claim.attempt)
            assert again is not None
            assert propose(again.spec, again.planned, known(again), again.earlier) == proposed
            assert proposed is not None
            with database.write() as session:
                jobs.save_settings(session, claim, proposed)
        ending = jobs.Ending(state, metrics={"validation_loss": loss})
        with database.write() as session:
            assert jobs.finish(session, claim, ending, now=now)
        if is_candidate and state == "COMPLETE" and not math.isnan(loss):
            kept.complete.append(kept.shares[claim.planned.budget_index])
        kept.ended = self.state(kept) not in ("QUEUED", "RUNNING", "STOPPING")

    def state(self, kept: Kept) -> str:
        with self.service.database.read() as session:
            return session.get_one(SearchRow, kept.id).state

    def rows(self) -> list[int]:
        """Count all that a request could have stored."""
        tables: tuple[type[Base], ...] = (SearchRow, TrialRow, EventRow)
        with self.service.database.read() as session:
            return [
                session.scalar(select(func.count()).select_from(table)) or 0 for table in tables
            ]


def known(claim: jobs.Claim) -> list[FinishedTrial]:
    return [
        FinishedTrial(
            planned=past.planned,
            state=past.state,
            settings=past.settings,
            validation_loss=past.validation_loss,
            curve=(),
            folder=None,
            metrics=past.metrics,
        )
        for past in claim.history
    ]


TestClones = pytest.mark.usefixtures("server")(Clones.TestCase)
TestClones.settings = settings(max_examples=10, stateful_step_count=25, deadline=None)
