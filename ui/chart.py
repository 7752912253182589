"""The loss of a run as a small SVG: raw values faint, their moving average bold, checkpoints as marks."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

Point = tuple[int, float, float]  # step, loss, smoothed loss

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 640, 240, 52, 26, 10, 12
_COLOURS = 6


def loss_curve(points: Sequence[Point], *, steps: int, marks: Iterable[int] = ()) -> str:
    """An SVG of the losses over `steps` steps with a tick at each step in `marks`."""
    if len(points) < 2:
        return '<p class="dim">The curve appears after two steps.</p>'
    last = max(steps, points[-1][0], 1)
    place, axes = _axes(*_range(points), steps=last)
    raw = " ".join(place(step, loss) for step, loss, _ in points)
    smooth = " ".join(place(step, value) for step, _, value in points)
    saves = "".join(_mark(_across(step, last)) for step in marks)
    lines = f'{saves}<polyline class="raw" points="{raw}"/><polyline class="smooth" points="{smooth}"/>'
    return _svg(axes + lines, f"Loss by step, now {points[-1][2]:.4f} on average")


def loss_curves(curves: Mapping[str, Sequence[Point]], *, steps: int) -> str:
    """An SVG of the smoothed losses of several runs over `steps` steps, and which colour is whose."""
    drawn = {name: points for name, points in curves.items() if len(points) > 1}
    if not drawn:
        return '<p class="dim">The losses appear after the first steps.</p>'
    smooth = [(step, value, value) for points in drawn.values() for step, _, value in points]
    place, axes = _axes(*_range(smooth), steps=max(steps, 1))
    lines, names = "", ""
    for number, (name, points) in enumerate(drawn.items()):
        colour = f"c{number % _COLOURS}"
        line = " ".join(place(step, value) for step, _, value in points)
        lines += f'<polyline class="smooth {colour}" points="{line}"/>'
        names += f'<li class="{colour}"><i aria-hidden="true"></i>{escape(name)}: {points[-1][2]:.4f}</li>'
    chart = _svg(axes + lines, f"Smoothed losses of {len(drawn)} runs by step")
    return f'{chart}<ul class="legend" aria-label="Smoothed loss now">{names}</ul>'


def _svg(inside: str, label: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{inside}</svg>'
    )


def _axes(low: float, high: float, *, steps: int) -> tuple[Callable[[float, float], str], str]:
    """Where a step's loss is drawn, and the axes."""
    up = (_HEIGHT - _TOP - _BOTTOM) / (high - low)

    def place(step: float, loss: float) -> str:
        inside = min(max(loss, low), high)
        return f"{_across(step, steps):.1f},{_HEIGHT - _BOTTOM - (inside - low) * up:.1f}"

    grid = "".join(_grid_line(value, place(0, value)) for value in _ticks(low, high))
    ticks = "".join(_step_label(step, _across(step, steps)) for step in _step_ticks(steps))
    return place, grid + ticks


def _across(step: float, steps: int) -> float:
    return _LEFT + step * (_WIDTH - _LEFT - _RIGHT) / steps


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
