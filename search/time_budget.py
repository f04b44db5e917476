"""A search under a budget in time: its clock, its table before anything is trained, its rules."""

from dataclasses import replace
from pathlib import Path

import torch

from models.checkpoint import write_text
from models.structures.sizes import Kind
from search.clock import Clock, times_key
from search.data import Data
from search.evaluation import BATCH
from search.families import KINDS
from search.forms import forms_file
from search.latency_table import TABLE, Prices, load_table
from search.progress import Progress
from search.reference import Reference
from search.resolved import ResolvedSearch, check_in_time
from search.settling import Settled, settle
from search.spec import BudgetUnreachable, SearchSpec
from search.tightening import tightest
from search.within_time import TOO_LONG


def make_clock(
    spec: SearchSpec,
    resolved: ResolvedSearch,
    data: Data,
    *,
    cache: Path,
    threads: int,
    device: torch.device,
) -> Clock:
    """Return what times the layers of a search here."""
    key = times_key(
        resolved.network,
        resolved.eligible,
        _kinds(spec, resolved),
        threads=threads,
        device=device,
    )
    return Clock(
        device=device,
        lock=cache / "latency.lock",
        kept=cache / "times" / key,
        forms=forms_file(spec, cache=cache, threads=threads),
        batch=len(data.validation.inputs[:BATCH]),
    )


def time_layers(
    spec: SearchSpec,
    resolved: ResolvedSearch,
    clock: Clock,
    data: Data,
    progress: Progress,
    *,
    known: Path | None,
    folder: Path,
) -> ResolvedSearch:
    """Return the search with its layers' times: those in the folder `known`, or measured now.

    What is measured goes to `folder`. Raises BudgetUnreachable where even the fastest layers exceed
    a budget, and StoppedError.
    """
    if known is not None:
        return resolved.priced(Prices.of(load_table(known), resolved.layers))
    kinds, inputs = _kinds(spec, resolved), data.validation.inputs
    table = clock.table(resolved.network, resolved.layers, kinds, inputs, progress)
    write_text(folder / TABLE, table.model_dump_json(indent=1))
    priced = resolved.priced(Prices.of(table, resolved.layers))
    check_in_time(priced, spec.budget)
    return priced


def settle_in_time(reference: Reference, resolved: ResolvedSearch, clock: Clock | None) -> Settled:
    """Settle the layers that rules bind; in time, for what they take as each is measured."""
    settled = settle(reference.network, reference.profile, resolved)
    if clock is None or settled.resolved.eligible == resolved.eligible:
        return settled
    if not settled.resolved.eligible:

        def attempt(target: int) -> tuple[Settled, int]:
            within = resolved.model_copy(update={"budget": target})
            found = settle(reference.network, reference.profile, within)
            times = clock.costs(found.resolved.network, resolved)
            return found, sum(times.values()) - resolved.budget

        best = tightest(resolved.budget, attempt)
        if best is None:
            raise BudgetUnreachable("layers.rules", TOO_LONG)
        return best
    times = clock.costs(settled.resolved.network, resolved)
    spent = sum(times[name] for name in times if name not in settled.resolved.eligible)
    if spent >= resolved.budget:
        raise BudgetUnreachable("budget", "the layers under rules take all of it, as measured")
    rest = settled.resolved.model_copy(update={"budget": resolved.budget - spent})
    return replace(settled, resolved=rest)


def _kinds(spec: SearchSpec, resolved: ResolvedSearch) -> set[Kind]:
    """Return what layers may become: by the space, by rules, in baselines, by learning."""
    ruled = {kind for rule in resolved.rules.values() for kind in rule.structures or ()}
    plain = {
        kind for name, kinds in KINDS.items() if name in spec.space.baselines for kind in kinds
    }
    return {"low rank", *resolved.structures, *plain, *(k for k in ruled if k != "dense")}
