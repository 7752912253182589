"""Small pictures of images, made once and kept until the image changes."""

import hashlib
from io import BytesIO
from pathlib import Path

from sdlora.data.decode import decode, in_srgb, read
from sdlora.errors import DatasetError
from sdlora.files import write_atomic


def thumbnail(image: Path, folder: Path, *, side: int = 256) -> Path:
    """A JPEG in `folder` that shows `image` with at most `side` pixels a side.

    Raises DatasetError when the image cannot be decoded.
    """
    try:
        stat = image.stat()
    except OSError as error:
        raise DatasetError(f"{image.name} cannot be read: {error.strerror}.") from None
    key = f"{image.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0{side}"
    path = folder / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.jpg"
    if not path.exists():
        small = decode(read(image), image.name, side=side)[0]
        small.thumbnail((side, side))
        file = BytesIO()
        in_srgb(small).save(file, "JPEG", quality=85)
        write_atomic(path, file.getvalue())
    return path
