"""The loss of a run as a small SVG: raw values faint, their moving average bold, checkpoints as marks."""

import math
from collections.abc import Iterable, Sequence

Point = tuple[int, float, float]  # step, loss, smoothed loss

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 640, 240, 52, 26, 10, 12


def loss_curve(points: Sequence[Point], *, steps: int, marks: Iterable[int] = ()) -> str:
    """An SVG of the losses over `steps` steps with a tick at each step in `marks`."""
    if len(points) < 2:
        return '<p class="dim">The curve appears after the first steps.</p>'
    low, high = _range(points)
    across = (_WIDTH - _LEFT - _RIGHT) / max(steps, points[-1][0], 1)
    up = (_HEIGHT - _TOP - _BOTTOM) / (high - low)

    def place(step: float, loss: float) -> str:
        inside = min(max(loss, low), high)
        return f"{_LEFT + step * across:.1f},{_HEIGHT - _BOTTOM - (inside - low) * up:.1f}"

    raw = " ".join(place(step, loss) for step, loss, _ in points)
    smooth = " ".join(place(step, value) for step, _, value in points)
    grid = "".join(_grid_line(value, place(0, value)) for value in _ticks(low, high))
    ticks = "".join(_step_label(step, _LEFT + step * across) for step in _step_ticks(steps))
    saves = "".join(_mark(_LEFT + step * across) for step in marks)
    label = f"Loss by step, now {points[-1][2]:.4f} on average"
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        f'{grid}{ticks}{saves}<polyline class="raw" points="{raw}"/>'
        f'<polyline class="smooth" points="{smooth}"/></svg>'
    )


def _range(points: Sequence[Point]) -> tuple[float, float]:
    """What the axis spans: nearly all raw values, so that a single spike does not flatten the rest."""
    finite = sorted(loss for _, loss, _ in points if math.isfinite(loss)) or [0.0, 1.0]
    smooth = [value for _, _, value in points if math.isfinite(value)] or finite
    low = min(finite[len(finite) // 50], *smooth)
    high = max(finite[-1 - len(finite) // 50], *smooth)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return max(0.0, low - margin) if low >= 0 else low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step)
    return [index * step for index in range(first, math.floor(high / step) + 1)]


def _step_ticks(steps: int) -> list[int]:
    ticks = [round(tick) for tick in _ticks(0, max(steps, 1)) if tick == round(tick)]
    return ticks or [0, steps]


def _grid_line(value: float, place: str) -> str:
    y = place.split(",")[1]
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
        f'<text x="{_LEFT - 6}" y="{y}" text-anchor="end" dy="4">{value:.3g}</text>'
    )


def _mark(x: float) -> str:
    base = _HEIGHT - _BOTTOM
    return f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{base - 6}" y2="{base}"/>'


def _step_label(step: int, x: float) -> str:
    anchor = "end" if x > _WIDTH - _RIGHT - 14 else "middle"
    return f'<text x="{x:.1f}" y="{_HEIGHT - 8}" text-anchor="{anchor}">{step:,}</text>'
