"""Zip files from people: every way out of the dataset's folder, and every bomb, is refused in one sentence.

A zip is judged by its table of contents before anything is written, and unpacked as a stream that never
holds more than its table promises (zipfile stops there, and checks each file's sum).
"""

import lzma
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from sdlora.data.decode import BYTE_LIMIT
from sdlora.errors import DatasetError
from sdlora.files import free_bytes, storage_error

TOTAL_LIMIT = 8 << 30
FILES_LIMIT = 50_000
RATIO_LIMIT = 100  # images hardly shrink in a zip; only what is made to harm shrinks so much
RATIO_FROM = 64 << 20
_ARCHIVES = frozenset({".zip", ".7z", ".rar", ".tar", ".gz", ".bz2", ".xz", ".zst"})
_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, struct.error)


def unpack(
    archive: Path, folder: Path, *, wanted: Callable[[PurePosixPath], bool]
) -> list[tuple[PurePosixPath, Path]]:
    """(name in the zip, file) of all that is wanted; the files lie in `folder` under numbers.

    Raises DatasetError when any part of the zip is unsafe or damaged, StorageError when the disk is full.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            _check(archive, members, room=free_bytes(folder))
            names = [(member, PurePosixPath(member.filename.replace("\\", "/"))) for member in members]
            chosen = [(member, name) for member, name in names if wanted(name)]
            return [
                (name, _extract(opened, member, folder / f"{number}{name.suffix}"))
                for number, (member, name) in enumerate(chosen)
            ]
    except _DAMAGE:
        raise DatasetError(f"{archive.name} is damaged, or no zip file.", "Pack it again.") from None
    except OSError as error:
        raise DatasetError(f"{archive.name} cannot be read: {error.strerror}.") from None
    except (NotImplementedError, RuntimeError) as error:
        raise DatasetError(f"{archive.name} cannot be unpacked: {error}.", "Pack it as plain zip.") from None


def _check(archive: Path, members: list[zipfile.ZipInfo], *, room: int) -> None:
    """Raises DatasetError for the first thing that a folder of images has no use for."""
    total = sum(member.file_size for member in members)
    packed = max(1, archive.stat().st_size)
    if len(members) > FILES_LIMIT:
        raise _refused(archive, f"holds {len(members)} files; at most {FILES_LIMIT} are unpacked")
    if total > TOTAL_LIMIT:
        raise _refused(archive, f"unpacks to {_gib(total)}; at most {_gib(TOTAL_LIMIT)} are allowed")
    if total > RATIO_FROM and total > RATIO_LIMIT * packed:
        raise _refused(archive, f"would grow {total // packed} times; images never do")
    if total > room:
        raise _refused(archive, f"unpacks to {_gib(total)}, but only {_gib(room)} are free on the disk")
    for member in members:
        if reason := _unsafe(member):
            raise _refused(archive, f'holds "{member.filename[:80]}", {reason}')


def _unsafe(member: zipfile.ZipInfo) -> str:
    """Why a member must not be unpacked; empty when it may."""
    name = PurePosixPath(member.filename.replace("\\", "/"))
    mode = member.external_attr >> 16
    if name.is_absolute() or ".." in name.parts or re.match("[A-Za-z]:/", str(name)):
        return "which points outside the dataset"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return "which is a link, not a file"
    if member.flag_bits & 1:
        return "which is locked with a password"
    if member.file_size > BYTE_LIMIT:
        return f"which is larger than {BYTE_LIMIT >> 20} MiB"
    if name.suffix.lower() in _ARCHIVES:
        return "which is an archive itself"
    return ""


def _refused(archive: Path, reason: str) -> DatasetError:
    return DatasetError(
        f"{archive.name} {reason}; nothing was taken from it.", "Pack only images and captions."
    )


def _extract(opened: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> Path:
    with opened.open(member) as source:
        try:
            with target.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
        except OSError as error:
            raise storage_error(target, error) from error
    return target


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
