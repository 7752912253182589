from pathlib import Path

import pytest
from PIL import Image

from sdlora.data import edit
from sdlora.data.folder import scan
from sdlora.data.thumbnails import thumbnail
from sdlora.errors import DatasetError
from tests.pictures import draw


def test_a_caption_is_read_as_it_was_set(image_folder: Path) -> None:
    edit.set_caption(image_folder / "0-red.png", "Zoë's  rote\nKugel")
    assert scan(image_folder).items[0].caption == "Zoë's rote, Kugel"
    assert (image_folder / "0-red.txt").read_bytes() == "Zoë's rote, Kugel".encode()


def test_setting_mends_a_latin_caption(image_folder: Path) -> None:
    (image_folder / "0-red.txt").write_bytes("fenêtre".encode("latin-1"))
    item = scan(image_folder).items[0]
    edit.set_caption(item.path, item.caption)
    assert scan(image_folder).problems == ()
    assert scan(image_folder).items[0].caption == "fenêtre"


def test_a_trigger_is_added_once_to_all(image_folder: Path) -> None:
    edit.set_caption(image_folder / "1-green.png", "an ohwx ball")
    changes = edit.add_trigger(scan(image_folder), "ohwx")
    assert len(changes) == 5
    edit.apply(scan(image_folder), changes)
    dataset = scan(image_folder)
    assert [item.caption.count("ohwx") for item in dataset.items] == [1] * 6
    assert edit.add_trigger(dataset, "ohwx") == ()


def test_replacing_shows_before_it_changes(image_folder: Path) -> None:
    before = scan(image_folder)
    changes = edit.replace(before, "ball", "disc")
    assert scan(image_folder) == before
    assert (changes[0].before, changes[0].after) == ("a red ball, a black line", "a red disc, a black line")
    edit.apply(before, changes)
    assert all("disc" in item.caption for item in scan(image_folder).items)


def test_what_was_changed_meanwhile_is_not_replaced(image_folder: Path) -> None:
    changes = edit.replace(scan(image_folder), "ball", "disc")
    edit.set_caption(changes[-1].image, "by hand")
    before = scan(image_folder)
    with pytest.raises(DatasetError, match=f"{changes[-1].image.name} was changed meanwhile; no caption"):
        edit.apply(before, changes)
    assert scan(image_folder) == before


def test_a_tag_can_be_removed(image_folder: Path) -> None:
    (change, *_) = edit.replace(scan(image_folder), "a red ball", "")
    assert change.after == "a black line"
    assert edit.replace(scan(image_folder), "", "x") == ()


def test_what_belongs_to_an_image_goes_with_it(image_folder: Path) -> None:
    draw((64, 64), "white").save(image_folder / "0-red-masklabel.png")
    found = {path.name for path in edit.belongings(image_folder / "0-red.png")}
    assert found == {"0-red.png", "0-red.txt", "0-red-masklabel.png"}
    draw((64, 64), "white").save(image_folder / "0-red.jpg")
    assert edit.belongings(image_folder / "0-red.png") == (image_folder / "0-red.png",)


def test_a_thumbnail_follows_its_image(image_folder: Path, tmp_path: Path) -> None:
    image = image_folder / "0-red.png"
    draw((900, 600), "red").save(image)
    first = thumbnail(image, tmp_path / "small", side=90)
    with Image.open(first) as small:
        assert small.size == (90, 60)
    assert thumbnail(image, tmp_path / "small", side=90) == first
    draw((64, 64), "blue").save(image)
    assert thumbnail(image, tmp_path / "small", side=90) != first
    image.write_bytes(b"")
    with pytest.raises(DatasetError):
        thumbnail(image, tmp_path / "small")
