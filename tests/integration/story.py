"""A search told step by step, each step a transaction, under a clock that the story sets."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, final

from sqlalchemy.orm import Session

from search.plan import TrialState
from search.spec import SearchSpec
from service import jobs
from service.db.session import Database
from service.lifecycle import Reason
from service.quota import Quota

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
LEASE = timedelta(seconds=60)
TINY: Mapping[str, Any] = {
    "model": {"kind": "mlp", "hidden": [16, 16]},
    "dataset": "digits",
    "budget": {"ratio": 0.5},
    "compute": {"trials": 2, "epochs": 2, "reference_epochs": 2},
    "space": {
        "baselines": ["dense_shrunk", "uniform_low_rank", "allocated_low_rank", "block_diagonal"]
    },
}
REFERENCE, BASELINES, FIRST, SECOND, MEASUREMENT = 0, (1, 2, 3, 4), 5, 6, 7

Result = TypeVar("Result")


@final
class Story:
    """One search, and whatever its workers, its client and the reaper do."""

    def __init__(self, database: Database, **changes: Any) -> None:
        self.database = database
        self.now = BEGINNING
        self.spec = SearchSpec.model_validate({**TINY, **changes})
        self.id = self.write(
            lambda session: jobs.submit(
                session,
                self.spec,
                resolved=jobs.resolve_spec(session, self.spec),
                now=self.now,
                request_id="request-1",
            )
        ).id

    def write(self, work: Callable[[Session], Result]) -> Result:
        with self.database.write() as session:
            return work(session)

    def later(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def claim(self, number: int, owner: str = "one") -> jobs.Claim | None:
        return self.write(
            lambda session: jobs.claim(
                session, f"{self.id}-{number}", owner=owner, now=self.now, lease=LEASE
            )
        )

    def begin(self, number: int, owner: str = "one") -> jobs.Claim:
        claim = self.claim(number, owner)
        assert claim is not None, f"trial {number} cannot be claimed"
        return claim

    def finish(
        self, claim: jobs.Claim, state: TrialState = "COMPLETE", reason: Reason = "", **values: Any
    ) -> bool:
        ending = jobs.Ending(state, reason, **values)
        return self.write(lambda session: jobs.finish(session, claim, ending, now=self.now))

    def run(self, *numbers: int, **values: Any) -> None:
        for number in numbers:
            assert self.finish(self.begin(number), **values)

    def release(self, claim: jobs.Claim, reason: Reason = "worker_lost", limit: int = 3) -> bool:
        return self.write(
            lambda session: jobs.release(
                session,
                claim.trial_id,
                attempt=claim.attempt,
                reason=reason,
                sentence="its process ended with -9",
                now=self.now,
                max_attempts=limit,
            )
        )

    def renew(self, claim: jobs.Claim) -> jobs.Renewal:
        return self.write(lambda session: jobs.renew(session, claim, now=self.now, lease=LEASE))

    def record(self, claim: jobs.Claim, *points: tuple[str, int, float]) -> jobs.Renewal:
        stage = jobs.Stage("training", 1, 2, "step")
        made = [jobs.Point(*point) for point in points]
        return self.write(lambda session: jobs.record(session, claim, stage=stage, points=made))

    def recover(self, limit: int = 3) -> None:
        self.write(lambda session: jobs.recover(session, now=self.now, max_attempts=limit))

    def hints(self) -> list[int]:
        due = self.write(lambda session: jobs.hints_due(session, now=self.now, again_after=LEASE))
        return [int(trial_id.rpartition("-")[2]) for trial_id in due]

    def cancel(self) -> jobs.SearchView:
        return self.write(lambda session: jobs.cancel(session, self.id, self.asked("request-2")))

    def tell(self, how: str) -> jobs.SearchView:
        """Have the client pause, resume, kill or cancel the search."""
        act = {"pause": jobs.pause, "resume": jobs.resume, "kill": jobs.kill}.get(how, jobs.cancel)
        return self.write(lambda session: act(session, self.id, self.asked("r")))

    def amend(self, **changes: Any) -> jobs.SearchView:
        return self.write(lambda session: jobs.amend(session, self.id, changes, self.asked()))

    def asked(self, request_id: str | None = None) -> jobs.Cause:
        """A request of the client's, now."""
        return jobs.Cause("client", self.now, request_id=request_id)

    def spend(self, quota: Quota) -> None:
        """Have the reaper look whether the computing of today is used up."""
        self.write(lambda session: jobs.stop_spent(session, quota, now=self.now))

    @property
    def search(self) -> jobs.SearchView:
        with self.database.read() as session:
            return jobs.get_search(session, self.id, now=self.now)

    def trial(self, number: int) -> jobs.TrialView:
        with self.database.read() as session:
            return jobs.get_trial(session, self.id, number, now=self.now)

    @property
    def states(self) -> list[TrialState]:
        with self.database.read() as session:
            return [trial.state for trial in jobs.list_trials(session, self.id, now=self.now)]

    @property
    def events(self) -> tuple[jobs.EventView, ...]:
        with self.database.read() as session:
            return jobs.events(session, self.id)

    def told_of(self, number: int | None) -> list[str]:
        return [event.state for event in self.events if event.trial_number == number]
