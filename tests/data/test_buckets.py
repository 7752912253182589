import math
import random
from pathlib import Path

import pytest

from sdlora.data.batches import pass_order
from sdlora.data.buckets import Bucket, BucketPlan, buckets, cropped, nearest, plan
from sdlora.data.items import Item
from sdlora.errors import DatasetError


def item(name: str, width: int, height: int, repeats: int = 1) -> Item:
    return Item(
        path=Path(name), name=name, caption="", width=width, height=height, repeats=repeats, sha256=name
    )


def random_plan(chance: random.Random) -> BucketPlan:
    items = [
        item(f"{n}.png", chance.randrange(16, 4000), chance.randrange(16, 4000), chance.choice((1, 1, 2, 10)))
        for n in range(chance.randrange(1, 40))
    ]
    return plan(
        items,
        resolution=chance.choice((64, 128, 500, 512, 768, 1024)),
        step=chance.choice((8, 32, 64)),
        max_aspect=chance.choice((1.0, 1.5, 2.0, 4.0)),
        batch_size=chance.randrange(1, 9),
    )


def test_stable_diffusions_buckets() -> None:
    assert buckets(512, step=64, max_aspect=2) == (
        *(Bucket(384, 640), Bucket(448, 576), Bucket(512, 512), Bucket(576, 448), Bucket(640, 384)),
    )


@pytest.mark.parametrize("resolution", [64, 100, 128, 500, 512, 640, 768, 1000, 1024, 2048])
@pytest.mark.parametrize("step", [8, 16, 48, 64, 256])
@pytest.mark.parametrize("max_aspect", [1.0, 1.3, 2.0, 8.0])
def test_buckets_keep_area_step_and_aspect(resolution: int, step: int, max_aspect: float) -> None:
    found = buckets(resolution, step=step, max_aspect=max_aspect)
    assert any(bucket.width == bucket.height for bucket in found)
    for bucket in found:
        assert bucket.width * bucket.height <= resolution**2
        assert max(bucket.aspect, 1 / bucket.aspect) <= max_aspect
        assert bucket.width % 8 == bucket.height % 8 == 0
        assert Bucket(bucket.height, bucket.width) in found


def test_an_image_of_a_buckets_shape_is_not_cropped() -> None:
    found = buckets(1024, step=64, max_aspect=2)
    for bucket in found:
        assert cropped(bucket.width * 3, bucket.height * 3, nearest(*bucket, found)) == pytest.approx(0)


def test_no_image_is_dropped_and_steps_are_exact() -> None:
    chance = random.Random(0)
    for _ in range(100):
        made = random_plan(chance)
        batches = pass_order(made, seed=3, number_of_pass=chance.randrange(5))
        assert len(batches) == made.batches_per_pass
        assert len(batches) == sum(math.ceil(n / made.batch_size) for n in made.samples.values())
        assert sum(made.samples.values()) == sum(one.repeats for one in made.items)
        weights = dict.fromkeys((one.name for one in made.items), 0.0)
        for bucket, draws in batches:
            assert len(draws) == made.batch_size
            for draw in draws:
                assert made.bucket_of[made.items.index(draw.item)] == bucket
                weights[draw.item.name] += draw.weight
        assert weights == pytest.approx({one.name: one.repeats for one in made.items})


def test_no_draw_of_a_pass_repeats_another() -> None:
    chance = random.Random(1)
    for _ in range(50):
        batches = pass_order(random_plan(chance), seed=0, number_of_pass=0)
        draws = [(draw.item.name, draw.copy) for _, batch in batches for draw in batch]
        assert len(draws) == len(set(draws))


def test_every_pass_has_an_order_of_its_own() -> None:
    made = plan(
        [item(f"{n}.png", 64, 64) for n in range(20)], resolution=64, step=8, max_aspect=1, batch_size=2
    )
    orders = {str(pass_order(made, seed=0, number_of_pass=number)) for number in range(5)}
    assert len(orders) == 5


def test_no_images_are_an_error() -> None:
    with pytest.raises(DatasetError):
        plan([], resolution=512, step=64, max_aspect=2, batch_size=1)
