"""requirements.lock pins everything that is installed, and only what pip can have on every machine."""

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
CUDA = re.compile(r"(nvidia|cuda|triton)\b")


def lock() -> list[Requirement]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def pinned() -> set[str]:
    """The names that the lock pins for this Python on this system."""
    return {canonicalize_name(pin.name) for pin in lock() if pin.marker is None or pin.marker.evaluate()}


def needed(name: str, extras: frozenset[str] = frozenset()) -> set[Requirement]:
    """What an installed package asks for here; nothing if it is not installed."""
    try:
        asked = map(Requirement, distribution(name).requires or ())
    except PackageNotFoundError:
        return set()
    environments = [{"extra": extra} for extra in extras or {""}]
    return {one for one in asked if one.marker is None or any(map(one.marker.evaluate, environments))}


def closure(asked: set[Requirement]) -> set[str]:
    """The names of packages that `asked` bring along, their own included."""
    found: dict[str, frozenset[str]] = {}
    queue = [(one.name, frozenset(one.extras)) for one in asked]
    while queue:
        name, extras = queue.pop()
        name = canonicalize_name(name)
        if name in found and extras <= found[name]:
            continue
        found[name] = extras | found.get(name, frozenset())
        queue += [(one.name, frozenset(one.extras)) for one in needed(name, found[name] | {""})]
    return set(found)


def declared() -> set[Requirement]:
    """What pyproject.toml lists for every user and for the tests, without what is not for this Python."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lists = re.findall(r"^(?:dependencies|test) = \[(.*?)\]$", text, re.DOTALL | re.MULTILINE)
    asked = {Requirement(line) for part in lists for line in re.findall(r'"(.+?)"', part)}
    return {one for one in asked if one.marker is None or one.marker.evaluate()}


def test_the_lock_pins_whatever_is_installed_for_us() -> None:
    brought = {name for name in closure(declared()) if not CUDA.match(name)}
    assert brought - pinned() == set()


def test_each_pin_is_one_version() -> None:
    assert [str(pin) for pin in lock() if [one.operator for one in pin.specifier] != ["=="]] == []


def test_each_name_has_one_pin_for_this_python() -> None:
    here = [canonicalize_name(pin.name) for pin in lock() if pin.marker is None or pin.marker.evaluate()]
    assert sorted(here) == sorted(set(here))


def test_torch_brings_its_own_cuda() -> None:
    assert [pin.name for pin in lock() if CUDA.match(pin.name)] == []


def test_the_lock_is_within_the_declared_ranges() -> None:
    versions = {canonicalize_name(p.name): p for p in lock() if p.marker is None or p.marker.evaluate()}
    wrong = []
    for one in declared():
        (version,) = versions[canonicalize_name(one.name)].specifier
        if not one.specifier.contains(version.version):
            wrong.append(f"{one} but {version}")
    assert wrong == []
