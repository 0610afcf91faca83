"""CIFAR-10 (Krizhevsky, 2009) in its binary version: colour pictures of ten kinds of things.

A file holds rows of 3,073 bytes: the label, and 3 x 32 x 32 bytes of the picture (channel, row, column).
"""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mpi_ntkdfl.data.dataset import Dataset, standardise
from mpi_ntkdfl.data.source import NO_CACHE, FolderSettings, Size, Source, need
from mpi_ntkdfl.runtime.errors import InputError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
"""The hash of the archive at `URL`."""

FOLDER = "cifar-10-batches-bin"
"""The folder of the files in the archive."""

TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST = "test_batch.bin"
SHAPE = (3, 32, 32)
ROW = 1 + 3 * 32 * 32

_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


class Cifar10(Source[FolderSettings]):
    """CIFAR-10: 60,000 colour pictures of 32 x 32 pixels."""

    name = "cifar10"
    Settings = FolderSettings
    size = Size(50_000, 10_000, SHAPE, 10)
    licence = "none stated; the authors ask to cite Krizhevsky, 2009"
    fetchable = True
    way_out = (
        f"run `python -m mpi_ntkdfl data fetch cifar10`, or unpack {URL} and set dataset.root to its "
        "folder"
    )

    def locate(self, settings: FolderSettings) -> dict[str, Path]:
        """The six files, in the folder `root` or in its folder `FOLDER`."""
        folder = settings.folder
        for inner in [] if folder is None else [folder, folder / FOLDER]:
            if all((inner / name).is_file() for name in (*TRAIN, TEST)):
                return {Path(name).stem: inner / name for name in (*TRAIN, TEST)}
        raise InputError(
            f"data set cifar10 needs {', '.join((*TRAIN, TEST))}, not found in {folder or NO_CACHE}: "
            f"{self.way_out}"
        )

    def load(self, settings: FolderSettings) -> Dataset:
        """Reads the six files; one mean and deviation of all training bytes standardise the inputs."""
        paths = self.locate(settings)
        rows = [_rows(paths[Path(name).stem]) for name in TRAIN]
        train, test = np.concatenate(rows), _rows(paths[Path(TEST).stem])
        inputs = np.ascontiguousarray(train[:, 1:])
        return Dataset(
            self.name,
            *(inputs, train[:, 0].astype(np.int64)),
            *(np.ascontiguousarray(test[:, 1:]), test[:, 0].astype(np.int64)),
            *(10, standardise(inputs, 255.0, per_feature=False)),
            shape=SHAPE,
            class_names=_CLASSES,
        )

    def fetch(self, root: str | None = None) -> Path:
        """Downloads the archive, compares its hash, and unpacks the six files."""
        folder = self.folder_to_fill(root)
        pooch = need("pooch")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Files get their final names only when they are whole.
            with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as staging:
                archive = pooch.retrieve(URL, known_hash=f"sha256:{SHA256}", path=staging)
                unpack(Path(archive), folder)
        except (OSError, ValueError, tarfile.TarError) as error:  # requests' errors are OSErrors
            reason = " ".join(str(error).split())
            raise InputError(f"cannot fetch {URL}: {reason}; {self.way_out}") from error
        return folder


def unpack(archive: Path, folder: Path) -> None:
    """Puts the six files of an archive into a folder.

    Raises:
        ValueError: if the archive lacks one of them.
    """
    with tarfile.open(archive) as files:
        for name in (*TRAIN, TEST):
            inside = files.extractfile(f"{FOLDER}/{name}")
            if inside is None:
                raise ValueError(f"{archive.name} has no file {name}")
            partial = folder / f".partial-{name}"
            partial.write_bytes(inside.read())
            partial.replace(folder / name)


def _rows(path: Path) -> npt.NDArray[np.uint8]:
    """Rows [n, 3073] of a file."""
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if not len(content) or len(content) % ROW:
        raise InputError(
            f"{path} must have a multiple of {ROW} bytes, one row per picture, got "
            f"{len(content)}; get the file again"
        )
    return content.reshape(-1, ROW)
