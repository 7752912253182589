"""The library takes sound adapters, refuses the rest in words, and loses nothing."""

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from sdlora.adapters.lora import LoraSpec
from sdlora.config import TrainConfig
from sdlora.errors import AdapterError, UserError
from sdlora.network.attach import create
from sdlora.network.codec import save
from sdlora.network.info import AdapterInfo, inspect
from sdlora.options import build, to_toml
from sdlora.service import known
from sdlora.service.studio import Entry, Studio
from tests.conftest import TinyModel
from tests.network.test_stack import saved


@pytest.fixture
def upload(tmp_path: Path, tiny_sd1: TinyModel) -> Path:
    """An adapter that a person brings."""
    (tmp_path / "upload").mkdir()
    return saved(tiny_sd1.family, tmp_path / "upload" / "ink.safetensors")


def test_an_upload_is_in_the_list_with_what_it_is(studio: Studio, upload: Path) -> None:
    added = studio.library.add(upload)
    (listed,) = studio.library.adapters()
    assert listed == added and listed.info is not None
    assert (listed.name, listed.info.family, listed.info.ranks) == ("ink", "sd1", (4.0, 4.0))


def test_the_same_file_twice_is_kept_once_and_another_of_its_name_beside_it(
    studio: Studio, upload: Path, tiny_sd1: TinyModel
) -> None:
    studio.library.add(upload)
    studio.library.add(upload)
    saved(tiny_sd1.family, upload, seed=1)
    studio.library.add(upload)
    assert sorted(adapter.name for adapter in studio.library.adapters()) == ["ink", "ink-2"]


