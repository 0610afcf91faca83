"""Data sets of four IDX files with pictures of 28 x 28 bytes: MNIST and its descendants.

All of them use the same file names, so a user can easily mix up the files of different sets. Therefore
each file that is read is compared with the hashes of all published files (`PUBLISHED`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpi_ntkdfl.data import idx
from mpi_ntkdfl.data.dataset import Dataset, Samples, Scaling
from mpi_ntkdfl.data.source import NO_CACHE, FolderSettings, Size, Source, cache_folder, need
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.paths import user_path

_log = logging.getLogger(__name__)

FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
"""Name of each part's file, without `.gz`. Some tools write `.idx3-ubyte` instead of `-idx3-ubyte`."""

PUBLISHED: dict[str, tuple[str, str]] = {}
"""Data set and part of every published file, by the SHA-256 of the file's content."""

_SIDE = 28


class Hashes(NamedTuple):
    """`md5` is the hash of the published `.gz` file, `sha256` the hash of its decompressed content.

    The publishers give the MD5. Files with a given MD5 can be forged, so SHA-256 is checked as well.
    """

    md5: str
    sha256: str


@dataclass(frozen=True)
class ImageSet(Source[FolderSettings]):
    """A data set of four IDX files.

    Attributes:
        name: name of the data set in configurations.
        licence: licence of the pictures.
        base: address of the folder with the files, with a slash at the end.
        folder: name of its folder in torchvision.
        mean: mean of the training pixels after division by 255, as commonly used.
        deviation: their standard deviation.
        hashes: hashes of each part; the keys are those of `FILES`.
        packaged: folder into which a package of the operating system puts the files; None if there is
            no such package.
        package: name of this package.
    """

    name: str
    licence: str
    base: str
    folder: str
    mean: float
    deviation: float
    hashes: Mapping[str, Hashes]
    packaged: Path | None = None
    package: str | None = None

    Settings = FolderSettings
    size = Size(60_000, 10_000, (1, _SIDE, _SIDE), 10)
    fetchable = True

    @property
    def way_out(self) -> str:  # type: ignore[override]
        """How to get the files."""
        debian = f", install the Debian package {self.package}" if self.package else ""
        return f"run `python -m mpi_ntkdfl data fetch {self.name}`{debian}, or set dataset.root"

    @property
    def scaling(self) -> Scaling:
        """The conversion of its bytes to inputs."""
        return Scaling(255.0, np.array([self.mean]), np.array([self.deviation]))

    def locate(self, settings: FolderSettings) -> dict[str, Path]:
        """The four files; with `settings.root` only in that folder and its torchvision subfolders."""
        tried = []
        for folder in self._folders(settings):
            paths = {part: _variant(folder, file) for part, file in FILES.items()}
            missing = [FILES[part] for part, path in paths.items() if path is None]
            if not missing:
                return {part: path for part, path in paths.items() if path is not None}
            lacks = f"without {', '.join(missing)}"
            tried.append(f"{folder} ({'nothing there' if len(missing) == len(FILES) else lacks})")
        if settings.root is None and cache_folder(self.name) is None:
            tried.append(NO_CACHE)
        raise InputError(
            f"data set {self.name} needs its four IDX files (plain or .gz) in one folder, tried "
            f"{', '.join(tried)}: {self.way_out} to the folder with the files"
        )

    def _folders(self, settings: FolderSettings) -> list[Path]:
        if settings.root is not None:
            root = user_path(settings.root, "dataset.root")
            return [root, root / self.folder / "raw", root / "raw"]
        return [path for path in (cache_folder(self.name), self.packaged) if path is not None]

    def load(self, settings: FolderSettings) -> Dataset:
        """Reads the four files; refuses published files of another data set or another part."""
        paths = self.locate(settings)
        train = self._read(paths, "train")
        test = self._read(paths, "test")
        return Dataset(self.name, *train, *test, 10, self.scaling, shape=(1, _SIDE, _SIDE))

    def content(self, settings: FolderSettings) -> str | None:
        """None if all four files have the published content, otherwise a hash of their content.

        The compression of the files does not matter.
        """
        digests = {}
        for part, path in self.locate(settings).items():
            state = path.stat()
            digests[part] = _content_hash(path, state.st_size, state.st_mtime_ns, state.st_ino)
        if digests == {part: hashes.sha256 for part, hashes in self.hashes.items()}:
            return None
        return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()

    def _read(self, paths: Mapping[str, Path], which: str) -> Samples:
        images, labels = paths[f"{which}_images"], paths[f"{which}_labels"]
        pixels, classes = idx.read(images, (None, _SIDE, _SIDE)), idx.read(labels, (None,))
        self._require_own(f"{which}_images", images, pixels)
        self._require_own(f"{which}_labels", labels, classes)
        if len(pixels) != len(classes):
            raise InputError(
                f"{labels} must have a label for each of the {len(pixels)} images of {images.name}, "
                f"got {len(classes)}"
            )
        return Samples(pixels.reshape(-1, _SIDE * _SIDE), classes.astype(np.int64))

    def _require_own(self, part: str, path: Path, content: npt.NDArray[Any]) -> None:
        """Refuses a published file of another set or part; warns if a file is not a published one."""
        name, published = PUBLISHED.get(idx.array_hash(content), (None, None))
        if name not in (None, self.name):
            raise InputError(
                f"data set {self.name}: {path} belongs to {name}; set dataset.name or dataset.root"
            )
        if published not in (None, part):
            raise InputError(
                f"data set {self.name}: {path} holds the published {published}, but {part} are "
                "needed; get the file again"
            )
        if name is None:
            _log.warning(
                "data set %s: %s is not the published file; it is used as your own", self.name, path
            )

    # ---------------------------------------------------------------------------------- downloading

    def fetch(self, root: str | None = None) -> Path:
        """Downloads the files; a file gets its final name only after both its hashes were checked."""
        folder = self.folder_to_fill(root)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Files are downloaded into the same folder, so that the move to the final name is atomic.
            with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as staging:
                for part, hashes in self.hashes.items():
                    target = folder / f"{FILES[part]}.gz"
                    if not _is_sound(target, hashes):
                        _download(self.base, hashes, Path(staging), target)
        except OSError as error:
            raise InputError(
                f"cannot write to {folder}: {error.strerror or error}; set another folder"
            ) from error
        return folder


