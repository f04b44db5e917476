"""The forms in which a layer can run, and what the choice of one depends on, as data."""

from collections.abc import Mapping
from typing import Literal, get_args

from pydantic import PositiveInt

from models.frozen import Spec
from models.structures import Structure
from models.structures.base import check_choice

# `structured` is the layer as it is; the others are W itself, the two forms of GBLR, and the two
# factors that a spectral layer makes of its reflections.
Form = Literal["dense", "structured", "packed", "sliced", "factors"]


def check_forms(forms: object) -> None:
    """Raise where these are no forms by the names of layers: TypeError, or ValueError for one."""
    if not isinstance(forms, Mapping) or not all(isinstance(name, str) for name in forms):
        raise TypeError(f"forms is {forms!r}, but this admits forms by the names of layers")
    for name, form in forms.items():
        check_choice(f"the form of {name}", form, get_args(Form))


# A form that is not faster than this is no faster for sure: measured again, the same layer's median
# moves by a tenth on a busy machine. The dense matrix then is the choice that cannot lose.
WIN = 0.9


class LayerUse(Spec):
    """A layer and how it is used. Where all of this is the same, so is the form that is chosen.

    `tokens` counts the input vectors of one call: those of a sample times the samples. `dtype` and
    `device` are written as in torch: float32, cpu.
    """

    structure: Structure
    rows: PositiveInt
    columns: PositiveInt
    bias: bool
    dtype: str
    tokens: PositiveInt
    device: str


class ChosenForm(Spec):
    """The form that measuring found fastest for one use of a layer."""

    use: LayerUse
    form: Form
