"""CP of units' weights: planted members, and MACs that are more than those of dense."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from models.structured.build import build_layer, project
from models.structured.output_error import output_error
from models.structures import Cp


def planted(structure: Cp, rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    layer = build_layer(structure, rows=rows, columns=columns, generator=generator)
    return layer.to_dense().detach().double()


def test_planted_tensors_are_recovered() -> None:
    structure = Cp(terms=2, column_modes=(4, 5, 6))
    weight = planted(structure, 12, 120)
    found = project(weight, structure).to_dense().detach()
    assert (weight - found).norm() / weight.norm() < 1e-4


def test_small_numbers_are_approximated_as_well_as_large_ones() -> None:
    structure = Cp(terms=3, column_modes=(2, 2, 5))
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    errors = [
        (1 - project(scale * weight, structure).to_dense().detach() / (scale * weight)).norm()
        for scale in (1.0, 1e-20)
    ]
    torch.testing.assert_close(errors[1], errors[0], rtol=1e-2, atol=0)


def test_a_batch_of_one_takes_the_counted_macs_which_are_more_than_dense() -> None:
    structure = Cp(terms=3, column_modes=(3, 4, 5))
    layer = build_layer(structure, rows=7, columns=58, generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(torch.zeros(1, 58))
    macs = structure.mac_count(rows=7, columns=58)
    assert counter.get_total_flops() == 2 * macs
    assert macs == 7 * 58 + 7 * 3 * (3 * 4 + 3 * 4 * 5)
    assert structure.parameter_count(rows=7, columns=58) == 7 * 3 * (3 + 4 + 5)


def test_seeing_the_inputs_lowers_the_error_of_the_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 24, generator=generator, dtype=torch.float64)
    inputs = torch.randn(99, 24, generator=generator, dtype=torch.float64)
    inputs *= torch.logspace(0, -2, 24, dtype=torch.float64)
    moment = inputs.T @ inputs / 99
    plain, aware = (
        output_error(
            weight
            - project(weight, Cp(terms=1, column_modes=(4, 6)), second_moment=given).to_dense(),
            moment,
        )
        for given in (None, moment)
    )
    assert aware < 0.8 * plain
