"""What layers, projections and curves refuse, each by a message that says what would do."""

import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.deployment import deploy, deploy_network
from models.networks.build import build_network
from models.spec import Matrix, MatrixTask, dense_network
from models.structured import (
    block_low_rank,
    block_sparse,
    btt,
    diagonals_choice,
    einsum,
    kronecker,
    low_rank,
    sparse_convolution,
)
from models.structured.btt_moe import BttMoeLinear
from models.structured.build import build_layer, empty_layer, project
from models.structured.checks import check_bias, check_target
from models.structured.convolution import StructuredConv2d, patch_second_moment
from models.structured.curves import error_curve, fitted_error
from models.structured.error_curve import ErrorCurve
from models.structured.rectangle_choice import choose_rectangles
from models.structured.sparse_convolution import SparseConv2d
from models.structured.sums_choice import choose_sum
from models.structures import Dense, LowRank
from models.structures.base import check_divides
from models.structures.btt_moe import BttMoe
from models.structures.convolution import Convolution, SparseConvolution

CONVOLUTION = Convolution(in_channels=4, out_channels=2, kernel=(3, 3), groups=2)
SPARSE = SparseConvolution(
    in_channels=4, out_channels=2, kernel=(3, 3), groups=2, taps=((0, 0), (1, 1))
)
SIDES: Any = {"rows": 2, "columns": 3}
KERNEL = torch.ones(2, 2, 3, 3)
MIXTURE = BttMoe(input_blocks=2, output_blocks=2, experts=2, active=1)


@pytest.mark.parametrize("size", [-1, 0, 7, 10**12, True, "3", 2.5, math.nan, None])
@pytest.mark.parametrize(
    ("curve", "fitting", "argument"),
    [
        (block_low_rank.error_curve, {"column_blocks": 2}, "row_blocks"),
        (block_low_rank.error_curve, {"row_blocks": 2}, "column_blocks"),
        (btt.error_curve, {"output_blocks": 2}, "input_blocks"),
        (btt.error_curve, {"input_blocks": 2}, "output_blocks"),
        (kronecker.error_curve, {"block_columns": 2}, "block_rows"),
        (kronecker.error_curve, {"block_rows": 2}, "block_columns"),
        (block_sparse.error_curve, {}, "tile"),
    ],
)
def test_a_curve_of_blocks_beyond_the_matrix_is_refused(
    curve: Callable[..., ErrorCurve], fitting: dict[str, int], argument: str, size: object
) -> None:
    with pytest.raises(ValueError, match=f"^{argument} is {size!r}, but a 6 x 6 matrix admits "):
        curve(torch.eye(6), **fitting, **{argument: size})


@pytest.mark.parametrize("rest", [-0.5, math.nan, math.inf, True, "1"])
def test_a_curve_with_no_share_as_its_rest_is_refused(rest: Any) -> None:
    with pytest.raises(ValueError, match=f"rest is {rest!r}, but a curve admits 0 and more"):
        diagonals_choice.error_curve(torch.eye(3), rest=rest)


@pytest.mark.parametrize("number", [-1, 2.5, math.nan, True, "1", 10**12])
def test_a_choice_of_no_whole_number_is_refused(number: Any) -> None:
    with pytest.raises(ValueError, match=f"diagonals is {number!r}, but a 3 x 3 matrix admits"):
        diagonals_choice.choose(torch.eye(3), diagonals=number)
    with pytest.raises(ValueError, match=f"entries is {number!r}, but a 3 x 3 matrix admits"):
        diagonals_choice.choose(torch.eye(3), diagonals=1, entries=number)
    if number == 10**12:
        return  # of rectangles it is only the most that they may have
    with pytest.raises(ValueError, match=f"rank is {number!r}, but a rectangle admits"):
        choose_rectangles(torch.eye(3), None, rank=number, budgets=[8], generator=torch.Generator())


@pytest.mark.parametrize("budget", [-1, 2.5, math.nan, True, "1", None])
def test_a_choice_within_no_number_of_macs_is_refused(budget: Any) -> None:
    generator = torch.Generator()
    with pytest.raises(ValueError, match=f"budgets is {budget!r}, but a choice admits"):
        choose_rectangles(torch.eye(3), None, rank=1, budgets=[budget], generator=generator)
    with pytest.raises(ValueError, match=f"budget is {budget!r}, but a sum admits"):
        choose_sum("low rank + block diagonal", torch.eye(3), None, budget, generator)


