"""Memory is counted before the start: just what autograd keeps, and within a tenth what a GPU then takes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.memory import fit
from sdlora import options
from sdlora.adapters import SPECS
from sdlora.config import TrainConfig
from sdlora.contracts import Conditioning, Step, Tokens
from sdlora.loading import describe
from sdlora.network.attach import attached, create
from sdlora.training import memory
from sdlora.training.estimate import gigabytes, plan_of, verdict
from sdlora.training.memory import Setting, count, needed
from tests.conftest import TinyModel
from tests.training.conftest import MakeRun

SIDE = 64


def setting(**values: object) -> Setting:
    """A small run; `values` are options of the adapter, or fields of the setting."""
    own = {name: value for name, value in values.items() if name in Setting.__dataclass_fields__}
    chosen = {f"adapter.{name}": value for name, value in values.items() if name not in own}
    config = options.build(TrainConfig, {"adapter.text_encoder": False, **chosen})
    known = {"adapter": config.adapter, "objective": config.objective, "dtype": torch.float32, "side": SIDE}
    return Setting(**{**known, **own})


def really_kept(tiny: TinyModel, wanted: Setting) -> int:
    """Bytes that autograd keeps of a real forward pass on the CPU."""
    family = tiny.family
    network = create(family, wanted.adapter, seed=0)
    owned = [*network.parameters(), *network.buffers()]
    owned += [part for each in family.networks.values() for part in (*each.parameters(), *each.buffers())]
    known = {part.untyped_storage()._cdata: part for part in owned}
    found: dict[int, Tensor] = {}

    def keep(part: Tensor) -> Tensor:
        place = part.untyped_storage()._cdata
        if place not in known:
            found.setdefault(place, part)
        return part

    with attached(family, network), saved_tensors_hooks(keep, lambda part: part):
        wanted.objective.loss(family, _step(tiny, wanted))
    return sum(part.untyped_storage().nbytes() for part in found.values())


def _step(tiny: TinyModel, wanted: Setting) -> Step:
    latents = torch.zeros(wanted.batch, 4, SIDE // 8, SIDE // 8)
    ids = torch.zeros(wanted.batch, 1, 77, dtype=torch.int64)
    with torch.set_grad_enabled(wanted.adapter.text_encoder):
        states = tiny.family.encode_text(Tokens(ids)).states
    timesteps, weight = torch.zeros(wanted.batch, dtype=torch.int64), torch.ones(wanted.batch)
    return Step(latents, latents, timesteps, None, Conditioning(states), None, weight, None)


@pytest.mark.parametrize(
    "values", [{"rank": 4}, {"rank": 8, "batch": 3}, {"kind": "loha", "rank": 4}], ids=str
)
def test_what_is_counted_is_what_autograd_keeps(tiny_sd1: TinyModel, values: dict[str, Any]) -> None:
    wanted = setting(**values)
    counted = count(describe(str(tiny_sd1.folder)), wanted)
    assert counted.kept == pytest.approx(really_kept(tiny_sd1, wanted), rel=0.02)


def test_weights_and_all_that_learns_are_counted_to_the_byte(tiny_sd1: TinyModel) -> None:
    wanted = setting(rank=4, text_encoder=True, averaged=True)
    counted = count(describe(str(tiny_sd1.folder)), wanted)
    networks = tiny_sd1.family.networks

    def size(*names: str) -> int:
        tensors = [
            part for name in names for part in (*networks[name].parameters(), *networks[name].buffers())
        ]
        return sum(part.numel() * part.element_size() for part in tensors)

    assert counted.held == size("unet", "text_encoder") and counted.vae == counted.waiting == size("vae")
    network = create(tiny_sd1.family, wanted.adapter, seed=0)
    # value, gradient, two moments and the average
    assert counted.learned == 5 * 4 * sum(part.numel() for part in network.parameters())


@pytest.mark.parametrize("kind", [name for name in SPECS.names() if name != "bias"])
def test_every_kind_of_adapter_is_counted(tiny_sd1: TinyModel, kind: str) -> None:
    assert count(describe(str(tiny_sd1.folder)), setting(kind=kind)).kept > 0


@pytest.mark.parametrize(
    "change",
    [
        lambda one: replace(one, checkpointing=True),
        lambda one: replace(one, storage="fp8"),
        lambda one: replace(one, storage="nf4"),
        lambda one: replace(one, offload=True),
        lambda one: replace(one, dtype=torch.bfloat16),
        lambda one: replace(one, fused=True),
        lambda one: replace(one, previews=False),
    ],
)
def test_what_should_need_less_is_counted_with_less(
    tiny_sd1: TinyModel, change: Callable[[Setting], Setting]
) -> None:
    info, much = describe(str(tiny_sd1.folder)), setting(batch=4)
    assert needed(info, change(much), on_gpu=True) < needed(info, much, on_gpu=True)


def test_points_that_were_not_fitted_are_met_within_a_tenth() -> None:
    found = list(fit.samples(fit.held_out(fit.points())))
    errors = {one.point: one.error(memory.KEPT, memory.INSIDE, memory.WORKSPACE) for one in found}
    assert len(errors) > 5 and {point: error for point, error in errors.items() if abs(error) > 0.1} == {}


def test_the_constants_are_those_of_the_fit() -> None:
    encoded, decoded = (fit.pixels(fit.MEASURED, part) for part in ("encode", "draw"))
    assert encoded == pytest.approx(memory.PIXEL_ENCODED, rel=0.01)
    assert decoded == pytest.approx(memory.PIXEL_DECODED, rel=0.01)


def test_a_verdict_tells_what_would_fit(make_run: MakeRun) -> None:
    config = make_run(loop__batch_size=8, data__resolution=128, preview__every=-1).config
    needs = plan_of(config).memory_bytes
    assert verdict(config, needs, total=2 * needs, free=2 * needs).fit == "fits"
    tight = verdict(config, needs, total=2 * needs, free=needs - 1)
    assert tight.fit == "tight" and 1 <= len(tight.ways) <= 3
    assert "gradient checkpointing" in tight.hint and tight.hint.startswith("What fits")
    for way in tight.ways:
        changed = options.build(TrainConfig, {**options.flatten(config), **way.values})
        assert plan_of(changed).memory_bytes == way.memory_bytes < needs
    assert verdict(config, needs, total=needs, free=needs).fit == "too big"
    assert gigabytes(needs) in tight.text
