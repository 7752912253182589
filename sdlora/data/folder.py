"""A folder of images and captions becomes a Dataset.

    cat.jpg  cat.txt                    an image and its caption (also cat.caption)
    cat-masklabel.png                   where the loss counts: white is fully, black is not at all
    10_ohwx cat/...                     kohya: ten repeats, and "ohwx cat" where there is no other caption
    metadata.jsonl                      Hugging Face: {"file_name": "cat.jpg", "text": "a cat"}

Sub-folders are read too. Whatever is not used is told in a Problem; only hidden files and those that
are known by name are passed over without a word.
"""

import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath

from sdlora.data import sidecars
from sdlora.data.decode import Facts, TooLarge, inspect
from sdlora.data.items import Dataset, Item, Kind, Problem
from sdlora.errors import DatasetError

__all__ = [
    "SETTINGS",
    "Dataset",
    "Item",
    "Problem",
    "is_image",
    "is_mask",
    "is_passed_over",
    "require_folder",
    "scan",
]

MASK = "-masklabel"
MANY_REPEATS = 200
FILES_LIMIT = 200_000  # someone named the whole disk
_IMAGES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp"})
_OTHER_IMAGES = frozenset({".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jxl", ".psd", ".svg"})
_HARMLESS = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_HARMLESS_STEMS = frozenset({"readme", "license", "licence", "copying", "notice"})
_HARMLESS_SUFFIXES = frozenset({".npz", ".md"})  # caches of other trainers, notes
SETTINGS = "settings.toml"  # what of a run's settings goes with the dataset
_KOHYA = re.compile(r"(\d{1,4})_(.*)")


def scan(folder: Path, *, repeats: int = 1) -> Dataset:
    """Everything usable in `folder`, each image decoded once, and a problem for everything else.

    `repeats` multiplies those of `10_name` folders. Raises DatasetError when nothing can be used.
    """
    found = _Scan(folder)
    items = [found.item(path, facts, repeats=repeats) for path, facts in found.facts(found.images)]
    found.judge(items)
    problems = tuple(sorted(found.problems, key=lambda problem: (str(problem.path), problem.kind)))
    if not items:
        raise _nothing_usable(folder, problems)
    return Dataset(folder=folder, items=tuple(items), problems=problems)


def is_image(path: PurePath) -> bool:
    """Whether the name is that of an image to train on."""
    return path.suffix.lower() in _IMAGES and not is_mask(path)


def is_mask(path: PurePath) -> bool:
    """Whether the name is that of a mask."""
    return path.suffix.lower() == ".png" and path.stem.endswith(MASK)


def is_passed_over(name: str) -> bool:
    """Whether a file or folder is hidden, or one that systems leave behind."""
    return name.startswith(".") or name.lower() in _HARMLESS


