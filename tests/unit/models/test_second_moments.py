"""What is kept of a second moment is given up as soon as it, or the matrix, is another."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import Tensor

from models.structured import low_rank
from models.structured.build import project
from models.structured.checks import check_symmetric
from models.structured.output_error import (
    latest,
    output_error,
    outputs,
    outputs_of_given,
    regularised,
)
from models.structures import LowRank


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(columns: int) -> Tensor:
    inputs = drawn(40, columns, seed=1)
    found: Tensor = inputs.T @ inputs / 40
    return found


def test_outputs_are_kept_until_the_matrix_or_the_inputs_are_others() -> None:
    weight, other, second_moment = drawn(3, 5), drawn(3, 5, seed=2), moment(5)
    first = outputs(weight, second_moment)
    torch.testing.assert_close(first, weight @ regularised(second_moment))
    assert outputs(weight, second_moment) is first
    for asked in (other, weight):
        expected = asked @ regularised(second_moment)
        torch.testing.assert_close(outputs(asked, second_moment), expected)
    weight.mul_(2)
    torch.testing.assert_close(outputs(weight, second_moment), 2 * first)
    second_moment.mul_(3)
    torch.testing.assert_close(outputs(weight, second_moment), 6 * first)


def test_a_matrix_that_is_gone_is_not_mistaken_for_the_next() -> None:
    second_moment = moment(5)
    for seed in range(20):
        weight = drawn(3, 5, seed=seed)
        expected = weight @ regularised(second_moment)
        torch.testing.assert_close(outputs(weight, second_moment), expected)
        del weight


def test_what_torch_does_not_see_changed_is_seen() -> None:
    weight, second_moment = drawn(3, 5), moment(5)
    first = outputs(weight, second_moment)
    weight.data.mul_(2)
    torch.testing.assert_close(outputs(weight, second_moment), 2 * first)
    numbers = second_moment.numpy()
    numbers *= 3
    torch.testing.assert_close(outputs(weight, second_moment), 6 * first)
    low_rank.error_curve(weight, second_moment)
    second_moment.data[0, 1] += 9
    with pytest.raises(ValueError, match="not symmetric"):
        low_rank.error_curve(weight, second_moment)


def test_what_was_found_last_is_found_once_until_anything_is_another() -> None:
    weight, second_moment = drawn(3, 5), moment(5)
    found: list[str] = []

    def ask(subject: str) -> None:
        latest(subject, weight, second_moment, lambda: found.append(subject))

    for subject in ("rank", "rank", "blocks", "rank"):
        ask(subject)
    assert found == ["rank", "blocks", "rank"]
    weight.mul_(2)
    ask("rank")
    second_moment.mul_(2)
    ask("rank")
    ask("rank")
    assert len(found) == 5


def test_what_was_found_last_stays_while_another_thread_asks_for_something_else() -> None:
    weight, second_moment = drawn(3, 5), moment(5)
    first = latest("rank", weight, second_moment, object)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(latest, "rank", drawn(3, 5, seed=1), moment(5), object).result()
    assert other is not first
    assert latest("rank", weight, second_moment, object) is first


def test_outputs_of_a_singular_second_moment_are_those_of_it_as_it_is() -> None:
    weight, second_moment = drawn(3, 5), moment(5)
    second_moment[:, 2] = second_moment[2] = 0
    torch.testing.assert_close(outputs_of_given(weight, second_moment), weight @ second_moment)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_a_second_moment_that_is_not_finite_is_refused_each_time(number: float) -> None:
    second_moment = moment(5)
    second_moment[2, 2] = number
    for _ in range(2):
        with pytest.raises(ValueError, match="second_moment holds numbers that are not finite"):
            check_symmetric(second_moment)


def test_in_inference_mode_nothing_is_kept() -> None:
    with torch.inference_mode():
        weight, second_moment = drawn(3, 5), moment(5)
        first = outputs(weight, second_moment)
        weight.mul_(2)
        torch.testing.assert_close(outputs(weight, second_moment), 2 * first)


def test_a_second_moment_that_loses_its_symmetry_is_refused_the_second_time() -> None:
    weight, second_moment = drawn(3, 5), moment(5)
    low_rank.error_curve(weight, second_moment)
    second_moment[0, 1] += 9
    with pytest.raises(ValueError, match="not symmetric"):
        low_rank.error_curve(weight, second_moment)


def test_a_second_moment_is_made_definite_by_as_little_noise_as_does() -> None:
    inputs = drawn(2, 6)
    found = regularised(inputs.T @ inputs)
    torch.linalg.cholesky(found)
    assert torch.equal(found, found.T)
    noise = found - inputs.T @ inputs
    torch.testing.assert_close(noise, noise[0, 0] * torch.eye(6).double(), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_an_error_is_told_whatever_the_dtype_of_the_inputs(dtype: torch.dtype) -> None:
    weight, second_moment = drawn(3, 5), moment(5)
    expected = ((weight @ second_moment) * weight).sum()
    found = output_error(weight.float(), second_moment.to(dtype))
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0)


INDEFINITE = (-torch.eye(3), torch.diag(torch.tensor([3.0, 3, -1])), 1 - torch.eye(3))


@pytest.mark.parametrize("ask", [output_error, partial(project, structure=LowRank(rank=1))])
def test_what_is_no_second_moment_is_refused_by_the_error_as_by_the_projection(
    ask: Callable[..., object],
) -> None:
    weight = torch.tensor([[1.0, -1, 0]])
    for indefinite in (*INDEFINITE, INDEFINITE[2] + torch.eye(3) / 4):
        with pytest.raises(ValueError, match="second_moment is indefinite, but"):
            ask(weight, second_moment=indefinite)
    with pytest.raises(ValueError, match="second_moment is 3 x 4, but a 1 x 3 matrix admits 3 x 3"):
        ask(weight, second_moment=torch.ones(3, 4))
    with pytest.raises(ValueError, match="second_moment is not symmetric"):
        ask(weight, second_moment=torch.ones(3, 3).triu())
    with pytest.raises(ValueError, match="second_moment holds numbers that are not finite"):
        ask(weight, second_moment=torch.eye(3) * torch.nan)
    for none in (weight[0], weight[None], weight.long()):
        with pytest.raises(ValueError, match="but a projection admits matrices of real numbers"):
            ask(none)
