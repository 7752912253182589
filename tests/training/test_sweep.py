"""A sweep names every combination once, and what its runs differ in can be read from them."""

import pytest

from sdlora import options
from sdlora.config import TrainConfig
from sdlora.errors import ConfigError
from sdlora.training.sweep import asked, differences


def test_every_dataset_meets_every_combination() -> None:
    found = asked("ink", ["a/cats", "dogs"], {"loop.seed": ["1", "2"], "adapter.rank": ["4"]})
    names = ["cats-seed-1-rank-4", "cats-seed-2-rank-4", "dogs-seed-1-rank-4", "dogs-seed-2-rank-4"]
    assert list(found) == names
    assert found["dogs-seed-2-rank-4"] == {
        "data.folder": "dogs", "output.name": "dogs-seed-2-rank-4", "loop.seed": "2", "adapter.rank": "4",
    }  # fmt: skip
    assert list(asked("ink", ["cats"], {})) == ["ink"]


def test_each_dataset_has_its_own_trigger_word() -> None:
    found = asked("x", ["cats", "dogs"], {"adapter.rank": ["4", "8"]}, triggers=["minka", ""])
    assert [own["data.captions.trigger"] for own in found.values()] == ["minka", "minka", "", ""]
    told = differences([options.build(TrainConfig, own) for own in found.values()])
    assert [tuple(own) for own in told] == [("data.folder", "adapter.rank")] * 4
    with pytest.raises(ConfigError, match="3 trigger words are given"):
        asked("x", ["cats", "dogs"], {}, triggers=["minka", "rex", "bello"])


def test_two_runs_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="ink-rank-4"):
        asked("ink", ["cats"], {"adapter.rank": ["4", "4"]})


@pytest.mark.parametrize("swept", [("optimizer.lr", "adapter.rank"), ("adapter.rank", "optimizer.lr")])
def test_what_runs_differ_in_is_told_in_the_order_of_the_sweep(swept: tuple[str, str]) -> None:
    values = {"optimizer.lr": ["1e-3", "1e-4"], "adapter.rank": ["4", "8"]}
    runs = asked("ink", ["cats"], {path: values[path] for path in swept})
    found = differences([options.build(TrainConfig, own) for own in runs.values()])
    assert [tuple(own) for own in found] == [swept] * 4
    assert found[0] == {"optimizer.lr": 1e-3, "adapter.rank": 4}
    assert differences([TrainConfig()]) == ({},)
