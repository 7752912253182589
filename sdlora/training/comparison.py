"""Runs side by side: the last previews of each as a row of one picture."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from sdlora.events import PreviewSaved, StepDone
from sdlora.training.run import Run

_LABEL = 22  # pixels above a row
_GAP = 6
_LAST = 50  # steps whose mean loss is told


def comparison(runs: Sequence[Run]) -> Image.Image | None:
    """A row of last previews for every run, with its name and loss above; None when there are no previews."""
    rows = {_title(run): pictures for run in runs if (pictures := _last_previews(run))}
    if not rows:
        return None
    width = max(sum(picture.width + _GAP for picture in row) for row in rows.values())
    heights = [_LABEL + max(picture.height for picture in row) + _GAP for row in rows.values()]
    sheet = Image.new("RGB", (width + _GAP, sum(heights)), "white")
    draw, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(14), 0
    for (name, row), height in zip(rows.items(), heights, strict=True):
        draw.text((_GAP, top + 3), name, fill="black", font=font)
        left = _GAP
        for picture in row:
            sheet.paste(picture, (left, top + _LABEL))
            left += picture.width + _GAP
        top += height
    return sheet


def _title(run: Run) -> str:
    """The run's name, and the mean loss of its last steps."""
    losses = [event.loss for event in run.events()[0] if isinstance(event, StepDone)][-_LAST:]
    return f"{run.path.name}, loss {sum(losses) / len(losses):.4f}" if losses else run.path.name


def _last_previews(run: Run) -> Sequence[Image.Image]:
    last: dict[int, str] = {}
    for event in run.events()[0]:
        if isinstance(event, PreviewSaved):
            last[event.index] = event.file
    files = [run.path / last[index] for index in sorted(last)]
    return [Image.open(file).convert("RGB") for file in files if file.exists()]
