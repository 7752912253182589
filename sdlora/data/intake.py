"""Images and captions taken in: uploads and zips become files of a dataset, whole or not at all.

Everything is put into a hidden folder first and gets its place when all of it is there. Names are made fit
for every system, and an image and its caption keep one name.
"""

import re
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path, PurePosixPath

from sdlora import files
from sdlora.data import sidecars
from sdlora.data.archive import unpack
from sdlora.data.folder import MASK, is_image, is_mask, is_passed_over
from sdlora.errors import DatasetError

_STAGING = ".incoming-"
LINK = ".folder"  # datasets/NAME.folder holds the path of a dataset elsewhere
Source = tuple[PurePosixPath, Path]  # the name that a file had, and where it lies now


@dataclass(frozen=True, kw_only=True)
class Added:
    """What lies in the dataset now, and a sentence for everything renamed, replaced or left out."""

    files: tuple[Path, ...]
    notes: tuple[str, ...]


def create(root: Path, name: str) -> Path:
    """An empty folder for a dataset of that name. Raises DatasetError when the name is taken."""
    folder = root / _free_name(root, name)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise files.storage_error(folder, error) from error
    return folder


def register(root: Path, folder: Path, *, name: str = "") -> str:
    """A folder elsewhere on this machine is a dataset from now on; its name. Nothing is copied.

    Raises DatasetError when there is no such folder or the name is taken.
    """
    real = folder.expanduser().resolve()
    if not real.is_dir():
        raise DatasetError(f"There is no folder {folder}.", "Name a folder on the machine that runs sdlora.")
    chosen = _free_name(root, name or real.name)
    files.write_atomic(root / f"{chosen}{LINK}", str(real))
    return chosen


def datasets(root: Path) -> dict[str, Path]:
    """Name -> folder of all datasets under `root`, those elsewhere included, sorted by name."""
    found: dict[str, Path] = {}
    for path in root.iterdir() if root.is_dir() else ():
        if path.is_dir() and not path.name.startswith("."):
            found[path.name] = path
        elif path.suffix == LINK:
            found[path.stem] = Path(path.read_text(encoding="utf-8", errors="replace").strip())
    return dict(sorted(found.items()))


def entry(root: Path, name: str) -> Path:
    """What makes `name` a dataset under `root`: its folder, or the file that tells where it lies."""
    folder = root / name
    return folder if folder.is_dir() else root / f"{name}{LINK}"


def rename(root: Path, name: str, new: str) -> str:
    """The dataset called `name` is called `new`, made fit for a folder; a folder elsewhere stays as it is.

    Raises DatasetError when the name is taken.
    """
    old = entry(root, name)
    chosen = _free_name(root, new, but=name)
    path = old.with_name(f"{chosen}{old.suffix if old.is_file() else ''}")
    try:
        old.rename(path)
    except OSError as error:
        raise files.storage_error(path, error) from error
    return chosen


def add(folder: Path, uploads: Sequence[Path]) -> Added:
    """The images, captions and masks among `uploads`, zips unpacked, lie in the dataset.

    An image that is there already is left alone, another of the same name gets a new one; a caption takes
    the place of the old one. Raises DatasetError for a zip that is unsafe, StorageError when the disk is
    full; then nothing was added.
    """
    notes: list[str] = []
    with _staging(folder) as staging:
        sources: list[Source] = []
        for number, upload in enumerate(uploads):
            place = staging / str(number)
            place.mkdir()
            sources += _taken_in(upload, place, notes)
        shelf = _Shelf(folder, notes)
        added = [path for group in _groups(sources) for path in shelf.put(group)]
    return Added(files=tuple(added), notes=tuple(notes))


def _taken_in(upload: Path, place: Path, notes: list[str]) -> list[Source]:
    """The files of one upload, in `place`."""

    def wanted(name: PurePosixPath) -> bool:
        if any(is_passed_over(part) for part in name.parts):
            return False
        if _is_ours(name):
            return True
        notes.append(f"{name} is neither an image nor a caption; it was left out.")
        return False

    if upload.suffix.lower() == ".zip":
        return _without_common_folder(unpack(upload, place, wanted=wanted))
    if not wanted(PurePosixPath(upload.name)):
        return []
    try:
        return [(PurePosixPath(upload.name), Path(shutil.copyfile(upload, place / f"0{upload.suffix}")))]
    except OSError as error:
        raise files.storage_error(place, error) from error


