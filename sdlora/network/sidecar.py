"""What A1111 keeps beside an adapter: NAME.json with texts for a person, NAME.preview.png with a picture."""

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from sdlora.files import replacing, write_atomic


def read(path: Path) -> dict[str, object]:
    """The texts beside the adapter `path`; {} where there are none."""
    try:
        card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return card if isinstance(card, dict) else {}


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
    versions = {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL"}
    told = {
        "description": description,
        "sd version": versions.get(family_name, "Unknown"),
        "activation text": None if triggers is None else ", ".join(triggers),
        "preferred weight": weight,
    }
    card = {
        "notes": "",
        "negative text": "",
        **read(path),
        **{k: v for k, v in told.items() if v is not None},
    }
    write_atomic(path.with_suffix(".json"), json.dumps(card, indent=4, ensure_ascii=False))
    if picture is not None:
        with replacing(path.with_suffix(".preview.png")) as temporary:
            picture.save(temporary, format="PNG")


def preview(path: Path) -> Path | None:
    """The picture beside the adapter, None where there is none."""
    endings = (".preview.png", ".png", ".preview.jpg", ".jpg", ".jpeg", ".webp")
    return next((found for ending in endings if (found := path.with_suffix(ending)).exists()), None)
