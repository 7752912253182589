from pathlib import Path

import pytest
import torch
from PIL import Image, ImageCms

from sdlora.data.buckets import Bucket
from sdlora.data.folder import scan
from sdlora.data.images import load, load_mask, place
from sdlora.data.items import Item
from sdlora.errors import DatasetError
from tests.pictures import draw


def saved(folder: Path, image: Image.Image) -> Item:
    image.save(folder / "a.png")
    return scan(folder).items[0]


def test_an_image_of_the_buckets_size_is_itself(tmp_path: Path) -> None:
    image = draw((64, 48), "red")
    pixels = load(saved(tmp_path, image), Bucket(64, 48))
    assert pixels.shape == (3, 48, 64)
    back = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    assert bytes(back.flatten().tolist()) == image.tobytes()


def test_pixels_lie_between_minus_one_and_one(tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 64), "black")
    image.paste("white", (0, 0, 32, 64))
    pixels = load(saved(tmp_path, image), Bucket(64, 64))
    assert (pixels.min(), pixels.max()) == (-1, 1)


def test_flip_mirrors(tmp_path: Path) -> None:
    item = saved(tmp_path, draw((64, 64), "red"))
    assert torch.equal(load(item, Bucket(32, 32), flip=True), load(item, Bucket(32, 32)).flip(-1))


def test_the_middle_is_kept(tmp_path: Path) -> None:
    image = Image.new("RGB", (300, 100), "black")
    image.paste("white", (100, 0, 200, 100))
    pixels = load(saved(tmp_path, image), Bucket(64, 64))
    assert pixels[:, 8:-8, 8:-8].min() == 1


@pytest.mark.parametrize("size", [(1, 1), (5, 1000), (1000, 5), (4000, 3000), (63, 65)])
def test_every_image_covers_its_bucket(size: tuple[int, int]) -> None:
    for bucket in (Bucket(64, 64), Bucket(96, 64), Bucket(40, 72)):
        found = place(*size, bucket)
        left, top, right, bottom = found.box
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        assert (right - left) / (bottom - top) == pytest.approx(bucket.aspect)
        assert min(found.top_left) == 0


def profile(swapped: bool) -> bytes:
    """sRGB's profile; `swapped`, it calls red what is green."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if swapped:
        data = data.replace(b"rXYZ", b"----", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"----", b"gXYZ", 1)
    return data


@pytest.mark.parametrize(
    ("icc", "colour"),
    [(profile(swapped=False), (1, -1, -1)), (profile(swapped=True), (-1, 1, -1)), (b"broken", (1, -1, -1))],
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_are_those_of_the_files_profile(
    tmp_path: Path, icc: bytes, colour: tuple[int, int, int], mode: str
) -> None:
    Image.new(mode, (64, 64), "red").save(tmp_path / "a.png", icc_profile=icc)
    pixels = load(scan(tmp_path).items[0], Bucket(64, 64))
    assert torch.allclose(pixels[:, 3, 3], torch.tensor(colour).float(), atol=0.02)


def test_a_mask_is_placed_like_its_image(tmp_path: Path) -> None:
    draw((128, 64), "red").save(tmp_path / "a.png")
    mask = Image.new("L", (128, 64), 0)
    mask.paste(255, (32, 0, 64, 64))  # left half of the middle square
    mask.save(tmp_path / "a-masklabel.png")
    item = scan(tmp_path).items[0]
    weights = load_mask(item, Bucket(64, 64), factor=8)
    assert weights.shape == (1, 8, 8)
    assert torch.equal(weights[0, 0], torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0]))
    assert torch.equal(load_mask(item, Bucket(64, 64), factor=8, flip=True), weights.flip(-1))


def test_without_a_mask_every_place_counts(image_folder: Path) -> None:
    assert torch.equal(load_mask(scan(image_folder).items[0], Bucket(64, 40), factor=8), torch.ones(1, 5, 8))


def test_a_file_changed_since_the_scan_is_refused(image_folder: Path) -> None:
    item = scan(image_folder).items[0]
    draw((64, 64), "black").save(item.path)
    with pytest.raises(DatasetError, match="was changed after"):
        load(item, Bucket(64, 64))
