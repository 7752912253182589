"""Adapters trained on a base whose weights are kept in fewer bits are those of a base that holds the unpacked
weights, whatever their kind; the run says so and holds on to it.
"""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdlora import options
from sdlora.adapters import SPECS
from sdlora.base import stored
from sdlora.base.stored import Stored, store
from sdlora.config import TrainConfig
from sdlora.contracts import Conditioning
from sdlora.errors import RunError
from sdlora.events import PreviewSaved, StepDone
from sdlora.files import write_atomic
from sdlora.network.attach import attached, create
from sdlora.network.container import Container
from sdlora.training.loop import train
from sdlora.training.run import Run
from tests.conftest import TinyModel
from tests.training.conftest import MakeRun


@pytest.fixture(autouse=True)
def tiny_layers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "SMALLEST", 1024)


def rounded(model: Path, copy: Path, storage: str) -> Path:
    """A copy of the model whose UNet and text encoder hold their weights as `storage` gives them back."""
    shutil.copytree(model, copy)
    for file in (*copy.glob("unet/*.safetensors"), *copy.glob("text_encoder/*.safetensors")):
        tensors = load_file(file)
        for name, tensor in tensors.items():
            # linear layers and convolutions, no embeddings
            if (
                name.endswith(".weight")
                and tensor.ndim > 1
                and "embeddings." not in name
                and tensor.numel() >= 1024
            ):
                packing = stored.PACKINGS[storage]
                tensors[name] = packing.unpack(packing.pack(tensor), tensor.shape, tensor.dtype)
        save_file(tensors, file, metadata={"format": "pt"})
    return copy


def learned(run: Run) -> list[float]:
    """The losses of the run's steps."""
    train(run)
    return [event.loss for event in run.events()[0] if isinstance(event, StepDone)]


def test_a_run_on_packed_weights_is_that_on_the_unpacked_ones(
    make_run: MakeRun, tiny_sd1: TinyModel, tmp_path: Path
) -> None:
    base = rounded(tiny_sd1.folder, tmp_path / "rounded", "nf4")
    ours, theirs = (
        make_run(base__storage="nf4", loop__steps=2),
        make_run(base__model=str(base), loop__steps=2),
    )
    losses, expected = learned(ours), learned(theirs)
    # not to the bit: a CPU's sums depend on where in memory a weight begins, and the file of one decides that
    assert losses == pytest.approx(expected, rel=1e-5) and len(losses) == 2


@pytest.mark.parametrize("kind", SPECS.names())
def test_every_kind_learns_from_packed_weights(tiny_sd1: TinyModel, kind: str) -> None:
    packed, plain = (copy.deepcopy(tiny_sd1.family) for _ in range(2))
    store(packed.unet, "fp8", device=packed.device)
    for path, layer in packed.unet.named_modules():
        if isinstance(layer, Stored):
            plain.unet.get_submodule(path).weight.data = layer.weight
    values = {"adapter.kind": kind, "adapter.text_encoder": False}
    values |= {"adapter.targets": "to_out"} if kind == "bias" else {}
    spec = options.build(TrainConfig, values).adapter
    results = []
    for family in (packed, plain):
        network = create(family, spec, seed=1)
        noisy, states = (torch.randn(shape, generator=seeded(2)) for shape in ((1, 4, 8, 8), (1, 77, 32)))
        before = family.predict(noisy, torch.tensor([500]), Conditioning(states))
        with attached(family, network):
            output = family.predict(noisy, torch.tensor([500]), Conditioning(states))
            results.append([output, *torch.autograd.grad(output.square().mean(), list(network.parameters()))])
        assert torch.allclose(before, output, atol=1e-5)  # a new adapter changes nothing
    # on a plain layer LoRA's products are joined, which moves their last bits
    off = 1e-5 if kind == "lora" else 0.0
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, rtol=off, atol=off)


def test_a_packed_base_draws_previews_and_is_named_in_the_file(make_run: MakeRun) -> None:
    run = make_run(base__storage="fp8", preview__every=100, preview__prompts=("a cat",), loop__steps=1)
    train(run)
    assert [event.step for event in run.events()[0] if isinstance(event, PreviewSaved)] == [0, 1]
    assert Container.open(run.adapter).metadata["sdlora.base_storage"] == "fp8"


def test_a_run_goes_on_only_with_the_weights_it_began_on(make_run: MakeRun) -> None:
    run = make_run(base__storage="fp8", loop__steps=2)
    train(run)
    values = {**options.flatten(run.config), "base.storage": "full", "loop.steps": 4}
    write_atomic(run.path / "config.toml", options.to_toml(options.build(TrainConfig, values)))
    with pytest.raises(RunError, match=r"base.storage was 'fp8' and is 'full'"):
        train(run)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