@cache
def _content_hash(path: Path, size: int, changed: int, inode: int) -> str:
    """Hash of the decompressed content; a file is read again only if its state changed."""
    return idx.content_hash(path)


def _variant(folder: Path, name: str) -> Path | None:
    """The file with either spelling of its name, compressed or plain; None if there is none."""
    spellings = (name, name.replace("-idx", ".idx"))
    paths = (folder / f"{each}{end}" for each in spellings for end in (".gz", ""))
    return next((path for path in paths if path.is_file()), None)


def _is_sound(path: Path, hashes: Hashes) -> bool:
    try:
        return path.is_file() and idx.content_hash(path) == hashes.sha256
    except InputError:
        return False


def _download(base: str, hashes: Hashes, staging: Path, target: Path) -> None:
    url = f"{base}{target.name}"
    by_hand = (
        f"download it by hand into {target.parent} or set dataset.root to the folder of the file"
    )
    pooch = need("pooch")
    try:
        pooch.retrieve(url, known_hash=f"md5:{hashes.md5}", fname=target.name, path=staging)
        got = idx.content_hash(staging / target.name)
    except (OSError, ValueError, InputError) as error:  # requests' errors are OSErrors
        reason = " ".join(str(error).split())
        raise InputError(f"cannot fetch {url}: {reason}; try again, {by_hand}") from error
    if got != hashes.sha256:
        raise InputError(
            f"{url} must have content of SHA-256 {hashes.sha256}, got {got}; {by_hand}"
        )
    # Only the owner can read files that pooch makes, but a group of users may share the folder.
    (staging / target.name).chmod(0o644)
    (staging / target.name).replace(target)
