"""The parts of the documentation that are walks over the code: `python -m tests.documents` writes them anew.

A generated part stands between `<!-- NAME -->` and `<!-- /NAME -->`.
"""

import ast
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def options() -> str:
    """The table of all options of a run."""
    from sdlora.config import TrainConfig
    from sdlora.options import table

    return table(TrainConfig)


def modules() -> str:
    """Every module with the first line of its docstring, folder by folder."""
    lines: list[str] = []
    for package in ("sdlora", "ui"):
        for folder in sorted({path.parent for path in (ROOT / package).rglob("*.py")}):
            name = folder.relative_to(ROOT).as_posix()
            lines += [f"\n**`{name}/`** {_first_line(folder / '__init__.py')}\n"]
            named = sorted(path for path in folder.glob("*.py") if not path.stem.startswith("__"))
            lines += [f"- `{path.name}`: {_first_line(path)}" for path in named]
    return "\n".join(lines).strip() + "\n"


def kohya() -> str:
    """What flags of sd-scripts are called here."""
    from sdlora.commands.kohya import table

    return table()


PARTS: Mapping[tuple[str, str], Callable[[], str]] = {
    ("README.md", "options"): options,
    ("docs/architecture.md", "modules"): modules,
    ("docs/from-kohya.md", "kohya"): kohya,
}


def written(file: str, name: str) -> str:
    """The generated part as it stands in the file."""
    return _split((ROOT / file).read_text(encoding="utf-8"), name)[1]


def write() -> None:
    """Every generated part of the documentation is fresh."""
    for (file, name), make in PARTS.items():
        path = ROOT / file
        text = path.read_text(encoding="utf-8")
        before, _, after = _split(text, name)
        path.write_text(before + make() + after, encoding="utf-8")


def _split(text: str, name: str) -> tuple[str, str, str]:
    """What stands before the part, in it, and after it."""
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, _, rest = text.partition(start)
    part, found, after = rest.partition(end)
    assert found, f"there is no part {name}"
    return before + start, part, end + after


def _first_line(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


if __name__ == "__main__":
    write()
