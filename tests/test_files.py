"""Files are whole or absent, locks follow the process, and names cannot leave their folder."""

import hashlib
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sdlora.errors import RunError, StorageError, UserError
from sdlora.files import held_lock, is_locked, replacing, safe_name, sha256, within, write_atomic


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with (
        pytest.raises(StorageError, match="the disk is full"),
        replacing(path),
        open("/dev/full", "wb") as file,
    ):
        file.write(b"x" * 100_000)
    assert not path.exists()


@pytest.mark.skipif(not Path("/dev/null").is_char_device(), reason="this system has no /dev/null")
def test_a_device_is_never_replaced() -> None:
    with pytest.raises(StorageError, match="is no file"):
        write_atomic(Path("/dev/null"), "x")
    assert Path("/dev/null").is_char_device()


def test_a_folder_in_the_way_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Could not write"):
        write_atomic(tmp_path / "file" / "a.txt", "x")


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = "import sys,time\nfrom pathlib import Path\nfrom sdlora.files import held_lock\n"
    code += "from sdlora.errors import RunError\nwith held_lock(Path(sys.argv[1]), RunError('x')):\n"
    code += "    print('held', flush=True); time.sleep(60)\n"
    lock = tmp_path / "lock"
    child = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    assert is_locked(lock)
    with pytest.raises(RunError, match="busy"), held_lock(lock, RunError("busy")):
        pass
    child.kill()
    child.wait()
    child.stdout.close()
    deadline = time.monotonic() + 5
    while is_locked(lock) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_locked(lock)


def test_sha256_from_an_offset_equals_hashlib(tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000
    (tmp_path / "a").write_bytes(data)
    assert sha256(tmp_path / "a", start=77) == hashlib.sha256(data[77:]).hexdigest()


def test_links_and_dots_do_not_lead_outside(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir(), outside.mkdir()
    (root / "link").symlink_to(outside)
    assert within(root / "a" / ".." / "b", [root]) == root / "b"
    for path in (root / ".." / "outside", root / "link" / "x", Path("/etc/passwd")):
        with pytest.raises(UserError, match="outside"):
            within(path, [root])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a/b\\c:d", "a-b-c-d"),
        ("  ..", "untitled"),
        ("con", "con_"),
        ("LPT1.txt", "LPT1_.txt"),
        ("naïve 猫", "naïve 猫"),
        ("x\x00y\n", "x-y"),
        ("a" * 200, "a" * 80),
        ("a" * 79 + ". b", "a" * 79),
    ],
)
def test_safe_names(text: str, name: str) -> None:
    assert safe_name(text) == name


def test_looking_at_a_lock_does_not_make_it_busy(tmp_path: Path) -> None:
    lock, stop = tmp_path / "lock", threading.Event()

    def look() -> None:
        while not stop.is_set():
            is_locked(lock)

    looker = threading.Thread(target=look)
    looker.start()
    try:
        for _ in range(50):
            with held_lock(lock, RunError("busy")):
                pass
    finally:
        stop.set()
        looker.join()
