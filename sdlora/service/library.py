"""The adapters on this machine: those in `models/Lora`, and what the runs of this home have made."""

import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from PIL import Image

from sdlora.errors import AdapterError
from sdlora.files import replacing, safe_name, within
from sdlora.network import chain, sidecar
from sdlora.network.info import AdapterInfo, inspect
from sdlora.service.known import KnownFiles
from sdlora.service.trash import Trash

__all__ = ["Adapter", "AdapterInfo", "Library"]

_PICTURES = (".preview.png", ".png", ".preview.jpg", ".jpg", ".preview.webp", ".webp")
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
_AGAIN = 3  # times that files are looked for anew when one goes away meanwhile


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter file: `info` where it can be read, else `error`. `run` made it, if one of here.

    It is `fixed` where it lies in the run's own folder, which is no place to rename or remove it.
    `parent` is the hash of the adapter that it builds on, "" for none.
    """

    path: Path
    name: str
    run: str
    fixed: bool
    info: AdapterInfo | None
    error: str
    picture: Path | None
    notes: str = ""
    parent: str = ""


class Library:
    """The adapters in `folders` and at the top of each run's folder in `runs`.

    New ones go to the first folder, and only there they are renamed and removed: the others are other tools'.
    What was found out about them lies in the file `kept`.
    """

    def __init__(self, folders: Sequence[Path], *, runs: Path, trash: Trash, kept: Path) -> None:
        self.folder = folders[0]
        self.folders = tuple(folders)
        self.runs = runs
        self._trash = trash
        self._files = KnownFiles(kept)

    def adapters(self) -> tuple[Adapter, ...]:
        """All adapters, the newest first; what a run has made steps back behind a copy of it."""
        return _foremost(self._found())

    def adapter(self, path: Path) -> Adapter:
        """What is known of one file. Raises UserError when it lies outside the library, or no more in it."""
        path = within(path, [*self.folders, self.runs, *self._linked()])
        if not path.is_file():
            raise AdapterError(f"{path.name} is not there any more.", "Reload the page.")
        return self._told(path, self._made())

    def twins(self) -> Mapping[Path, tuple[str, ...]]:
        """Adapter -> names of the others with the same weights, for those that have any."""
        by_hash: dict[str, list[Adapter]] = {}
        for adapter in self.adapters():
            if adapter.info is not None and not adapter.fixed:
                by_hash.setdefault(adapter.info.hash, []).append(adapter)
        several = [group for group in by_hash.values() if len(group) > 1]
        return {a.path: tuple(b.name for b in group if b is not a) for group in several for a in group}

    def place(self, adapter: Adapter) -> str:
        """The folder below that of the library (or of another tool) which holds it, "" for none."""
        roots = (folder.resolve() for folder in self.folders)
        inside = (root for root in roots if root in adapter.path.parents)
        root = next(inside, adapter.path.parent)
        return adapter.path.parent.relative_to(root).as_posix().removeprefix(".")

    def lineage(self, path: Path) -> tuple[Path, ...]:
        """The adapters that `path` builds on, from the root on, then itself.

        Raises AdapterError when one is missing or the chain has no end.
        """
        adapter = self.adapter(path)
        if not adapter.parent:
            return (adapter.path,)
        by_hash = {a.info.hash: a for a in reversed(self.adapters()) if a.info}
        tree: dict[Path, Path | None] = {}
        at: Adapter | None = adapter
        while at is not None and at.path not in tree:
            if at.parent and at.parent not in by_hash:
                raise AdapterError(
                    f"{at.name} builds on the adapter {at.parent}, which is not here.",
                    "Add that adapter, or take the parent away in the tab Adapters.",
                )
            parent = by_hash.get(at.parent)
            tree[at.path] = parent.path if parent else None
            at = parent
        return chain.lineage(adapter.path, tree)

    def named(self, name: str) -> Path:
        """The file that `<lora:name:1>` means: of that name, else title, else name in other capitals.

        Raises AdapterError when there is none.
        """
        every = self._found()
        adapters = (*_foremost(every), *every)
        ways: tuple[Callable[[Adapter], bool], ...] = (
            lambda adapter: adapter.name == name,
            lambda adapter: adapter.info is not None and adapter.info.title == name,
            lambda adapter: adapter.name.casefold() == name.casefold(),
        )
        for fits in ways:
            if found := next(filter(fits, adapters), None):
                return found.path
        raise AdapterError(f'There is no adapter called "{name}".', "The tab Adapters lists them all.")

    def with_hash(self, short: str) -> Path | None:
        """The file with the 12 hex digits that pictures carry, if it is here."""
        return next((a.path for a in self.adapters() if a.info and a.info.hash == short[:12]), None)

    def add(self, upload: Path) -> Adapter:
        """A copy of `upload` lies in the library, when it is a sound adapter.

        Raises AdapterError in words otherwise; a file that is there already is not copied again.
        """
        if upload.suffix.lower() in _PICKLES:
            raise AdapterError(
                f"{upload.name} is a pickle file, which can run a program when it is opened.",
                "Get the adapter as .safetensors.",
            )
        info = inspect(upload)
        if not (info.modules or info.words):
            raise AdapterError(
                f"{upload.name} is no adapter: {info.problem}",
                "Base models belong in models/Stable-diffusion.",
            )
        target = self._free(upload, info)
        if not target.exists():
            with replacing(target) as temporary:
                shutil.copyfile(upload, temporary)
        return self.adapter(target)

    def remove(self, path: Path) -> Path:
        """The file and what lies beside it under its name are in the trash; its place there.

        Raises AdapterError for a run's own result.
        """
        path = self._own(path, "Remove the run in the tab Runs instead.")
        return self._trash.throw(*_with_sidecars(path))

    def removed(self) -> tuple[tuple[str, Path], ...]:
        """(name, place in the trash) of the adapters that lie there, the newest first."""
        found = self._trash.folder.glob("*/*.safetensors")
        places = sorted(((path.stem, path.parent) for path in found), key=lambda pair: pair[1], reverse=True)
        return tuple(places)

    def bring_back(self, place: Path) -> Adapter:
        """The adapter in this place of the trash is in the library again.

        Raises AdapterError when one of its name has come meanwhile.
        """
        place = within(place, [self._trash.folder])
        path = next(place.glob("*.safetensors"), None)
        if path is None:
            raise AdapterError("It is not in the trash any more.", "Reload the page.")
        self._require_free(path.stem, "Rename that one first.")
        self._trash.bring_back(place, self.folder)
        return self.adapter(self.folder / path.name)

    def rename(self, path: Path, name: str) -> Adapter:
        """The adapter and what lies beside it have the new name. Raises AdapterError when it is taken."""
        path = self._own(path, "Give the run's next result another name in the tab Train.")
        stem = safe_name(name, fallback="")
        if not stem:
            raise AdapterError("The adapter needs a name.", "For example ink-style.")
        target = path.with_name(f"{stem}.safetensors")
        if target == path:
            return self.adapter(path)
        self._require_free(stem, "Choose another name.", but=path)
        for beside in _with_sidecars(path):
            beside.rename(path.with_name(stem + beside.name.removeprefix(path.stem)))
        return self.adapter(target)

    def describe(self, path: Path, *, triggers: Sequence[str], weight: float, notes: str) -> Adapter:
        """A1111's side-car beside the adapter says this; a `weight` of 0 recommends none."""
        adapter = self.adapter(path)
        family = adapter.info.family if adapter.info else ""
        sidecar.write(adapter.path, triggers=triggers, weight=weight, description=notes, family_name=family)
        return self.adapter(path)

    def set_picture(self, path: Path, picture: Path) -> Adapter:
        """The picture lies beside the adapter as its preview. Raises AdapterError when it is none."""
        adapter = self.adapter(path)
        family = adapter.info.family if adapter.info else ""
        sidecar.write(adapter.path, family_name=family, picture=_opened(picture))
        return self.adapter(path)

    def set_parent(self, path: Path, parent: Path | None) -> Adapter:
        """The adapter builds on `parent`. Raises AdapterError when it would become its own ancestor."""
        adapter = self.adapter(path)
        if parent is not None and adapter.path in self.lineage(parent):
            raise AdapterError(
                f"{parent.stem} builds on {adapter.name} already.", "Choose a parent that does not."
            )
        chain.set_parent(adapter.path, parent)
        return self.adapter(path)

    def output(self, name: str) -> Path:
        """Where a new adapter called `name` goes. Raises AdapterError when that name is taken."""
        path = self.folder / f"{safe_name(name)}.safetensors"
        self._require_free(path.stem, "Choose another name.")
        return path

    def _require_free(self, name: str, hint: str, *, but: Path | None = None) -> None:
        """Raises AdapterError when another than `but` has the name, so that a prompt could mean either."""
        for adapter in _called(name, self.adapters()):
            if adapter.path != but:
                where = (
                    f"the result of the run {adapter.run}" if adapter.fixed else f"in {adapter.path.parent}"
                )
                raise AdapterError(f'There is an adapter "{adapter.name}" already, {where}.', hint)

    def _found(self) -> tuple[Adapter, ...]:
        """Every file, the newest first; one that goes away while they are read is not among them."""
        for _ in range(_AGAIN):
            with suppress(FileNotFoundError):
                return self._listed()
        return self._listed()

    def _listed(self) -> tuple[Adapter, ...]:
        own = [path for folder in (*self.folders, *self._linked()) for path in _files(folder)]
        files = {path.resolve() for path in (*own, *self.runs.glob("*/*.safetensors")) if path.is_file()}
        shown = [path for path in files if not path.name.startswith(".")]
        newest = sorted(shown, key=lambda path: (path.stat().st_mtime, path.as_posix()), reverse=True)
        made = self._made()
        found = tuple(self._told(path, made) for path in newest)
        self._files.save(files)
        return found

    def _linked(self) -> list[Path]:
        """Where links in the library lead: who put them there wants what is there in the library."""
        entries = (entry for folder in self.folders for entry in folder.rglob("*"))
        return [entry.resolve() for entry in entries if entry.is_symlink()]

    def _made(self) -> Mapping[str, Path]:
        """Hash -> the run's folder that holds the adapter."""
        results = (path.resolve() for path in self.runs.glob("*/*.safetensors") if path.is_file())
        known = ((self._files.of(path).info, path.parent) for path in results)
        return {info.hash: folder for info, folder in known if info is not None}

    def _told(self, path: Path, made: Mapping[str, Path]) -> Adapter:
        known, runs = self._files.of(path), self.runs.resolve()
        fixed = runs in path.parents
        copied = made.get(known.info.hash) if known.info else None
        run = runs / path.relative_to(runs).parts[0] if fixed else copied
        return Adapter(
            path=path,
            name=path.stem,
            run=run.name if run else "",
            fixed=fixed,
            info=known.info,
            error=known.error,
            picture=_picture(path, run=run),
            notes=known.notes,
            parent=known.info.metadata.get(chain.KEY, "") if known.info else "",
        )

    def _own(self, path: Path, otherwise: str) -> Path:
        """The path when it is no run's result. Raises AdapterError with the hint `otherwise` when it is."""
        path = within(path, [*self.folders, self.runs, *self._linked()])
        if self.runs.resolve() in path.parents:
            raise AdapterError(f"{path.name} is the result of a run.", otherwise)
        if self.folder.resolve() not in path.parents:
            raise AdapterError(f"{path.name} lies in {path.parent}, another tool's folder.", "Do it there.")
        return path

    def _free(self, upload: Path, info: AdapterInfo) -> Path:
        """Where the upload lies here already, else a place whose name means no other adapter."""
        stem, every = safe_name(upload.stem), self.adapters()
        for number in itertools.count(1):
            name = stem if number == 1 else f"{stem}-{number}"
            called = _called(name, every)
            same = [
                a.path for a in called if a.info and (a.info.hash, a.info.bytes) == (info.hash, info.bytes)
            ]
            if own := next((path for path in same if self.folder.resolve() in path.parents), None):
                return own
            if len(same) == len(called):
                break
        return self.folder / f"{name}.safetensors"


