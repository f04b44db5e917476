"""What can happen to a search and its trials, listed: every function takes a session, none commits.

`now` is always an argument. What comes back is frozen, never a row.
"""

from service.jobs.answers import recall, remember
from service.jobs.attempts import (
    claim,
    claimed,
    finish,
    record,
    release,
    renew,
    save_settings,
)
from service.jobs.reading import (
    events,
    get_search,
    get_trial,
    list_searches,
    list_trials,
)
from service.jobs.recovery import hints_due, recover
from service.jobs.resolving import resolve_spec
from service.jobs.results import (
    compare,
    dense_network,
    front,
    layer_costs,
    network,
    points,
    profile,
    report,
)
from service.jobs.submission import add_artifact, cancel, get_artifact, submit
from service.jobs.views import (
    ArtifactView,
    BestView,
    Claim,
    ComparedTrial,
    Curve,
    Ending,
    EventView,
    Front,
    FrontPoint,
    PastTrial,
    Point,
    ProgressView,
    Renewal,
    SearchFilter,
    SearchPage,
    SearchView,
    Stage,
    StoredAnswer,
    TrialView,
    WarmStartView,
)
from service.jobs.warm import cloned
from service.jobs.workers import living_workers, note_worker

__all__ = [
    "ArtifactView",
    "BestView",
    "Claim",
    "ComparedTrial",
    "Curve",
    "Ending",
    "EventView",
    "Front",
    "FrontPoint",
    "PastTrial",
    "Point",
    "ProgressView",
    "Renewal",
    "SearchFilter",
    "SearchPage",
    "SearchView",
    "Stage",
    "StoredAnswer",
    "TrialView",
    "WarmStartView",
    "add_artifact",
    "cancel",
    "claim",
    "claimed",
    "cloned",
    "compare",
    "dense_network",
    "events",
    "finish",
    "front",
    "get_artifact",
    "get_search",
    "get_trial",
    "hints_due",
    "layer_costs",
    "list_searches",
    "list_trials",
    "living_workers",
    "network",
    "note_worker",
    "points",
    "profile",
    "recall",
    "record",
    "recover",
    "release",
    "remember",
    "renew",
    "report",
    "resolve_spec",
    "save_settings",
    "submit",
]
