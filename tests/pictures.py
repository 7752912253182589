"""Small drawn pictures with captions."""

from pathlib import Path

from PIL import Image, ImageDraw

SIZES = ((64, 64), (96, 64), (64, 96), (64, 64), (96, 64), (64, 64))
COLOURS = ("red", "green", "blue", "orange", "purple", "teal")


def draw(size: tuple[int, int], colour: str) -> Image.Image:
    """A disc of a colour on a light ground with a dark line, so that turning and mirroring show."""
    image = Image.new("RGB", size, "ivory")
    pen = ImageDraw.Draw(image)
    width, height = size
    pen.ellipse((width // 8, height // 8, width // 2, height // 2), fill=colour)
    pen.line((0, height - 4, width // 2, height - 4), fill="black", width=3)
    return image


def make_folder(folder: Path) -> Path:
    """`folder` holds six pictures of three shapes with a caption each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (size, colour) in enumerate(zip(SIZES, COLOURS, strict=True)):
        draw(size, colour).save(folder / f"{number}-{colour}.png")
        (folder / f"{number}-{colour}.txt").write_text(f"a {colour} ball, a black line", encoding="utf-8")
    return folder
