"""The adapters on this machine: those in `models/Lora`, and what the runs of this home have made."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from sdlora.errors import AdapterError, SdloraError
from sdlora.files import replacing, safe_name, within
from sdlora.network.info import AdapterInfo, inspect
from sdlora.service.trash import Trash

__all__ = ["Adapter", "AdapterInfo", "Library"]

_PICTURES = (".preview.png", ".png", ".preview.jpg", ".jpg", ".preview.webp", ".webp")
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter file: `info` where it can be read, else `error`. `run` made it, if one of here."""

    path: Path
    name: str
    run: str
    info: AdapterInfo | None
    error: str
    picture: Path | None


class Library:
    """The adapters in `folder` and at the top of each run's folder in `runs`."""

    def __init__(self, folder: Path, *, runs: Path, trash: Trash) -> None:
        self.folder = folder
        self.runs = runs
        self._trash = trash
        self._known: dict[Path, tuple[tuple[int, int], AdapterInfo | None, str]] = {}

    def adapters(self) -> tuple[Adapter, ...]:
        """All adapters, the newest first."""
        own = [path for path in self.folder.rglob("*.safetensors") if not path.name.startswith(".")]
        made = [path for path in self.runs.glob("*/*.safetensors") if not path.name.startswith(".")]
        found = sorted((*own, *made), key=lambda path: path.stat().st_mtime, reverse=True)
        return tuple(self.adapter(path) for path in found)

    def adapter(self, path: Path) -> Adapter:
        """What is known of one file. Raises UserError when it lies outside the library."""
        path = within(path, [self.folder, self.runs])
        info, error = self._inspect(path)
        run = path.relative_to(self.runs.resolve()).parts[0] if self.runs.resolve() in path.parents else ""
        return Adapter(
            path=path, name=path.stem, run=run, info=info, error=error, picture=_picture(path, run=run)
        )

    def named(self, name: str) -> Path:
        """The file that `<lora:name:1>` means. Raises AdapterError when there is none."""
        adapters = self.adapters()
        for adapter in adapters:
            if name in (adapter.name, adapter.info.title if adapter.info else None):
                return adapter.path
        for adapter in adapters:
            if adapter.name.casefold() == name.casefold():
                return adapter.path
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
        if not info.modules:
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
        path = within(path, [self.folder, self.runs])
        if self.folder.resolve() not in path.parents:
            raise AdapterError(
                f"{path.name} is the result of a run.", "Remove the run in the tab Runs instead."
            )
        beside = [p for p in path.parent.glob("*") if p.name.startswith(f"{path.stem}.")]
        self._known.pop(path, None)
        return self._trash.throw(*beside)

    def output(self, name: str) -> Path:
        """Where a new adapter called `name` goes. Raises AdapterError when that name is taken."""
        path = self.folder / f"{safe_name(name)}.safetensors"
        if path.exists():
            raise AdapterError(f"{path.name} exists already.", "Choose another name.")
        return path

    def _free(self, upload: Path, info: AdapterInfo) -> Path:
        stem = safe_name(upload.stem)
        for number in range(1, 1000):
            path = self.folder / f"{stem if number == 1 else f'{stem}-{number}'}.safetensors"
            if not path.exists():
                return path
            present, _ = self._inspect(path.resolve())
            if present and present.hash == info.hash and present.bytes == info.bytes:
                return path
        raise AdapterError(f"There are too many adapters called {stem}.", "Rename the file first.")

    def _inspect(self, path: Path) -> tuple[AdapterInfo | None, str]:
        """What the file is, read again only when it has changed."""
        state = path.stat()
        stamp = (state.st_size, state.st_mtime_ns)
        known = self._known.get(path)
        if known is None or known[0] != stamp:
            try:
                known = (stamp, inspect(path), "")
            except SdloraError as error:
                known = (stamp, None, str(error))
            self._known[path] = known
        return known[1], known[2]


def _picture(path: Path, *, run: str) -> Path | None:
    for ending in _PICTURES:
        if (beside := path.with_suffix("").with_name(path.stem + ending)).is_file():
            return beside
    if not run:
        return None
    drawn = sorted((path.parent / "previews").glob("*.png"), key=lambda p: p.stat().st_mtime)
    return drawn[-1] if drawn else None
