"""What holds for every matrix structure, of any size, in float64."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.structured import GblrLinear, StructuredLinear
from models.structured.build import build_layer, empty_layer, project
from models.structured.output_error import REGULARISATION, output_error
from models.structures import STRUCTURE_ADAPTER, Gblr, Structure
from tests.properties.families import FAMILIES
from tests.properties.family import Family, skip_exempt

every_family = pytest.mark.parametrize("family", FAMILIES, ids=str)


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

    def empty(self) -> StructuredLinear:
        return empty_layer(
            self.structure, rows=self.rows, columns=self.columns, dtype=torch.float64
        )

    def weight(self) -> Tensor:
        return self.normal(self.rows, self.columns)

    def second_moment(self) -> Tensor:
        """Of fewer inputs than columns as often as not: then it is singular."""
        inputs = self.normal(1 + self.seed % (2 * self.columns), self.columns)
        return inputs.T @ inputs / len(inputs)

    def skewed_second_moment(self) -> Tensor:
        """The same of inputs some of which are up to a thousand times as large as others."""
        sizes = self.scale * torch.logspace(-1.5, 1.5, self.columns, dtype=torch.float64)
        return self.second_moment() * sizes * sizes[:, None]

    @property
    def scale(self) -> float:
        """From 1e-6 to 1e6, so that what holds does not hang on units."""
        return float(10 ** (self.seed % 13 - 6))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator(), dtype=torch.float64)


@st.composite
def cases(draw: st.DrawFn, family: Family, largest: int) -> Case:
    rows = draw(st.integers(family.smallest, largest))
    columns = draw(st.integers(family.smallest, largest))
    structure = draw(family.structures(rows, columns))
    return Case(structure, rows, columns, draw(st.integers(0, 2**31)))


def for_all(
    family: Family, check: Callable[[Case], None], *, largest: int = 12, examples: int = 25
) -> None:
    """Check one law on many members of a family."""
    settings(max_examples=examples)(given(cases(family, max(largest, family.smallest)))(check))()


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@every_family
def test_forward_is_the_product_with_the_dense_matrix(family: Family) -> None:
    def check(case: Case) -> None:
        layer = case.layer()
        x = case.normal(2, 3, case.columns)
        product = x @ layer.to_dense().T
        close(layer.product(x), product)
        assert layer.bias is not None
        close(layer(x), product + layer.bias)
        close(layer(x[0, 0]), (product + layer.bias)[0, 0])
        assert layer(x[:0]).shape == (0, 3, case.rows)
        with torch.no_grad():  # where some write their products in place
            close(layer(x), product + layer.bias)
            wide = torch.cat([x, x], -1)
            close(layer(wide[..., : case.columns]), product + layer.bias)
            close(layer(x.transpose(0, 1)), (product + layer.bias).transpose(0, 1))
            assert layer(x[:0]).shape == (0, 3, case.rows)

    for_all(family, check)


@every_family
def test_as_many_numbers_are_stored_as_are_counted(family: Family) -> None:
    def check(case: Case) -> None:
        layer = case.layer()
        counted = case.structure.parameter_count(rows=case.rows, columns=case.columns)
        stored = sum(parameter.numel() for parameter in layer.parameters())
        assert stored == counted + case.rows
        # Whatever else a layer needs follows from its structure: files hold nothing more.
        assert stored == sum(value.numel() for value in layer.state_dict().values())

    for_all(family, check)


@every_family
def test_a_flop_counter_sees_the_counted_macs(family: Family) -> None:
    skip_exempt(family, "a FLOP counter sees the MACs")

    def check(case: Case) -> None:
        layer, inputs = case.layer(), 3
        # As in training: without gradients, what would only multiply padding may be left out.
        with FlopCounterMode(display=False) as counter:
            layer.product(case.normal(inputs, case.columns))
        counted = case.structure.mac_count(rows=case.rows, columns=case.columns)
        assert counter.get_total_flops() == 2 * inputs * counted

    for_all(family, check)


@every_family
def test_gradients_are_exact(family: Family) -> None:
    def check(case: Case) -> None:
        layer = case.layer()
        names, values = zip(*layer.named_parameters(), strict=True)

        def forward(x: Tensor, *parameters: Tensor) -> Tensor:
            call = torch.func.functional_call
            y: Tensor = call(layer, dict(zip(names, parameters, strict=True)), (x,))
            return y

        x = case.normal(2, case.columns).requires_grad_()
        assert torch.autograd.gradcheck(forward, (x, *values))

    for_all(family, check, largest=5, examples=10)


@every_family
@pytest.mark.parametrize("aware", [False, True])
def test_a_member_is_projected_onto_itself(family: Family, aware: bool) -> None:
    padded = family.padded
    if padded is None:
        skip_exempt(family, "a member is projected onto itself")

    def check(case: Case) -> None:
        assume(padded is None or not padded(case.structure, case.rows, case.columns))
        weight = case.layer().to_dense().detach()
        # A direction that no input ever takes is lost in C: here every direction is taken.
        moment = case.second_moment() + torch.eye(case.columns).double() if aware else None
        found = project(weight, case.structure, second_moment=moment).to_dense()
        torch.testing.assert_close(found, weight, rtol=1e-6, atol=1e-6)

    for_all(family, check, examples=family.fits)


@every_family
def test_a_projection_is_never_worse_than_zero(family: Family) -> None:
    skip_exempt(family, "a projection is never worse than zero")

    def check(case: Case) -> None:
        weight = case.weight() * case.scale
        found = project(weight, case.structure).to_dense()
        assert output_error(weight - found) <= output_error(weight) * (1 + 1e-9)

    for_all(family, check, examples=family.fits)


@every_family
@pytest.mark.parametrize("aware", [False, True])
def test_the_scale_of_a_matrix_does_not_matter(family: Family, aware: bool) -> None:
    """The numbers of trained layers are near .05, and a fit finds as much in them as in others."""
    bounded = family.bounded
    if bounded is None:
        skip_exempt(family, "the scale of a matrix does not matter")

    def check(case: Case) -> None:
        assume(bounded is None or not bounded(case.structure))
        weight = case.weight()
        moment = case.second_moment() + torch.eye(case.columns).double() if aware else None

        def error(scale: float) -> float:
            target = scale * weight
            found = project(target, case.structure, second_moment=moment).to_dense().detach()
            return float(output_error(target - found, moment) / output_error(target, moment))

        # Powers of two, by which rounding is the same: a long descent blows up any other.
        errors = [error(2.0**power) for power in (0, -8, 8)]
        assert errors == pytest.approx([errors[0]] * 3, abs=1e-6)

    for_all(family, check, largest=6, examples=min(3, family.fits))


@every_family
def test_a_weight_that_is_not_finite_is_refused(family: Family) -> None:
    structure = family.at_width(16)[0]
    with pytest.raises(ValueError, match="weight holds numbers that are not finite"):
        project(torch.full((16, 16), torch.nan), structure)


@every_family
def test_inputs_of_another_width_are_refused(family: Family) -> None:
    layer = empty_layer(family.at_width(16)[0], rows=16, columns=16)
    for width in (1, 15, 32):
        with pytest.raises(ValueError, match=f"x is 3 x {width}, but this layer admits 16 as its"):
            layer(torch.zeros(3, width))


@every_family
def test_a_second_moment_of_other_inputs_is_refused(family: Family) -> None:
    structure, weight = family.at_width(16)[0], torch.zeros(16, 16)
    for moment in (torch.eye(15), torch.ones(16), torch.ones(1, 1)):
        with pytest.raises(ValueError, match=r"second_moment is .*, but .* admits 16 x 16"):
            project(weight, structure, second_moment=moment)
    with pytest.raises(ValueError, match="second_moment is not symmetric"):
        project(weight, structure, second_moment=torch.arange(256.0).view(16, 16))


@every_family
def test_a_data_aware_projection_is_no_worse_than_zero_or_the_plain_one(family: Family) -> None:
    def check(case: Case) -> None:
        weight, moment = case.weight() * case.scale, case.skewed_second_moment()
        plain = project(weight, case.structure).to_dense()
        aware = project(weight, case.structure, second_moment=moment).to_dense()
        # What the regularisation of a singular C may give away.
        slack = 1.01 * REGULARISATION * moment.diagonal().mean() * weight.square().sum()
        error = output_error(weight - aware, moment)
        assert error <= output_error(weight - plain, moment) + slack
        if "a projection is never worse than zero" not in family.exempt:
            assert error <= output_error(weight, moment) + slack

    for_all(family, check, examples=family.fits)


@pytest.mark.parametrize("family", [one for one in FAMILIES if one.curve], ids=str)
@pytest.mark.parametrize("aware", [False, True])
def test_an_error_curve_is_the_error_of_every_projection(family: Family, aware: bool) -> None:
    """Exactly; given C, where the closed form is only the start of a descent, at most."""
    curve_of = family.curve
    assert curve_of is not None

    def check(case: Case) -> None:
        weight = case.weight()
        moment = case.second_moment() + torch.eye(case.columns).double() if aware else None
        curve = curve_of(weight, moment)
        whole = output_error(weight, moment)
        assert curve.macs.diff().ge(0).all()
        for index, error in enumerate(curve.errors.tolist()):
            structure = curve.structure(index)
            sides = {"rows": case.rows, "columns": case.columns}
            structure.check_fits(**sides)
            assert structure.mac_count(**sides) == curve.macs[index]
            assert structure.parameter_count(**sides) == curve.parameters[index]
            found = project(weight, structure, second_moment=moment).to_dense().detach()
            real = float(output_error(weight - found, moment) / whole)
            assert real <= error + 1e-6
            assert aware or real >= error - 1e-6

    for_all(family, check, largest=8, examples=family.fits)


@every_family
def test_a_projection_keeps_dtype_and_bias(family: Family) -> None:
    def check(case: Case) -> None:
        weight, bias = case.weight().float(), case.normal(case.rows).float()
        moment = case.second_moment().float()
        layer = project(weight, case.structure, bias=bias, second_moment=moment)
        assert layer.bias is not None
        torch.testing.assert_close(layer.bias.detach(), bias)
        assert {value.dtype for value in layer.state_dict().values()} == {torch.float32}
        assert layer(case.normal(2, case.columns).float()).dtype == torch.float32
        assert layer.spec == case.structure

    for_all(family, check, examples=min(10, family.fits))


@every_family
def test_half_precision_stays_half_precision_and_near(family: Family) -> None:
    def check(case: Case) -> None:
        exact = case.layer().float()
        x = case.normal(2, case.columns).float()
        half = case.layer().bfloat16()(x.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            automatic = exact(x)
        assert half.dtype == automatic.dtype == torch.bfloat16
        size = 1 + float(exact.to_dense().detach().norm() * x.norm())
        for found in (half, automatic):
            torch.testing.assert_close(found.float(), exact(x), rtol=0.05, atol=0.05 * size)

    for_all(family, check, examples=10)


@every_family
def test_the_structure_survives_json(family: Family) -> None:
    def check(case: Case) -> None:
        text = STRUCTURE_ADAPTER.dump_json(case.structure)
        assert STRUCTURE_ADAPTER.validate_json(text) == case.structure

    for_all(family, check)


@every_family
def test_a_saved_layer_is_the_same_layer(family: Family) -> None:
    def check(case: Case) -> None:
        layer, again = case.layer(), case.empty()
        again.load_state_dict(layer.state_dict())
        assert torch.equal(again.to_dense(), layer.to_dense())

    for_all(family, check, examples=10)


@every_family
def test_what_does_not_fit_is_refused_with_its_range(family: Family) -> None:
    @given(st.integers(family.smallest, 12), st.integers(family.smallest, 12))
    def check(rows: int, columns: int) -> None:
        for structure, argument in family.misfits(rows, columns):
            pattern = rf"{re.escape(argument)} is .+, but .+ admits .+"
            with pytest.raises(ValueError, match=pattern):
                structure.check_fits(rows=rows, columns=columns)
            with pytest.raises(ValueError, match=pattern):
                empty_layer(structure, rows=rows, columns=columns)

    check()


@every_family
def test_what_is_larger_fits_too(family: Family) -> None:
    def check(case: Case) -> None:
        for larger in case.structure.larger(rows=case.rows, columns=case.columns):
            larger.check_fits(rows=case.rows, columns=case.columns)
            assert type(larger) is type(case.structure)
            assert larger != case.structure

    for_all(family, check)


@every_family
def test_a_picture_lies_on_the_matrix(family: Family) -> None:
    def check(case: Case) -> None:
        for patch in case.structure.patches(rows=case.rows, columns=case.columns):
            assert 0 <= patch.row_start < case.rows
            assert 1 <= patch.row_count <= case.rows
            assert 0 <= patch.column_start < case.columns
            assert 1 <= patch.column_count <= case.columns
            assert 0 < patch.opacity <= 1
        assert case.structure.in_words()

    for_all(family, check)


@every_family
def test_every_trainable_tensor_has_its_fan_in(family: Family) -> None:
    def check(case: Case) -> None:
        fan_ins = case.layer().fan_ins()
        assert fan_ins.keys() | {"bias"} == dict(case.layer().named_parameters()).keys()
        assert all(fan_in > 0 for fan_in in fan_ins.values())

    for_all(family, check, examples=10)


@every_family
@pytest.mark.parametrize("width", [256, 1024])
def test_initialisation_keeps_the_variance_forwards_and_backwards(
    family: Family, width: int
) -> None:
    """Within 20 % of the dense layer's, whose variances are 1 where it is square."""
    skip_exempt(family, "the variance is kept")
    generator = torch.Generator().manual_seed(0)
    for structure in family.at_width(width):
        layer = build_layer(structure, rows=width, columns=width, generator=generator)
        x = torch.randn(2048, width, generator=generator).requires_grad_()
        y = layer(x)
        gradient = torch.randn(2048, width, generator=generator)
        (backward,) = torch.autograd.grad(y, x, gradient)
        assert 0.8 <= y.square().mean() <= 1.2, structure
        assert 0.8 <= backward.square().mean() <= 1.2, structure


