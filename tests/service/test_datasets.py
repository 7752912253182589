"""Datasets by name: brought, looked at, changed, and nothing of them lost."""

from pathlib import Path

import pytest

from sdlora.errors import DatasetError, UserError
from sdlora.service.studio import Studio


@pytest.fixture
def balls(studio: Studio, image_folder: Path) -> str:
    """A dataset of six pictures."""
    name = studio.datasets.create("balls")
    studio.datasets.add(name, sorted(image_folder.iterdir()))
    return name


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
    with pytest.raises(DatasetError, match="no folder"):
        studio.datasets.register("/nowhere/at/all")


def test_a_sample_set_is_taken_as_a_copy(studio: Studio) -> None:
    for name, folder in studio.datasets.samples().items():
        made = studio.datasets.folder(studio.datasets.take_sample(name))
        assert made != folder and studio.datasets.overview(name).report is not None
    with pytest.raises(DatasetError, match="no sample set"):
        studio.datasets.take_sample("nothing")
