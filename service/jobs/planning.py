"""The rows of the trials that a search plans, and which of all that wait goes first."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from search.plan import PlannedTrial
from search.spec import SearchSpec
from service.db.tables import SearchRow, TrialRow
from service.jobs.past import ready
from service.jobs.transitions import trials_of
from service.lifecycle import CLAIMABLE_SEARCH_STATES


def trial_row_of(search_id: str, planned: PlannedTrial) -> TrialRow:
    """A planned trial as it begins to wait."""
    return TrialRow(
        id=f"{search_id}-{planned.number}",
        search_id=search_id,
        number=planned.number,
        kind=planned.kind,
        family=planned.family,
        repeat=planned.repeat,
        budget_index=planned.budget_index,
        name=planned.name,
        state="WAITING",
        reason="",
        sentence="",
        attempt=0,
        losses=0,
    )


def preferred(session: Session, trial_id: str, *, now: datetime) -> str:
    """The trial to begin when a message hints at `trial_id`: one of a search that goes before.

    Messages come in the order in which they were sent; what is passed over is hinted at anew.
    """
    hinted = session.get(TrialRow, trial_id)
    if hinted is None:
        return trial_id
    own = session.get_one(SearchRow, hinted.search_id)
    before = session.scalars(
        select(SearchRow)
        .where(SearchRow.state.in_(CLAIMABLE_SEARCH_STATES), SearchRow.priority > own.priority)
        .order_by(SearchRow.priority.desc(), SearchRow.created_at, SearchRow.id)
    )
    for search in before:
        spec = SearchSpec.model_validate(search.spec)
        for trial in ready(search, trials_of(session, search.id), spec, now=now):
            if hinted.state == "WAITING":
                hinted.hinted_at = None
            return trial.id
    return trial_id
