"""What holds for every matrix structure, of any size, in float64."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.cost import structure_size
from models.spec import (
    STRUCTURE_ADAPTER,
    BlockDiagonal,
    Dense,
    Gblr,
    LowRank,
    Rectangle,
    Structure,
    check_fits,
)
from models.structured import GblrLinear, StructuredLinear
from models.structured.build import build_layer, project
from models.structured.output_error import REGULARISATION, output_error


@dataclass(frozen=True)
class Case:
    """A structure on a matrix, and the seed of everything drawn for it."""

    structure: Structure
    rows: int
    columns: int
    seed: int

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def layer(self) -> StructuredLinear:
        layer = build_layer(
            self.structure,
            rows=self.rows,
            columns=self.columns,
            generator=self.generator(),
            dtype=torch.float64,
        )
        assert layer.bias is not None
        torch.nn.init.normal_(layer.bias, generator=self.generator())
        return layer

    def weight(self) -> Tensor:
        return self.normal(self.rows, self.columns)

    def second_moment(self) -> Tensor:
        """Of fewer inputs than columns as often as not: then it is singular."""
        inputs = self.normal(1 + self.seed % (2 * self.columns), self.columns)
        return inputs.T @ inputs / len(inputs)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator(), dtype=torch.float64)


@st.composite
def rectangles(draw: st.DrawFn, rows: int, columns: int) -> Rectangle:
    height, width = draw(st.integers(1, rows)), draw(st.integers(1, columns))
    return Rectangle(
        row_start=draw(st.integers(0, rows - 1)),
        row_count=height,
        column_start=draw(st.integers(0, columns - 1)),
        column_count=width,
        rank=draw(st.integers(1, min(height, width))),
    )


def structures(rows: int, columns: int) -> st.SearchStrategy[Structure]:
    """The one list: a structure that stands here has to keep every law."""
    smaller = min(rows, columns)
    return st.one_of(
        st.just(Dense()),
        st.integers(1, smaller).map(lambda rank: LowRank(rank=rank)),
        st.integers(1, smaller).map(lambda blocks: BlockDiagonal(blocks=blocks)),
        st.lists(rectangles(rows, columns), max_size=4).map(
            lambda found: Gblr(rectangles=tuple(found))
        ),
    )


@st.composite
def cases(draw: st.DrawFn, largest: int = 12) -> Case:
    rows, columns = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    return Case(draw(structures(rows, columns)), rows, columns, draw(st.integers(0, 2**31)))


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@given(cases())
def test_forward_is_the_product_with_the_dense_matrix(case: Case) -> None:
    layer = case.layer()
    x = case.normal(2, 3, case.columns)
    product = x @ layer.to_dense().T
    close(layer.product(x), product)
    assert layer.bias is not None
    close(layer(x), product + layer.bias)


@given(cases())
def test_as_many_numbers_are_stored_as_are_counted(case: Case) -> None:
    stored = sum(parameter.numel() for parameter in case.layer().parameters()) - case.rows
    assert stored == structure_size(case.structure, rows=case.rows, columns=case.columns)
    assert stored == sum(value.numel() for value in case.layer().state_dict().values()) - case.rows


@settings(max_examples=25)
@given(cases(largest=5))
def test_gradients_are_exact(case: Case) -> None:
    layer = case.layer()
    names, values = zip(*layer.named_parameters(), strict=True)

    def forward(x: Tensor, *parameters: Tensor) -> Tensor:
        call = torch.func.functional_call
        y: Tensor = call(layer, dict(zip(names, parameters, strict=True)), (x,))
        return y

    x = case.normal(2, case.columns).requires_grad_()
    assert torch.autograd.gradcheck(forward, (x, *values))


@given(cases(), st.booleans())
def test_a_member_is_projected_onto_itself(case: Case, aware: bool) -> None:
    # Where rectangles overlap, the set of their sums is neither convex nor closed, and descent on
    # one after the other may stop at a stationary point: only single rectangles are exact.
    if isinstance(case.structure, Gblr) and len(case.structure.rectangles) > 1:
        return
    weight = case.layer().to_dense().detach()
    # A direction that no input ever takes is lost in C: here every direction is taken.
    moment = case.second_moment() + torch.eye(case.columns).double() if aware else None
    found = project(weight, case.structure, second_moment=moment).to_dense()
    torch.testing.assert_close(found, weight, rtol=1e-6, atol=1e-6)


@given(cases())
def test_a_projection_is_never_worse_than_zero(case: Case) -> None:
    weight = case.weight()
    found = project(weight, case.structure).to_dense()
    assert output_error(weight - found) <= output_error(weight) * (1 + 1e-9)


@given(cases())
def test_a_data_aware_projection_is_no_worse_than_zero_or_the_plain_one(case: Case) -> None:
    weight, moment = case.weight(), case.second_moment()
    plain = project(weight, case.structure).to_dense()
    aware = project(weight, case.structure, second_moment=moment).to_dense()
    # What the regularisation of a singular C may give away.
    slack = 1.01 * REGULARISATION * moment.diagonal().mean() * weight.square().sum() + 1e-12
    error = output_error(weight - aware, moment)
    assert error <= output_error(weight - plain, moment) + slack
    assert error <= output_error(weight, moment) + slack


@given(cases())
def test_a_projection_keeps_dtype_and_bias(case: Case) -> None:
    weight, bias = case.weight().float(), case.normal(case.rows).float()
    layer = project(weight, case.structure, bias=bias, second_moment=case.second_moment().float())
    assert layer.bias is not None
    torch.testing.assert_close(layer.bias.detach(), bias)
    assert {value.dtype for value in layer.state_dict().values()} == {torch.float32}
    assert layer(case.normal(2, case.columns).float()).dtype == torch.float32
    assert layer.spec == case.structure


@given(cases())
def test_the_structure_survives_json(case: Case) -> None:
    text = STRUCTURE_ADAPTER.dump_json(case.structure)
    assert STRUCTURE_ADAPTER.validate_json(text) == case.structure


@given(cases(), st.integers(1, 3))
def test_a_structure_of_a_larger_matrix_is_refused_with_the_range(case: Case, less: int) -> None:
    match case.structure:
        case LowRank(rank=value):
            name = "rank"
        case BlockDiagonal(blocks=value):
            name = "blocks"
        case _:
            return
    smaller = value - min(less, value - 1) if value > 1 else 0
    if not smaller or smaller == value:
        return
    with pytest.raises(ValueError, match=rf"{name} is {value}, but .* admits 1 to {smaller}"):
        check_fits(case.structure, rows=smaller, columns=case.columns + value)


@given(cases())
def test_both_forms_of_gblr_are_one_product(case: Case) -> None:
    if not isinstance(case.structure, Gblr):
        return
    packed, sliced = (
        GblrLinear.from_dense(case.weight(), case.structure, form=form)
        for form in ("packed", "sliced")
    )
    x = case.normal(2, 3, case.columns)
    close(packed(x), sliced(x))


@settings(max_examples=15)
@given(st.integers(0, 2**31), st.sampled_from([(96, 96), (48, 192), (192, 48)]))
def test_initialisation_keeps_the_variance_of_the_inputs(seed: int, shape: tuple[int, int]) -> None:
    rows, columns = shape
    whole = {"row_start": 7, "row_count": rows, "column_start": 0, "column_count": columns}
    band = {"row_start": 9, "row_count": rows // 2, "column_start": 5, "column_count": columns // 2}
    tile = band | {"row_count": 40, "column_count": 16, "rank": 12}
    for structure in (
        Dense(),
        LowRank(rank=24),
        BlockDiagonal(blocks=5),
        Gblr(
            rectangles=tuple(
                Rectangle.model_validate(fields)
                for fields in (whole | {"rank": 12}, band | {"rank": 6}, tile)
            )
        ),
    ):
        case = Case(structure, rows, columns, seed)
        # The whole matrix's energy: the output variance averaged over inputs and rows.
        energy = case.layer().to_dense().square().sum().item() / rows
        assert math.isclose(energy, 1, rel_tol=0.2), structure


@given(cases(), st.booleans())
def test_the_same_seed_draws_the_same_layer(case: Case, aware: bool) -> None:
    close(case.layer().to_dense(), case.layer().to_dense())
    moment = case.second_moment() if aware else None
    first, second = (
        project(case.weight(), case.structure, second_moment=moment).state_dict() for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
