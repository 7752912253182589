"""What A1111 keeps beside an adapter: NAME.json with texts for a person, NAME.preview.png with a picture."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdlora.files import replacing, write_atomic

THUMBNAIL = 256  # pixels
_VERSIONS = {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL"}
_OURS = PngInfo()
_OURS.add_text("Software", "sdlora")


def read(path: Path) -> dict[str, object]:
    """The texts beside the adapter `path`; {} where there are none."""
    try:
        told = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def card(
    *, triggers: Sequence[str] | None, weight: float | None, description: str | None, family_name: str
) -> dict[str, object]:
    """The texts in A1111's words; what is None is left out."""
    told = {
        "description": description,
        "sd version": _VERSIONS.get(family_name, "Unknown"),
        "activation text": None if triggers is None else ", ".join(triggers),
        "preferred weight": weight,
    }
    return {name: value for name, value in told.items() if value is not None}


def write(
    path: Path,
    *,
    triggers: Sequence[str] | None = None,
    weight: float | None = None,
    description: str | None = None,
    family_name: str = "",
    picture: Image.Image | None = None,
) -> None:
    """The texts (and the picture) lie beside the adapter `path`; what is None stays, and texts of others too.

    `weight` 0 recommends none. Raises StorageError.
    """
    told = card(triggers=triggers, weight=weight, description=description, family_name=family_name)
    known = {"notes": "", "negative text": "", **read(path), **told}
    write_atomic(path.with_suffix(".json"), json.dumps(known, indent=4, ensure_ascii=False))
    if picture is not None:
        with replacing(path.with_suffix(".preview.png")) as temporary:
            picture.save(temporary, format="PNG")


def accompany(path: Path, *, card: Mapping[str, object], picture: Path | None) -> None:
    """The texts and the picture lie beside the adapter `path`, where none of that kind lies already.

    A picture that we laid there before is ours to replace. Raises StorageError.
    """
    texts, image = path.with_suffix(".json"), path.with_suffix(".preview.png")
    if not texts.exists():
        write_atomic(texts, json.dumps(card, indent=4, ensure_ascii=False))
    beside = preview(path)
    if picture is not None and (beside is None or (beside == image and _is_ours(image))):
        with Image.open(picture) as opened, replacing(image) as temporary:
            opened.save(temporary, format="PNG", pnginfo=_OURS)


def take_along(source: Path, target: Path) -> None:
    """What lies beside the adapter `source` lies beside its copy `target` too, as `accompany` has it."""
    picture = source.with_suffix(".preview.png")
    if card := read(source):
        accompany(target, card=card, picture=picture if picture.exists() else None)


def thumbnail(picture: Path) -> str:
    """The picture as ModelSpec keeps it in a header: a JPEG of at most 256 pixels a side, as a data URI."""
    held = io.BytesIO()
    with Image.open(picture) as opened:
        small = opened.convert("RGB")
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        small.save(held, format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(held.getvalue()).decode()}"


def preview(path: Path) -> Path | None:
    """The picture beside the adapter, None where there is none."""
    endings = (".preview.png", ".png", ".preview.jpg", ".jpg", ".jpeg", ".webp")
    return next((found for ending in endings if (found := path.with_suffix(ending)).exists()), None)


def _is_ours(image: Path) -> bool:
    try:
        with Image.open(image) as opened:
            return opened.info.get("Software") == "sdlora"
    except (OSError, ValueError, Image.DecompressionBombError):
        return False
