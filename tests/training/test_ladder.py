"""A step that does not fit gives things up one by one, and learns the same."""

from contextlib import nullcontext

import pytest
import torch

from sdlora import options
from sdlora.config import TrainConfig
from sdlora.training.ladder import Ladder
from sdlora.training.recompute import blocks, recomputed
from tests.conftest import TinyModel
from tests.training.test_step import example, made, run


def ladder(**values: object) -> Ladder:
    changes = {f"loop.{name}": value for name, value in values.items()}
    return Ladder(options.build(TrainConfig, changes).loop)


def test_memory_is_given_back_in_the_order_of_what_it_costs() -> None:
    it, said = ladder(batch_size=5), []
    while text := it.descend():
        said.append(text)
    assert [text.split(" ")[0] for text in said] == ["activations", "all"] + ["micro-batches"] * 3
    assert "of 3 images" in said[2] and "of 1 image," in said[4]


def test_what_was_given_up_before_is_not_given_up_again() -> None:
    assert ladder(batch_size=1, checkpointing=True).descend() == ""


@pytest.mark.parametrize("most", [1, 2, 3])
def test_parts_of_a_micro_batch_learn_what_it_learns(most: int) -> None:
    it, whole, parts = ladder(batch_size=5), made(), made()
    it._most = most
    step = example(3, count=5)._replace(weight=torch.tensor([1.0, 0.5, 2.0, 1.0, 0.25]))
    pieces = it.parted([step])
    assert max(len(piece.weight) for piece in pieces) == most
    assert run(whole, step) == pytest.approx(run(parts, *pieces), rel=1e-5)


def test_micro_batches_that_fit_stay_as_they_are() -> None:
    step = example(1, count=2)
    assert ladder(batch_size=2).parted([step, step]) == (step, step)


def test_less_is_kept_with_every_step_down(tiny_sdxl: TinyModel) -> None:
    unet, sizes = tiny_sdxl.family.unet, []
    noisy, states = torch.randn(1, 4, 8, 8, requires_grad=True), torch.randn(1, 77, 80)
    added = {"text_embeds": torch.randn(1, 40), "time_ids": torch.ones(1, 6)}
    outputs = []
    for parts in (None, "feed-forwards", "blocks"):
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        keeping = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with keeping, recomputed(unet, parts) if parts else nullcontext():
            output = unet(noisy, torch.tensor([5]), states, added_cond_kwargs=added).sample
        sizes.append(sum(kept.values()))
        outputs.append(torch.autograd.grad(output.square().sum(), noisy)[0])
    assert sizes[0] > sizes[1] > sizes[2]
    assert all(torch.equal(output, outputs[0]) for output in outputs)


def test_all_blocks_are_found(tiny_sdxl: TinyModel) -> None:
    # 70 transformer blocks in 11 places, and 2 resnets a block down, 3 up, 2 in the middle
    assert len(blocks(tiny_sdxl.family.unet, "feed-forwards")) == 70
    assert len(blocks(tiny_sdxl.family.unet)) == 70 + 3 * 2 + 2 + 3 * 3
