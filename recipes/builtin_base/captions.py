"""The words of the captions: style phrases, background colours, subjects, and how they are put together.

The captions name what is in the picture, in the order in which it stands from left to right.
Style and background are each left out at times, so that a prompt may leave them out too; a
caption without a background is mostly of a white one.
"""

from random import Random

STYLES = {"noto": "soft", "fluent-emoji": "glossy", "twemoji": "flat", "noto-v1": "retro"}
"""The adjective that names each pretraining set: "a glossy icon of a cat"."""

COLOURS = {
    "white": (255, 255, 255),
    "black": (18, 18, 20),
    "grey": (150, 152, 156),
    "red": (214, 48, 49),
    "orange": (245, 140, 40),
    "yellow": (250, 215, 70),
    "green": (76, 170, 84),
    "teal": (25, 145, 145),
    "sky blue": (135, 200, 240),
    "blue": (45, 90, 215),
    "purple": (135, 75, 185),
    "pink": (248, 170, 200),
    "brown": (130, 85, 55),
    "cream": (250, 238, 212),
}
"""Background colours, sRGB 0-255, by the name that captions use."""

TINTS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink")
"""Colours that a whole subject is painted in at times: "a purple cat"."""

SYNONYMS = {
    "automobile": ("car",),
    "sport-utility-vehicle": ("suv",),
    "hot-beverage": ("cup of coffee", "cup of tea"),
    "lady-beetle": ("ladybug",),
    "honeybee": ("bee",),
    "doughnut": ("donut",),
    "evergreen-tree": ("pine tree",),
    "deciduous-tree": ("tree",),
    "sauropod": ("dinosaur",),
    "high-voltage": ("lightning bolt",),
    "hamburger": ("burger",),
    "airplane": ("plane",),
    "bicycle": ("bike",),
    "soft-ice-cream": ("ice cream cone",),
    "mobile-phone": ("phone",),
    "television": ("tv",),
    "wrapped-gift": ("gift", "present"),
    "game-die": ("dice",),
    "hot-pepper": ("chili",),
    "water-wave": ("wave",),
    "speech-balloon": ("speech bubble",),
    "crescent-moon": ("moon",),
    "jack-o-lantern": ("pumpkin",),
    "fire-engine": ("fire truck",),
    "red-apple": ("apple",),
    "red-heart": ("heart",),
    "oncoming-automobile": ("front of a car",),
    "t-rex": ("tyrannosaurus",),
    "glowing-star": ("shining star",),
    "alien-monster": ("space invader",),
    "flying-saucer": ("ufo",),
    "blossom": ("yellow flower",),
    "hibiscus": ("flower",),
    "piata": ("pinata",),
}
"""Other names that people use, taught beside the Unicode name."""

_VOWELS = "aeiou"
_NO_ARTICLE = ("s", "rain", "snow", "fire", "rice", "bread", "bacon", "butter", "garlic", "salt")


def phrase(subject: str, rng: Random) -> str:
    """The subject in words, with its article three times out of four: "a red apple"."""
    names = (subject.replace("-", " "), *SYNONYMS.get(subject, ()))
    name = "pinata" if subject == "piata" else rng.choice(names)
    return with_article(name) if rng.random() < 0.75 else name


def with_article(name: str) -> str:
    """The name with "a" or "an" before it, where English has one."""
    if name.endswith(_NO_ARTICLE) and not name.endswith(("ss", "us", "bus")):
        return name
    return f"{'an' if name[0] in _VOWELS else 'a'} {name}"


def caption(subjects: str, style: str | None, background: str | None, rng: Random) -> str:
    """One of several wordings of the same picture; `None` leaves style or background unsaid."""
    icon = f"{style} icon" if style else "icon"
    roll = rng.random()
    if roll < 0.70:
        article = "an" if icon[0] in _VOWELS else "a"
        where = f" on {with_article(background)} background" if background else ""
        return f"{article} {icon} of {subjects}{where}"
    if roll < 0.85 or style:
        parts = (subjects, icon if style else None, f"{background} background" if background else None)
        return ", ".join(p for p in parts if p)
    return f"{subjects} on {with_article(background)} background" if background else subjects
