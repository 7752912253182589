import random
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image, ImageCms, ImageOps

from sdlora.data.decode import decode, in_srgb, inspect
from sdlora.errors import DatasetError
from tests.pictures import draw


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(orientation: int) -> None:
    image = draw((96, 64), "red")
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB")
    assert decode(data, "a.png")[0].tobytes() == expected.tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0)).convert(mode)
    options = {"transparency": image.getpixel((0, 0))} if mode == "P" else {}
    assert decode(encoded(image, "PNG", **options), "a.png")[0].getpixel((4, 4)) == (255, 255, 255)


def test_half_transparency_is_mixed_with_white() -> None:
    data = encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), "PNG")
    assert decode(data, "a.png")[0].getpixel((4, 4)) == (127, 127, 127)


@pytest.mark.parametrize(("value", "grey"), [(0, 0), (65535, 255), (257 * 100, 100), (30000, 117)])
def test_sixteen_bit_grey_is_scaled(value: int, grey: int) -> None:
    image = Image.frombytes("I;16", (2, 2), value.to_bytes(2, "little") * 4)
    assert decode(encoded(image, "PNG"), "a.png")[0].getpixel((0, 0)) == (grey, grey, grey)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_other_modes_become_rgb(mode: str) -> None:
    format = "JPEG" if mode == "CMYK" else "PNG"
    image, frames = decode(encoded(draw((32, 32), "red").convert(mode), format), "a")
    assert (image.mode, image.size, frames) == ("RGB", (32, 32), 1)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP"])
def test_damage_is_always_a_sentence(format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encoded(draw((40, 32), "red"), format, **({} if format == "BMP" else {"exif": exif}))
    chance = random.Random(0)
    for _ in range(300):
        data = bytearray(whole[: chance.randrange(1, len(whole) + 1)])
        for _ in range(chance.randrange(4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            image, _ = decode(bytes(data), "a")
        except DatasetError as error:
            assert error.message.startswith("a ")
        else:
            assert image.mode == "RGB"


def test_a_damaged_profile_is_no_damage() -> None:
    whole = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    chance = random.Random(0)
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        image = Image.new("RGB", (2, 2))
        image.info["icc_profile"] = bytes(data)
        assert in_srgb(image).mode == "RGB"


def test_a_gif_is_refused_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(draw((8, 8), "red"), "GIF"))
    with pytest.raises(DatasetError, match="no PNG, JPEG, WebP or BMP"):
        inspect(tmp_path / "a.png")
