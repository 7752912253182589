"""The datasets of this home, by name: folders under `datasets/`, and those elsewhere that were named."""

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import sdlora
from sdlora.config import TrainConfig
from sdlora.data import buckets, edit, intake
from sdlora.data.edit import Change
from sdlora.data.folder import SETTINGS, scan
from sdlora.data.intake import Added
from sdlora.data.items import Dataset, Item
from sdlora.data.report import Report, report
from sdlora.data.thumbnails import thumbnail
from sdlora.errors import DatasetError, SdloraError
from sdlora.files import safe_name, within, write_atomic
from sdlora.home import Home
from sdlora.options import Value, build, flatten, from_toml
from sdlora.service.trash import Trash

__all__ = ["Added", "Change", "Datasets", "Overview", "Picture", "Report"]


# Beside the package where it is run from its repository; elsewhere there is no such folder.
SAMPLES = Path(sdlora.__file__).resolve().parents[1] / "datasets"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image of a dataset, its thumbnail, and what is to be known of it."""

    item: Item
    thumbnail: Path | None
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Overview:
    """A dataset as the page shows it; `problem` says why nothing in it can be used."""

    name: str
    folder: Path
    pictures: tuple[Picture, ...]
    report: Report | None
    problem: str


class Datasets:
    """The datasets of `home`. What is removed from one goes to the trash."""

    def __init__(self, home: Home, trash: Trash) -> None:
        self.root = home.datasets
        self.thumbnails = home.cache / "thumbnails"
        self._trash = trash

    def folders(self) -> dict[str, Path]:
        """Name -> folder of each dataset, in the order of their names."""
        return intake.datasets(self.root)

    def samples(self) -> dict[str, Path]:
        """The sets of pictures that come with sdlora and are not among the datasets: name -> folder."""
        if self.root.resolve() == SAMPLES:
            return {}
        found = intake.datasets(SAMPLES)
        return {name: folder for name, folder in found.items() if (folder / "LICENSE").is_file()}

    def take_sample(self, name: str) -> str:
        """A copy of the sample set is a dataset; its name. Raises DatasetError when there is none such."""
        samples = self.samples()
        if name not in samples:
            raise DatasetError(f'There is no sample set "{name}".', "Bring pictures of your own.")
        made = self.create(name)
        self.add(made, sorted(path for path in samples[name].iterdir() if path.suffix in (".png", ".txt")))
        if (settings := samples[name] / SETTINGS).is_file():
            write_atomic(self.folder(made) / SETTINGS, settings.read_bytes())
        return made

    def create(self, name: str) -> str:
        """A new empty dataset; its name. Raises DatasetError when it is taken or empty."""
        if not name.strip():
            raise DatasetError("The new dataset needs a name.", "For example my-cat.")
        return intake.create(self.root, name).name

    def register(self, folder: str) -> str:
        """A folder on this machine is a dataset from now on, where it lies; its name.

        Raises DatasetError when there is no such folder or nothing in it can be used.
        """
        path = Path(folder.strip().strip("\"'")).expanduser()
        if not folder.strip() or not path.is_dir():
            raise DatasetError(f'There is no folder "{folder}" on this machine.', "Give its whole path.")
        scan(path)
        known = self.folders()
        for name, there in known.items():
            if there.resolve() == path.resolve():
                return name
        taken = {name.lower() for name in known}
        names = (path.name if number == 1 else f"{path.name}-{number}" for number in itertools.count(1))
        return intake.register(
            self.root, path, name=next(name for name in names if safe_name(name).lower() not in taken)
        )

    def add(self, name: str, uploads: Sequence[Path]) -> Added:
        """The uploaded images, captions and zips are in the dataset."""
        return intake.add(self.folder(name), uploads)

    def overview(self, name: str, *, trigger: str = "", resolution: int = 512) -> Overview:
        """What the dataset is, with a thumbnail of each image. `resolution` is of training, in pixels."""
        folder = self.folder(name)
        try:
            dataset = scan(folder)
        except DatasetError as error:
            return Overview(name=name, folder=folder, pictures=(), report=None, problem=str(error))
        plan = buckets.plan(dataset.items, resolution=resolution, step=64, max_aspect=2.0, batch_size=1)
        told = report(dataset, plan, trigger=trigger)
        return Overview(
            name=name, folder=folder, pictures=self._pictures(dataset, told), report=told, problem=""
        )

    def settings(self, folder: Path) -> dict[str, Value]:
        """What the file settings.toml in a dataset's folder says: dotted path -> value, the folder left out.

        Raises ConfigError when it is no such file.
        """
        path = folder / SETTINGS
        if not path.is_file():
            return {}
        said = from_toml(path.read_text(encoding="utf-8", errors="replace"), str(path))
        whole = flatten(build(TrainConfig, said))
        return {option: whole[option] for option in said if option != "data.folder"}

    def set_caption(self, name: str, image: str, caption: str) -> None:
        """The caption of the image is written beside it."""
        edit.set_caption(self._image(name, image), caption)

    def with_trigger(self, name: str, trigger: str) -> tuple[Change, ...]:
        """What changes when every caption is made to hold the trigger word."""
        return edit.add_trigger(scan(self.folder(name)), trigger.strip())

    def replaced(self, name: str, search: str, replacement: str) -> tuple[Change, ...]:
        """What changes when `search` is replaced in all captions."""
        return edit.replace(scan(self.folder(name)), search, replacement)

    def apply(self, name: str, changes: Sequence[Change]) -> None:
        """The captions are as the changes say. Raises DatasetError when one is not as it was told."""
        edit.apply(scan(self.folder(name)), changes)

    def remove(self, name: str, image: str) -> Path:
        """The image with its caption and mask is in the trash; its place there."""
        return self._trash.throw(*edit.belongings(self._image(name, image)))

    def bring_back(self, name: str, image: str, place: Path) -> None:
        """The removed image is where it was."""
        folder = self.folder(name)
        self._trash.bring_back(within(place, [self._trash.folder]), within(folder / image, [folder]).parent)

    def rename(self, name: str, new: str) -> str:
        """The dataset has another name; the name. Raises DatasetError when it is taken or empty."""
        self.folder(name)
        if not new.strip():
            raise DatasetError("The dataset needs a name.", "For example my-cat.")
        return intake.rename(self.root, name, new)

    def remove_all(self, name: str) -> Path:
        """The dataset is in the trash, of a folder elsewhere only its name; its place there."""
        self.folder(name)
        return self._trash.throw(intake.entry(self.root, name))

    def is_elsewhere(self, name: str) -> bool:
        """Whether the dataset's folder lies outside those of this home."""
        return self.root.resolve() not in self.folder(name).resolve().parents

    def bring_all_back(self, place: Path) -> str:
        """The removed dataset is where it was; its name. Raises DatasetError when that is taken again."""
        place = within(place, [self._trash.folder])
        there = {name.lower() for name in self.folders()}
        (name,) = intake.datasets(place)
        if name.lower() in there:
            raise DatasetError(f'There is a dataset "{name}" again.', "Rename that one first.")
        self._trash.bring_back(place, self.root)
        return name

    def folder(self, name: str) -> Path:
        """The folder of the dataset. Raises DatasetError when there is none of that name."""
        known = self.folders()
        if name not in known:
            raise DatasetError(f'There is no dataset "{name}".', "Choose one from the list.")
        return known[name]

    def _image(self, name: str, image: str) -> Path:
        folder = self.folder(name)
        path = within(folder / image, [folder])
        if not path.is_file():
            raise DatasetError(f"There is no picture {image} in {name}.", "Reload the page.")
        return path

    def _pictures(self, dataset: Dataset, told: Report) -> tuple[Picture, ...]:
        with ThreadPoolExecutor() as pool:
            small = list(pool.map(self._thumbnail, dataset.items))
        notes: dict[Path, list[str]] = {}
        for problem in told.problems:
            notes.setdefault(problem.path, []).append(problem.text)
        return tuple(
            Picture(item=item, thumbnail=path, notes=tuple(notes.get(item.path, ())))
            for item, path in zip(dataset.items, small, strict=True)
        )

    def _thumbnail(self, item: Item) -> Path | None:
        try:
            return thumbnail(item.path, self.thumbnails)
        except SdloraError:
            return None  # the scan has told what is wrong with it
