"""Few words for pages and terminals."""

import pytest

from search.report import PLAIN, Execution
from service.words import training_in_words


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
