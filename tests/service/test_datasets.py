"""Datasets by name: brought, looked at, changed, and nothing of them lost."""

import os
import time
from pathlib import Path

import pytest

from sdlora.config import TrainConfig
from sdlora.errors import ConfigError, DatasetError, RunError, UserError
from sdlora.options import build, flatten, to_toml
from sdlora.service.studio import Studio
from sdlora.training.run import Run


@pytest.fixture
def balls(studio: Studio, image_folder: Path) -> str:
    """A dataset of six pictures."""
    name = studio.datasets.create("balls")
    studio.datasets.add(name, sorted(image_folder.iterdir()))
    return name


def begun(config: TrainConfig, studio: Studio, age: float) -> Run:
    """A run that was begun `age` seconds ago and does not run."""
    run = Run.create(config, studio.home.runs)
    os.utime(run.path / "config.toml", (time.time() - age,) * 2)
    return run


def test_uploads_are_seen_with_captions_and_thumbnails(studio: Studio, balls: str) -> None:
    view = studio.datasets.overview(balls)
    assert [picture.item.caption for picture in view.pictures][:1] == ["a red ball, a black line"]
    assert all(picture.thumbnail and picture.thumbnail.exists() for picture in view.pictures)
    assert view.report is not None and view.report.captioned == 6


def test_an_empty_dataset_says_what_is_missing(studio: Studio) -> None:
    view = studio.datasets.overview(studio.datasets.create("new"))
    assert view.report is None and view.problem


def test_a_caption_is_written_beside_its_picture(studio: Studio, balls: str) -> None:
    studio.datasets.set_caption(balls, "0-red.png", "${alert(1)} <b>")
    assert (studio.datasets.folder(balls) / "0-red.txt").read_text() == "${alert(1)} <b>"
    with pytest.raises(UserError):
        studio.datasets.set_caption(balls, "../../evil.png", "x")


def test_a_trigger_is_added_once(studio: Studio, balls: str) -> None:
    studio.datasets.apply(balls, studio.datasets.with_trigger(balls, "ohwx"))
    assert studio.datasets.with_trigger(balls, "ohwx") == ()
    assert studio.datasets.overview(balls).pictures[0].item.caption.startswith("ohwx")


def test_what_was_told_of_one_dataset_is_not_done_to_another(studio: Studio, balls: str) -> None:
    changes = studio.datasets.with_trigger(balls, "ohwx")
    other = studio.datasets.take_sample("character")
    with pytest.raises(DatasetError, match="no caption was replaced"):
        studio.datasets.apply(other, changes)
    assert studio.datasets.with_trigger(balls, "ohwx") == changes


def test_a_removed_picture_comes_back_with_its_caption(studio: Studio, balls: str) -> None:
    before = studio.datasets.overview(balls).pictures
    place = studio.datasets.remove(balls, "0-red.png")
    assert len(studio.datasets.overview(balls).pictures) == 5
    studio.datasets.bring_back(balls, "0-red.png", place)
    assert [p.item for p in studio.datasets.overview(balls).pictures] == [p.item for p in before]


def test_a_folder_elsewhere_stays_where_it_is(studio: Studio, image_folder: Path) -> None:
    name = studio.datasets.register(f'"{image_folder}"')
    assert studio.datasets.folder(name) == image_folder
    assert studio.datasets.register(str(image_folder)) == name
    studio.datasets.remove_all(name)
    studio.datasets.create(name.upper())
    assert studio.datasets.register(str(image_folder)) == f"{name}-2"
    with pytest.raises(DatasetError, match="no folder"):
        studio.datasets.register("/nowhere/at/all")


def test_a_sample_set_is_taken_as_a_copy(studio: Studio) -> None:
    for name, folder in studio.datasets.samples().items():
        made = studio.datasets.folder(studio.datasets.take_sample(name))
        assert made != folder and studio.datasets.overview(name).report is not None
    said = studio.datasets.settings(studio.datasets.folder("character"))
    assert said == {"data.captions.trigger": "zibbo", "output.subject": "character"}
    assert studio.datasets.settings(studio.datasets.folder("ink-style")) == {}
    with pytest.raises(DatasetError, match="no sample set"):
        studio.datasets.take_sample("nothing")


def test_a_renamed_dataset_takes_its_runs_along(studio: Studio, balls: str) -> None:
    folder = studio.datasets.folder(balls)
    configs = [build(TrainConfig, {"data.folder": str(place)}) for place in (folder, folder.parent)]
    own, other = (begun(config, studio, age) for config, age in zip(configs, (200, 100), strict=True))
    before = studio.runs.names()
    with own.locked(), pytest.raises(RunError, match="is being trained on it"):
        studio.rename_dataset(balls, "marbles")
    assert studio.rename_dataset(balls, "Balls") == "Balls"
    assert studio.rename_dataset("Balls", "two: marbles") == "two- marbles"
    moved = studio.datasets.folder("two- marbles")
    assert not folder.exists() and len(studio.datasets.overview("two- marbles").pictures) == 6
    assert (own.config.data.folder, other.config) == (str(moved), configs[1])
    assert studio.runs.names() == before
    studio.datasets.create("taken")
    for name, words in (("TAKEN", "there already"), ("  ", "needs a name")):
        with pytest.raises(DatasetError, match=words):
            studio.rename_dataset("two- marbles", name)


def test_a_removed_dataset_comes_back_unless_its_name_is_taken(studio: Studio, balls: str) -> None:
    folder = studio.datasets.folder(balls)
    run = begun(build(TrainConfig, {"data.folder": str(folder)}), studio, 100)
    with run.locked(), pytest.raises(RunError, match="is being trained on it"):
        studio.remove_dataset(balls)
    place = studio.remove_dataset(balls)
    assert studio.datasets.folders() == {} and not folder.exists()
    studio.datasets.create("BALLS")
    with pytest.raises(DatasetError, match="Rename that one first"):
        studio.datasets.bring_all_back(place)
    studio.rename_dataset("BALLS", "other")
    assert studio.datasets.bring_all_back(place) == balls
    assert len(studio.datasets.overview(balls).pictures) == 6


def test_of_a_folder_elsewhere_only_the_name_goes(studio: Studio, image_folder: Path) -> None:
    name = studio.datasets.register(str(image_folder))
    assert studio.datasets.is_elsewhere(name)
    assert studio.rename_dataset(name, "mine") == "mine"
    assert studio.datasets.folders() == {"mine": image_folder}
    place = studio.remove_dataset("mine")
    assert studio.datasets.folders() == {} and len(list(image_folder.glob("*.png"))) == 6
    assert studio.datasets.bring_all_back(place) == "mine"
    assert studio.datasets.folders() == {"mine": image_folder}


def test_settings_of_a_dataset_are_a_runs_without_its_folder(studio: Studio, balls: str) -> None:
    config = build(TrainConfig, {"data.folder": "elsewhere", "loop.steps": 7})
    folder = studio.datasets.folder(balls)
    (folder / "settings.toml").write_text(to_toml(config))
    said = studio.datasets.settings(folder)
    assert said == {path: value for path, value in flatten(config).items() if path != "data.folder"}
    (folder / "settings.toml").write_text("[loop]\nstep = 7\n")
    with pytest.raises(ConfigError, match="loop.step"):
        studio.datasets.settings(folder)
