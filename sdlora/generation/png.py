"""What a picture says of itself: A1111's `parameters` text for every tool, and our exact request as JSON.

A file holds the request of its one picture. Adapters are named by name and hash, never by a path: the file
is handed to strangers. Reading trusts nothing: what is not understood becomes a note.
"""

import base64
import binascii
import dataclasses
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, PngImagePlugin

from sdlora import __version__
from sdlora.errors import AdapterError, ConfigError, SdloraError, UserError
from sdlora.files import replacing
from sdlora.generation.prompt import Tag, adapters_in, extract_tags, write_tag
from sdlora.generation.request import GenerateRequest, entry_tag, request_object, weights_told
from sdlora.generation.solvers import SOLVERS
from sdlora.network.change import grey
from sdlora.network.codec import AdapterFile
from sdlora.network.info import short_hash
from sdlora.network.stack import Entry

KeepMask = Callable[[str, bytes], Path]
"""Makes a file of the name and content of a mask in a picture. Raises AdapterError for a bad one."""

_TEXT_LIMIT = 1 << 20  # as much as Pillow reads
_PAIR = re.compile(r'([A-Za-z][\w /+-]*):\s*("(?:\\.|[^"\\])*"|[^,]*)(?:,\s*|$)')
_UNTOLD = {"Version", "RNG", "Model hash", "Lora hashes", "Schedule type", "Model"}


@dataclass(frozen=True)
class Restored:
    """A request read from a picture, and sentences on what could not be restored."""

    request: GenerateRequest
    notes: tuple[str, ...] = ()


def picture_request(request: GenerateRequest, index: int) -> GenerateRequest:
    """The request that makes only picture number `index` of `request`."""
    return dataclasses.replace(request, seed=request.seed + index, count=1)


def save_png(path: Path, picture: Image.Image, request: GenerateRequest, *, model_hash: str = "") -> None:
    """`path` holds the picture with the request that makes it. Raises StorageError when it cannot."""
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", parameters(request, picture.size, model_hash=model_hash))
    info.add_text("sdlora", _exact(request))
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=info)


def parameters(request: GenerateRequest, size: tuple[int, int], *, model_hash: str = "") -> str:
    """The request as A1111 writes it under a picture; `size` is (width, height) in pixels."""
    tags = [write_tag(entry) for entry in request.stack]
    sampler, karras = re.subn(" Karras$", "", request.solver)
    hashes = {name: digest for name, digest in map(_named, request.stack) if digest}
    pairs = {
        "Steps": request.steps,
        "Sampler": sampler,
        "Schedule type": "Karras" if karras else None,
        "CFG scale": request.guidance,
        "Seed": request.seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model hash": model_hash[:10] or None,
        "Model": Path(request.base).stem,
        "Clip skip": request.clip_skip if request.clip_skip > 1 else None,
        "RNG": "CPU",
        "Lora hashes": ", ".join(f"{name}: {digest}" for name, digest in hashes.items()) or None,
        "Version": f"sdlora {__version__}",
    }
    lines = [" ".join(filter(None, [request.prompt, *tags]))]
    if request.negative:
        lines.append(f"Negative prompt: {request.negative}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in pairs.items() if value is not None))
    return "\n".join(lines)


def read_png(path: Path, *, folders: Iterable[Path] = (), keep_mask: KeepMask | None = None) -> Restored:
    """The request that a picture holds; adapters are looked up in the folders by name and hash.

    Masks become files by `keep_mask`; without it, and in A1111's text, they are left out with a note.
    Raises UserError when the file is no picture, or says nothing of how it was made.
    """
    try:
        with Image.open(path) as picture:
            texts = {key: text for key, text in picture.info.items() if isinstance(text, str)}
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path.name} cannot be read as a picture.", "Choose a PNG file.") from error
    library = _Library(folders)
    if exact := texts.get("sdlora", ""):
        try:
            return _from_exact(exact, library, keep_mask)
        except ConfigError:
            pass  # damaged, or of a newer version: the other text may still do
    if plain := texts.get("parameters", ""):
        return _from_parameters(plain, library)
    raise UserError(
        f"{path.name} does not say how it was made.",
        "Take the PNG file itself, not a copy from a chat or website.",
    )