@pytest.mark.parametrize("weight", [[[1.0]], None, torch.nn.Linear(2, 2)])
def test_what_is_no_tensor_is_refused_by_its_name(weight: object) -> None:
    kind = type(weight).__name__
    with pytest.raises(TypeError, match=rf"weight is a {kind}, but this admits a torch\.Tensor"):
        check_target(weight)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="second_moment is a list, but"):
        check_target(torch.eye(2), [[1.0]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"second_moment is of torch\.complex64, but .* real"):
        check_target(torch.eye(2), torch.eye(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"bias is of torch\.complex64, but .* real"):
        check_bias(torch.zeros(2, dtype=torch.complex64), rows=2)
    with pytest.raises(TypeError, match=r"bias is a bool, but this admits a torch\.Tensor"):
        check_bias(True, rows=2)  # type: ignore[arg-type]  # noqa: FBT003


def test_an_empty_curve_says_so_and_one_is_asked_for_numbers_too() -> None:
    costs, errors = torch.tensor([2, 4, 6]), torch.tensor([0.5, 0.3, 0.1])
    curve = ErrorCurve(costs, 10 - costs, errors, range(3).__getitem__)
    assert curve.best_within(5) == 1
    assert curve.best_within(parameters=7) == 2
    assert curve.best_within() == 2
    with pytest.raises(ValueError, match="parameters is 3, but this curve admits 4 and more"):
        curve.best_within(parameters=3)
    with pytest.raises(ValueError, match="no size takes 3 MACs and 6 parameters or fewer"):
        curve.best_within(3, parameters=6)
    nothing = ErrorCurve(costs[:0], costs[:0], errors[:0], range(0).__getitem__)
    with pytest.raises(ValueError, match="no size of this kind is cheaper than this matrix"):
        nothing.best_within(100)

    nowhere = ErrorCurve(costs, costs, errors * torch.nan, range(3).__getitem__)
    with pytest.raises(ValueError, match="no size within that has an error that is a number"):
        nowhere.best_within(3)


@pytest.mark.parametrize(
    "most", [-1, 5, 100.5, 1e20, math.nan, math.inf, True, "a", torch.tensor(12)]
)
def test_a_budget_that_is_no_whole_number_of_a_curve_is_refused(most: Any) -> None:
    curve = low_rank.error_curve(torch.eye(3))
    for name in ("macs", "parameters"):
        wanted = "" if type(most) is int else "whole numbers, "
        message = f"{name} is {most!r}, but this curve admits {wanted}6 and more"
        with pytest.raises(ValueError, match=re.escape(message)):
            curve.best_within(**{name: most})


@pytest.mark.parametrize("most", [2**63 - 1, 2**63, 10**30, np.int64(18)])
def test_a_budget_may_be_larger_than_any_tensor_holds(most: int) -> None:
    assert low_rank.error_curve(torch.eye(3)).best_within(most, parameters=most) == LowRank(rank=3)


CURVES: dict[str, ErrorCurve[Any]] = {
    "low rank": low_rank.error_curve(torch.eye(6)),
    "tiles": block_sparse.error_curve(torch.eye(6), tile=3),
    "diagonals": diagonals_choice.error_curve(torch.eye(6)),
    "of a kind": error_curve("low rank", torch.eye(6)),
    "of a grid": error_curve("group and shuffle", torch.eye(6)),
    "empty": error_curve("low rank", torch.eye(1)),
    "taps": sparse_convolution.error_curve(KERNEL, CONVOLUTION),
}


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES.keys())
def test_every_curve_has_structures_at_its_own_indices_alone(curve: ErrorCurve) -> None:
    count = len(curve.errors)
    wrongs: list[Any] = [-1, count, 10**30, True, 0.0, "0", None, torch.tensor(0.0)]
    for wrong in [*wrongs, torch.tensor(data=True), torch.tensor([0])]:
        message = re.escape(f"index is {wrong!r}, but this curve admits")
        with pytest.raises(ValueError, match=message):
            curve.structure(wrong)
    for index in range(count):
        alike: list[Any] = [torch.tensor(index), np.int32(index)]
        assert all(curve.structure(one) == curve.structure(index) for one in alike)


@pytest.mark.parametrize("structure", [None, "low_rank", LowRank, MIXTURE])
def test_what_is_no_structure_is_refused_by_its_name(structure: object) -> None:
    kind = type(structure).__name__
    with pytest.raises(TypeError, match=f"structure is a {kind}, but a layer admits"):
        project(torch.eye(4), structure)  # type: ignore[arg-type]


LAYERS: dict[str, Callable[..., Any]] = {
    "matrix": partial(empty_layer, LowRank(rank=1), rows=2, columns=3),
    "drawn": partial(build_layer, LowRank(rank=1), rows=2, columns=3, generator=torch.Generator()),
    "convolution": partial(StructuredConv2d, CONVOLUTION),
    "sparse": partial(SparseConv2d, SPARSE),
    "mixture": partial(BttMoeLinear, MIXTURE, rows=4, columns=8),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
def test_what_does_not_say_of_which_numbers_a_layer_is_is_refused(make: Callable[..., Any]) -> None:
    for bias in (1, None, "yes", torch.ones(2)):
        with pytest.raises(TypeError, match=r"bias is .*, but a new layer admits True and False"):
            make(bias=bias)
    for dtype in (torch.int64, torch.complex64, torch.bool, "float32", float):
        message = f"dtype is {dtype!r}, but a layer admits real floating-point dtypes"
        with pytest.raises(TypeError, match=re.escape(message)):
            make(dtype=dtype)


def drawing(generator: Any) -> Iterator[Callable[[], object]]:
    """All that draws numbers; the last may draw without a generator."""
    layer, task = build_layer(Dense(), **SIDES, generator=torch.Generator()), MatrixTask(**SIDES)
    network = dense_network(Matrix(artifact="a"), task)
    yield lambda: build_layer(LowRank(rank=1), **SIDES, generator=generator)
    yield lambda: layer.reset_parameters(generator)
    yield lambda: StructuredConv2d(CONVOLUTION).reset_parameters(generator)
    yield lambda: SparseConv2d(SPARSE).reset_parameters(generator)
    yield lambda: BttMoeLinear(MIXTURE, rows=4, columns=8).reset_parameters(generator)
    yield lambda: build_network(network, generator=generator)
    yield lambda: deploy(layer, tokens=1, generator=generator)
    yield lambda: deploy_network(layer, network, batch=1, generator=generator)
    if generator is None:
        return
    yield lambda: project(torch.eye(3), LowRank(rank=1), generator=generator)
    yield lambda: error_curve("low rank", torch.eye(3), generator=generator)
    yield lambda: fitted_error(torch.eye(3), LowRank(rank=1), generator=generator)
    yield lambda: StructuredConv2d.from_dense(KERNEL, CONVOLUTION, generator=generator)


@pytest.mark.parametrize("generator", [0, "0", None, np.random.default_rng(0), torch.Generator])
def test_what_draws_no_numbers_is_refused_as_a_generator(generator: Any) -> None:
    kind = type(generator).__name__
    message = rf"generator is a {kind}, but this admits a torch\.Generator"
    for ask in drawing(generator):
        with pytest.raises(TypeError, match=message):
            ask()


@pytest.mark.parametrize("size", [0, -3])
def test_a_layer_of_no_rows_or_columns_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"rows is {size}, but a matrix admits 1 and more"):
        empty_layer(Dense(), rows=size, columns=3)
    with pytest.raises(ValueError, match=f"columns is {size}, but a matrix admits 1 and more"):
        BttMoeLinear(MIXTURE, rows=4, columns=size)


FROM_DENSE = [
    (partial(project, structure=LowRank(rank=1)), torch.ones(2, 3)),
    (partial(BttMoeLinear.from_dense, spec=MIXTURE), torch.ones(2, 8)),
    (partial(StructuredConv2d.from_dense, spec=CONVOLUTION), KERNEL),
    (partial(SparseConv2d.from_dense, spec=SPARSE), KERNEL),
]


@pytest.mark.parametrize(("from_dense", "weight"), FROM_DENSE)
def test_a_bias_of_other_outputs_is_refused(
    from_dense: Callable[..., torch.nn.Module], weight: Tensor
) -> None:
    for bias, shape in ((torch.ones(1), "1"), (torch.ones(2, 1), "2 x 1")):
        message = f"bias is {shape}, but a layer of 2 outputs admits 2"
        with pytest.raises(ValueError, match=message):
            from_dense(weight, bias=bias)
    with pytest.raises(ValueError, match="bias holds numbers that are not finite"):
        from_dense(weight, bias=torch.tensor([0, torch.nan]))


@pytest.mark.parametrize(("from_dense", "weight"), FROM_DENSE)
def test_a_weight_that_is_not_finite_is_refused(
    from_dense: Callable[..., torch.nn.Module], weight: Tensor
) -> None:
    with pytest.raises(ValueError, match="weight holds numbers that are not finite"):
        from_dense(weight * torch.nan)


@pytest.mark.parametrize(("from_dense", "weight"), FROM_DENSE[2:])
def test_a_second_moment_of_other_groups_or_patches_is_refused(
    from_dense: Callable[..., torch.nn.Module], weight: Tensor
) -> None:
    for moment in (torch.eye(18), torch.eye(18).expand(3, 18, 18)):
        with pytest.raises(ValueError, match=r"but a convolution of 2 groups admits 2 x columns"):
            from_dense(weight, second_moment=moment)
    with pytest.raises(ValueError, match="but a 1 x 18 matrix admits 18 x 18"):
        from_dense(weight, second_moment=torch.eye(17).expand(2, 17, 17))


def test_a_curve_of_a_kernel_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="weight holds numbers that are not finite"):
        sparse_convolution.error_curve(KERNEL * torch.inf, CONVOLUTION)


