"""What the benchmarks measure with: ratios, memory, sizes; and their lines, in the short."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

from benchmarks import frontier, latency, layers, profile, tables, workers
from benchmarks.layers import RIVALS
from benchmarks.memory import working_bytes
from benchmarks.sizes import NAMES, chosen
from benchmarks.timing import FEWEST, ratio, rounds_of
from models.structures.sizes import Kind, largest_within
from search.plan import planned_trials
from search.spec import SearchSpec


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    times = {"one": [2.0, 4.0, 90.0, 8.0, 10.0], "other": [1.0, 2.0, 3.0, 4.0, 5.0]}
    assert ratio(times, "one", "other") == [2.0, 2.0, 16.0]


def test_every_call_is_timed_in_every_round() -> None:
    times = rounds_of({"one": lambda: None, "other": lambda: None}, seconds=0.0)
    assert [len(rounds) for rounds in times.values()] == [FEWEST, FEWEST]


def test_working_memory_is_what_is_alive_at_once() -> None:
    x = torch.zeros(1000)

    def chain() -> torch.Tensor:
        y = x
        for _ in range(10):
            y = y + 1
        return y

    assert working_bytes(lambda: x + 1) == 4000
    assert working_bytes(chain) == 8000


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("rows", "columns"), [(768, 768), (768, 3072), (3072, 768)])
def test_a_size_uses_up_most_of_its_macs_and_no_more(name: Kind, rows: int, columns: int) -> None:
    # These have few sizes; a spectral train's ranks end where its frames are square.
    least = 0.0 if name in ("butterfly", "circulant", "STTP") else 0.5
    for share in (0.15, 0.3, 0.5):
        macs = int(share * rows * columns)
        structure = largest_within(name, rows=rows, columns=columns, budget=macs)
        if structure is not None:
            structure.check_fits(rows=rows, columns=columns)
            assert least * macs < structure.mac_count(rows=rows, columns=columns) <= macs


@pytest.mark.parametrize("name", NAMES)
def test_where_nothing_is_cheap_enough_no_size_is_chosen(name: Kind) -> None:
    assert chosen(name, torch.randn(12, 10), 0) is None


def test_a_cell_of_the_latency_benchmark_makes_a_line_and_a_table() -> None:
    with torch.inference_mode():
        cells = latency.cell(
            rows=64, columns=64, share=0.5, tokens=3, dtype=torch.float32, seconds=0.0
        )
        results = json.loads(json.dumps(list(cells)))
    assert {row["structure"] for row in results} >= {"low rank", "block diagonal"}
    *_extremes, title, table = tables.latency({"results": results})
    assert title == "### 64 x 64, float32, 0.5 of the MACs"
    assert len(table.splitlines()) == 2 + len(results)


def test_the_rivals_are_made_of_the_same_matrix() -> None:
    weight = layers.with_spectrum(768, 768, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(weight)
    torch.testing.assert_close(singular, torch.arange(1, 769) ** -0.5, rtol=1e-3, atol=1e-4)
    made = layers.plain_low_rank(weight, 176_947)
    assert made.parameters == 115 * 1536
    x = torch.randn(2, 768, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(made.call(x), x @ made.dense.T, rtol=1e-3, atol=1e-4)


def line(**changes: object) -> str:
    row = {
        "rows": 64,
        "columns": 64,
        "layer": "low rank",
        "rival": False,
        "parameters": 1280,
        "working_bytes": 4000,
        "projection_error": 0.5,
        "projection_seconds": 0.01,
        "time_over_dense": {count: [0.5, 0.4, 0.6] for count in ("1", "64", "1576")},
    }
    machine = {"processor": "a processor", "cores": 2, "threads": 1, "torch": "2.13"}
    curves = {"64 x 64": {"plain": {"all": 0.1}, "data-aware": {"all": 0.2}}}
    whole = {"benchmark": "layers", **machine, "error_curve_seconds": curves, "results": [row]}
    return json.dumps(whole | changes)


def test_a_benchmarks_line_becomes_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "layers.json").write_text(line())
    tables.main([str(tmp_path / "layers.json")])
    page = capsys.readouterr().out
    assert page.startswith(tables.OPENING)
    assert "| low rank | 1,280 | 0.5000 |" in page


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read: No such file or directory"),
        ("", "is not JSON"),
        ("Traceback (most recent call last):", "is not JSON"),
        ("[]", "is not what one of benchmarks.frontier and benchmarks.recovery and"),
        (line(benchmark="ablation"), "is not what one of"),
        (line(results=[{"rows": 64}]), "is not a whole line of this version's benchmarks.layers"),
        (line(results=None), "is not a whole line of this version's benchmarks.layers"),
    ],
    ids=["missing", "empty", "no JSON", "no line", "without tables", "other fields", "no results"],
)
def test_a_bad_file_gets_a_sentence_and_nothing_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, sentence: str
) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(line())
    if content is not None:
        bad.write_text(content)
    with pytest.raises(SystemExit, match="2"):
        tables.main([str(good), str(bad)])
    said = capsys.readouterr()
    assert not said.out
    assert f"{bad} {sentence}" in said.err


def test_the_page_in_the_documents_names_what_the_benchmarks_name() -> None:
    page = (Path(__file__).parents[3] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert page.startswith(tables.OPENING)
    sections = {title: words for title, words, _ in tables.SECTIONS.values()}
    titles = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert titles == [title for title in sections if title in titles]
    for title in titles:
        assert f"## {title}\n\n{sections[title]}\n" in page
    first = re.findall(r"^\| (.*?) \|", page, re.MULTILINE)
    # A row of the latency is followed by the structure in words; a rival is in italics.
    cells = {re.sub(r" \(.*|^\*|\*$", "", cell) for cell in first}
    assert cells >= set(NAMES) | RIVALS.keys()


def test_profiling_is_timed_as_a_whole_and_in_parts() -> None:
    found = json.loads(json.dumps(profile.measure(profile.QUICK)))
    assert found["layers"] == 4
    whole = found["parts"].pop("whole")
    assert all(part["cpu_seconds"] >= 0 for part in found["parts"].values())
    assert whole["cpu_seconds"] > found["parts"]["menus"]["cpu_seconds"] / 2
    assert list(found["menus_of"]["low rank"]) == [
        "1 of 16 x 16",
        "1 of 16 x 64",
        "1 of 48 x 16",
        "1 of 64 x 16",
    ]


def test_the_frontier_pairs_every_contender_with_ours_by_seed() -> None:
    rows: list[dict[str, object]] = [
        {"network": "vit", "share": 0.15, "seed": seed, "contender": name, "test_loss": loss}
        for seed, ours in enumerate((0.5, 0.7))
        for name, loss in zip(
            frontier.NAMES, (ours - 0.1, *(ours + 0.1 * i for i in range(5))), strict=True
        )
    ]
    (cell,) = frontier.compared(rows)
    over = cell["over_ours"]
    assert isinstance(over, dict)
    assert [round(spread["mean"], 6) for spread in over.values()] == [-0.1, 0.1, 0.2, 0.3, 0.4]
    assert all(spread["deviation"] < 1e-9 for spread in over.values())


MACHINE = {"processor": "a processor", "cores": 2, "threads": 1, "torch": "2.13"}
SPREADS = {name: {"mean": 0.25, "deviation": 0.0125} for name in frontier.NAMES}
LINES: dict[str, tuple[dict[str, object], str]] = {
    "frontier": (
        {
            "compared": [
                {"network": "vit", "share": 0.15, "test_loss": SPREADS, "over_ours": SPREADS}
            ]
        },
        "| vit, 0.15 | 0.2500 ± 0.0125 | 0.2500 ± 0.0125 | +0.2500 ± 0.0125 |",
    ),
    "recovery": (
        {
            "rows": [
                {"matrix": "Gaussian", "size": 64, "share": 0.1, "within_bar": True}
                | {"error": 0.5, "rival_error": 0.625, "found": "a", "rival": "b", "better": True}
            ]
        },
        "| Gaussian 64, 0.1 | 0.5 | 0.625 | a | b |",
    ),
    "step_cost": (
        {
            "results": [
                {"network": "vit", "batch": 64, "mean_relaxed_over_mean_dense": 1.25}
                | {"steps": 158, "median_of_pairs": [1.5, 1.0, 2.0]}
            ]
        },
        "| vit, 64 | 158 | 1.25 | 1.5 | 1.0 to 2.0 |",
    ),
    "search_cost": ({"over_its_epochs": 1.5}, "| over its epochs | 1.5 |"),
    "workers": ({"ratio": 0.5}, "| ratio | 0.5 |"),
    "profile": (
        {"parts": {"whole": {"seconds": 2.0, "cpu_seconds": 4.0}}},
        "| whole | 2.00 | 4.00 |",
    ),
    "training_memory": (
        {"memory": {"a network": {"candidate over dense": 1.5}}},
        "| a network | 1.5 |",
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_a_line_about_searches_becomes_a_table(name: str, tmp_path: Path) -> None:
    fields, row = LINES[name]
    path = tmp_path / "line.json"
    path.write_text(json.dumps({"benchmark": name, **MACHINE, **fields}))
    assert row in tables.section(path)


def ran(workers_: int, *spans: tuple[int, int], found: str = "low rank") -> workers.Run:
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    times = [(begin + timedelta(seconds=a), begin + timedelta(seconds=b)) for a, b in spans]
    kinds = {"reference": times[:1], "candidate": times[1:-1], "measurement": times[-1:]}
    return workers.Run(workers_, float(spans[-1][1]), kinds, [("candidate 1", found)])


def test_a_second_worker_is_compared_by_time_idleness_and_what_is_found() -> None:
    one = ran(1, (0, 2), (2, 12), (12, 22), (22, 24))
    two = ran(2, (0, 2), (2, 12), (4, 12), (12, 14))
    line = workers.told([one, two, two], start=3.0)
    assert line["ratio"] == round(14 / 24, 3)
    assert line["idle"] == [0, 0.1, 0.1]
    assert line["same_structures"] is True
    other = ran(2, (0, 2), (2, 12), (4, 12), (12, 14), found="Monarch")
    assert workers.told([one, two, other], start=3.0)["same_structures"] is False


def test_the_search_for_two_workers_has_twelve_trials_of_which_two_may_run_at_once() -> None:
    for changes, trials in ((workers.SPEC, 12), (workers.QUICK, 4)):
        spec = SearchSpec.model_validate(dict(workers.SPEC) | dict(changes))
        kinds = [trial.kind for trial in planned_trials(spec)]
        assert sum(kind in workers.TRAINED for kind in kinds) == trials
        assert spec.compute.parallel == 2
