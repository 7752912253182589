import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from sdlora.data import folder
from sdlora.data.folder import Dataset, scan
from sdlora.errors import DatasetError
from tests.pictures import draw, make_folder


def texts(dataset: Dataset, kind: str) -> list[str]:
    return [problem.text for problem in dataset.problems if problem.kind == kind]


def picture(path: Path, *, size: tuple[int, int] = (64, 64), colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(size, colour).save(path)
    return path


def test_a_good_folder_has_no_problems(image_folder: Path) -> None:
    dataset = scan(image_folder)
    assert dataset.problems == ()
    assert [item.name for item in dataset.items] == sorted(path.name for path in image_folder.glob("*.png"))
    assert dataset.items[0].caption == "a red ball, a black line"
    assert (dataset.items[1].width, dataset.items[1].height) == (96, 64)


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".jpeg", ".webp", ".bmp"])
def test_every_format_is_read(tmp_path: Path, suffix: str) -> None:
    picture(tmp_path / f"a{suffix}")
    assert [item.name for item in scan(tmp_path).items] == [f"a{suffix}"]


def test_kohya_folder_gives_repeats_and_words(tmp_path: Path) -> None:
    picture(tmp_path / "10_ohwx cat" / "a.png")
    picture(tmp_path / "10_ohwx cat" / "b.png", colour="blue").with_suffix(".txt").write_text("a cat asleep")
    a, b = scan(tmp_path, repeats=3).items
    assert (a.repeats, a.caption) == (30, "ohwx cat")
    assert (b.repeats, b.caption) == (30, "a cat asleep")
    assert scan(tmp_path / "10_ohwx cat").items[0].repeats == 10


def test_a_year_is_questioned_as_repeats(tmp_path: Path) -> None:
    picture(tmp_path / "2023_holiday" / "a.png")
    assert "2023 repeats" in texts(scan(tmp_path), "repeats")[0]


@pytest.mark.parametrize("column", ["text", "caption", "prompt"])
def test_metadata_lines_are_captions(tmp_path: Path, column: str) -> None:
    picture(tmp_path / "train" / "a.png")
    lines = [
        f'{{"file_name": "a.png", "{column}": "from the table"}}',
        "{broken",
        '{"file_name": "gone.png"}',
    ]
    lines.append(f'{{"file_name": "gone.png", "{column}": "nobody"}}')
    (tmp_path / "train" / "metadata.jsonl").write_text("\n".join(lines))
    dataset = scan(tmp_path)
    assert dataset.items[0].caption == "from the table"
    told = texts(dataset, "metadata")
    assert any("gone.png" in text for text in told)
    assert any(text.startswith("Line 2") for text in told)
    assert any(text.startswith("Line 3") for text in told)


def test_a_sidecar_wins_over_the_table(tmp_path: Path) -> None:
    picture(tmp_path / "a.png").with_suffix(".txt").write_text("own")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "table"}')
    assert scan(tmp_path).items[0].caption == "own"


def test_captions_in_every_encoding_are_read(tmp_path: Path) -> None:
    words = "une fenêtre à Zürich"
    encodings = {"bom": "utf-8-sig", "latin": "latin-1", "plain": "utf-8", "wide": "utf-16"}
    for number, (name, encoding) in enumerate(encodings.items()):
        image = picture(tmp_path / f"{name}.png", size=(64 + number, 64))
        image.with_suffix(".txt").write_bytes(words.encode(encoding))
    dataset = scan(tmp_path)
    assert {item.caption for item in dataset.items} == {words}
    assert [problem.path.name for problem in dataset.problems] == ["latin.txt"]
    assert texts(dataset, "encoding") == [
        "latin.txt is not UTF-8 and was read as Latin-1; save the caption once to mend it."
    ]


def test_lines_of_a_caption_become_one(tmp_path: Path) -> None:
    picture(tmp_path / "a.png").with_suffix(".txt").write_text("a cat\r\n\r\n on a mat.\nIt  sleeps\n")
    assert scan(tmp_path).items[0].caption == "a cat, on a mat. It sleeps"


def test_two_captions_are_told(tmp_path: Path) -> None:
    picture(tmp_path / "a.png").with_suffix(".txt").write_text("one")
    (tmp_path / "a.caption").write_text("two")
    dataset = scan(tmp_path)
    assert dataset.items[0].caption == "one"
    assert texts(dataset, "two_captions") == ["a.png has two captions; a.txt is used, a.caption is not."]


def test_emoji_of_several_parts_stay_whole(tmp_path: Path) -> None:
    picture(tmp_path / "a.png").with_suffix(".txt").write_text("a 👩\u200d🚀,\ta cat\0", encoding="utf-8")
    assert scan(tmp_path).items[0].caption == "a 👩\u200d🚀, a cat"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_text_is_told(image_folder: Path) -> None:
    os.rename(image_folder / "0-red.png", os.fsencode(image_folder) + b"/caf\xe9.png")
    problem = next(p for p in scan(image_folder).problems if p.kind == "file_name")
    assert problem.text == "caf\ufffd.png has a name that is no text; rename it."
    assert problem.fatal