@every_family
def test_the_same_seed_draws_the_same_layer(family: Family) -> None:
    def check(case: Case) -> None:
        assert torch.equal(case.layer().to_dense(), case.layer().to_dense())
        first, second = (
            project(case.weight(), case.structure, second_moment=moment).state_dict()
            for moment in [case.second_moment()] * 2
        )
        assert all(torch.equal(first[name], second[name]) for name in first)

    for_all(family, check, examples=min(10, family.fits))


def test_both_forms_of_gblr_are_one_product() -> None:
    def check(case: Case) -> None:
        layer = case.layer()
        assert isinstance(layer, GblrLinear)
        x = case.normal(2, 3, case.columns)
        layer.set_form("packed")
        packed = layer(x)
        layer.set_form("sliced")
        close(packed, layer(x))

    (family,) = (family for family in FAMILIES if family.name == "GBLR")
    for_all(family, check, examples=100)


@given(st.integers(1, 12), st.integers(1, 12), st.data(), st.booleans())
def test_a_single_rectangle_is_projected_onto_itself(
    rows: int, columns: int, data: st.DataObject, aware: bool
) -> None:
    (family,) = (family for family in FAMILIES if family.name == "GBLR")
    structure = data.draw(family.structures(rows, columns))
    assert isinstance(structure, Gblr)
    case = Case(Gblr(rectangles=structure.rectangles[:1]), rows, columns, rows * columns)
    weight = case.layer().to_dense().detach()
    moment = case.second_moment() + torch.eye(columns).double() if aware else None
    found = project(weight, case.structure, second_moment=moment).to_dense()
    torch.testing.assert_close(found, weight, rtol=1e-6, atol=1e-6)
