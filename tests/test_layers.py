"""Imports point one way. The order of the layers is this file's table; docs/architecture.md tells why.

A name in the table is a module or a package of sdlora; a part of a package may have a row of its own.
A new name that is missing here fails the first test.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From the bottom up. A module imports from the rows above its own in this table, and from its own package.
LAYERS = (
    # no torch: `sdlora --help` is instant
    ("errors", "extra_paths", "files", "home", "options", "registry", "text"),
    ("base.files", "contracts", "events", "hashing", "layers", "noise", "runtime"),
    ("base",),  # parts that several families share
    ("adapters", "families", "objectives", "optimizers"),  # plug-ins
    ("config", "loading", "presets", "residence"),
    ("data", "network"),
    ("generation",),
    ("training",),
    ("service",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FLAT = (0, 1)  # the layers whose modules may import one another
PLUGINS = {"adapters", "families", "objectives", "optimizers"}
DATA = {"assets"}  # folders without code

# What of sdlora the page may know.
PAGE_KNOWS = {
    *("config", "errors", "events", "files", "generation", "home", "options", "presets", "service", "text"),
}

# Third parties, each with the modules that may know it.
DOORS = {
    "accelerate": ("sdlora.runtime",),
    "diffusers": ("sdlora.base", "sdlora.families", "sdlora.loading", "sdlora.generation.solvers"),
    "gradio": ("ui",),
    "lycoris": (),
    "peft": (),
    "transformers": ("sdlora.base", "sdlora.families", "sdlora.loading", "sdlora.generation.solvers"),
}


class Arrow(NamedTuple):
    """`source` imports `target`; both are dotted names of modules."""

    source: str
    target: str
    where: str


def sources() -> list[Path]:
    return sorted(path for package in ("sdlora", "ui") for path in (ROOT / package).rglob("*.py"))


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> frozenset[str]:
    return frozenset(map(dotted, sources()))


@cache
def arrows() -> tuple[Arrow, ...]:
    """Every import of sdlora and ui, those inside functions and for type checkers included."""
    return tuple(arrow for path in sources() for arrow in arrows_of(path))


def arrows_of(path: Path) -> Iterator[Arrow]:
    source = dotted(path)
    package = source if path.name == "__init__.py" else source.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"  # the module node has no line
        if isinstance(node, ast.Import):
            yield from (Arrow(source, alias.name, where) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:  # `from sdlora import files` means the module, not the package
                whole = f"{base}.{alias.name}"
                yield Arrow(source, whole if whole in modules() else base, where)


def unit(module: str) -> str:
    """The name in the table: `sdlora.data.items` belongs to `data`; "" is sdlora itself, a version number."""
    name = module.partition(".")[2]
    rows = [row for row in LEVEL if within(name, row)]
    return max(rows, key=len, default=name.partition(".")[0])


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def own_arrows() -> list[Arrow]:
    """The arrows inside sdlora between modules that have a layer."""
    inside = [arrow for arrow in arrows() if {unit(arrow.source), unit(arrow.target)} <= set(LEVEL)]
    return [arrow for arrow in inside if within(arrow.source, "sdlora") and within(arrow.target, "sdlora")]


def told(found: list[Arrow], rule: str) -> str:
    return "\n".join([rule, *(f"  {arrow.where}: {arrow.source} -> {arrow.target}" for arrow in found)])


def test_every_module_has_its_layer() -> None:
    names = {unit(module) for module in modules() if within(module, "sdlora")} - {""}
    unknown = sorted(names - set(LEVEL) - DATA)
    assert not unknown, f"list {unknown} in LAYERS of tests/test_layers.py, in the lowest row that it fits"


def test_imports_point_downward() -> None:
    def wrong(arrow: Arrow) -> bool:
        source, target = unit(arrow.source), unit(arrow.target)
        if source == target:
            return False
        return LEVEL[source] < LEVEL[target] or (LEVEL[source] == LEVEL[target] and LEVEL[source] not in FLAT)

    found = [arrow for arrow in own_arrows() if wrong(arrow)]
    assert not found, told(found, "these imports point upward or sideways")


def test_plugins_never_import_one_another() -> None:
    """One file of a plug-in folder is one whole feature; what two of them need lies below."""

    def wrong(arrow: Arrow) -> bool:
        both = [unit(name) for name in (arrow.source, arrow.target) if name.count(".") == 2]
        return len(both) == 2 and both[0] == both[1] in PLUGINS

    found = [arrow for arrow in own_arrows() if wrong(arrow)]
    assert not found, told(found, "a plug-in imports its neighbour")


def test_no_imports_run_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for arrow in own_arrows():
        if arrow.source != arrow.target and not within(arrow.source, arrow.target):
            graph.setdefault(arrow.source, set()).add(arrow.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these modules import one another: {' -> '.join(error.args[1])}")


def test_the_library_does_not_know_the_page() -> None:
    found = [arrow for arrow in arrows() if within(arrow.source, "sdlora") and within(arrow.target, "ui")]
    assert not found, told(found, "sdlora imports the page")


def test_the_page_knows_little_of_the_library() -> None:
    page = [arrow for arrow in arrows() if within(arrow.source, "ui") and within(arrow.target, "sdlora")]
    found = [arrow for arrow in page if unit(arrow.target) not in PAGE_KNOWS | {""}]
    assert not found, told(found, f"the page may import {sorted(PAGE_KNOWS)} of sdlora, not")


@pytest.mark.parametrize("party", sorted(DOORS))
def test_a_third_party_has_one_door(party: str) -> None:
    found = [
        arrow
        for arrow in arrows()
        if within(arrow.target, party) and not any(within(arrow.source, door) for door in DOORS[party])
    ]
    assert not found, told(found, f"only {DOORS[party] or 'tests'} may import {party}")


def test_the_bottom_does_not_know_torch() -> None:
    bottom = {f"sdlora.{name}" for name in LAYERS[0]}
    found = [arrow for arrow in arrows() if arrow.source in bottom and within(arrow.target, "torch")]
    assert not found, told(found, "the lowest layer imports torch")


@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_the_command_line_answers_without_torch(words: list[str]) -> None:
    code = """
import runpy, sys
sys.argv = ["sdlora", *sys.argv[1:]]
try:
    runpy.run_module("sdlora", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
heavy = {"torch", "numpy", "gradio", "diffusers", "transformers"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