def _is_ours(name: PurePosixPath) -> bool:
    return (
        is_image(name)
        or is_mask(name)
        or name.suffix.lower() in sidecars.SUFFIXES
        or name.name == "metadata.jsonl"
    )


def _without_common_folder(sources: list[Source]) -> list[Source]:
    """The same without the folders that hold everything, unless their name means repeats."""
    while sources:
        first = sources[0][0].parts[0]
        if any(len(name.parts) < 2 or name.parts[0] != first for name, _ in sources):
            break
        if re.match(r"\d+_", first):
            break
        sources = [(PurePosixPath(*name.parts[1:]), path) for name, path in sources]
    return sources


def _groups(sources: Iterable[Source]) -> list[list[Source]]:
    """Images with their captions and masks: files of one folder and name, each name once a group."""
    groups: dict[tuple[PurePosixPath, str, int], list[Source]] = {}
    seen: Counter[PurePosixPath] = Counter()
    for name, path in sources:
        groups.setdefault((name.parent, _stem(name), seen[name]), []).append((name, path))
        seen[name] += 1
    return list(groups.values())


def _stem(name: PurePosixPath) -> str:
    return name.stem.removesuffix(MASK)


class _Shelf:
    """The dataset as files are put into it, one image with all that belongs to it after another."""

    def __init__(self, folder: Path, notes: list[str]) -> None:
        self.folder = folder
        self.notes = notes
        self._images: dict[Path, dict[str, list[Path]]] = {}  # folder -> name in small letters -> images

    def put(self, group: Sequence[Source]) -> Iterator[Path]:
        """The files of one image are in the dataset, under one name that no other image has."""
        first = group[0][0]
        where = self.folder.joinpath(*(files.safe_name(part) for part in first.parts[:-1]))
        stem = self._free_stem(where, group)
        if stem != _stem(first):
            self.notes.append(f"{first} and what belongs to it is called {stem} now.")
        for name, path in group:
            target = where / f"{stem}{MASK if is_mask(name) else ''}{name.suffix.lower()}"
            if target.exists() and files.sha256(target) == files.sha256(path):
                self.notes.append(f"{target.name} is there already.")
                continue
            if target.exists():
                self.notes.append(f"{target.name} took the place of the old one.")
            _move(path, target)
            if is_image(target):
                self._images_in(where).setdefault(stem.lower(), []).append(target)
            yield target

    def _free_stem(self, where: Path, group: Sequence[Source]) -> str:
        """The wished name, or the first of `name-2`, `name-3`, ... under which no other image lies."""
        wished = files.safe_name(_stem(group[0][0]))[:70]
        own = {files.sha256(path) for name, path in group if is_image(name)}
        there = self._images_in(where) if own else {}  # captions alone belong to the image that is there
        stems = chain([wished], (f"{wished}-{number}" for number in count(2)))
        return next(
            stem for stem in stems if all(files.sha256(path) in own for path in there.get(stem.lower(), ()))
        )

    def _images_in(self, where: Path) -> dict[str, list[Path]]:
        if where not in self._images:
            found = self._images[where] = {}
            for path in where.iterdir() if where.is_dir() else ():
                if is_image(path):
                    found.setdefault(path.stem.lower(), []).append(path)
        return self._images[where]


def _move(path: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    except OSError as error:
        raise files.storage_error(target, error) from error


def _free_name(root: Path, name: str, *, but: str = "") -> str:
    chosen = files.safe_name(name, fallback="dataset")
    if chosen.lower() in (taken.lower() for taken in datasets(root) if taken != but):
        raise DatasetError(f'A dataset called "{chosen}" is there already.', "Choose another name.")
    return chosen


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A hidden folder within `folder`, gone afterwards; those that a crash left behind a day ago go too."""
    for old in folder.glob(f"{_STAGING}*"):
        if time.time() - old.stat().st_mtime > 86_400:
            shutil.rmtree(old, ignore_errors=True)
    staging = folder / f"{_STAGING}{uuid.uuid4().hex[:8]}"
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        raise files.storage_error(staging, error) from error
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