def read_parameters(text: str, *, folders: Iterable[Path] = ()) -> Restored:
    """The request that A1111's text means, foreign tools' included.

    Raises UserError when there are no settings in it.
    """
    if not _split(text)[2] and "Negative prompt:" not in text:
        raise UserError(
            "These are no settings: a line such as Steps: 20, Sampler: Euler, Seed: 1 is missing.",
            "Paste all of the text; a prompt alone goes into its own field.",
        )
    return _from_parameters(text, _Library(folders))


class _Library:
    """Adapter files by name and hash; hashes are read only when a name does not settle it."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self.files = adapters_in(folders)

    def find(self, name: str, digest: str) -> tuple[Path | None, str]:
        """The file and a note: of that name and hash, else of that hash, else of that name."""
        named = self.files.get(name)
        if named and (not digest or _digest(named) == digest):
            return named, ""
        for file in self.files.values() if digest else ():
            if _digest(file) == digest:
                return file, ""
        if named:
            return named, f'The adapter "{name}" here is another version than {digest}.'
        return None, f'The adapter "{name}"{f" ({digest})" if digest else ""} is not here.'


def _exact(request: GenerateRequest) -> str:
    stack = [
        {"name": name, "hash": digest, **weights_told(_without_path(entry)), **_mask_told(entry)}
        for entry in request.stack
        for name, digest in [_named(entry)]
    ]
    shown = dataclasses.replace(request, base=Path(request.base).name, stack=())
    return json.dumps({**json.loads(shown.to_json()), "stack": stack}, ensure_ascii=False)


def _from_exact(text: str, library: _Library, keep_mask: KeepMask | None) -> Restored:
    _check_length(text)
    values, stack = request_object(text)
    entries: list[Entry] = []
    notes: list[str] = []
    for value in stack:
        tag = entry_tag(value, name="name")
        told = value if isinstance(value, dict) else {}
        if not isinstance(digest := told.get("hash"), str):
            raise ConfigError(f'The adapter "{tag.name}" has no hash.', "Write the picture with sdlora.")
        mask = _kept_mask(tag, told.get("mask"), keep_mask)
        _add(entries, notes, library.find(tag.name, digest), tag, mask=mask)
    return Restored(GenerateRequest.of(values, tuple(entries)), tuple(notes))


def _kept_mask(tag: Tag, told: object, keep_mask: KeepMask | None) -> Path | None:
    """The file of the mask that a picture carries for the adapter; None where that cannot be."""
    if tag.change.mask is None or not isinstance(told, str) or keep_mask is None:
        return None
    try:
        return keep_mask(tag.change.mask.name, base64.b64decode(told, validate=True))
    except (AdapterError, binascii.Error, ValueError):
        return None


def _add(
    entries: list[Entry],
    notes: list[str],
    found: tuple[Path | None, str],
    tag: Tag,
    *,
    mask: Path | None = None,
) -> None:
    file, note = found
    if note:
        notes.append(note)
    if tag.change.mask:
        if mask is None:
            notes.append(
                f'The mask "{tag.change.mask.name}" of the adapter "{tag.name}" is not in the picture.'
            )
        tag = tag._replace(change=dataclasses.replace(tag.change, mask=mask))
    try:
        entries += [tag.entry(file)] if file else []
    except SdloraError as error:
        notes.append(f'The adapter "{tag.name}" is left out: {error}')


def _from_parameters(text: str, library: _Library) -> Restored:
    _check_length(text)
    prompt, negative, pairs = _split(text)
    values, notes = _values(pairs)
    entries: list[Entry] = []
    told = (pair.rpartition(": ") for pair in pairs.get("Lora hashes", "").split(", "))
    hashes = {name: digest for name, _, digest in told}
    try:
        prompt, tags = extract_tags(prompt)
    except AdapterError as error:
        tags = ()
        notes.append(str(error))
    for tag in tags:
        _add(entries, notes, library.find(tag.name, hashes.get(tag.name, "")), tag)
    request = GenerateRequest.of({**values, "prompt": prompt, "negative": negative}, tuple(entries))
    return Restored(request, tuple(notes))


def _split(text: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and settings; a last line of fewer than three settings is prompt."""
    *lines, last = text.strip().split("\n")
    pairs = {key.strip(): _unquoted(value.strip()) for key, value in _PAIR.findall(last)}
    if len(pairs) < 3:
        lines, pairs = [*lines, last], {}
    whole = "\n".join(lines)
    prompt, _, negative = ("\n" + whole).partition("\nNegative prompt:")
    return prompt.strip(), negative.strip(), pairs


