"""Real data and a trained reference, made once for all tests of `search`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from search.data import Data, image_data
from search.progress import Silent
from search.reference import Reference, load_reference, make_reference
from search.resolved import ResolvedSearch, resolve
from search.spec import SearchSpec
from tests.unit.search.builders import part, tiny


@dataclass(frozen=True)
class Trained:
    """A search whose reference is trained, on the first few digits."""

    spec: SearchSpec
    resolved: ResolvedSearch
    data: Data
    reference: Reference


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of many threads differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits() -> Data:
    return part(image_data("digits", seed=0), 320)


@pytest.fixture(scope="session")
def trained(digits: Data, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("reference")
    spec = tiny(compute={"trials": 2, "epochs": 3, "reference_epochs": 12})
    resolved = resolve(spec)
    folder = home / "trial"
    folder.mkdir()
    make_reference(
        spec,
        resolved,
        digits,
        cache=home / "cache",
        folder=folder,
        threads=1,
        progress=Silent(),
    )
    return Trained(spec, resolved, digits, load_reference(folder, resolved))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.safetensors"
