"""Few words for pages and terminals."""

from io import StringIO

import pytest
from rich.console import Console

from search.report import PLAIN, Execution
from search.resolved import resolve
from search.spec import SearchSpec
from service.terminal import layers_table, report_table
from service.words import budget_in_words, price, training_in_words
from tests.serving import SPEC, made_report


@pytest.mark.parametrize(
    ("execution", "words"),
    [
        (PLAIN, "cpu in float32"),
        (
            Execution(precision="bfloat16", bfloat16_over_float32=(0.45, 0.41, 0.48)),
            "cpu in bfloat16 (a step in bfloat16 takes 0.45 of the time)",
        ),
        (
            Execution(device="cuda", compiled=True, processes=2),
            "cuda in float32, by generated code, on 2 processes",
        ),
    ],
)
def test_a_training_is_described_by_what_it_ran_on(execution: Execution, words: str) -> None:
    assert training_in_words(execution) == words


def test_a_price_is_counted_or_a_share_of_the_dense_time() -> None:
    assert price(12_345, "macs") == "12,345"
    assert price(123_456, "latency") == "12.3 %"


def test_budgets_stand_beside_what_dense_costs() -> None:
    assert budget_in_words([10, 20], 100, "macs") == "10 or 20 of 100 MACs"
    assert budget_in_words([150_000], 1_000_000, "latency") == (
        "15.0 % of the dense layers' latency"
    )


def test_a_table_of_times_has_them_beside_what_they_predict() -> None:
    spec = SearchSpec.model_validate(SPEC | {"budget": {"quantity": "latency", "ratio": 0.3}})
    report = made_report(spec, resolve(spec))
    said = StringIO()
    console = Console(width=120, file=said, no_color=True)
    console.print(report_table(report), layers_table(report, report.winner))
    shown = said.getvalue()
    for words in ("30.0 % of the dense layers' latency", "predicted", "0.65", "0.70", "15.0 %"):
        assert words in shown
    assert "MACs" not in shown
