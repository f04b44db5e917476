"""Truncated butterflies: what they compute, how they start, and what they learn as encoders."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.structured import TruncatedButterfly
from models.structured.build import project
from models.structures import ButterflyGadget
from models.structures.butterfly_gadget import mix_count

SIZES = [(2, 1), (8, 8), (16, 1), (16, 5), (64, 8), (64, 33), (50, 7), (256, 150)]


def drawn(numbers: int, kept: int, seed: int = 0) -> TruncatedButterfly:
    found = TruncatedButterfly(numbers=numbers, kept=kept, dtype=torch.float64)
    with torch.no_grad():
        found.draw(torch.Generator().manual_seed(0), seed=seed)
    return found


def factor_by_factor(butterfly: TruncatedButterfly) -> tuple[Tensor, int]:
    """J and the multiplications it takes, by the definition: one 2x2 mix after the other."""
    state, count, taken = torch.eye(butterfly.side).double(), 0, 0
    held = state.reshape(butterfly.side, 1, butterfly.side)  # (run, entry, column)
    for level in range(butterfly.depth):
        runs, entries, columns = held.shape
        outputs = min(2 << level, butterfly.kept)
        made = torch.zeros(runs // 2, outputs, columns).double()
        for run in range(runs // 2):
            for output in range(outputs):
                low, high = butterfly.mixes.detach()[taken : taken + 2]
                entry = output % entries
                made[run, output] = low * held[2 * run, entry] + high * held[2 * run + 1, entry]
                taken += 2
                count += 2
        held = made
    return held[0, :, : butterfly.numbers], count


@pytest.mark.parametrize(("numbers", "kept"), SIZES)
def test_a_truncated_butterfly_is_its_mixes_one_by_one(numbers: int, kept: int) -> None:
    butterfly = drawn(numbers, kept)
    with torch.no_grad():
        butterfly.mixes.copy_(torch.randn(butterfly.mixes.shape).double())
    expected, count = factor_by_factor(butterfly)
    assert count == mix_count(numbers, kept) == butterfly.mixes.numel()
    torch.testing.assert_close(butterfly.to_dense().detach(), expected)
    x = torch.randn(3, numbers).double()
    torch.testing.assert_close(butterfly(x).detach(), expected @ x.T)
    z = torch.randn(kept, 3).double()
    torch.testing.assert_close(butterfly.spread(z).detach(), expected.T @ z)


@pytest.mark.parametrize(("numbers", "kept"), SIZES)
def test_it_starts_as_orthonormal_rows_of_a_hadamard_matrix(numbers: int, kept: int) -> None:
    butterfly = drawn(numbers, kept, seed=3)
    whole = TruncatedButterfly(numbers=butterfly.side, kept=kept, dtype=torch.float64)
    whole.load_state_dict(butterfly.state_dict())
    rows = whole.to_dense().detach()
    torch.testing.assert_close(rows @ rows.T, torch.eye(kept).double())
    torch.testing.assert_close(rows.abs(), torch.full_like(rows, butterfly.side**-0.5))


def test_another_seed_picks_other_rows() -> None:
    first, second = (drawn(64, 8, seed).to_dense() for seed in (0, 1))
    spanned = first @ second.T
    assert float(spanned.detach().square().sum()) < 8 - 1e-6


@pytest.mark.parametrize(("kept", "executed"), [(32, 32), (129, 16 + 9), (256, 16 + 16)])
def test_merged_mixes_multiply_as_stated(kept: int, executed: int) -> None:
    butterfly = drawn(1024, kept)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        butterfly(torch.zeros(3, 1024).double())
    assert counter.get_total_flops() == 2 * 3 * executed * 1024


def test_a_core_of_full_size_stands_for_every_matrix() -> None:
    weight = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    layer = project(weight, ButterflyGadget(core_rows=16, core_columns=8))
    torch.testing.assert_close(layer.to_dense().detach(), weight, rtol=1e-5, atol=1e-5)


def test_descent_halves_what_random_butterflies_leave_of_a_matrix_of_low_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 4, generator=generator) @ torch.randn(4, 48, generator=generator)
    layer = project(weight, ButterflyGadget(core_rows=4, core_columns=4))
    assert (layer.to_dense() - weight).norm() < 0.5 * weight.norm()


def test_as_an_encoder_it_comes_near_to_the_principal_components_of_digits() -> None:
    """A dense decoder, everything trained: an error at most 3 % above the best of its rank."""
    kept = 8
    x = torch.from_numpy(load_digits().data).double()
    x = x - x.mean(0)
    singular = torch.linalg.svdvals(x)
    best = float(singular[kept:].square().sum())
    encoder = drawn(64, kept)
    decoder = nn.Parameter(encoder.to_dense().detach().T.contiguous())
    optimiser = torch.optim.LBFGS(
        [encoder.mixes, decoder], max_iter=300, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss: Tensor = (x - (decoder @ encoder(x)).T).square().sum() / best
        loss.backward()
        return loss

    before = float(closure().detach())
    optimiser.step(closure)
    after = float(closure().detach())
    assert after < 1.03 < before
