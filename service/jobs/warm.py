"""A search that begins where another has ended: told of its candidates, or asked for again."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from search.plan import planned_trials
from search.resolved import ResolvedSearch
from search.spec import SearchSpec
from search.trial import FinishedTrial
from search.warm import EarlierCandidate, count_inside, inherited
from service.db.tables import SearchRow
from service.errors import SearchNotFound, SpecRefused, WrongState
from service.jobs.past import past_trials
from service.jobs.resolving import resolve_spec

BUDGETS = ("ratio", "ratios", "absolute")
NONE = 'give "warm_start": null to begin with nothing'


def warm_start(
    session: Session, spec: SearchSpec, resolved: ResolvedSearch, search_id: str
) -> tuple[tuple[EarlierCandidate, ...], dict[str, Any]]:
    """Copy what an ended search can tell, so that nothing that becomes of it changes anything."""
    row = session.get(SearchRow, search_id)
    if row is None:
        raise SpecRefused(f"there is no search {search_id!r}; {NONE}", field="warm_start")
    if row.ended_at is None:
        sentence = f"search {search_id!r} is {row.state}: only what has ended is told; wait, or "
        raise WrongState(sentence + NONE)
    theirs = SearchSpec.model_validate(row.spec)
    if (theirs.model, theirs.dataset) != (spec.model, spec.dataset):
        sentence = f"search {search_id!r} is of another model or dataset; {NONE}"
        raise SpecRefused(sentence, field="warm_start")
    if theirs.draws_budget:
        sentence = f"search {search_id!r} has several objectives, whose candidates do not compare"
        raise SpecRefused(f"{sentence}; {NONE}", field="warm_start")
    plan = planned_trials(theirs)
    numbers = [trial.number for trial in plan if trial.kind == "candidate" and not trial.repeat]
    past = [
        FinishedTrial(
            planned=trial.planned,
            state=trial.state,
            settings=trial.settings,
            validation_loss=trial.validation_loss,
            curve=(),
            folder=None,
            metrics=trial.metrics,
        )
        for trial in past_trials(session, search_id, plan, numbers)
    ]
    earlier = inherited(spec, resolved, theirs, resolve_spec(session, theirs), past)
    told = count_inside(earlier, spec)
    return earlier, {"search_id": search_id, "told": told, "outside": len(earlier) - told}


def cloned(session: Session, search_id: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a search's spec with the fields changed, as a merge patch (RFC 7396) changes them.

    It is warm-started from that search unless the changes say otherwise, and naming one way to give
    the budget takes back the others.
    """
    row = session.get(SearchRow, search_id)
    if row is None:
        raise SearchNotFound(search_id)
    changed = {"warm_start": search_id} | dict(changes)
    budget = changed.get("budget")
    if isinstance(budget, Mapping) and any(budget.get(name) is not None for name in BUDGETS):
        changed["budget"] = dict.fromkeys(BUDGETS) | dict(budget)
    return _merged(row.spec, changed)


def _merged(value: Any, patch: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(value) if isinstance(value, Mapping) else {}
    for name, change in patch.items():
        if change is None:
            found.pop(name, None)
        elif isinstance(change, Mapping) and not _other_kind(found.get(name), change):
            found[name] = _merged(found.get(name), change)
        else:
            found[name] = change
    return found


def _other_kind(value: Any, change: Mapping[str, Any]) -> bool:
    """Whether another member of a union is asked for, which shares no fields."""
    return isinstance(value, Mapping) and change.get("kind", value.get("kind")) != value.get("kind")
