"""Nothing is deleted: what a person removes moves to the trash folder, and can come back."""

import shutil
import time
from pathlib import Path

from sdlora.files import storage_error


class Trash:
    """The folder `folder` with everything that was removed, each in a folder named after its time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def throw(self, *paths: Path) -> Path:
        """The paths lie in the trash, together; the place to bring them back from. Raises StorageError."""
        place = self.folder / f"{time.strftime('%Y-%m-%d-%H%M%S')}-{time.time_ns() % 1_000_000:06d}"
        try:
            place.mkdir(parents=True)
            for path in paths:
                if path.exists():
                    shutil.move(str(path), place / path.name)
        except OSError as error:
            raise storage_error(place, error) from error
        return place

    def bring_back(self, place: Path, folder: Path) -> None:
        """Everything in `place` lies in `folder` again. Raises StorageError."""
        try:
            for path in place.iterdir():
                shutil.move(str(path), folder / path.name)
            place.rmdir()
        except OSError as error:
            raise storage_error(folder, error) from error
