"""The rooms of the package: who may import whom, how large each is, and no circles."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "scratch_vs_pretrain"
NAME = PACKAGE.name

# Rooms that a room may import from, beside itself and the leaves. See docs/architecture.md.
# The public API, which imports on first use what is asked of it, is no room's.
PUBLIC = {NAME}
MAY_IMPORT = {
    "analysis": set(),
    "modeling": set(),
    "data": set(),
    "evaluation": {"data"},
    "pretraining": {"modeling", "data"},
    "training": {"evaluation", "data", "modeling", "pretraining"},
    "study": {"training", "evaluation", "data", "modeling", "pretraining", "analysis"},
    "cli": {"study", "training", "evaluation", "data", "modeling", "pretraining", "analysis"},
}
# Lines, docstrings and blank lines included; "" stands for the modules beside the rooms. Ceilings
# that are lowered whenever a room gets thinner, on the way to 17,000 lines in all.
CEILINGS = {
    "": 2_096,
    "study": 4_181,
    "training": 1_856,
    "evaluation": 911,
    "pretraining": 557,
    "data": 2_670,
    "modeling": 1_668,
    "analysis": 6_465,
    "cli": 1_048,
}
MOST_LINES_OF_A_MODULE = 500
FEW_LINES = 60


def module_name(file):
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}
LINES = {name: len(file.read_text().splitlines()) for name, file in FILES.items()}


def room(module):
    """Returns the folder of a module, or "" for one that lies beside the folders."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else ""


def imports(module, lazy=True):
    """Yields the package's modules that a module imports, within functions too if `lazy`."""
    tree = ast.parse(FILES[module].read_text())
    skipped = set()
    for node in ast.walk(tree):
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        inner = isinstance(node, ast.FunctionDef) and not lazy
        if typing_only or inner:
            skipped.update(ast.walk(node))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(NAME):
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield inside if inside in FILES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)


def test_imports_go_one_way():
    wrong = []
    for module in FILES:
        mine = room(module)
        for other in set(imports(module)):
            theirs = room(other)
            if mine and theirs and theirs != mine and theirs not in MAY_IMPORT[mine]:
                wrong.append(f"{module} imports {other}")
            if not mine and theirs and module not in PUBLIC:
                wrong.append(f"{module}, a leaf, imports {other}")
    assert not wrong, "\n".join(sorted(wrong))


def test_no_circles():
    graph = {module: set(imports(module)) - {module} for module in FILES}
    for module in PUBLIC:
        graph.pop(module)
    done, path = set(), []

    def visit(module):
        if module in path:
            pytest.fail(" -> ".join([*path[path.index(module) :], module]))
        if module in done or module not in graph:
            return
        path.append(module)
        for other in sorted(graph[module]):
            visit(other)
        path.pop()
        done.add(module)

    for module in sorted(graph):
        visit(module)


@pytest.mark.parametrize("name", sorted(CEILINGS))
def test_no_room_grows(name):
    lines = sum(count for module, count in LINES.items() if room(module) == name)
    assert lines <= CEILINGS[name]


def test_no_module_is_long():
    long = {name: lines for name, lines in LINES.items() if lines > MOST_LINES_OF_A_MODULE}
    assert long == {}


def test_no_small_module_has_a_single_importer():
    importers = defaultdict(set)
    for module in FILES:
        for other in imports(module):
            importers[other].add(module)
    lonely = {
        name: lines
        for name, lines in LINES.items()
        if lines < FEW_LINES
        and FILES[name].name not in ("__init__.py", "__main__.py")
        and len(importers[name]) < 2
    }
    assert lonely == {}
