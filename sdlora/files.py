"""Files on disk: written whole, locked, hashed, and never outside the folders they belong to."""

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sdlora.errors import PlaceError, StorageError, UserError


def write_atomic(path: Path, content: bytes | str) -> None:
    """`path` holds `content`, whole; a reader never sees half of it, a crash leaves the old file.

    Raises StorageError when the disk is full or the folder cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; on a clean exit it is flushed to disk and becomes `path`.

    Raises StorageError when the disk is full or the folder cannot be written.
    """
    temporary = _part_of(path)
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """A file can be written at `path`; ask before the long work whose result goes there.

    Raises StorageError like `replacing`.
    """
    temporary = _part_of(path)
    try:
        temporary.touch()
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """The bytes of the file `path` are on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def storage_error(path: Path, error: OSError) -> StorageError:
    """The sentence for a failed write: what could not be written, where, and why."""
    number = error.errno or 0
    if number in _NO_PLACE:
        return PlaceError(f"Could not write {path}: {_NO_PLACE[number]}.", "Choose another place.")
    reason = _FAILURES.get(number, error.strerror or str(error))
    hint = "Free some space" if number in _FULL else "Choose another folder"
    return StorageError(f"Could not write {path}: {reason}.", f"{hint}, then try again.")


_FAILURES = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than this system allows",
    errno.EACCES: "the folder is not writable",
    errno.EPERM: "the folder is not writable",
    errno.EROFS: "the disk is read-only",
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_PLACE = {
    errno.EEXIST: "a file is in the way of its folder",
    errno.ENOTDIR: "a file is in the way of its folder",
    errno.EISDIR: "it is a folder",
    errno.ENOENT: "no file can be made there",
    errno.ENAMETOOLONG: "the name is too long",
}


def _part_of(path: Path) -> Path:
    """The temporary path beside `path`, whose folder is there."""
    try:
        if not path.name or (path.exists() and not path.is_file()):
            raise PlaceError(f"{path} is no file that can be replaced.", "Choose another name.")
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(path, error) from error
    return path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex[:8]}.part")


def free_bytes(path: Path) -> int:
    """Free bytes on the disk of `path` (which need not exist yet)."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


LOOK_SECONDS = 0.5  # `is_locked` holds a lock for an instant to look; that is not being busy


@contextmanager
def held_lock(path: Path, busy: UserError) -> Iterator[None]:
    """Holds the operating system's lock on `path`; it is freed even when the process is killed.

    Raises `busy` when another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=LOOK_SECONDS)
    except Timeout:
        raise busy from None
    except OSError as error:
        raise storage_error(path, error) from error
    try:
        yield
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether some living process holds the lock on `path`."""
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def sha256(path: Path, *, start: int = 0) -> str:
    """Hex SHA-256 of the bytes of `path` from offset `start` on."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def within(path: Path, roots: Iterable[Path]) -> Path:
    """`path` with every link and `..` resolved, when it lies under one of `roots`.

    Raises UserError otherwise: a name typed in the page must not reach the rest of the disk.
    """
    real = path.expanduser().resolve()
    allowed = [root.expanduser().resolve() for root in roots]
    if any(real == root or root in real.parents for root in allowed):
        return real
    raise UserError(
        f"{path} lies outside the folders that sdlora may use.",
        "Allowed: " + ", ".join(str(root) for root in allowed) + ".",
    )


def safe_name(text: str, *, fallback: str = "untitled") -> str:
    """`text` as a file name on every system: no separators, control or reserved characters, 1-80 long."""
    kept = "".join("-" if c in '<>:"/\\|?*' or ord(c) < 32 else c for c in text).strip(" .-")
    reserved = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(1, 10))}
    first, dot, rest = kept.partition(".")
    name = f"{first}_{dot}{rest}" if first.strip().lower() in reserved else kept
    return name[:80].rstrip(" .") or fallback