def test_a_linked_folder_is_told_and_not_followed(tmp_path: Path, image_folder: Path) -> None:
    (image_folder / "loop").symlink_to(tmp_path)
    dataset = scan(image_folder)
    assert len(dataset.items) == 6
    assert [problem.text for problem in dataset.problems] == [
        "loop is neither an image nor a caption; it is not used."
    ]


def test_a_whole_disk_is_no_dataset(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "FILES_LIMIT", 5)
    with pytest.raises(DatasetError, match="more than 5 files"):
        scan(image_folder)


def test_nothing_is_passed_over_silently(tmp_path: Path) -> None:
    picture(tmp_path / "a.png").with_suffix(".txt").write_text("a")
    for name in ("b.txt", "c-masklabel.png", "d.gif", "e.docx"):
        (tmp_path / name).write_bytes(b"x")
    for name in (
        ".hidden.png",
        "Thumbs.db",
        "README.md",
        "a_0512x0512_sd.npz",
        ".git/x.png",
        "__MACOSX/a.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    dataset = scan(tmp_path)
    assert {problem.path.name: problem.kind for problem in dataset.problems} == {
        "b.txt": "orphan",
        "c-masklabel.png": "orphan",
        "d.gif": "format",
        "e.docx": "foreign",
    }
    assert all(problem.path.name in problem.text for problem in dataset.problems)


def test_the_same_pixels_twice_are_told(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    draw((64, 64), "red").save(tmp_path / "b.webp", lossless=True)
    assert texts(scan(tmp_path), "duplicate") == ["b.webp shows exactly the same pixels as a.png."]


def test_a_mask_belongs_to_its_image(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    Image.new("L", (32, 32), 255).save(tmp_path / "a-masklabel.png")
    picture(tmp_path / "b.png", colour="blue")
    Image.new("L", (64, 32), 255).save(tmp_path / "b-masklabel.png")
    dataset = scan(tmp_path)
    assert [item.mask for item in dataset.items] == [tmp_path / "a-masklabel.png", None]
    assert len(dataset.items[0].mask_sha256) == 64
    assert "b-masklabel.png" in texts(dataset, "mask")[0]
    Image.new("L", (32, 32), 255).save(tmp_path / "b.mask.png")
    assert any("b.mask.png is trained as a picture" in text for text in texts(scan(tmp_path), "mask"))


def spoil_truncated(path: Path) -> None:
    data = picture(path).read_bytes()
    path.write_bytes(data[: len(data) // 2])


def claim(path: Path, width: int, height: int) -> None:
    """`path` is a PNG whose header claims that size."""
    data = picture(path).read_bytes()
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    path.write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])


@pytest.mark.parametrize(
    ("spoil", "kind", "told"),
    [
        (lambda path: path.write_bytes(b""), "unreadable", "bad.png is empty."),
        (lambda path: path.write_bytes(b"hello"), "unreadable", "bad.png is damaged, or no PNG"),
        (spoil_truncated, "unreadable", "bad.png is cut off"),
        (lambda path: claim(path, 30_000, 30_000), "too_large", "bad.png has more than 100 million pixels."),
        (
            lambda path: claim(path, 11_000, 10_000),
            "too_large",
            "bad.png is 11000 x 10000 pixels; at most 100 million",
        ),
    ],
)
def test_a_bad_image_is_named_and_left_out(
    image_folder: Path, spoil: Callable[[Path], None], kind: str, told: str
) -> None:
    spoil(image_folder / "bad.png")
    (image_folder / "bad.txt").write_text("its caption")
    dataset = scan(image_folder)
    assert len(dataset.items) == 6
    (problem,) = dataset.problems
    assert problem.kind == kind
    assert problem.fatal
    assert problem.text.startswith(told)


def test_an_animation_is_told(tmp_path: Path) -> None:
    frames = [draw((64, 64), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])
    assert "an animation of 3 frames" in texts(scan(tmp_path), "animated")[0]


def test_no_caption_is_told(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    assert texts(scan(tmp_path), "no_caption") == ["a.png has no caption."]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text("x"), "is a file"),
        (lambda path: path.mkdir(), "holds no images"),
        (
            lambda path: make_folder(path) and [p.write_bytes(b"") for p in path.glob("*.png")],
            "that can be used",
        ),
    ],
)
def test_nothing_usable_is_an_error(tmp_path: Path, make: Callable[[Path], object], told: str) -> None:
    make(tmp_path / "set")
    with pytest.raises(DatasetError, match=told) as raised:
        scan(tmp_path / "set")
    assert raised.value.hint


def test_an_edited_image_is_seen_again(image_folder: Path) -> None:
    before = scan(image_folder).items[0]
    picture(image_folder / before.name, size=(80, 80))
    after = scan(image_folder).items[0]
    assert (after.width, after.sha256 == before.sha256) == (80, False)
