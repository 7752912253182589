"""Everything that was drawn, as files: `outputs/txt2img-images/2026-11-22/00001-SEED.png`."""

import time
from pathlib import Path

from sdlora.errors import StorageError
from sdlora.files import storage_error


class History:
    """The pictures under `folder`, newest first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def pictures(self, limit: int = 60) -> tuple[Path, ...]:
        """The newest pictures, at most `limit`."""
        found: list[Path] = []
        for day in sorted((path for path in self.folder.glob("*") if path.is_dir()), reverse=True):
            found += sorted(day.glob("*.png"), key=lambda path: path.name, reverse=True)
            if len(found) >= limit:
                break
        return tuple(found[:limit])

    def next_path(self, seed: int) -> Path:
        """Where the next picture goes: a new number in today's folder. Raises StorageError."""
        day = self.folder / time.strftime("%Y-%m-%d")
        try:
            day.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(day, error) from error
        numbers = [int(path.name[:5]) for path in day.glob("[0-9][0-9][0-9][0-9][0-9]-*.png")]
        number = max(numbers, default=0) + 1
        if number > 99_999:
            raise StorageError(f"{day} is full.", "Move its pictures elsewhere.")
        return day / f"{number:05d}-{seed}.png"
