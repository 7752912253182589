"""The limits of the house style that a machine can measure."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CODE = ("sdlora", "ui", "tests")
MODULE_LINES = 400
FUNCTION_LINES = 50  # without the docstring
PARAMETERS = 6  # that can be given by position, `self` not counted
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def trees() -> dict[Path, ast.Module]:
    paths = [ROOT / "launch.py", *(path for folder in CODE for path in (ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(paths)}


def functions() -> Iterator[tuple[str, Function]]:
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, Function):
                yield f"{path}:{node.lineno} {node.name}", node


def length(function: Function) -> int:
    """Lines from `def` to the end, without the docstring."""
    first = function.body[0]
    docstring = span(first) if ast.get_docstring(function, clean=False) is not None else 0
    return span(function) - docstring


def span(node: ast.stmt) -> int:
    assert node.end_lineno is not None  # set by ast.parse
    return node.end_lineno - node.lineno + 1


def positional(function: Function) -> int:
    names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    if any(ast.unparse(decorator).startswith("triton.jit") for decorator in function.decorator_list):
        return 0  # a kernel's numbers can come in no structure
    return len(names) - (names[:1] in (["self"], ["cls"], ["ctx"]))


def test_modules_fit_in_400_lines() -> None:
    lines = {str(path): len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in trees()}
    assert {path: count for path, count in lines.items() if count > MODULE_LINES} == {}


def test_functions_fit_in_50_lines() -> None:
    lines = {where: length(function) for where, function in functions()}
    assert {where: count for where, count in lines.items() if count > FUNCTION_LINES} == {}


def test_functions_take_six_arguments_by_position_at_most() -> None:
    counts = {where: positional(function) for where, function in functions()}
    assert {where: count for where, count in counts.items() if count > PARAMETERS} == {}


def test_every_module_is_named_after_one_thing() -> None:
    assert [str(path) for path in trees() if path.stem in VAGUE] == []


def test_every_module_says_what_it_is_for() -> None:
    ours = {path: tree for path, tree in trees().items() if path.parts[0] != "tests" and tree.body}
    assert [str(path) for path, tree in ours.items() if ast.get_docstring(tree) is None] == []


def test_torch_loads_only_weights() -> None:
    """A pickle runs code: `torch.load` appears nowhere but with `weights_only=True`."""
    nodes = [(path, node) for path, tree in trees().items() for node in ast.walk(tree)]
    calls = [(path, node) for path, node in nodes if isinstance(node, ast.Call)]
    loads = [(path, call) for path, call in calls if ast.unparse(call.func) == "torch.load"]
    assert [f"{path}:{call.lineno}" for path, call in loads if not only_weights(call)] == []


def only_weights(call: ast.Call) -> bool:
    return any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in call.keywords)


def test_the_launcher_can_be_parsed_by_an_old_python() -> None:
    """An old Python must get far enough to say that it is too old."""
    ast.parse((ROOT / "launch.py").read_text(encoding="utf-8"), feature_version=(3, 7))