@pytest.mark.parametrize("image", [5, (5,), "55", (5, 5, 5)])
def test_a_curve_for_what_is_no_height_and_width_is_refused(image: Any) -> None:
    message = re.escape(f"image is {image!r}, but a curve admits a height and a width")
    with pytest.raises(ValueError, match=message):
        sparse_convolution.error_curve(KERNEL, CONVOLUTION, image=image)
    with pytest.raises(ValueError, match=r"height is 2\.5, but an image admits whole numbers"):
        sparse_convolution.error_curve(KERNEL, CONVOLUTION, image=(2.5, image))  # type: ignore[arg-type]


def test_a_curve_of_another_structure_than_einsum_is_refused() -> None:
    with pytest.raises(TypeError, match="structure is a LowRank, but this curve admits an Einsum"):
        einsum.error_curve(torch.eye(4), structure=LowRank(rank=1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "layer", [StructuredConv2d(CONVOLUTION), SparseConv2d(SPARSE)], ids=["structured", "sparse"]
)
def test_images_of_other_channels_are_refused(layer: torch.nn.Module) -> None:
    for shape, words in (((1, 2, 5, 5), "1 x 2 x 5 x 5"), ((4, 5, 5), "4 x 5 x 5")):
        message = f"x is {words}, but this convolution admits images x 4 x height x width"
        with pytest.raises(ValueError, match=message):
            layer(torch.ones(shape))


def test_divisors_of_large_numbers_are_named_as_far_as_they_are_looked_for() -> None:
    with pytest.raises(ValueError, match=r"a is 3, but b 8192 admits 1, 2, .*, 4096, \.\.\.$"):
        check_divides("a", 3, b=2**13)


@pytest.mark.parametrize("value", [0, -3])
def test_no_divisor_is_below_one(value: int) -> None:
    with pytest.raises(ValueError, match=f"a is {value}, but b 6 admits 1, 2, 3, 6$"):
        check_divides("a", value, b=6)


def test_no_images_have_no_second_moment() -> None:
    with pytest.raises(ValueError, match="images is 0, but their mean admits 1 and more"):
        patch_second_moment(torch.ones(0, 4, 5, 5), CONVOLUTION)


def test_inputs_of_another_width_are_refused_by_a_mixture() -> None:
    with pytest.raises(ValueError, match="x is 3 x 7, but this layer admits 8 as its last size"):
        BttMoeLinear(MIXTURE, rows=4, columns=8)(torch.ones(3, 7))
