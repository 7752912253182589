"""Models and adapters of every folder are listed, and what is new goes to our own."""

import shutil
from pathlib import Path

import pytest

from sdlora.errors import AdapterError
from sdlora.service.library import Library
from sdlora.service.models import Models
from sdlora.service.studio import Studio
from tests.conftest import TinyModel
from tests.network.test_stack import saved


@pytest.fixture
def models(tmp_path: Path, tiny_sd1: TinyModel) -> Models:
    """Our folder, which is missing yet, and another tool's with a model in a sub-folder."""
    shutil.copytree(tiny_sd1.folder, tmp_path / "webui" / "anime" / "cartoon")
    return Models([tmp_path / "own", tmp_path / "webui"])


def test_models_of_all_folders_are_listed_once_each(models: Models, tmp_path: Path) -> None:
    place = (tmp_path / "webui" / "anime" / "cartoon").as_posix()
    assert models.names() == (("Built-in", "builtin"), ("anime/cartoon", place))
    assert models.describe("cartoon").path == models.describe(place).path == Path(place)


def test_a_new_model_goes_to_our_own_folder(models: Models, tmp_path: Path) -> None:
    assert models.output("mine").parent == tmp_path / "own"


def test_adapters_of_other_tools_are_listed_and_left_to_them(
    studio: Studio, tiny_sd1: TinyModel, tmp_path: Path
) -> None:
    (tmp_path / "webui").mkdir()
    upload = saved(tiny_sd1.family, tmp_path / "webui" / "ink.safetensors")
    folders, kept = [studio.home.adapters, upload.parent], studio.home.cache / "adapters.json"
    library = Library(folders, runs=studio.home.runs, trash=studio.trash, kept=kept)
    added = library.add(upload)
    assert added.path.parent == studio.home.adapters
    assert {adapter.path for adapter in library.adapters()} == {added.path, upload}
    with pytest.raises(AdapterError, match="another tool's folder"):
        library.remove(upload)
    with pytest.raises(AdapterError, match="another tool's folder"):
        library.rename(upload, "mine")
    assert library.remove(added.path) and upload.exists()