class _Scan:
    """One reading of a folder; collects the problems on its way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[Problem] = []
        self.images: list[Path] = []
        self._masks: dict[str, Path] = {}
        self._texts: dict[str, list[Path]] = {}
        self._metadata: dict[str, tuple[Path, str]] = {}
        self._pixels: dict[bytes, list[str]] = {}
        self._used: set[str] = set()
        for path in _files(folder):
            self._sort_in(path)
        keys = {sidecars.key(image) for image in self.images}
        self._mask_facts = dict(self.facts(mask for key, mask in self._masks.items() if key in keys))

    def tell(self, path: Path, kind: Kind, text: str, *, fatal: bool = False) -> None:
        self.problems.append(Problem(path=path, kind=kind, text=text, fatal=fatal))

    def name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def facts(self, wanted: Iterable[Path]) -> Iterator[tuple[Path, Facts]]:
        """The facts of every file that holds a picture; a problem for every other."""
        paths = tuple(wanted)
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            for path, facts in zip(paths, pool.map(_facts_or_error, paths), strict=True):
                if isinstance(facts, Facts):
                    yield path, facts
                else:
                    kind: Kind = "too_large" if isinstance(facts, TooLarge) else "unreadable"
                    self.tell(path, kind, f"{facts.message} It is not used.", fatal=True)
                    self._used.add(sidecars.key(path))  # its caption is no orphan

    def item(self, path: Path, facts: Facts, *, repeats: int) -> Item:
        """The item of an image, with caption, repeats and mask."""
        times, words = _kohya(path, self.folder)
        mask, mask_sha256 = self._mask(path, facts)
        self._pixels.setdefault(facts.pixels, []).append(self.name(path))
        if facts.frames > 1:
            text = f"{self.name(path)} is an animation of {facts.frames} frames; only the first is used."
            self.tell(path, "animated", text)
        return Item(
            path=path,
            name=self.name(path),
            caption=self._caption(path) or words,
            width=facts.width,
            height=facts.height,
            repeats=times * repeats,
            sha256=facts.sha256,
            mask=mask,
            mask_sha256=mask_sha256,
        )

    def judge(self, items: list[Item]) -> None:
        """Tells what can be seen only when all items are known."""
        for item in items:
            if item.path.stem.lower().endswith(("mask", "alpha")) and not item.caption:
                text = f"{item.name} is trained as a picture."
                self.tell(
                    item.path, "mask", f"{text} If it is a mask, call it after its image: cat{MASK}.png."
                )
            if not item.caption:
                self.tell(item.path, "no_caption", f"{item.name} has no caption.")
        for names in self._pixels.values():
            for name in names[1:]:
                text = f"{name} shows exactly the same pixels as {names[0]}."
                self.tell(self.folder / name, "duplicate", text)
        for where in sorted({item.path.parent for item in items}):
            times, words = _kohya(where / "x", self.folder)
            if times > MANY_REPEATS:
                text = f'The folder\'s name {where.name} means {times} repeats of "{words}".'
                self.tell(where, "repeats", f"{text} Rename it if the number is something else.")
        self._tell_orphans()

    def _sort_in(self, path: Path) -> None:
        name, suffix = path.name.lower(), path.suffix.lower()
        if not _is_text(str(path)):
            shown = os.fsencode(path.name).decode("utf-8", "replace")
            self.tell(path, "file_name", f"{shown} has a name that is no text; rename it.", fatal=True)
        elif is_mask(path):
            self._masks[sidecars.key(path).removesuffix(MASK)] = path
        elif suffix in _IMAGES:
            self.images.append(path)
        elif name == "metadata.jsonl":
            captions, problems = sidecars.read_metadata(path)
            self._metadata |= captions
            self.problems += problems
        elif _harmless(path):
            pass
        elif suffix in sidecars.SUFFIXES:
            self._texts.setdefault(sidecars.key(path), []).append(path)
        elif suffix in _OTHER_IMAGES:
            told = f"{self.name(path)} is not used: {suffix} is not read; convert it to PNG or JPEG."
            self.tell(path, "format", told, fatal=True)
        else:
            told = f"{self.name(path)} is neither an image nor a caption; it is not used."
            self.tell(path, "foreign", told, fatal=True)

    def _caption(self, image: Path) -> str:
        """The first caption that is not empty, of `.txt`, `.caption` and metadata.jsonl, in this order."""
        key = sidecars.key(image)
        first_seen = key not in self._used  # `cat.png` and `cat.jpg` share a caption and its problems
        self._used.add(key)
        captions: dict[str, Path] = {}
        for path in sorted(self._texts.get(key, ()), key=_text_order):
            caption, problems = sidecars.read_caption(path)
            self.problems += problems if first_seen else ()
            captions.setdefault(caption, path)
        captions.pop("", None)
        if len(captions) > 1 and first_seen:
            used, *others = (path.name for path in captions.values())
            text = f"{self.name(image)} has two captions; {used} is used, {others[0]} is not."
            self.tell(image, "two_captions", text)
        return next(iter(captions), "") or self._metadata.get(key, (image, ""))[1]

    def _mask(self, image: Path, facts: Facts) -> tuple[Path | None, str]:
        """The mask of an image and its SHA-256, when it is a picture of the same shape."""
        mask = self._masks.get(sidecars.key(image))
        found = self._mask_facts.get(mask) if mask else None
        if mask is None or found is None:
            return None, ""
        if abs(found.width * facts.height / (found.height * facts.width) - 1) < 0.02:
            return mask, found.sha256
        text = f"The mask {self.name(mask)} has another shape than its image; it is not used."
        self.tell(mask, "mask", text, fatal=True)
        return None, ""

    def _tell_orphans(self) -> None:
        for key, paths in self._texts.items():
            for path in paths if key not in self._used else ():
                self.tell(path, "orphan", f"{self.name(path)} has no image of its name.", fatal=True)
        for key, path in self._masks.items():
            if key not in self._used:
                self.tell(path, "orphan", f"The mask {self.name(path)} has no image.", fatal=True)
        for key, (path, _) in self._metadata.items():
            if key not in self._used:
                text = f"metadata.jsonl names {path.name}, which is not there."
                self.tell(path, "metadata", text)


def require_folder(folder: Path) -> None:
    """Raises DatasetError unless `folder` is a folder, which is known before any work."""
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DatasetError(f"The dataset {folder} {what}.", "Name a folder that holds images.")


def _files(folder: Path) -> Iterator[Path]:
    """All files below `folder` that are not hidden, in the order of their names."""
    require_folder(folder)
    found = 0
    for root, folders, names in os.walk(folder, onerror=_raise_unreadable):
        folders[:] = sorted(name for name in folders if not is_passed_over(name))
        links = [name for name in folders if Path(root, name).is_symlink()]  # not followed, but told
        for name in (*sorted(names), *links):
            if not is_passed_over(name):
                found += 1
                yield Path(root, name)
        if found > FILES_LIMIT:
            raise DatasetError(
                f"{folder} holds more than {FILES_LIMIT} files.", "Name the folder of the images itself."
            )


def _raise_unreadable(error: OSError) -> None:
    raise DatasetError(f"The folder {error.filename} cannot be read: {error.strerror}.") from None


def _harmless(path: Path) -> bool:
    told = path.suffix.lower() in _HARMLESS_SUFFIXES or path.stem.lower() in _HARMLESS_STEMS
    return told or path.name == SETTINGS


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text_order(path: Path) -> int:
    return sidecars.SUFFIXES.index(path.suffix.lower())


def _facts_or_error(path: Path) -> Facts | DatasetError:
    try:
        return inspect(path)
    except DatasetError as error:
        return error


def _kohya(path: Path, folder: Path) -> tuple[int, str]:
    """(repeats, class words) that the innermost `10_name` folder above a file gives."""
    for parent in path.parents:
        if match := _KOHYA.fullmatch(parent.name):
            return max(1, int(match[1])), match[2].strip()
        if parent == folder:
            break
    return 1, ""


def _nothing_usable(folder: Path, problems: tuple[Problem, ...]) -> DatasetError:
    fatal = [problem for problem in problems if problem.fatal]
    if not fatal:
        return DatasetError(f"{folder} holds no images.", "Put PNG, JPEG, WebP or BMP images into it.")
    more = f" (and {len(fatal) - 1} more)" if len(fatal) > 1 else ""
    return DatasetError(f"{folder} holds no image that can be used.", f"{fatal[0].text}{more}")
