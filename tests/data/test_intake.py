import io
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sdlora.data import archive, intake
from sdlora.data.folder import scan
from sdlora.errors import DatasetError
from tests.pictures import draw


def png(colour: str = "red") -> bytes:
    file = io.BytesIO()
    draw((64, 64), colour).save(file, "PNG")
    return file.getvalue()


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def upload(folder: Path, name: str, data: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return folder / name


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return intake.create(tmp_path / "datasets", "my cat")


def test_uploads_become_a_dataset(dataset: Path, tmp_path: Path) -> None:
    files = [upload(tmp_path / "up", "a.png", png()), upload(tmp_path / "up", "a.txt", b"a cat")]
    assert intake.add(dataset, files).notes == ()
    assert [(item.name, item.caption) for item in scan(dataset).items] == [("a.png", "a cat")]
    assert all(path.exists() for path in files)


def test_a_zip_keeps_its_folders_but_not_the_one_around_them(dataset: Path, tmp_path: Path) -> None:
    members = {
        "cats/10_ohwx cat/a.png": png(),
        "cats/b.png": png("blue"),
        "cats/b.txt": b"b",
        "cats/x.pdf": b"",
    }
    added = intake.add(dataset, [zipped(tmp_path / "up.zip", {**members, "__MACOSX/cats/._a.png": b"x"})])
    assert names(dataset) == {"10_ohwx cat/a.png", "b.png", "b.txt"}
    assert added.notes == ("cats/x.pdf is neither an image nor a caption; it was left out.",)


def test_a_kohya_folder_alone_keeps_its_name(dataset: Path, tmp_path: Path) -> None:
    intake.add(dataset, [zipped(tmp_path / "up.zip", {"10_ohwx/a.png": png()})])
    assert scan(dataset).items[0].repeats == 10


def test_another_image_of_the_same_name_takes_its_caption_along(dataset: Path, tmp_path: Path) -> None:
    for colour in ("red", "blue", "red"):
        folder = tmp_path / colour
        intake.add(
            dataset,
            [upload(folder, "a.png", png(colour)), upload(folder, "a.txt", f"a {colour} cat".encode())],
        )
    assert {item.name: item.caption for item in scan(dataset).items} == {
        "a.png": "a red cat",
        "a-2.png": "a blue cat",
    }


def test_an_image_of_another_format_does_not_take_over_the_caption(dataset: Path, tmp_path: Path) -> None:
    intake.add(dataset, [upload(tmp_path / "1", "a.png", png()), upload(tmp_path / "1", "a.txt", b"red")])
    file = io.BytesIO()
    draw((64, 64), "blue").save(file, "JPEG")
    intake.add(
        dataset, [upload(tmp_path / "2", "A.JPG", file.getvalue()), upload(tmp_path / "2", "A.txt", b"blue")]
    )
    assert {item.name: item.caption for item in scan(dataset).items} == {"a.png": "red", "A-2.jpg": "blue"}


def test_two_uploads_of_one_name_are_both_kept(dataset: Path, tmp_path: Path) -> None:
    intake.add(dataset, [upload(tmp_path / colour, "a.png", png(colour)) for colour in ("red", "blue")])
    assert names(dataset) == {"a.png", "a-2.png"}


def test_a_caption_alone_replaces_the_old_one(dataset: Path, tmp_path: Path) -> None:
    intake.add(dataset, [upload(tmp_path / "1", "a.png", png()), upload(tmp_path / "1", "a.txt", b"old")])
    added = intake.add(dataset, [upload(tmp_path / "2", "a.txt", b"new")])
    assert scan(dataset).items[0].caption == "new"
    assert added.notes == ("a.txt took the place of the old one.",)


@pytest.mark.parametrize("name", ["con", "NUL", "a?b", "a:b", "trailing.", "aux.old", "x" * 200])
def test_names_are_fit_for_every_system(dataset: Path, tmp_path: Path, name: str) -> None:
    intake.add(dataset, [zipped(tmp_path / "up.zip", {f"{name}.png": png(), f"{name}.txt": b"its caption"})])
    (item,) = scan(dataset).items
    assert item.caption == "its caption"
    stem = item.path.stem
    assert len(item.path.name) < 100
    assert not set(stem) & set('<>:"/\\|?*')
    assert stem.split(".")[0].lower() not in {"con", "nul", "aux"}
    assert not stem.endswith((".", " "))


def link(path: Path) -> Path:
    info = zipfile.ZipInfo("a.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("good.png", png())
        file.writestr(info, "/etc/passwd")
    return path


def locked(path: Path) -> Path:
    data = bytearray(zipped(path, {"good.png": png()}).read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    return path


def bomb(path: Path) -> Path:
    """A small zip that promises 10 GiB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("good.png", png())
        for number in range(21):
            file.writestr(f"{number}.png", b"")
        for member in file.infolist()[1:]:
            member.file_size = 500 << 20
    return path


def spoiled(path: Path) -> Path:
    data = bytearray(zipped(path, {"good.png": png(), "b.png": png("blue")}).read_bytes())
    data[len(data) // 3] ^= 255
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: zipped(path, {"good.png": png(), "../evil.png": png()}), "points outside"),
        (lambda path: zipped(path, {"good.png": png(), "/etc/evil.png": png()}), "points outside"),
        (lambda path: zipped(path, {"good.png": png(), "..\\evil.png": png()}), "points outside"),
        (lambda path: zipped(path, {"good.png": png(), "C:\\evil.png": png()}), "points outside"),
        (link, "is a link"),
        (locked, "locked with a password"),
        (bomb, "unpacks to 10.3 GiB"),
        (lambda path: zipped(path, {"good.png": png(), "zeros.png": bytes(100 << 20)}), "would grow"),
        (lambda path: zipped(path, {"good.png": png(), "more.zip": b"PK"}), "an archive itself"),
        (spoiled, "damaged"),
        (lambda path: upload(path.parent, path.name, b"no zip"), "damaged, or no zip"),
        (lambda path: upload(path.parent, path.name, b""), "damaged, or no zip"),
    ],
)
def test_a_harmful_zip_is_refused_whole(
    dataset: Path, tmp_path: Path, make: Callable[[Path], Path], told: str
) -> None:
    attack = make(tmp_path / "attack.zip")
    with pytest.raises(DatasetError, match=told) as raised:
        intake.add(dataset, [upload(tmp_path / "up", "first.png", png()), attack])
    assert raised.value.message.startswith("attack.zip")
    assert names(dataset) == set()
    assert {path.name for path in tmp_path.iterdir()} == {"attack.zip", "up", "datasets"}


def test_a_file_never_grows_beyond_its_promise(dataset: Path, tmp_path: Path) -> None:
    path = zipped(tmp_path / "lie.zip", {"a.png": bytes(1 << 20)})
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\1\2")
    data[central + 24 : central + 28] = (1000).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(DatasetError):
        intake.add(dataset, [path])
    assert names(dataset) == set()


def test_more_than_fits_on_the_disk_is_refused(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "free_bytes", lambda path: 10)
    with pytest.raises(DatasetError, match="are free on the disk"):
        intake.add(dataset, [zipped(tmp_path / "up.zip", {"a.png": png()})])


def test_a_registered_folder_is_a_dataset(tmp_path: Path, image_folder: Path) -> None:
    root = tmp_path / "datasets"
    intake.create(root, "own")
    assert intake.register(root, image_folder) == "pictures"
    assert intake.datasets(root) == {"own": root / "own", "pictures": image_folder}
    for again in (lambda: intake.register(root, image_folder), lambda: intake.create(root, "OWN")):
        with pytest.raises(DatasetError, match="is there already"):
            again()
    with pytest.raises(DatasetError, match="There is no folder"):
        intake.register(root, tmp_path / "nowhere")
