"""The library takes sound adapters, refuses the rest in words, and loses nothing."""

from pathlib import Path

import pytest

from sdlora.errors import AdapterError, UserError
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


def test_what_is_removed_lies_in_the_trash_with_its_sidecars(studio: Studio, upload: Path) -> None:
    added = studio.library.add(upload)
    added.path.with_suffix(".json").write_text("{}")
    place = studio.library.remove(added.path)
    assert studio.library.adapters() == ()
    assert sorted(path.name for path in place.iterdir()) == ["ink.json", "ink.safetensors"]


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
