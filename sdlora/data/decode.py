"""Image files decoded: upright, RGB, eight bits, transparency on white; or the sentence that says why not.

A file is read once, judged by its bytes (never by its extension) and refused when it holds more than
PIXEL_LIMIT pixels: a few kilobytes can claim to be gigabytes.
"""

import functools
import hashlib
import struct
import threading
import warnings
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageCms, UnidentifiedImageError

from sdlora.errors import DatasetError

PIXEL_LIMIT = 100_000_000  # a square of 10,000; 300 MB decoded
BYTE_LIMIT = 1 << 29
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # MPO, what phones write, is a JPEG to Pillow

# What Pillow's parsers raise on damaged files; 40,000 files damaged at random showed the first three.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_quiet = threading.Lock()  # warnings.catch_warnings changes the whole process


class TooLarge(DatasetError):
    pass


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of an image once it was decoded whole.

    Pixels upright; `sha256` of the file; `pixels` is a digest of the RGB values; `frames` is 1 for a still.
    """

    width: int
    height: int
    sha256: str
    pixels: bytes
    frames: int


def inspect(path: Path) -> Facts:
    """The facts of the image at `path`. Raises DatasetError (TooLarge) with one sentence that names it.

    Known files are not decoded again in this process while their size and time of change stay the same.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise DatasetError(f"{path.name} cannot be read: {error.strerror}.") from None
    return _inspect(path, stat.st_size, stat.st_mtime_ns)


def read(path: Path) -> bytes:
    """The bytes of an image file. Raises DatasetError when it is empty, unreadable or absurdly big."""
    try:
        size = path.stat().st_size
        if size > BYTE_LIMIT:
            raise TooLarge(f"{path.name} is {size >> 20} MiB; at most {BYTE_LIMIT >> 20} MiB are read.")
        if size == 0:
            raise DatasetError(f"{path.name} is empty.")
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path.name} cannot be read: {error.strerror}.") from None


def decode(data: bytes, name: str, *, side: int = 0) -> tuple[Image.Image, int]:
    """The picture in `data` as upright RGB, and its number of frames (of which it is the first).

    Its colours are still those of the profile that the file may hold; `in_srgb` converts them. With `side`,
    a JPEG may come smaller, but not below `side` pixels, which is faster. Raises DatasetError when the data
    are damaged, TooLarge when there are too many pixels; the sentence calls it `name`.
    """
    try:
        with _quiet, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image: Image.Image = Image.open(BytesIO(data), formats=FORMATS)
        _check_size(image, name)
        if side:
            image.draft("RGB", (side, side))
        image.load()
        frames = 1 if image.format in ("JPEG", "MPO", "BMP") else int(getattr(image, "n_frames", 1))
        rgb = _to_rgb(_upright(image))
        if image.mode != "CMYK":
            rgb.info["icc_profile"] = image.info.get("icc_profile")
        return rgb, frames
    except Image.DecompressionBombError:
        raise TooLarge(f"{name} has more than {PIXEL_LIMIT // 10**6} million pixels.") from None
    except UnidentifiedImageError:
        raise DatasetError(f"{name} is damaged, or no PNG, JPEG, WebP or BMP image.") from None
    except MemoryError:
        raise TooLarge(f"{name} does not fit into memory.") from None
    except _DAMAGE as error:
        cut = "truncated" in str(error).lower()
        raise DatasetError(f"{name} is {'cut off: its end is missing' if cut else 'damaged'}.") from None


def in_srgb(image: Image.Image) -> Image.Image:
    """The picture with its colours in sRGB, if the file held another profile: phones write Display P3."""
    profile = image.info.get("icc_profile")
    if not profile:
        return image
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if source.profile.xcolor_space.strip() != image.mode:
            return image
        srgb = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, srgb, outputMode="RGB") or image
    except (ImageCms.PyCMSError, OSError, ValueError):  # a damaged profile: the numbers are taken as they are
        return image


@functools.lru_cache(maxsize=1 << 16)
def _inspect(path: Path, size: int, changed_ns: int) -> Facts:
    data = read(path)
    image, frames = decode(data, path.name)
    return Facts(
        width=image.width,
        height=image.height,
        sha256=hashlib.sha256(data).hexdigest(),
        pixels=hashlib.sha256(image.tobytes()).digest(),
        frames=frames,
    )


def _check_size(image: Image.Image, name: str) -> None:
    if image.width * image.height > PIXEL_LIMIT:
        raise TooLarge(
            f"{name} is {image.width} x {image.height} pixels; "
            f"at most {PIXEL_LIMIT // 10**6} million pixels are read."
        )


def _upright(image: Image.Image) -> Image.Image:
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            turn = _UPRIGHT.get(image.getexif().get(0x0112, 1))
        except _DAMAGE:  # the picture is good, only its description is not
            turn = None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow clips 16-bit grey at 255 instead of scaling it
        image = image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
    if image.mode == "CMYK":
        image = in_srgb(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white.convert("RGB")
