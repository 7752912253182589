"""What is shown of foreign texts is text."""

import pytest

from sdlora.errors import AdapterError
from ui import adapter_card, markup
from ui.chart import loss_curve

NASTY = "<img src=x onerror=alert(1)>\"'"


@pytest.mark.parametrize(
    "made",
    [
        markup.note(NASTY, hint=NASTY),
        markup.failure(AdapterError(NASTY, NASTY)),
        markup.facts([(NASTY, NASTY)]),
        markup.empty(NASTY, NASTY),
        markup.chips([NASTY]),
        markup.code(NASTY, name=NASTY),
        markup.progress(NASTY, done=1, total=2),
        adapter_card.applied(
            [
                {
                    "name": NASTY,
                    "layers": {NASTY: 1},
                    "words": [NASTY],
                    "matched": 1,
                    "unmatched": 2,
                    "examples": [NASTY],
                }
            ]
        ),
    ],
)
def test_foreign_text_stays_text(made: str) -> None:
    assert "<img" not in made and "&lt;img" in made


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 bytes"), (999, "999 bytes"), (1_500, "1.5 kB"), (2_100_000_000, "2.1 GB")]
)
def test_sizes_read_as_people_say_them(count: int, words: str) -> None:
    assert markup.size(count) == words


@pytest.mark.parametrize(("seconds", "words"), [(12, "12 s"), (90, "1 min 30 s"), (7_800, "2 h 10 min")])
def test_durations_read_as_people_say_them(seconds: float, words: str) -> None:
    assert markup.duration(seconds) == words


@pytest.mark.parametrize(
    "losses", [[1.0, 1.0], [float("nan"), 0.5], [0.1, 1e9], [float("nan"), float("nan")], [0.0, 0.0]]
)
def test_any_losses_can_be_drawn(losses: list[float]) -> None:
    points = [(step, loss, loss) for step, loss in enumerate(losses, start=1)]
    assert loss_curve(points, steps=10, marks=[5]).startswith("<svg")