def _values(pairs: Mapping[str, str]) -> tuple[dict[str, object], list[str]]:
    """Option values of the settings, and a note for each that does not fit."""
    width, _, height = pairs.get("Size", "").partition("x")
    told = {
        "steps": pairs.get("Steps"),
        "guidance": pairs.get("CFG scale"),
        "seed": pairs.get("Seed"),
        "clip_skip": pairs.get("Clip skip"),
        "width": width or None,
        "height": height or None,
        "solver": _solver(pairs),
    }
    values: dict[str, object] = {}
    notes = [f'It was made with the model "{pairs["Model"]}".'] if "Model" in pairs else []
    if told["seed"] == "-1":
        told["seed"] = None
        notes.append("Its seed was left to chance.")
    for path, text in told.items():
        try:
            values |= {path: text} if text and GenerateRequest.of({path: text}) else {}
        except ConfigError as error:
            notes.append(str(error))
    known = _UNTOLD | {"Steps", "CFG scale", "Seed", "Clip skip", "Size", "Sampler"}
    if unknown := sorted(pairs.keys() - known):
        notes.append(f"Not used here: {', '.join(unknown)}.")
    return values, notes


def _solver(pairs: Mapping[str, str]) -> str | None:
    sampler, schedule = pairs.get("Sampler"), pairs.get("Schedule type", "")
    return f"{sampler} Karras" if f"{sampler} {schedule}" in SOLVERS and schedule == "Karras" else sampler


def _without_path(entry: Entry) -> Entry:
    """The same with the name of its mask alone."""
    mask = entry.change.mask
    if mask is None:
        return entry
    return dataclasses.replace(entry, change=dataclasses.replace(entry.change, mask=Path(mask.name)))


def _mask_told(entry: Entry) -> dict[str, str]:
    """The entry's mask itself, so that the picture can be made again elsewhere."""
    if entry.change.mask is None:
        return {}
    held = io.BytesIO()
    try:
        grey(entry.change.mask).save(held, format="PNG", optimize=True)
    except (OSError, ValueError, Image.DecompressionBombError):
        return {}  # it went away while the picture was drawn
    return {"mask": base64.b64encode(held.getvalue()).decode("ascii")}


def _named(entry: Entry) -> tuple[str, str]:
    return re.sub(r"[<>:,]", "", entry.file.stem), _digest(entry.file)


def _digest(file: Path) -> str:
    """The adapter's 12 hex digits; empty when it cannot be read."""
    try:
        return short_hash(AdapterFile.open(file))
    except (AdapterError, OSError):
        return ""


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:\n"') else text


def _unquoted(text: str) -> str:
    try:
        return str(json.loads(text)) if text.startswith('"') else text
    except ValueError:
        return text


def _check_length(text: str) -> None:
    if len(text) > _TEXT_LIMIT:
        raise UserError(
            f"The picture's text is {len(text):,} characters long.", f"Up to {_TEXT_LIMIT:,} are read."
        )