@pytest.mark.parametrize("name", ["old.ckpt", "old.pt"])
def test_a_pickle_is_refused_unopened(studio: Studio, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n")
    with pytest.raises(AdapterError, match="pickle"):
        studio.library.add(tmp_path / name)


def test_a_damaged_file_in_the_folder_says_so_and_hides_no_other(studio: Studio, upload: Path) -> None:
    studio.library.add(upload)
    (studio.home.adapters / "broken.safetensors").write_bytes(b"\xff" * 100)
    found = {adapter.name: adapter for adapter in studio.library.adapters()}
    assert found["ink"].info is not None
    assert found["broken"].info is None and found["broken"].error


def test_a_file_that_goes_while_the_others_are_read_is_not_in_the_list(
    studio: Studio, upload: Path, tiny_sd1: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.library.add(upload)
    saved(tiny_sd1.family, studio.home.adapters / "going.safetensors", seed=1)
    read = known.KnownFiles.of

    def slowly(files: known.KnownFiles, path: Path) -> known.Known:
        (studio.home.adapters / "going.safetensors").unlink(missing_ok=True)
        return read(files, path)

    monkeypatch.setattr(known.KnownFiles, "of", slowly)
    assert [adapter.name for adapter in studio.library.adapters()] == ["ink"]


def test_what_is_removed_lies_in_the_trash_with_its_sidecars(studio: Studio, upload: Path) -> None:
    added = studio.library.add(upload)
    added.path.with_suffix(".json").write_text("{}")
    place = studio.library.remove(added.path)
    assert studio.library.adapters() == ()
    assert sorted(path.name for path in place.iterdir()) == ["ink.json", "ink.safetensors"]


def test_an_adapter_that_another_program_removed_is_told(studio: Studio, upload: Path) -> None:
    path = studio.library.add(upload).path
    path.unlink()
    with pytest.raises(AdapterError, match="not there any more"):
        studio.library.adapter(path)


def test_a_file_outside_the_library_is_out_of_reach(studio: Studio, upload: Path) -> None:
    with pytest.raises(UserError, match="outside"):
        studio.library.adapter(upload)


def test_an_adapter_of_another_family_is_told_by_name(
    studio: Studio, tmp_path: Path, tiny_sdxl: TinyModel
) -> None:
    added = studio.library.add(saved(tiny_sdxl.family, tmp_path / "xl.safetensors"))
    told = studio.mismatch("builtin", added.path)
    assert "XL" in told and "Stable Diffusion 1" in told


def test_a_merge_needs_two_adapters_and_a_name(studio: Studio, upload: Path) -> None:
    added = studio.library.add(upload)
    with pytest.raises(AdapterError, match="nothing to merge"):
        studio.merge([Entry(added.path)], name="both")
    with pytest.raises(AdapterError, match="name"):
        studio.merge([Entry(added.path), Entry(added.path)], name="")


def test_texts_and_picture_are_side_cars_that_move_with_the_file(studio: Studio, upload: Path) -> None:
    path = studio.library.add(upload).path
    other = studio.library.add(saved_as(upload, "ink.v2")).path
    Image.new("RGB", (8, 8), "red").save(upload.with_suffix(".jpg"))
    studio.library.set_picture(path, upload.with_suffix(".jpg"))
    studio.library.describe(path, triggers=["zwx", "ink"], weight=0.7, notes="Not below 0.5.")
    renamed = studio.library.rename(path, "wash")
    assert renamed.info is not None and renamed.picture is not None
    assert (renamed.info.triggers, renamed.info.weight) == (("zwx", "ink"), 0.7)
    assert (renamed.notes, renamed.picture.name) == ("Not below 0.5.", "wash.preview.png")
    assert not path.exists() and other.exists()
    cleared = studio.library.describe(renamed.path, triggers=[], weight=0, notes="")
    assert cleared.info is not None and (cleared.info.triggers, cleared.info.weight) == ((), None)
    with pytest.raises(AdapterError, match="already, in "):
        studio.library.rename(renamed.path, "ink.v2")


def test_what_is_removed_comes_back_unless_its_name_is_taken(studio: Studio, upload: Path) -> None:
    added = studio.library.add(upload)
    studio.library.describe(added.path, triggers=["zwx"], weight=0, notes="")
    place = studio.library.remove(added.path)
    assert studio.library.removed() == (("ink", place),)
    studio.library.add(upload)
    with pytest.raises(AdapterError, match="already, in "):
        studio.library.bring_back(place)
    studio.library.rename(added.path, "wash")
    back = studio.library.bring_back(place)
    assert back.path == added.path and back.info is not None and back.info.triggers == ("zwx",)
    assert studio.library.removed() == ()


def test_files_with_the_same_weights_know_of_one_another(studio: Studio, upload: Path) -> None:
    first = studio.library.add(upload).path
    second = studio.library.add(saved_as(upload, "copy")).path
    assert studio.library.twins() == {first: ("copy",), second: ("ink",)}


def test_what_was_found_out_is_there_at_the_next_start(
    studio: Studio, upload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.library.add(upload)
    (studio.library.folder / "broken.safetensors").write_bytes(b"\xff" * 100)
    before = studio.library.adapters()
    read: list[Path] = []
    monkeypatch.setattr(known, "inspect", lambda path: read.append(path) or inspect(path))
    assert Studio(studio.home, device="cpu").library.adapters() == before and not read
    before[0].path.touch()
    assert len(Studio(studio.home, device="cpu").library.adapters()) == 2 and len(read) == 1
    (studio.home.cache / "adapters.json").write_text('{"reader": 1, "files": []}')
    assert len(Studio(studio.home, device="cpu").library.adapters()) == 2 and len(read) == 3


def test_requests_at_once_read_every_file_once(
    studio: Studio, upload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.library.folder.mkdir(parents=True)
    for name in ("ink", "wash", "line"):
        shutil.copy(upload, studio.library.folder / f"{name}.safetensors")
    read: list[Path] = []

    def slowly(path: Path) -> AdapterInfo:
        read.append(path)
        time.sleep(0.05)
        return inspect(path)

    monkeypatch.setattr(known, "inspect", slowly)
    with ThreadPoolExecutor(4) as pool:
        first, *others = [pool.submit(studio.library.adapters) for _ in range(4)]
        assert all(other.result() == first.result() for other in others)
    assert len(read) == len(first.result()) == 3


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no time of such a change")
def test_another_file_of_the_same_size_and_time_is_read_again(
    studio: Studio, upload: Path, tiny_sd1: TinyModel
) -> None:
    path, before = studio.library.add(upload).path, studio.library.adapters()[0].info
    times, other = path.stat(), saved(tiny_sd1.family, upload.with_name("other.safetensors"), seed=1)
    os.replace(other, path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = studio.library.adapters()[0].info
    assert before and after and (before.bytes, path.stat().st_mtime_ns) == (after.bytes, times.st_mtime_ns)
    assert before.hash != after.hash


def test_an_adapter_tells_the_folder_that_it_was_sorted_into(studio: Studio, upload: Path) -> None:
    library = studio.library
    (library.folder / "styles" / "ink").mkdir(parents=True)
    sorted_in = shutil.copy(upload, library.folder / "styles" / "ink" / "wash.safetensors")
    assert library.place(library.adapter(Path(sorted_in))) == "styles/ink"
    assert library.place(library.add(upload)) == ""


def test_what_a_run_made_and_its_copy_are_one_adapter(studio: Studio, upload: Path) -> None:
    """As after `sdlora train --output models/Lora/wash.safetensors` of a run that is called ink."""
    library, made = studio.library, studio.home.runs / "2026-ink" / "ink.safetensors"
    made.parent.mkdir(parents=True)
    shutil.copy(upload, made)
    (only,) = library.adapters()
    assert (only.run, only.fixed) == ("2026-ink", True)
    copy = library.add(saved_as(upload, "wash")).path
    (only,) = library.adapters()
    assert (only.path, only.run, only.fixed) == (copy, "2026-ink", False)
    assert library.twins() == {} and library.named("ink") == made and library.named("wash") == copy
    renamed = library.rename(copy, "spray")
    assert [adapter.name for adapter in library.adapters()] == ["spray"] and renamed.run == "2026-ink"
    place = library.remove(renamed.path)
    assert [adapter.path for adapter in library.adapters()] == [made]
    with pytest.raises(AdapterError, match="result of a run"):
        library.remove(made)
    library.bring_back(place)
    assert [adapter.name for adapter in library.adapters()] == ["spray"]


def test_an_adapter_builds_on_others_and_never_on_itself(
    studio: Studio, tmp_path: Path, tiny_sd1: TinyModel
) -> None:
    files = [saved(tiny_sd1.family, tmp_path / f"{name}.safetensors", seed=n) for n, name in enumerate("abc")]
    a, b, c = (studio.library.add(file).path for file in files)
    studio.library.set_parent(b, a)
    studio.library.set_parent(c, b)
    assert studio.library.lineage(c) == (a, b, c) and studio.library.lineage(a) == (a,)
    with pytest.raises(AdapterError, match="builds on a already"):
        studio.library.set_parent(a, c)
    studio.library.remove(b)
    with pytest.raises(AdapterError, match="not here"):
        studio.library.lineage(c)
    studio.library.set_parent(c, None)
    assert studio.library.lineage(c) == (c,)


def test_the_settings_that_made_an_adapter_come_from_the_file_alone(
    studio: Studio, tmp_path: Path, tiny_sd1: TinyModel, image_folder: Path
) -> None:
    network = create(tiny_sd1.family, LoraSpec(rank=2), seed=0)
    config = build(TrainConfig, {"data.folder": "pictures", "loop.steps": 77})
    written = save(
        tmp_path / "made.safetensors",
        network.adapters,
        family_name="sd1",
        metadata={"sdlora.config": to_toml(config)},
    )
    path = studio.library.add(written.path).path
    studio.datasets.register(str(image_folder))
    recipe = studio.recipe(path)
    assert recipe.loop.steps == 77 and Path(recipe.data.folder) == image_folder.resolve()
    with pytest.raises(AdapterError, match="does not say"):
        studio.recipe(studio.library.add(saved(tiny_sd1.family, tmp_path / "other.safetensors")).path)


def saved_as(file: Path, name: str) -> Path:
    """A copy of the file under another name."""
    return Path(shutil.copy(file, file.with_name(f"{name}.safetensors")))


def test_links_in_the_library_are_followed_and_hide_no_other(
    studio: Studio, upload: Path, tmp_path: Path, tiny_sd1: TinyModel
) -> None:
    studio.library.add(upload)
    elsewhere = tmp_path / "elsewhere" / "styles"
    elsewhere.mkdir(parents=True)
    saved(tiny_sd1.family, elsewhere / "oil.safetensors", seed=1)
    saved(tiny_sd1.family, elsewhere.parent / "pen.safetensors", seed=2)
    (studio.library.folder / "more").symlink_to(elsewhere)
    (studio.library.folder / "pen.safetensors").symlink_to(elsewhere.parent / "pen.safetensors")
    assert {adapter.name for adapter in studio.library.adapters()} == {"ink", "oil", "pen"}
    with pytest.raises(UserError):
        studio.library.adapter(upload)


def test_a_name_in_a_prompt_means_the_file_of_that_name_first(studio: Studio, upload: Path) -> None:
    first = studio.library.add(upload).path
    copy = shutil.copy(first, first.with_name("Other.safetensors"))
    assert [adapter.info and adapter.info.title for adapter in studio.library.adapters()] == ["ink", "ink"]
    assert studio.library.named("ink") == first
    assert studio.library.named("other") == copy


def test_no_name_is_given_that_a_prompt_could_take_for_another_adapter(
    studio: Studio, upload: Path, tiny_sd1: TinyModel
) -> None:
    library, result = studio.library, studio.home.runs / "2026-ink" / "Ink.safetensors"
    result.parent.mkdir(parents=True)
    saved(tiny_sd1.family, result, seed=1)
    added = library.add(upload)
    assert added.name == "ink-2"
    with pytest.raises(AdapterError, match="already, the result of the run 2026-ink"):
        library.rename(added.path, "ink")
    with pytest.raises(AdapterError, match="already, the result of the run 2026-ink"):
        library.output("INK")
    assert library.rename(added.path, "Ink-2").name == "Ink-2"
    assert library.add(saved_as(upload, "ink-2")).path.name == "Ink-2.safetensors"
    copy = library.add(result)
    assert (copy.name, library.named("Ink")) == ("Ink", copy.path)
    below = studio.home.adapters / "styles" / "Wash.safetensors"
    below.parent.mkdir()
    copy.path.rename(below)
    assert library.add(Path(shutil.copy(below, upload.with_name("wash.safetensors")))).path == below
