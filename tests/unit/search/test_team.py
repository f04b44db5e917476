"""Trainings on two processes: they find what one finds, stop together, and fail together."""

import subprocess
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]

import search.team
from models.checkpoint import load_network, load_spec
from search.plan import planned_trials
from search.progress import Progress, Silent, Update
from search.reference import load_reference
from search.relaxation import Relaxation
from search.resolved import resolve
from search.run import run_trial
from search.spec import LearnerSettings, SearchSpec, StructuresName
from search.starts import starts
from search.team import ARRIVED, HERE, Alone, Several, joining, leading
from search.trial import FinishedTrial, MemberLost, TrialOutcome
from tests.unit.search.builders import Listener, relaxed, tiny

REFERENCE, BASELINE, CANDIDATE = range(3)


def spec(processes: int) -> SearchSpec:
    return tiny(
        budget={"ratio": 0.3},
        compute={"trials": 1, "epochs": 2, "reference_epochs": 2, "processes": processes},
        space={"baselines": ["block_diagonal"]},
    )


def run(
    number: int,
    processes: int,
    home: Path,
    history: Sequence[FinishedTrial],
    progress: Progress | None = None,
    *,
    settings: LearnerSettings | None = None,
) -> TrialOutcome:
    return run_trial(
        spec(processes),
        planned_trials(spec(processes))[number],
        history,
        settings=settings or LearnerSettings(metric="gradient"),
        uploads=home,
        cache=home / f"cache{processes}",
        folder=home / f"{number}-{processes}",
        threads=1,
        progress=progress or Silent(),
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("team")


@pytest.fixture(scope="module")
def reference(home: Path) -> FinishedTrial:
    outcome = run(REFERENCE, 1, home, ())
    planned = planned_trials(spec(1))[REFERENCE]
    assert outcome.metrics is not None
    loss = outcome.metrics["validation_loss"]
    return FinishedTrial(planned, "COMPLETE", None, loss, (), home / "0-1")


def alternatives(reference: FinishedTrial, settings: LearnerSettings) -> int:
    """Count the layers that begin with an alternative."""
    resolved = resolve(spec(1)).under(0)
    assert reference.folder is not None
    profile = load_reference(reference.folder, resolved).profile
    begun = starts(profile, resolved, settings)
    return sum(start.mixture.alternative is not None for start in begun)


def members() -> list[psutil.Process]:
    return [one for one in psutil.Process().children() if "search.member" in one.cmdline()]


class Curve(Silent):
    """Keeps the numbers of every epoch."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def report(self, update: Update) -> None:
        self.found += update.metrics.values()


@pytest.mark.parametrize(
    ("number", "structures"),
    [
        (REFERENCE, "auto"),
        (BASELINE, "auto"),
        (CANDIDATE, "auto"),
        (CANDIDATE, "competing"),
    ],
)
def test_two_processes_find_what_one_finds(
    number: int, structures: StructuresName, home: Path, reference: FinishedTrial
) -> None:
    settings = LearnerSettings(metric="gradient", structures=structures)
    if structures == "competing":
        assert alternatives(reference, settings) == 1
    curves = {1: Curve(), 2: Curve()}
    known = [reference] if number else []
    for processes, curve in curves.items():
        place = home / "again" / structures / str(number)
        place.mkdir(parents=True, exist_ok=True)
        outcome = run(number, processes, place, known, curve, settings=settings)
        assert outcome.state == "COMPLETE", outcome.sentence
    assert len(curves[1].found) == 6  # both losses and the accuracy, twice
    assert curves[2].found == pytest.approx(curves[1].found, rel=1e-4)
    one, two = (place / f"{number}-{n}" / "export" for n in (1, 2))
    assert load_spec(one) == load_spec(two)
    tensors = load_network(one).state_dict(), load_network(two).state_dict()
    for left, right in zip(*(t.values() for t in tensors), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-3)
    assert members() == []


def test_asked_to_stop_two_processes_end_within_the_step(
    home: Path, reference: FinishedTrial
) -> None:
    class Asked(Listener):
        def should_stop(self) -> bool:
            return len(self.steps()) >= 3

        def steps(self) -> list[int]:
            return [update.done for update in self.updates if update.unit == "step"]

    listener = Asked()
    outcome = run(BASELINE, 2, home / "stopped", [reference], listener)
    assert (outcome.state, outcome.reason) == ("CANCELLED", "user_cancel")
    assert listener.steps() == [1, 2, 3]
    assert members() == []


def test_a_process_that_dies_ends_the_others_and_fails_the_attempt(
    home: Path, reference: FinishedTrial
) -> None:
    class Killer(Silent):
        def report(self, update: Update) -> None:
            if update.done == 3:
                (member,) = members()
                member.kill()

    with pytest.raises(MemberLost, match="process 2 of 2 ended with -9"):
        run(BASELINE, 2, home / "killed", [reference], Killer())
    assert members() == []
    assert not torch.distributed.is_initialized()


def test_a_process_that_comes_and_dies_before_all_have_met_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(_rank: int, port: int) -> "subprocess.Popen[bytes]":
        TCPStore(HERE, port, is_master=False).add(ARRIVED, 1)
        return subprocess.Popen(["true"], stdin=subprocess.PIPE)

    monkeypatch.setattr(search.team, "STEP_PATIENCE", timedelta(seconds=1))
    team = Several(0, 2, device=torch.device("cpu"), meeting=leading(2, start))
    lost = pytest.raises(MemberLost, match="process 2 of 2 ended with 0")
    with lost, team.assembled(lambda: None):
        pass
    assert not torch.distributed.is_initialized()


def test_what_the_first_process_has_decided_of_an_alternative_holds_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alive, dead = (relaxed(16, 16, groups=2, seed=seed, beside=True) for seed in range(2))
    leader, other = (Relaxation(nn.Identity(), {"one": one}) for one in (alive, dead))
    dead.lives.zero_()
    told = torch.cat([tensor.detach().flatten() for tensor in leader.decisions()])
    # The leader's message arrives, in the one format that is sent.
    monkeypatch.setattr(torch.distributed, "broadcast", lambda sent, src: sent.copy_(told))
    team = Several(1, 2, device=torch.device("cpu"), meeting=joining(0))
    team.follow(other.decisions())
    assert dead.beside is not None
    assert dead.lives.dtype == torch.bool
    torch.testing.assert_close(dead.row_support, alive.row_support)


def test_a_batch_is_dealt_out_and_its_mean_kept() -> None:
    batch = torch.arange(7)
    team = [Several(rank, 3, device=torch.device("cpu"), meeting=joining(0)) for rank in range(3)]
    parts = [one.part(batch) for one in team]
    assert sorted(torch.cat([mine for mine, _ in parts]).tolist()) == batch.tolist()
    means = [float(mine.double().mean()) * factor for mine, factor in parts]
    assert sum(means) / 3 == pytest.approx(float(batch.double().mean()))
    assert Alone().part(batch)[1] == 1


def test_a_process_without_a_sample_of_its_own_adds_nothing() -> None:
    last = Several(2, 3, device=torch.device("cpu"), meeting=joining(0))
    mine, factor = last.part(torch.arange(2))
    assert len(mine) == 1
    assert factor == 0
