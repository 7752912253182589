"""Plug-ins are found by name, without a list to keep."""

import sys
from pathlib import Path

import pytest

from sdlora.errors import ConfigError
from sdlora.registry import Registry


def test_a_file_dropped_into_the_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "plugs"
    package.mkdir()
    lines = ("from sdlora.registry import Registry", "PLUGS = Registry('plugs', 'plug')")
    (package / "__init__.py").write_text("\n".join(lines))
    (package / "flat.py").write_text("from plugs import PLUGS\n@PLUGS.register('flat')\nclass Flat: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    import plugs  # type: ignore[import-not-found]  # made above

    assert plugs.PLUGS.names() == ("flat",)
    assert plugs.PLUGS.get("flat").__name__ == "Flat"
    sys.modules.pop("plugs.flat"), sys.modules.pop("plugs")


def test_an_unknown_name_names_the_nearest() -> None:
    registry: Registry[type] = Registry("sdlora.data", "plug")
    registry._loaded = True
    registry.register("square")(int)
    with pytest.raises(ConfigError) as caught:
        registry.get("sqare")
    assert "sqare" in caught.value.message
    assert "square" in caught.value.hint


def test_two_plugins_of_one_name_are_a_programming_error() -> None:
    registry: Registry[type] = Registry("sdlora.data", "plug")
    registry.register("square")(int)
    with pytest.raises(ValueError, match="square"):
        registry.register("square")(str)
