"""The states of a search and of a trial, and which may follow which: pure tables."""

from collections.abc import Mapping
from typing import Literal, get_args

from search.plan import TrialState

SearchState = Literal[
    "QUEUED", "RUNNING", "PAUSING", "PAUSED", "STOPPING", "SUCCEEDED", "FAILED", "CANCELLED"
]
Reason = Literal[
    "",
    "worker_lost",
    "worker_stopped",
    "disk_full",
    "store_away",
    "out_of_memory",
    "user_cancel",
    "user_pause",
    "killed",
    "compute_exhausted",
    "not_finite",
    "budget_unreachable",
    "data_missing",
    "device_missing",
    "pruned",
    "prerequisite_failed",
    "error",
]

SEARCH_STATES: tuple[SearchState, ...] = get_args(SearchState)
TRIAL_STATES: tuple[TrialState, ...] = get_args(TrialState)

SEARCH_TRANSITIONS: Mapping[SearchState, frozenset[SearchState]] = {
    "QUEUED": frozenset({"RUNNING", "PAUSED", "STOPPING"}),
    "RUNNING": frozenset({"SUCCEEDED", "FAILED", "PAUSING", "STOPPING"}),
    # The last trial may end before it hears that it was to pause.
    "PAUSING": frozenset({"PAUSED", "SUCCEEDED", "FAILED", "STOPPING"}),
    "PAUSED": frozenset({"QUEUED", "STOPPING"}),
    # A kill overtakes a cancellation.
    "STOPPING": frozenset({"STOPPING", "CANCELLED"}),
    "SUCCEEDED": frozenset(),
    "FAILED": frozenset(),
    "CANCELLED": frozenset(),
}

# RUNNING -> WAITING is a trial that was given back with a checkpoint, because its worker was asked
# to stop or its search to pause; a worker that died leaves the trial LOST first.
TRIAL_TRANSITIONS: Mapping[TrialState, frozenset[TrialState]] = {
    "WAITING": frozenset({"RUNNING", "CANCELLED"}),
    "RUNNING": frozenset({"COMPLETE", "PRUNED", "FAILED", "CANCELLED", "LOST", "WAITING"}),
    "LOST": frozenset({"WAITING", "FAILED", "CANCELLED"}),
    "COMPLETE": frozenset(),
    "PRUNED": frozenset(),
    "FAILED": frozenset(),
    "CANCELLED": frozenset(),
}

LIVE_SEARCH_STATES: frozenset[SearchState] = frozenset(
    {"QUEUED", "RUNNING", "PAUSING", "PAUSED", "STOPPING"}
)
# What a webhook may ask to be told of.
EVENT_KINDS: tuple[str, ...] = (
    *(f"search.{state.lower()}" for state in SEARCH_STATES),
    *(f"trial.{state.lower()}" for state in TRIAL_STATES),
)
CLAIMABLE_SEARCH_STATES: frozenset[SearchState] = frozenset({"QUEUED", "RUNNING"})
