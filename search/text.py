"""Text as numbers: one for each printable ASCII character, and windows over them."""

import unicodedata

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

# A line's end, then what a typewriter has. Other letters lose their accents; what is then left of
# other characters (in the State of the Union, degrees and bullets) becomes a question mark.
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
TYPESET = str.maketrans("\u2018\u2019\u201c\u201d\u2010\u2011\u2013\u2014\t", "''\"\"---- ")


def encode(text: str) -> Int[Tensor, " characters"]:
    """Give every character its place in the alphabet."""
    plain = unicodedata.normalize("NFKD", text.translate(TYPESET))
    kept = "".join(letter for letter in plain if not unicodedata.combining(letter))
    codes = np.frombuffer(kept.encode("ascii", "replace"), dtype=np.uint8)
    places = np.full(256, ALPHABET.index("?"))
    places[[ord(letter) for letter in ALPHABET]] = np.arange(len(ALPHABET))
    return torch.from_numpy(places[codes])


def decode(characters: Int[Tensor, " characters"]) -> str:
    """Write the characters that these numbers stand for."""
    return "".join(ALPHABET[place] for place in characters.tolist())


def windows(
    characters: Int[Tensor, " characters"], context: int
) -> tuple[Int[Tensor, "starts context"], Int[Tensor, "starts context"]]:
    """Return every window of the text and the characters that follow each of its, without a copy.

    Raises ValueError for a text that is shorter than a window.
    """
    if len(characters) <= context:
        raise ValueError(
            f"context is {context}, but a part of the text has only {len(characters)} characters"
        )
    return characters[:-1].unfold(0, context, 1), characters[1:].unfold(0, context, 1)


def spread(starts: int, *, apart: int, count: int) -> Int[Tensor, " count"]:
    """Choose up to `count` of the windows that do not overlap, evenly over the text."""
    places = torch.arange(0, starts, apart)
    chosen = torch.linspace(0, len(places) - 1, min(count, len(places)), dtype=torch.float64)
    return places[chosen.round().long()]
