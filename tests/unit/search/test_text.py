"""Text as numbers: nothing that an alphabet has is lost, and windows are views."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from search.text import ALPHABET, decode, encode, spread, windows


@given(st.text(alphabet=ALPHABET))
def test_what_is_in_the_alphabet_comes_back(text: str) -> None:
    assert decode(encode(text)) == text


@given(st.text())
def test_any_text_has_numbers(text: str) -> None:
    characters = encode(text)
    assert ((characters >= 0) & (characters < len(ALPHABET))).all()


def test_typeset_characters_become_those_of_a_typewriter() -> None:
    found = decode(encode("\u201cIt\u2019s\u201d a na\xefve \u2014 30\xb0 \u2022\x02"))
    assert found == '"It\'s" a naive - 30? ??'


def test_windows_and_what_follows_them_share_the_text_s_memory() -> None:
    characters = torch.arange(10)
    inputs, targets = windows(characters, 4)
    assert inputs.shape == targets.shape == (6, 4)
    assert torch.equal(targets, inputs + 1)
    assert inputs.data_ptr() == characters.data_ptr()


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 50))
def test_spread_windows_do_not_overlap(starts: int, apart: int, count: int) -> None:
    chosen = spread(starts, apart=apart, count=count)
    assert len(chosen) == min(count, -(-starts // apart))
    assert (chosen.diff() >= apart).all()
    assert chosen[0] == 0
    assert chosen[-1] < starts
