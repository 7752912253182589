"""Icons of the same subjects in several styles: fetched from npm, packed, rendered to textures.

In: the iconify packages of `SETS`. Out: `icons.json.xz` (the SVG texts, a few MB, all that a
training machine needs) and from it `textures.npy` with `textures.json`.
The one decision: a subject keeps one drawing. Names that differ from another only by gender,
direction, hour or lettering are left out, because a small model spends its weights on them and
a person asks for them by another name.
"""

import io
import json
import lzma
import re
import subprocess
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

PRETRAINING = ("noto", "fluent-emoji", "twemoji", "noto-v1")
"""The sets that the base learns from. No other set may enter its training."""
HELD_OUT = ("fluent-emoji-flat", "fluent-emoji-high-contrast", "openmoji")
"""Sets that only the judge of `benchmarks/quality` has seen."""
SETS = PRETRAINING + HELD_OUT
TEXTURE_SIZE = 160
"""Pixels a side of one rendered icon."""

_LEFT_OUT = re.compile(
    r"""
    (^|-)flag(s?)$ | ^flag- | -flag$
    | -(light|medium-light|medium|medium-dark|dark)-skin
    | ^(man|woman)-. | -facing-right | ^person-(with|in-m|bald|beard|white|red|blonde|curly|deaf)
    | -oclock$ | -thirty$ | ^keycap- | ^japanese-.*-button$ | -button(-blood-type)?$
    | ^input- | -arrow$ | -arrow- | ^(up|down|left|right)wards?- | -speech-bubble$
    | ^(no|non)- | ^circled-m$ | ^restroom$ | ^(mens|womens)-room$ | ^index-pointing
    | ^backhand- | ^(left|right)-facing | hand-with-index | ^mx-claus$ | ^pregnant-(man|person)
    | ^middle-finger$ | ^(trade-mark|registered|copyright|information|vibration-mode|antenna-bars)$
    | ^(aries|taurus|gemini|cancer|leo|virgo|libra|scorpio|sagittarius|capricorn|aquarius)$
    | ^(pisces|ophiuchus)$ | ^(black|white)-(small|medium|medium-small)-square$
    | ^(minus|plus|divide|multiply|wavy-dash|curly-loop|double-curly-loop)$
    """,
    re.VERBOSE,
)


@dataclass(frozen=True, kw_only=True)
class Textures:
    """Rendered icons: `pixels` [K,4,S,S] uint8 RGBA, alpha already multiplied in.

    `sets[i]` and `subjects[i]` name row i; `names` are the distinct subjects in order.
    """

    pixels: np.ndarray
    sets: tuple[str, ...]
    subjects: tuple[str, ...]
    names: tuple[str, ...]

    def rows(self, *sets: str) -> np.ndarray:
        """Row numbers of the icons of these sets."""
        return np.array([i for i, name in enumerate(self.sets) if name in sets], dtype=np.int64)


def wanted(name: str) -> bool:
    """True for a subject that the base is taught."""
    return _LEFT_OUT.search(name) is None


def fetch(work: Path) -> Path:
    """`work/icons.json.xz` exists, downloaded with npm if it was missing: {set: {subject: svg}}."""
    packed = work / "icons.json.xz"
    if packed.exists():
        return packed
    downloads = work / "npm"
    downloads.mkdir(parents=True, exist_ok=True)
    icons = {prefix: _read_package(_download(prefix, downloads)) for prefix in SETS}
    names = [name for name in icons["fluent-emoji-flat"] if wanted(name)]
    kept = {p: {n: icons[p][n] for n in names if n in icons[p]} for p in SETS}
    names = [n for n in names if sum(n in kept[p] for p in PRETRAINING) >= 3]
    kept = {p: {n: kept[p][n] for n in names if n in kept[p]} for p in SETS}
    packed.write_bytes(lzma.compress(json.dumps(kept).encode()))
    return packed


def render(work: Path, size: int = TEXTURE_SIZE) -> Textures:
    """Every icon of `icons.json.xz` drawn once and kept in `work/textures.npy`."""
    pixels, index = work / "textures.npy", work / "textures.json"
    if not index.exists():
        icons = json.loads(lzma.decompress((work / "icons.json.xz").read_bytes()))
        rows = [(p, name, svg) for p, drawings in icons.items() for name, svg in drawings.items()]
        with ProcessPoolExecutor() as pool:
            drawn = list(pool.map(_draw, (r[2] for r in rows), [size] * len(rows), chunksize=32))
        np.save(pixels, np.stack(drawn))
        index.write_text(json.dumps([(p, name) for p, name, _ in rows]))
    pairs = json.loads(index.read_text())
    sets, subjects = zip(*pairs, strict=True)
    names = tuple(dict.fromkeys(subjects))
    return Textures(pixels=np.load(pixels), sets=sets, subjects=subjects, names=names)


def draw(svg: str, size: int) -> Image.Image:
    """The SVG text as an RGBA picture of `size` x `size` pixels."""
    import resvg_py

    data = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size)
    return Image.open(io.BytesIO(bytes(data))).convert("RGBA").resize((size, size))


def premultiplied(picture: Image.Image) -> np.ndarray:
    """[4,S,S] uint8, colours multiplied by alpha so that scaling leaves no dark rim."""
    rgba = np.asarray(picture, dtype=np.float32)
    rgba[..., :3] *= rgba[..., 3:] / 255
    return rgba.round().astype(np.uint8).transpose(2, 0, 1)


def _draw(svg: str, size: int) -> np.ndarray:
    return premultiplied(draw(svg, size))


def _download(prefix: str, folder: Path) -> Path:
    found = sorted(folder.glob(f"iconify-json-{prefix}-[0-9]*.tgz"))
    if not found:
        package = f"@iconify-json/{prefix}"
        subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True)
        found = sorted(folder.glob(f"iconify-json-{prefix}-[0-9]*.tgz"))
    return found[-1]


def _read_package(package: Path) -> dict[str, str]:
    with tarfile.open(package) as archive:
        member = archive.extractfile("package/icons.json")
        assert member is not None
        return dict(_svgs(json.load(member)))


def _svgs(collection: dict) -> Iterator[tuple[str, str]]:
    """(subject, whole SVG text) of each icon and alias of an iconify collection."""
    icons = collection["icons"]
    aliases = {a: icons.get(v["parent"]) for a, v in collection.get("aliases", {}).items()}
    for name, icon in {**aliases, **icons}.items():
        if icon is None:
            continue
        width = icon.get("width", collection.get("width", 16))
        height = icon.get("height", collection.get("height", 16))
        yield (
            name,
            (
                '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="0 0 {width} {height}">{icon["body"].replace("currentColor", "#212121")}</svg>'
            ),
        )