def _called(name: str, adapters: Sequence[Adapter]) -> tuple[Adapter, ...]:
    """Those of this name in any capitals: not every file system tells those apart."""
    return tuple(adapter for adapter in adapters if adapter.name.casefold() == name.casefold())


def _foremost(found: Sequence[Adapter]) -> tuple[Adapter, ...]:
    """The adapters without those results of runs that another of them is a copy of."""
    copied = {adapter.info.hash for adapter in found if adapter.info and not adapter.fixed}
    return tuple(a for a in found if not (a.fixed and a.info and a.info.hash in copied))


def _with_sidecars(path: Path) -> list[Path]:
    """The file and all that lies beside it under its name, `ink.v2` being another name than `ink`."""
    longer = [other.stem for other in path.parent.glob(f"{escape(path.stem)}.*.safetensors")]
    return [
        beside
        for beside in path.parent.glob(f"{escape(path.stem)}.*")
        if not beside.name.startswith(tuple(f"{stem}." for stem in longer))
    ]


def _opened(picture: Path) -> Image.Image:
    try:
        with Image.open(picture) as image:
            return image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        raise AdapterError(f"{picture.name} is no picture.", "Use a PNG or JPEG.") from None


def _picture(path: Path, *, run: Path | None) -> Path | None:
    """The picture beside the file, else the last one that its run's folder has drawn."""
    for ending in _PICTURES:
        if (beside := path.with_suffix("").with_name(path.stem + ending)).is_file():
            return beside
    if run is None:
        return None
    drawn = sorted((run / "previews").glob("*.png"), key=lambda p: p.stat().st_mtime)
    return drawn[-1] if drawn else None


def _files(place: Path) -> list[Path]:
    """The adapter files below a folder, or the file itself."""
    return [place] if place.is_file() else list(place.rglob("*.safetensors"))
