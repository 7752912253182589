from pathlib import Path

from sdlora.data.buckets import plan
from sdlora.data.folder import scan
from sdlora.data.report import Report, report
from tests.pictures import draw


def made(folder: Path, *, resolution: int = 64, batch_size: int = 2, accumulate: int = 1) -> Report:
    dataset = scan(folder)
    buckets = plan(dataset.items, resolution=resolution, step=64, max_aspect=2, batch_size=batch_size)
    return report(dataset, buckets, trigger="ball", accumulate=accumulate)


def test_the_counts_are_those_of_the_folder(image_folder: Path) -> None:
    (image_folder / "0-red.txt").write_text("a red disc")
    (image_folder / "1-green.txt").unlink()
    (image_folder / "broken.png").write_bytes(b"x")
    found = made(image_folder)
    assert (found.images, found.captioned, found.triggered) == (6, 5, 4)
    assert [problem.kind for problem in found.problems] == ["no_caption", "unreadable"]


def test_steps_are_counted_by_bucket(image_folder: Path) -> None:
    # 3 squares, 2 wide, 1 tall in batches of 2: 2 + 1 + 1
    found = made(image_folder)
    assert sorted((row.images, row.batches) for row in found.buckets) == [(1, 1), (2, 1), (3, 2)]
    assert (found.batches_per_pass, found.steps_per_pass) == (4, 4)
    assert made(image_folder, accumulate=2).steps_per_pass == 2
    assert "4 steps (6 samples in 3 sizes)" in found.summary()[2]


def test_small_and_oblong_images_are_named(image_folder: Path) -> None:
    draw((400, 64), "red").save(image_folder / "0-red.png")
    problems = {problem.kind: problem.text for problem in made(image_folder).problems}
    assert problems["aspect"].startswith("0-red.png is too wide")
    sizes = [
        problem.text for problem in made(image_folder, resolution=128).problems if problem.kind == "too_small"
    ]
    assert len(sizes) == 6
    assert "3-orange.png is 64 x 64 pixels, smaller than its training size of 128 x 128" in sizes[3]


def test_a_good_dataset_loses_nothing(tmp_path: Path) -> None:
    draw((64, 64), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a ball")
    found = made(tmp_path)
    assert (found.problems, found.cropped) == ((), 0)
